"""The process that looks up the hosts of health checks: no capability, no user of this host.

getaddrinfo(3) parses what the host's name servers answer, needs threads, and reads what everybody may
read: /etc/hosts, /etc/resolv.conf, modules of the name service switch.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401  (codecs are looked up by name, in files that a worker may not be able to read)
import socket

from cni_plugin.agent import confined
from discovery.health.resolver import Resolver
from weft.pair import Message, Pair


def run(end: socket.socket) -> None:
    """Look hosts up until the agent closes its end."""
    confined.serve(_Worker(end).serve, threads=True)


class _Worker:
    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._resolver = Resolver()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        self._pair = Pair(self._end, confined.AGENTS_BYTES, self._received, confined.end)
        await asyncio.Event().wait()

    def _received(self, message: Message, descriptors: list[int]) -> None:
        match message:
            case ["lookup", int(number), str(host)]:
                task = asyncio.create_task(self._look_up(number, host))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case ["ping", number]:
                self._pair.send(["pong", number])

    async def _look_up(self, number: int, host: str) -> None:
        try:
            lookup = await self._resolver.start(host)
            self._pair.send(["started", number])
            self._pair.send(["found", number, await asyncio.shield(lookup)])
        except (OSError, ValueError) as error:
            self._pair.send(["failed", number, getattr(error, "errno", None) or 0, _text(error)])


def _text(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
