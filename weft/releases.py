"""One release of weft at a time in a network namespace: a newer one lets the calls of the older one end
first.

Releases may install other nftables rules. A call of the older release that is still running would find
the newer rules wrong and install its own again, without the elements of sets that it does not know. So
the first process of a newer release asks engines of older ones to end (SIGTERM: they finish their
calls), waits for them and for calls that run in processes of their own, and only then notes its release
in ``/run/weft/<inode>/engine.release``.
"""

from __future__ import annotations

import contextlib
import os
import select
import time

import weft
from weft import __version__, events, files, proc_stat
from weft.errors import StateDamaged
from weft.version import newer

_FILE = "engine.release"
_ENGINES = (b"weft-engine", b"cni_plugin.engine.main")
_PROGRAMS = (*_ENGINES, b"weft-plugin")
_MAX_WAIT_SECONDS = 20.0


def supersede(folder: str) -> None:
    """Be the release of this network namespace, whose state is in ``folder``; wait for older ones at
    first.

    Costs one read of a small file once that is done. Raises nothing: without the file it is done again.
    """
    path = f"{folder}/{_FILE}"
    try:
        if not newer(__version__, files.read(path, 64).decode()):
            return
    except (OSError, ValueError):
        pass
    others, begun = _others(), time.monotonic()
    _wait_for(others)
    if others:
        fields: dict[str, events.Value] = {"what": "release", "from": f"process {', '.join(map(str, others))}"}
        fields |= {"by": f"process {os.getpid()}", "why": f"release {__version__} is newer"}
        events.record(folder, "takeover", fields | {"ms": round(1000 * (time.monotonic() - begun), 1)})
    with contextlib.suppress(StateDamaged):  # two that write at once write the same
        files.make_directory(folder, "its state")
        files.write(path, __version__.encode(), "the release")


def is_current(folder: str) -> bool:
    """Whether this process is of the release that has used this network namespace last."""
    try:
        return files.read(f"{folder}/{_FILE}", 64).decode() == __version__
    except (OSError, ValueError):
        return False


def _others() -> dict[int, bool]:
    """The processes of other releases in this network namespace, by their ids; True for an engine's
    first process.
    """
    here = os.stat("/proc/thread-self/ns/net")
    own = _program(_command_line(os.getpid()))
    replaced = os.stat(weft.__file__).st_mtime
    found: dict[int, bool] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        process = int(name)
        line = _command_line(process)
        if process == os.getpid() or not any(program in line for program in _PROGRAMS):
            continue
        with contextlib.suppress(OSError):
            there = os.stat(f"/proc/{name}/ns/net")
            if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
                continue
            if _program(line) != own or _started(process) < replaced:
                found[process] = any(program in line for program in _ENGINES)
    parents = {}
    for process in found:
        with contextlib.suppress(OSError):
            parents[process] = _parent(process)
    return {process: found[process] and parent not in found for process, parent in parents.items()}


def _command_line(process: int) -> bytes:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def _program(line: bytes) -> bytes:
    """The folder of the script that a process runs, b"" where it runs none of weft's."""
    scripts = [part for part in line.split(b"\0") if part.endswith((b"/weft-engine", b"/weft-plugin"))]
    return os.path.dirname(scripts[0]) if scripts else b""


def _parent(process: int) -> int:
    """Source: ``proc_pid_stat(5)``, ppid."""
    return int(proc_stat.fields(process)[1])


def _started(process: int) -> float:
    """When a process started, in seconds of the wall clock. Source: ``proc_pid_stat(5)``, starttime."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + int(proc_stat.fields(process)[19]) / os.sysconf("SC_CLK_TCK")


def _wait_for(processes: dict[int, bool]) -> None:
    """Wait until the processes have ended, those marked True after SIGTERM. Source: ``pidfd_open(2)``."""
    if not processes:
        return
    import signal

    descriptors = []
    poll = select.poll()
    try:
        for process, first in processes.items():
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(process)
                descriptors.append(descriptor)
                poll.register(descriptor, select.POLLIN)
                if first:
                    signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        left = len(descriptors)
        deadline = time.monotonic() + _MAX_WAIT_SECONDS
        while left and (seconds := deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(seconds * 1000):
                poll.unregister(descriptor)
                left -= 1
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
