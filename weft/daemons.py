"""Daemons that attachments need, started on demand: the DHCP keeper and the agent.

Each listens on a control socket in its folder below ``/run/weft``. A connection makes it re-read
its files; it then writes ``REFRESHED`` and closes. A daemon of an older release is replaced.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import sys
import time
from dataclasses import dataclass

from weft import __version__, processes
from weft.errors import WeftError
from weft.peer_credentials import is_trusted, peer_credentials
from weft.version import newer

_SYSTEMD_RUN = "/usr/bin/systemd-run"
_ANSWER_TIMEOUT = 2.0  # seconds
_START_TIMEOUT = 30.0  # seconds; in an emulator it takes more than 10
_END_TIMEOUT = 5.0
_LOOKED = "looked"
REFRESHED = f"{_LOOKED}\n{__version__}\n".encode()
"""What a daemon writes after it has re-read its files. weft 0.1 knows only the first line."""
_PROGRAM = (
    "import os, sys; os.fork() and os._exit(0); os.closerange(3, 4096); os.chdir('/'); "
    "sys.path[:] = eval(sys.argv.pop(1)); from {module} import main; sys.exit(main([]))"
)


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon: the module of its ``main``, its purpose, the command that runs it by hand."""

    module: str
    purpose: str
    command: str

    def ensure(self, path: str) -> None:
        """Make the daemon at a control socket re-read its files. Raises WeftError.

        One is started if none runs; one of an older release is stopped first.
        """
        running = refresh(path)
        if running is not None and not newer(__version__, running.version):
            return
        if running is not None and running.process:  # 0: in another pid namespace
            end(running.process, _END_TIMEOUT)
        start(self.module, self.purpose)
        deadline = time.monotonic() + _START_TIMEOUT
        while refresh(path) is None:
            if time.monotonic() > deadline:
                raise WeftError(
                    f"the process that {self.purpose} did not start within {_START_TIMEOUT:g} s",
                    hint=f"run {self.command} to see why; its socket is {path}",
                )
            time.sleep(0.02)


def start(module: str, purpose: str) -> None:
    """Start a module's ``main`` as a daemon in this thread's network namespace.

    It is detached (double fork, setsid, standard descriptors on /dev/null, in a systemd scope of
    its own where systemd runs). Raises WeftError, which names ``purpose``.
    """
    argv = [sys.executable, "-IBSc", _PROGRAM.format(module=module), repr(sys.path)]
    if os.path.exists("/run/systemd/system") and os.path.exists(_SYSTEMD_RUN):
        argv[:0] = [_SYSTEMD_RUN, "--quiet", "--scope", "--collect"]
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "MALLOC_ARENA_MAX": "2"}
    environment |= {name: value for name, value in os.environ.items() if name == "WEFT_CONFIG"}
    try:
        processes.spawn(argv, environment, detached=True)  # ends at once: the daemon is its child, reparented to init
    except OSError as error:
        raise WeftError(f"cannot start the process that {purpose}: {error.strerror}") from error


def end(process: int, seconds: float) -> bool:
    """Send SIGTERM and wait; whether the process exited within ``seconds``.

    Source: ``pidfd_open(2)``.
    """
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
class Running:
    """A daemon that has re-read its files: its pid, and its release ("" before 0.2)."""

    process: int
    version: str


def refresh(path: str, timeout: float = _ANSWER_TIMEOUT) -> Running | None:
    """Make the daemon that listens at a path re-read its files; None if no trusted one answers in
    ``timeout`` seconds.
    """
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    with contextlib.closing(connection):
        connection.settimeout(timeout)
        try:
            connection.connect(path)
            if not is_trusted(connection):
                return None
            process, _, _ = peer_credentials(connection)
            answer = connection.recv(64).decode("ascii", "replace").splitlines()
        except OSError:
            return None
    if answer[:1] != [_LOOKED]:
        return None
    return Running(process, answer[1] if len(answer) > 1 else "")
