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

from weft import __version__, confinement, detached, inherited, proc_stat, processes
from weft.errors import Busy, LibraryMissing, WeftError
from weft.peer_credentials import is_trusted, peer_credentials
from weft.version import newer

_ANSWER_TIMEOUT = 2.0  # seconds
_START_TIMEOUT = 30.0  # seconds; in an emulator it takes more than 10
_END_TIMEOUT = 5.0
_SILENT_SECONDS = 5.0  # without an answer and without using a CPU: hung
_LOOK_SECONDS = 0.5  # between two looks at a daemon that does not answer
_PASSED_ON = ("WEFT_CONFIG", "WEFT_FOLLOW")  # of the environment
_LOOKED = "looked"
REFRESHED = f"{_LOOKED}\n{__version__}\n".encode()
"""What a daemon writes after it has re-read its files. weft 0.1 knows only the first line."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon: the module of its ``main``, its purpose, the command that runs it by hand, a library that
    not every installation has.
    """

    module: str
    purpose: str
    command: str
    library: str = ""

    def start(self) -> None:
        """Start it (``start`` below). Raises WeftError."""
        start(self.module, self.purpose, self.library)

    def ensure(self, path: str) -> None:
        """Make the daemon at a control socket re-read its files. Raises WeftError.

        One is started if none runs; one of an older release is stopped first.
        """
        running = self._ask(path)
        if running is not None and not newer(__version__, running.version):
            return
        if running is not None and running.process:  # 0: in another pid namespace
            end(running.process, _END_TIMEOUT)
        self.start()
        deadline = time.monotonic() + _START_TIMEOUT
        while self._ask(path) is None:
            if time.monotonic() > deadline:
                raise WeftError(
                    f"the process that {self.purpose} did not start within {_START_TIMEOUT:g} s",
                    hint=f"run {self.command} to see why; its socket is {path}",
                )
            time.sleep(0.02)

    def _ask(self, path: str) -> Running | None:
        """As ``refresh``, but wait for a daemon that is busy or starting. Raises Busy for one that is
        stopped or hung, which a new one cannot replace while it holds the lock.
        """
        with contextlib.closing(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)) as asked:
            asked.settimeout(_LOOK_SECONDS)
            try:
                asked.connect(path)
                if not is_trusted(asked):
                    return None
            except BlockingIOError:  # its backlog is full
                raise Busy(f"the process that {self.purpose} does not accept connections", hint="try again") from None
            except OSError:
                return None
            process = peer_credentials(asked)[0]
            started, used, last = time.monotonic(), -1, time.monotonic()
            while True:
                with contextlib.suppress(TimeoutError):
                    return _received(asked, process)
                state, ticks, now = *_activity(process), time.monotonic()
                if ticks != used:
                    used, last = ticks, now
                if state in ("T", "t") or now - last > _SILENT_SECONDS or now - started > _START_TIMEOUT:
                    how = "is stopped" if state in ("T", "t") else f"has not answered for {now - started:.0f} s"
                    raise Busy(
                        f"the process that {self.purpose} {how} (pid {process})",
                        hint=f"resume it with kill -CONT {process}, or end it with kill -KILL {process}; try again",
                    )


def start(module: str, purpose: str, library: str = "") -> None:
    """Start a module's ``main`` as a daemon in this thread's network namespace (``weft.detached``).

    Raises WeftError, which names ``purpose``: where the daemon's ``library`` is not installed or its
    configuration invalid, and Busy where this process is under restrictions that the daemon would inherit.
    """
    if library:
        need_library(library, f"the process that {purpose}")
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "MALLOC_ARENA_MAX": "2"}
    environment |= {name: value for name, value in os.environ.items() if name in _PASSED_ON}
    environment[inherited.CHECKED] = str(confinement.own_filters)
    try:
        done = processes.run(detached.program(module), b"", environment=environment, timeout=_START_TIMEOUT)
    except (OSError, TimeoutError) as error:
        raise WeftError(f"cannot start the process that {purpose}: {error}") from error
    if done.status == detached.REFUSED:
        raise Busy(
            f"no process {purpose}, and this one cannot start it, because that would inherit "
            f"{done.errors.decode('utf-8', 'replace').strip()}",
            hint="run it as a service, as in conf/systemd",
        )

    if done.status == detached.INVALID:
        raise WeftError(
            f"no process {purpose}, and none can be started: {done.errors.decode('utf-8', 'replace').strip()}",
            hint="correct its configuration",
        )


def need_library(library: str, purpose: str) -> None:
    """Raise LibraryMissing, naming ``purpose``, where a library of an extra is not installed. Imports nothing."""
    if not any(os.path.isdir(os.path.join(folder, library)) for folder in sys.path):
        raise LibraryMissing(library, purpose)


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
            return _received(connection, peer_credentials(connection)[0])
        except OSError:
            return None


def _received(connection: _socket.socket, process: int) -> Running | None:
    """The daemon's answer, None for another program's. Raises TimeoutError."""
    try:
        answer = connection.recv(64).decode("ascii", "replace").splitlines()
    except ConnectionError:
        return None
    if answer[:1] != [_LOOKED]:
        return None
    return Running(process, answer[1] if len(answer) > 1 else "")


def _activity(process: int) -> tuple[str, int]:
    """A process's state and the clock ticks that it has run."""
    try:
        fields = proc_stat.fields(process)
    except OSError:
        return "", 0
    return fields[0], int(fields[11]) + int(fields[12])
