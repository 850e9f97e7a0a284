"""Executes another project's plugin: the IPAM plugin that a configuration names.

The only module that starts a process during an ADD, and only for a foreign ``ipam.type``.
Source: CNI specification section 4, "Plugin delegation".
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial

from weft import processes, stderr
from weft.errors import ConfigProblem, PluginFailed

TIMEOUT = 120
"""Seconds for a foreign plugin: dhcp waits for its server."""

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, linux/prctl.h


def find(name: str, path: Sequence[str]) -> str:
    """The plugin's executable in the folders of CNI_PATH.

    Raises ConfigProblem for a name with a slash (CVE-2021-20206) and PluginFailed where no folder has
    it.
    """
    if not name or "/" in name or name in (".", "..") or "\0" in name:
        raise ConfigProblem(f"ipam.type {json.dumps(name)} is not a plugin name")
    for folder in path:
        candidate = os.path.join(folder, name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    raise PluginFailed(
        f"failed to find plugin {json.dumps(name)} in path [{' '.join(path)}]",
        hint="install the plugin, or use ipam type host-local, static or none",
    )


def call(
    name: str, command: str, variables: Mapping[str, str], stdin: bytes, *, environment: Mapping[str, str] | None = None
) -> bytes:
    """Execute the plugin; its standard output. Its error object is raised with its own code.

    ``environment`` is the caller's, by default this process's; ``variables`` are added to it.

    The child is killed with its caller, so that it cannot reserve an address after the DEL.
    Raises PluginFailed where it cannot be executed, fails, or exceeds TIMEOUT.
    """
    environment = {**(environment or os.environ), **variables, "CNI_COMMAND": command}
    executable = find(name, [folder for folder in environment.get("CNI_PATH", "").split(":") if folder])
    try:
        done = processes.run(
            [executable], stdin, environment=environment, timeout=TIMEOUT, before_execve=partial(_die_with, os.getpid())
        )
    except TimeoutError as error:
        raise PluginFailed(f"the IPAM plugin {name} timed out on {command} after {TIMEOUT} s") from error
    except OSError as error:
        raise PluginFailed(f"the IPAM plugin {executable} cannot be executed: {error.strerror}") from error
    if done.errors:
        stderr.write(done.errors)
    if done.status:
        raise _failure(name, command, done.output, done.status)
    return done.output


def _die_with(caller: int) -> None:
    """In the child: be killed with the caller. Source: ``PR_SET_PDEATHSIG(2const)``."""
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != caller:  # it was killed between fork and prctl
        os._exit(1)


def _failure(name: str, command: str, stdout: bytes, status: int) -> PluginFailed:
    try:
        said = json.loads(stdout)
        return PluginFailed(
            f"the IPAM plugin {name} failed: {said['msg']}",
            hint=str(said.get("details", "")),
            code=int(said["code"]) or PluginFailed.code,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return PluginFailed(f"the IPAM plugin {name} failed {command} with exit status {status} and no error message")
