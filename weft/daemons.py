"""Long-lived processes that some attachments need: the keeper of DHCP leases, the agent that answers names.

Each listens on a socket in its folder of ``/run/weft``. Who connects there asks it to look at its files now, and is
told when it has. Where nobody answers, it is started.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from dataclasses import dataclass

from weft.errors import WeftError

_SYSTEMD_RUN = "/usr/bin/systemd-run"
_ANSWER_SECONDS = 2.0
_START_SECONDS = 10.0
REFRESHED = b"looked\n"
"""What a daemon says once it has looked at its files."""
_PROGRAM = (
    "import os, sys; os.fork() and os._exit(0); os.closerange(3, 4096); os.chdir('/'); "
    "sys.path[:] = eval(sys.argv.pop(1)); from {module} import main; sys.exit(main([]))"
)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process: the module whose ``main`` it is, what it does (for messages), the command that runs it by hand."""

    module: str
    purpose: str
    command: str

    def ensure(self, path: str) -> None:
        """Have it look at its files: the one that is there, or a new one. Raises WeftError where none starts."""
        if refresh(path):
            return
        start(self.module, self.purpose)
        deadline = time.monotonic() + _START_SECONDS
        while not refresh(path):
            if time.monotonic() > deadline:
                raise WeftError(
                    f"the process that {self.purpose} does not start",
                    hint=f"{self.command} says why; its socket is {path}",
                )
            time.sleep(0.02)


def start(module: str, purpose: str) -> None:
    """Start a module's ``main`` in a process that outlives this one, holding nothing of ours open.

    It is in this thread's network namespace. Raises WeftError, saying that what ``purpose`` names cannot be started.
    """
    argv = [sys.executable, "-IBSc", _PROGRAM.format(module=module), repr(sys.path)]
    if os.path.exists("/run/systemd/system") and os.path.exists(_SYSTEMD_RUN):
        argv[:0] = [_SYSTEMD_RUN, "--quiet", "--scope", "--collect"]
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "MALLOC_ARENA_MAX": "2"}
    environment |= {name: value for name, value in os.environ.items() if name == "WEFT_CONFIG"}
    nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    try:
        child = os.posix_spawn(argv[0], argv, environment, file_actions=nothing, setsid=True)
        os.waitpid(child, 0)  # it ends at once: its own child is the daemon, and nobody's
    except OSError as error:
        raise WeftError(f"cannot start the process that {purpose}: {error.strerror}") from error


def end(process: int, seconds: float) -> bool:
    """Ask a process to end (SIGTERM) and wait; whether it has within so many seconds. Source: ``pidfd_open(2)``."""
    import signal

    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(descriptor)


def refresh(path: str) -> bool:
    """Whether a daemon of this user's listens there and has looked at its files now."""
    import socket

    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(path)
            given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            user = int.from_bytes(given[4:8], sys.byteorder)
            return user in (0, os.geteuid()) and connection.recv(len(REFRESHED)) == REFRESHED
        except OSError:
            return False
