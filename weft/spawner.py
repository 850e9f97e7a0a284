"""The process that starts a daemon's workers: processes that parse what others send, and have no
capability, no file and another user.

It is forked before the daemon confines itself, with everything imported, and keeps the capabilities to
become another user and no others. It takes two requests, from its daemon alone. A worker that has died
is replaced in milliseconds, by a fork of a process without threads. It ends with its daemon, and all
workers with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import resource
import select
import signal
import socket
from collections.abc import Callable, Mapping

from weft import confinement
from weft.capabilities import SPAWNER
from weft.errors import WeftError

log = logging.getLogger(__name__)

NOBODY = 65534
"""The user of workers: the kernel's overflow uid, which owns no file."""
_MOST_BYTES = 64  # of a request
_ANSWER_SECONDS = 5.0
_SET_PDEATHSIG, _SET_NAME = 1, 15  # linux/prctl.h

Work = Callable[[socket.socket], None]
"""What a worker does with its end of the pair; it confines itself before it reads from it."""

Prepare = Callable[[], Work]
"""Imports and reads what the worker needs, before it becomes another user."""


class Spawner:
    """In the daemon: starts and ends workers, by the names in ``workers``. One thread uses it."""

    def __init__(self, workers: Mapping[str, Prepare], preload: Callable[[], object] | None = None) -> None:
        """Fork it. Call it before the first thread starts. It calls ``preload`` while the daemon starts, and
        all workers have what that imports. Raises OSError.
        """
        self._control, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gc.collect()
        gc.freeze()
        self.process = os.fork()
        if not self.process:
            status = 1
            try:
                self._control.close()
                _Process(end, workers).run(preload)
                status = 0
            finally:
                os._exit(status)
        gc.unfreeze()
        end.close()
        self._control.settimeout(_ANSWER_SECONDS)

    def start(self, name: str) -> tuple[int, socket.socket]:
        """Start a worker: its process id, and the daemon's end of the pair. Raises WeftError."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with other:
            try:
                return self._ask(f"start {name}", other), own
            except BaseException:
                own.close()
                raise

    def kill(self, process: int) -> None:
        """Kill a worker and wait for its end; one that has ended is no error. Raises WeftError."""
        self._ask(f"kill {process}")

    def close(self) -> None:
        """End it and its workers, and wait for that."""
        self._control.close()
        descriptor = os.pidfd_open(self.process)
        if select.select([descriptor], [], [], _ANSWER_SECONDS)[0]:  # not while it is stopped
            os.waitpid(self.process, 0)
        os.close(descriptor)

    def _ask(self, request: str, *sockets: socket.socket) -> int:
        try:
            socket.send_fds(self._control, [request.encode()], [one.fileno() for one in sockets])
            answer = self._control.recv(_MOST_BYTES)
        except OSError as error:
            raise WeftError(f"the process that starts workers does not answer: {error}") from error
        if not answer.isdigit():
            raise WeftError(f"cannot {request}: {answer.decode('utf-8', 'replace') or 'the starting process ended'}")
        return int(answer)


class _Process:
    """The process itself."""

    def __init__(self, control: socket.socket, workers: Mapping[str, Prepare]) -> None:
        self._control = control
        self._workers = workers
        self._running: set[int] = set()
        self._libc = ctypes.CDLL(None)

    def run(self, preload: Callable[[], object] | None) -> None:
        """Serve until the daemon ends. A service manager's SIGTERM is for the daemon, which then ends this."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        _close_others(self._control)
        self._libc.prctl(_SET_NAME, b"weft-spawner", 0, 0, 0)
        confinement.confine(SPAWNER)
        if preload is not None:
            with contextlib.suppress(ImportError):  # of the worker that needs it, which says so
                preload()
            gc.collect()
            gc.freeze()
        while True:
            request, descriptors, _, _ = socket.recv_fds(self._control, _MOST_BYTES, 1)
            self._reap()
            if not request:
                for process in tuple(self._running):
                    self._kill(process)
                return
            word, _, about = request.decode().partition(" ")
            try:
                answer = self._start(about, descriptors[0]) if word == "start" else self._kill(int(about))
                self._control.send(b"%d" % answer)
            except OSError as error:
                self._control.send(str(error).encode()[:_MOST_BYTES])
            for one in descriptors:
                os.close(one)

    def _start(self, name: str, descriptor: int) -> int:
        if name not in self._workers:
            raise OSError("no such worker")
        process = os.fork()
        if not process:
            status = 1
            try:
                self._become_worker(name, descriptor)
                status = 0
            except BaseException:
                log.exception("the worker %s failed", name)
            finally:
                os._exit(status)
        self._running.add(process)
        return process

    def _become_worker(self, name: str, descriptor: int) -> None:
        parent = os.getppid()
        end = socket.socket(fileno=descriptor)  # is closed by exit
        _close_others(end)
        work = self._workers[name]()
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        confinement.bound(())
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except PermissionError:  # a confined engine has started the agent
            log.warning("the worker %s runs as user %d: this agent may not become another user", name, os.geteuid())
        # After the change of user, which resets it. A parent that has died before is noticed by the pair's end.
        self._libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        self._libc.prctl(_SET_NAME, f"weft-{name}".encode(), 0, 0, 0)
        if os.getppid() == parent:
            work(end)

    def _kill(self, process: int) -> int:
        if process in self._running:
            killer = os.fork()
            if not killer:
                try:
                    _kill_as_its_user(process)
                finally:
                    os._exit(0)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(killer, 0)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, 0)
            self._running.discard(process)
        return 0

    def _reap(self) -> None:
        for process in tuple(self._running):
            with contextlib.suppress(ChildProcessError):
                if not os.waitpid(process, os.WNOHANG)[0]:
                    continue
            self._running.discard(process)


def _kill_as_its_user(process: int) -> None:
    """Kill a process that has this one's user, or is nobody by now: without CAP_KILL nobody else may."""
    try:
        os.kill(process, signal.SIGKILL)
    except PermissionError:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.kill(process, signal.SIGKILL)


def _close_others(kept: socket.socket) -> None:
    """Close all descriptors but this one and the standard ones."""
    os.closerange(3, kept.fileno())
    os.closerange(kept.fileno() + 1, 1 << 20)
