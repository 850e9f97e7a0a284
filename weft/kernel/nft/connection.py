"""What commands and questions to nftables go through: libnftables (else the ``nft`` program) and a netlink socket, in
the network namespace where they were opened.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from collections.abc import Callable
from typing import TypeVar

from weft.errors import KernelRefused
from weft.kernel.nft.library import Answer, Runner, enter_namespace, leave_namespace, refuse
from weft.kernel.nft.socket import NftSocket

T = TypeVar("T")

_ATTEMPTS = 5
_INTERRUPTED = "Interrupted system call"  # the rules changed while nftables read them, before it wrote


class Connection:
    """To nftables of the network namespace that the constructor's thread is in; usable from any thread.

    ``make`` chooses how commands are run. Nothing is loaded or opened before it is used.
    """

    def __init__(self, make: Callable[[], Runner]) -> None:
        self._make = make
        self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._lock = allocate_lock()
        self._runner: Runner | None = None
        self._nft_socket: NftSocket | None = None

    def close(self) -> None:
        """Give back the library's memory and sockets; a second call does nothing."""
        self.forked()
        with self._lock:
            if self._namespace >= 0:
                os.close(self._namespace)
                self._namespace = -1

    def forked(self) -> None:
        """Close the library and the sockets, which are opened again when they are used."""
        with self._lock:
            if self._runner is not None:
                self._runner.close()
                self._runner = None
            if self._nft_socket is not None:
                self._nft_socket.close()
                self._nft_socket = None

    def ask(self, work: Callable[[NftSocket], T]) -> T:
        """Call with the netlink socket of this object's namespace."""
        with self._lock:
            if self._nft_socket is None:
                self._nft_socket = self._at_home(NftSocket)
            try:
                return work(self._nft_socket)
            except BaseException:  # answers may still come: never to the next question
                self._nft_socket.close()
                self._nft_socket = None
                raise

    def run(self, commands: str, *, terse: bool = False) -> str:
        """Run commands in this object's namespace. Raises a KernelRefused with nftables' message."""
        with self._lock:
            for _ in range(_ATTEMPTS):
                output, errors = self._at_home(lambda: self._run(commands, terse))
                if _INTERRUPTED not in errors:
                    break
        if errors:
            refuse(errors)
        return output

    def _run(self, commands: str, terse: bool) -> Answer:
        if self._runner is None:
            self._runner = self._make()
        return self._runner.run(commands, terse=terse)

    def _at_home(self, work: Callable[[], T]) -> T:
        """Call in this object's namespace, in a new thread if this one is in another."""
        if self._namespace < 0:
            raise KernelRefused("these nftables rules are closed")
        here = os.stat("/proc/thread-self/ns/net")
        home = os.fstat(self._namespace)
        if (here.st_dev, here.st_ino) == (home.st_dev, home.st_ino):
            return work()
        return _in_thread(lambda: enter_namespace(self._namespace), work)


def in_new_namespace(work: Callable[[], T]) -> T:
    """Do the work in an empty network namespace that ends with it; this thread stays where it is."""
    return _in_thread(leave_namespace, work)


def _in_thread(move: Callable[[], None], work: Callable[[], T]) -> T:
    """Call in a new thread that has moved to another namespace."""
    from threading import Thread  # a millisecond to import, for a rare path

    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            move()
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
