"""The processes of one engine: the main process, and forked helpers that accept connections under load.

The GIL lets the threads of one process use one CPU, so 64 calls at once would use one. The main process
forks its helpers when everything is imported and before any thread runs, so they share its memory; an
idle helper sleeps and costs only the pages it has changed. Sequential calls are all served by the main
process, whose caches stay warm.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from _thread import allocate_lock
from collections.abc import Callable

MOST_PROCESSES = 3
"""More do not help: all of them wait for RTNL, and each process that has served calls has 20 MiB of its
own.
"""
_POLL_SECONDS = 0.05  # for which a helper polls the listener after it was woken


class ProcessGroup:
    """One process's view of the engine's processes: the accept turn, and in the main process the
    helpers.

    ``helpers`` are the process ids of the helpers; empty in a helper.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.helpers: list[int] = []
        self._listener = listener
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lifeline, self._lifeline_end = os.pipe2(os.O_CLOEXEC)
        self._accept_turn = allocate_lock()
        self.is_helper = self._is_awake = False

    def fork_helpers(self, count: int, run: Callable[[], None]) -> None:
        """Fork helpers that call ``run`` and exit. No thread may run yet. Fewer than ``count`` where
        fork fails.
        """
        with contextlib.suppress(OSError):
            for _ in range(count):
                child = os.fork()
                if child:
                    self.helpers.append(child)
                    continue
                status = 1
                try:
                    self.helpers, self.is_helper = [], True
                    os.close(self._lifeline_end)
                    run()
                    status = 0
                finally:
                    os._exit(status)

    @property
    def lifeline(self) -> list[int]:
        """In a helper, the descriptor that becomes readable when the main process stops or dies."""
        return [self._lifeline] if self.is_helper else []

    def wake_helper(self) -> None:
        """Wake a helper: this process has as many calls as it can serve."""
        if self.helpers or self.is_helper:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._wakeup, 1)

    def prepare_to_wait(self, drain: int) -> None:
        """Create the epoll instances, in the process that uses them and before its first thread starts."""
        self._connections, self._wakeups = select.epoll(), select.epoll()
        for epoll in (self._connections, self._wakeups):
            epoll.register(drain, select.EPOLLIN)
        self._connections.register(self._listener, select.EPOLLIN | (0 if self.is_helper else select.EPOLLONESHOT))
        self._wakeups.register(self._wakeup, select.EPOLLIN)

    def wait(self) -> None:
        """Wait for a connection, in a helper first for a wakeup, or until ``drain`` becomes readable.

        Of many waiting threads one returns with the accept turn and keeps it until ``pass_turn``. In
        the main process the kernel wakes only that thread, the one that began to wait last
        (EPOLLONESHOT, epoll(7)): waking a second thread to wait in its place costs a call half a
        millisecond.
        """
        if not self.is_helper:
            self._connections.poll(maxevents=1)
            return
        self._accept_turn.acquire()
        if self._is_awake and self._connections.poll(_POLL_SECONDS, 1):
            return
        self._is_awake = False
        self._wakeups.poll(maxevents=1)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wakeup)
            self._is_awake = True

    def pass_turn(self) -> None:
        """The connection has been accepted: let the next waiting thread have the turn."""
        if self.is_helper:
            self._accept_turn.release()
        else:
            self._connections.modify(self._listener, select.EPOLLIN | select.EPOLLONESHOT)

    def stop_helpers(self) -> None:
        """Tell the helpers to finish the calls they serve and exit."""
        if self.helpers:
            os.close(self._lifeline_end)

    def wait_or_kill(self, deadline: float) -> None:
        """Wait for the helpers to exit, and kill them at ``deadline`` (monotonic)."""
        while self.helpers:
            if time.monotonic() > deadline:
                for helper in self.helpers:
                    os.kill(helper, signal.SIGKILL)
            time.sleep(0.005)
            self.reap()

    def reap(self) -> None:
        """Reap helpers that have exited; the engine goes on without them."""
        for helper in [*self.helpers]:
            try:
                exited = os.waitpid(helper, os.WNOHANG)[0] != 0
            except ChildProcessError:
                exited = True
            if exited:
                self.helpers.remove(helper)


def process_count() -> int:
    """How many processes an engine has on this machine: one for each CPU, at most ``MOST_PROCESSES``."""
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
