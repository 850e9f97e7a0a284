"""Lookups of hosts as the agent sees them: the worker that makes them (``lookup_worker``), and what it may say."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from cni_plugin.agent.workers import Worker, count, nothing
from discovery.health.resolver import Address, literal
from discovery.metrics import Metrics
from weft.errors import WeftError
from weft.pair import Malformed, Message
from weft.spawner import Spawner

NAME = "lookups"
"""The worker's name."""
_MOST_BYTES = 1 << 16  # of its messages
_MOST_ADDRESSES = 1024  # of a host
_MOST_TEXT = 256  # characters of an error


@dataclass(slots=True, eq=False)
class _Lookup:
    """A lookup in progress."""

    host: str
    future: asyncio.Future[Sequence[Address]]
    started: asyncio.Event = field(default_factory=asyncio.Event)


class LookupFront:
    """Looks hosts up; see ``discovery.health.resolver.Resolver``. The process starts with the first name."""

    def __init__(self, spawner: Spawner, metrics: Metrics) -> None:
        self._worker = Worker(
            spawner, NAME, _MOST_BYTES, tell=self._tell, answered=nothing, received=self._received, metrics=metrics
        )
        self._numbers = itertools.count(1)
        self._last = 0
        self._running: dict[int, _Lookup] = {}

    async def start(self, host: str) -> asyncio.Future[Sequence[Address]]:
        """The lookup of a host, in progress or done: it raises OSError if there is none.

        Returns when the lookup has a thread. Raises OSError where there can be no worker.
        """
        future: asyncio.Future[Sequence[Address]] = asyncio.get_running_loop().create_future()
        if found := literal(host):
            future.set_result(found)
            return future
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # the check may have given up
        number = self._last = next(self._numbers)
        one = self._running[number] = _Lookup(host, future)
        future.add_done_callback(lambda done: self._running.pop(number, None))
        try:
            if self._worker.is_started:
                self._worker.send(["lookup", number, host])
            else:
                self._worker.start()
            await one.started.wait()
        except WeftError as error:
            future.cancel()
            raise OSError(0, error.message) from error
        except asyncio.CancelledError:
            future.cancel()
            raise
        return future

    async def stop(self) -> None:
        """End the worker."""
        if self._worker.is_started:
            await self._worker.stop()

    def _tell(self) -> None:
        """A new one looks up all that the last one has not."""
        for number, one in self._running.items():
            self._worker.send(["lookup", number, one.host])

    def _received(self, message: Message) -> None:
        match message:
            case ["started", number]:
                if (one := self._lookup(number)) is not None:
                    one.started.set()
            case ["found", number, list(found)]:
                self._end(number, [_address(address) for address in found[:_MOST_ADDRESSES]])
            case ["failed", number, error, str(text)]:
                known = type(error) is int and abs(error) < 1 << 16  # those of getaddrinfo are negative
                self._end(number, OSError(error if known else 0, text[:_MOST_TEXT]))
            case _:
                raise Malformed(f"an unexpected message: {str(message)[:80]}")

    def _lookup(self, number: object) -> _Lookup | None:
        """The lookup with this number, None if it is over. Raises Malformed."""
        if not 0 < count(number) <= self._last:
            raise Malformed(f"lookup {number}, which there was not")
        return self._running.get(count(number))

    def _end(self, number: object, result: Sequence[Address] | OSError) -> None:
        one = self._lookup(number)
        if one is None or one.future.done():
            return
        if isinstance(result, OSError):
            one.future.set_exception(result)
        else:
            one.future.set_result(result)
        one.started.set()


def _address(value: object) -> Address:
    """An address that the worker has sent. Raises Malformed."""
    match value:
        case [int(family), str(address)] if family in (socket.AF_INET, socket.AF_INET6):
            try:
                if ip_address(address).version == (6 if family == socket.AF_INET6 else 4):
                    return family, address
            except ValueError:
                pass
    raise Malformed(f"no address: {str(value)[:60]}")
