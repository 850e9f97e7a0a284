"""Host names of checks: looked up in threads of the checks' own, one lookup at a time for a name.

A name server that does not answer holds a thread for as long as getaddrinfo(3) takes. Names that
were slow share half of the threads, so that they delay each other and not the rest; waiting for a
thread is not part of a check's timeout. Addresses and ``localhost`` need no thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence

Address = tuple[int, str]
"""An address family and an address, with its zone if it has one (``fe80::1%eth0``)."""

MAX_LOOKUPS = 32
"""Concurrent lookups of names, and as many of names that were slow."""
SLOW_SECONDS = 1.0
_LOCALHOST = ((int(socket.AF_INET6), "::1"), (int(socket.AF_INET), "127.0.0.1"))


def literal(host: str) -> tuple[Address, ...]:
    """The address that ``host`` is, or those of localhost (RFC 6761, section 6.3); () for a name."""
    if host.rstrip(".").lower() == "localhost":
        return _LOCALHOST
    try:
        return _addresses(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except (OSError, UnicodeError):
        return ()


class Resolver:
    """Looks names up. ``lookup`` is getaddrinfo(3) unless a test replaces it."""

    def __init__(self, lookup: Callable[[str], Sequence[Address]] | None = None) -> None:
        self._lookup = lookup or _getaddrinfo
        self._pending: dict[str, asyncio.Future[Sequence[Address]]] = {}
        self._slow: set[str] = set()
        self._threads = {slow: asyncio.Semaphore(MAX_LOOKUPS) for slow in (False, True)}

    async def start(self, host: str) -> asyncio.Future[Sequence[Address]]:
        """The lookup of a host, in progress or done: it raises OSError if there is none.

        Returns when the lookup has a thread. Await the future under asyncio.shield: others may
        wait for it as well.
        """
        loop = asyncio.get_running_loop()
        if found := literal(host):
            done: asyncio.Future[Sequence[Address]] = loop.create_future()
            done.set_result(found)
            return done
        while True:
            if (pending := self._pending.get(host)) is not None:
                return pending
            threads = self._threads[host in self._slow]
            await threads.acquire()
            if host not in self._pending:
                break
            threads.release()
        future = self._pending[host] = loop.create_future()
        future.add_done_callback(_retrieved)
        threading.Thread(target=self._run, args=(loop, host, future, threads), name="check-lookup", daemon=True).start()
        return future

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        future: asyncio.Future[Sequence[Address]],
        threads: asyncio.Semaphore,
    ) -> None:
        started = time.monotonic()
        found: Sequence[Address] = ()
        error: Exception | None = None
        try:
            found = self._lookup(host)
        except Exception as failure:
            error = failure

        def finish() -> None:
            del self._pending[host]
            (self._slow.add if time.monotonic() - started > SLOW_SECONDS else self._slow.discard)(host)
            threads.release()
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(found)

        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish)


def _getaddrinfo(host: str) -> Sequence[Address]:
    return _addresses(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))


def _addresses(found: Sequence[tuple[int, int, int, str, tuple[object, ...]]]) -> tuple[Address, ...]:
    named = []
    for family, _, _, _, address in found:
        zone = f"%{address[3]}" if len(address) > 3 and address[3] and "%" not in str(address[0]) else ""
        named.append((int(family), f"{address[0]}{zone}"))
    return tuple(dict.fromkeys(named))


def _retrieved(future: asyncio.Future[Sequence[Address]]) -> None:
    """Mark its error as seen: the check that asked may have given up."""
    if not future.cancelled():
        future.exception()
