"""The processes of one engine: the first, which is always there, and helpers that take calls when there are many.

Python's threads share one interpreter, so 64 calls at once would use one processor. Helpers part from the first process
when all is imported and no thread runs yet, so that they share its memory; one that is not called sleeps, and costs
what it has changed of that memory. Serial calls are all the first process's: it stays warm, and the others asleep.
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

MOST = 3
"""Processes: the kernel's lock of links, which all wait for, leaves no more to do at once, and each that has worked has
20 MiB of its own."""
_AWAKE = 0.05  # seconds that a helper looks out for more, once it was called


class Team:
    """What one process knows of the others. Of the first, ``helpers`` are the process ids; of a helper, it is empty."""

    def __init__(self, listener: socket.socket) -> None:
        self.helpers: list[int] = []
        self._listener = listener
        self._call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._life, self._life_end = os.pipe2(os.O_CLOEXEC)
        self._turn = allocate_lock()
        self.is_helper = self._awake = False

    def part(self, count: int, work: Callable[[], None]) -> None:
        """Make so many helpers, which do the work and end. No thread may run yet. Fewer where there is no room."""
        with contextlib.suppress(OSError):
            for _ in range(count):
                child = os.fork()
                if child:
                    self.helpers.append(child)
                    continue
                status = 1
                try:
                    self.helpers, self.is_helper = [], True
                    os.close(self._life_end)
                    work()
                    status = 0
                finally:
                    os._exit(status)

    @property
    def life(self) -> list[int]:
        """What becomes readable when this process is to end with the first one."""
        return [self._life] if self.is_helper else []

    def call(self) -> None:
        """There is more to do than this process can."""
        if self.helpers or self.is_helper:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._call, 1)

    def watch(self, drain: int) -> None:
        """Be ready to wait: in the process that waits, before its first thread does."""
        self._open, self._called = select.epoll(), select.epoll()
        for here in (self._open, self._called):
            here.register(drain, select.EPOLLIN)
        self._open.register(self._listener, select.EPOLLIN | (0 if self.is_helper else select.EPOLLONESHOT))
        self._called.register(self._call, select.EPOLLIN)

    def wait(self) -> None:
        """Wait for a connection, as a helper for being called, or until there is something to read from the drain.

        Many threads may wait, one has the turn when it returns, until it passes it on. Of the first process's threads
        the kernel wakes that one only, the last that came to wait (EPOLLONESHOT, epoll(7)): a call costs half a
        millisecond more where another thread is woken to wait in its place.
        """
        if not self.is_helper:
            self._open.poll(maxevents=1)
            return
        self._turn.acquire()
        if self._awake and self._open.poll(_AWAKE, 1):
            return
        self._awake = False
        self._called.poll(maxevents=1)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._call)
            self._awake = True

    def pass_on(self) -> None:
        """What was there has been taken: the next connection is another's."""
        if self.is_helper:
            self._turn.release()
        else:
            self._open.modify(self._listener, select.EPOLLIN | select.EPOLLONESHOT)

    def dismiss(self) -> None:
        """Let the helpers end, when what they have taken on is done."""
        if self.helpers:
            os.close(self._life_end)

    def bury(self, until: float) -> None:
        """See the helpers end, and end them at ``until`` (monotonic)."""
        while self.helpers:
            if time.monotonic() > until:
                for helper in self.helpers:
                    os.kill(helper, signal.SIGKILL)
            time.sleep(0.005)
            self.miss()

    def miss(self) -> None:
        """Notice helpers that have ended by themselves: the others go on."""
        for helper in [*self.helpers]:
            try:
                ended = os.waitpid(helper, os.WNOHANG)[0] != 0
            except ChildProcessError:
                ended = True
            if ended:
                self.helpers.remove(helper)


def processes() -> int:
    """How many processes an engine has on this machine."""
    return min(MOST, len(os.sched_getaffinity(0)))
