"""How a daemon that a call has started leaves its caller: as a transient service where systemd runs, else
with everything reset that it has inherited (``weft.inherited``).

Where something cannot be reset it does not start, and the callers do its work themselves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module

from weft import inherited, processes, stderr
from weft.capabilities import NEEDED, Capability
from weft.errors import Busy, WeftError

SYSTEMD_RUN = "/usr/bin/systemd-run"
REFUSED = 75
"""The exit status of a daemon that does not start because of its caller: EX_TEMPFAIL of sysexits.h."""
INVALID = 78
"""The exit status where a daemon's configuration cannot be used: EX_CONFIG."""

_PLACED = "WEFT_PLACED"
_SETTINGS = {"cni_plugin.agent.main": "cni_plugin.agent.settings"}
"""The module that reads a daemon's configuration, by its ``read``."""
_PROPERTIES = ("KillMode=mixed", "TimeoutStopSec=200", "LimitNOFILE=65536", "TasksMax=512")
_PROGRAM = "import sys; sys.path[:] = eval(sys.argv.pop(1)); from weft.detached import run; run({module!r})"


def program(module: str) -> list[str]:
    """The command that runs a module's ``main`` as a daemon; it returns once that is on its way."""
    return [sys.executable, "-IBSc", _PROGRAM.format(module=module), repr(sys.path)]


def run(module: str) -> None:
    """The process of ``program``. Does not return."""
    if module in _SETTINGS and _PLACED not in os.environ:
        try:  # while its caller can be told
            import_module(_SETTINGS[module]).read()
        except WeftError as error:
            stderr.write(error.message)
            os._exit(INVALID)
    try:
        is_service = settle(NEEDED[module])
    except Busy as error:
        stderr.write(error.message)
        os._exit(REFUSED)
    if not is_service and os.fork():
        os._exit(0)
    if not is_service:
        os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.closerange(3, 1 << 20)
    sys.exit(import_module(module).main([]))


def settle(capabilities: Iterable[Capability]) -> bool:
    """Make this process independent of its caller; whether systemd runs it as a service.

    Where systemd takes it, it is executed again and this does not return. Raises Busy, whose message is
    a list of what cannot be reset.
    """
    placed = os.environ.pop(_PLACED, "")
    if not placed and os.path.exists(inherited.SYSTEMD) and os.path.exists(SYSTEMD_RUN):
        _execute_by_systemd()
    inherited.reset()
    if found := inherited.obstacles(capabilities):
        raise Busy(", ".join(found))
    return placed == "service"


def _execute_by_systemd() -> None:
    """Execute this process's command line as a service; in another network or mount namespace than
    systemd's in a scope, which changes the cgroup only. Returns where systemd does not answer.
    """
    with open("/proc/self/cmdline", "rb") as file:
        argv = [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
    common = [SYSTEMD_RUN, "--quiet", "--collect"]
    variables = {name: os.environ[name] for name in inherited.KEPT_VARIABLES if name in os.environ}
    if inherited.is_like_init("net", "mnt"):
        settings = [f"--property={each}" for each in _PROPERTIES]
        settings += [f"--setenv={name}={value}" for name, value in (variables | {_PLACED: "service"}).items()]
        if processes.spawn([*common, "--service-type=exec", *settings, "--", *argv], variables, detached=True) == 0:
            os._exit(0)
    elif processes.spawn([*common, "--scope", "true"], variables, detached=True) == 0:
        os.execve(SYSTEMD_RUN, [*common, "--scope", "--", *argv], variables | {_PLACED: "scope"})
