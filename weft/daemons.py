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

from weft import __version__
from weft.errors import WeftError
from weft.version import newer

_SYSTEMD_RUN = "/usr/bin/systemd-run"
_ANSWER_SECONDS = 2.0
_START_SECONDS = 10.0
_END_SECONDS = 5.0
_LOOKED = "looked"
REFRESHED = f"{_LOOKED}\n{__version__}\n".encode()
"""What a daemon answers once it has read its files: weft 0.1 reads and sends the first line alone."""
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
        """Have it read its files; it is started where none runs, and replaced where an older release runs.

        Raises WeftError where none starts.
        """
        found = refresh(path)
        if found is not None and not newer(__version__, found.version):
            return
        if found is not None and found.process:  # 0: it runs in another process namespace
            end(found.process, _END_SECONDS)
        start(self.module, self.purpose)
        deadline = time.monotonic() + _START_SECONDS
        while refresh(path) is None:
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


@dataclass(frozen=True, slots=True)
class Answer:
    """A daemon that has read its files: its process id, and its release ("" for those before 0.2)."""

    process: int
    version: str


def refresh(path: str) -> Answer | None:
    """Have the daemon behind a socket read its files; None where none of root's or this user's answers in time.

    Source: ``unix(7)``, SO_PEERCRED.
    """
    import socket

    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(path)
            given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            process, user = (int.from_bytes(given[at : at + 4], sys.byteorder) for at in (0, 4))
            answer = connection.recv(64).decode("ascii", "replace").splitlines()
        except OSError:
            return None
    if user not in (0, os.geteuid()) or answer[:1] != [_LOOKED]:
        return None
    return Answer(process, answer[1] if len(answer) > 1 else "")
