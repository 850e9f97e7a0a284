"""HTTP as the agent sees it: the worker that speaks it (``api_worker``), and what that may say.

Connections are accepted here, and the kernel is asked whose they are before anything of them is read.
The worker gets each with a number, and names the number with each request: it can act for whoever has
a connection open, and for nobody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from cni_plugin.agent.workers import Worker, count
from discovery.api import listeners
from discovery.api.exchange import BrokenBody, Connection, Headers, HttpMessage
from discovery.api.router import HttpResponse
from discovery.api.settings import HttpSettings, TlsSettings
from discovery.metrics import Metrics
from weft.pair import Malformed, Message
from weft.spawner import Spawner

NAME = "http"
"""The worker's name."""
_MOST_BYTES = 8 << 20  # of its messages: a hundred header fields of 8 KiB, escaped
_MOST_FIELDS = 256
_MOST_HELD = 64
"""Connections that wait for a worker while it is replaced."""
_SPARE = 64
_REASONS = ("too many", "idle", "slow")

Answer = Callable[[Connection, HttpMessage], Awaitable[HttpResponse]]


@dataclass(slots=True, eq=False)
class _Exchange:
    """A request that is not answered yet."""

    task: asyncio.Task[None] | None = None
    chunk: asyncio.Future[bytes] | None = None
    """The piece of the body that has been asked for."""
    written: asyncio.Event = field(default_factory=asyncio.Event)


class ApiFront:
    """See ``discovery.api.server.Front``."""

    def __init__(self, spawner: Spawner, settings: HttpSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._worker = Worker(
            spawner,
            NAME,
            _MOST_BYTES,
            tell=self._tell,
            answered=self._counted,
            received=self._received,
            metrics=metrics,
        )
        self._numbers = itertools.count(1)
        self._connections: dict[int, Connection] = {}
        self._held: list[tuple[socket.socket, Connection]] = []
        self._exchanges: dict[int, _Exchange] = {}
        self._answer: Answer | None = None
        self._tls: list[object] = []
        self._refused = metrics.counter("weft_http_refused_total", "Connections closed by a limit.", "reason")
        self._former: dict[str, int] = {}
        self._latest: dict[str, int] = {}
        metrics.gauge("weft_http_connections", "Open connections.", read=lambda: len(self._connections))
        metrics.read_before(self._worker.sync)

    async def start(self, answer: Answer) -> None:
        """Start the worker. Raises WeftError, and OSError for TLS files."""
        self._answer = answer
        listeners.tls_context(self._settings.tls)  # says which file is wrong
        self._tls = _texts(self._settings.tls)
        self._worker.start()

    def open(self, sock: socket.socket, connection: Connection) -> bool:
        """Pass an accepted connection on; held while there is no worker."""
        if self._worker.is_running:
            self._pass_on(sock, connection)
        else:
            self._held.append((sock, connection))
        return len(self._held) < _MOST_HELD and len(self._connections) < self._settings.connections + _SPARE

    def _pass_on(self, sock: socket.socket, connection: Connection) -> None:
        number = next(self._numbers)
        self._connections[number] = connection
        with sock:
            self._worker.send(["open", number, connection.client, connection.has_tls], [sock.fileno()])

    async def stop(self, seconds: float) -> None:
        """End the worker; answers that it has got are sent at first, for as many seconds."""
        if self._worker.is_started:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._worker.sync()
            await self._worker.stop()
        self._forget()
        for sock, _ in self._held:
            sock.close()
        self._held.clear()

    def _tell(self) -> None:
        """A new process has no connections."""
        self._forget()
        self._former = {reason: self._former.get(reason, 0) + self._latest.get(reason, 0) for reason in _REASONS}
        self._latest = {}
        settings = self._settings
        limits = (settings.connections, settings.connections_of_peer, settings.header_time, settings.idle_time)
        self._worker.send(["settings", [*limits, settings.write_time], self._tls])
        held, self._held = self._held, []
        for sock, connection in held:
            self._pass_on(sock, connection)

    def _forget(self) -> None:
        self._connections.clear()
        for exchange in self._exchanges.values():
            if exchange.task is not None:
                exchange.task.cancel()
        self._exchanges.clear()

    # What the worker says

    def _counted(self, values: list[object]) -> None:
        match values:
            case [list(refused)] if len(refused) <= len(_REASONS):
                for one in refused:
                    match one:
                        case [str(reason), number] if reason in _REASONS:
                            self._latest[reason] = count(int(number) if type(number) is float else number)
                        case _:
                            raise Malformed(f"no count: {str(one)[:40]!r}")
            case _:
                raise Malformed(f"no counts: {str(values)[:80]}")
        self._refused.replace(
            {(one,): self._former.get(one, 0) + self._latest[one] for one in _REASONS if one in self._latest}
        )

    def _received(self, message: Message) -> None:
        match message:
            case ["request", number, connection, str(method), str(target), list(fields), length]:
                self._request(count(number), count(connection), method, target, _headers(fields), count(length))
            case ["closed", number]:
                self._connections.pop(count(number), None)
            case [("body" | "broken" | "written" | "cancel") as kind, number, *payload] if len(payload) <= 1:
                exchange = self._exchanges.get(count(number))
                if exchange is not None:  # else it has been answered meanwhile
                    self._of_exchange(str(kind), exchange, payload)
            case _:
                raise Malformed(f"an unexpected message: {str(message)[:80]}")

    def _request(self, number: int, connection: int, method: str, target: str, headers: Headers, length: int) -> None:
        if number in self._exchanges or len(self._exchanges) >= self._settings.connections + _SPARE:
            raise Malformed(f"a request too many: {number}")
        if (known := self._connections.get(connection)) is None:
            raise Malformed(f"a request of an unknown connection: {connection}")
        exchange = self._exchanges[number] = _Exchange()

        async def next_chunk() -> bytes:
            chunk: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            exchange.chunk = chunk
            self._worker.send(["more", number])
            return await chunk

        message = HttpMessage(method, target, headers, length, next_chunk)
        exchange.task = asyncio.create_task(self._serve(number, exchange, known, message))

    def _of_exchange(self, kind: str, exchange: _Exchange, payload: list[object]) -> None:
        match kind, payload:
            case "body", [bytes()] | []:
                if exchange.chunk is None or exchange.chunk.done():
                    raise Malformed("a body that nobody has asked for")
                exchange.chunk.set_result(cast(bytes, payload[0]) if payload else b"")
            case "broken", []:
                if exchange.chunk is not None and not exchange.chunk.done():
                    exchange.chunk.set_exception(BrokenBody())
            case "written", []:
                exchange.written.set()
            case "cancel", []:
                if exchange.task is not None:
                    exchange.task.cancel()
            case _:
                raise Malformed(f"an unexpected message: {kind}")

    # One request

    async def _serve(self, number: int, exchange: _Exchange, connection: Connection, message: HttpMessage) -> None:
        assert self._answer is not None
        try:
            answer = await self._answer(connection, message)
            fields = [[name, str(value)] for name, value in answer.headers.items()]
            head = ["answer", number, answer.status, answer.type, fields, answer.close, answer.stream is not None]
            self._worker.send(head, payload=answer.body)
            if answer.stream is not None:
                await self._send_parts(number, exchange, answer)
        finally:
            if self._exchanges.get(number) is exchange:
                del self._exchanges[number]

    async def _send_parts(self, number: int, exchange: _Exchange, answer: HttpResponse) -> None:
        """Send a part when the one before it is written, as fast as the client reads."""
        assert answer.stream is not None
        try:
            async for part in answer.stream:
                if part:
                    exchange.written.clear()
                    self._worker.send(["part", number], payload=part)
                    await exchange.written.wait()
            self._worker.send(["part", number])
        finally:
            if isinstance(answer.stream, AsyncGenerator):
                await answer.stream.aclose()


def _headers(fields: list[object]) -> Headers:
    """Header fields that the worker has sent. Raises Malformed."""
    if len(fields) > _MOST_FIELDS:
        raise Malformed(f"{len(fields)} header fields")
    found = []
    for one in fields:
        match one:
            case [str(name), str(value)]:
                found.append((name, value))
            case _:
                raise Malformed(f"no header field: {str(one)[:40]!r}")
    return Headers(found)


def _texts(tls: TlsSettings | None) -> list[object]:
    """The files of TLS, which the worker cannot read. Raises OSError."""
    if tls is None:
        return []
    files = (tls.certificate, tls.key, tls.ca)
    return [*(Path(one).read_text(encoding="ascii") if one else "" for one in files), tls.verify]
