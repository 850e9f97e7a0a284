"""The process that speaks HTTP and TLS with the API's clients: no capability, no file, no user of this host.

It gets accepted connections from the agent (``api_front``), which has asked the kernel who is at their
other ends, and sends it each request with the connection's number. The agent answers.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401  (codecs are looked up by name: no file can be opened later)
import itertools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import cast

from cni_plugin.agent import confined
from discovery.api.exchange import BrokenBody, HttpMessage
from discovery.api.http_front import HttpFront
from discovery.api.router import HttpResponse
from discovery.api.settings import HttpSettings
from discovery.metrics import Metrics
from weft.pair import Message, Pair, receive_first


def run(end: socket.socket) -> None:
    """Serve until the agent closes its end."""
    confined.serve(ApiWorker(end, confined.end).serve)


def _context(certificate: str, key: str, authorities: str, verify: bool) -> ssl.SSLContext:
    """The server's TLS, of PEM texts: the key's file is not this process's to read."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    descriptor = os.memfd_create("weft-http", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, f"{key}\n{certificate}".encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    if authorities:
        context.load_verify_locations(cadata=authorities)
    if verify:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@dataclass(slots=True, eq=False)
class _Exchange:
    """A request that the agent has not answered, or whose answer is still coming."""

    message: HttpMessage
    answer: asyncio.Future[HttpResponse]
    parts: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    reading: asyncio.Task[None] | None = None


class ApiWorker:
    """Speaks HTTP until ``ended`` is called: then the agent has closed its end."""

    def __init__(self, end: socket.socket, ended: Callable[[str], None]) -> None:
        """Read the settings from the first message: certificates are loaded before files are out of reach."""
        self._end = end
        self._ended = ended
        _, limits, tls = receive_first(end)
        connections, of_peer, header_time, idle_time, write_time = cast(tuple[int, int, float, float, float], limits)
        self._settings = HttpSettings(
            connections=connections,
            connections_of_peer=of_peer,
            header_time=header_time,
            idle_time=idle_time,
            write_time=write_time,
        )
        self._tls = _context(*cast(tuple[str, str, str, bool], tls)) if tls else None
        self._metrics = Metrics()
        self._numbers = itertools.count(1)
        self._exchanges: dict[int, _Exchange] = {}

    async def serve(self) -> None:
        """Answer what the agent answers; does not return."""
        self._front = HttpFront[int](self._settings, self._metrics, self._answer, self._closed)
        self._pair = Pair(self._end, confined.AGENTS_BYTES, self._received, self._ended, descriptors=64)
        await asyncio.Event().wait()

    def _closed(self, connection: int) -> None:
        self._pair.send(["closed", connection])

    async def _answer(self, connection: int, message: HttpMessage) -> HttpResponse:
        number = next(self._numbers)
        exchange = _Exchange(message, asyncio.get_running_loop().create_future())
        self._exchanges[number] = exchange
        fields = message.headers.fields
        self._pair.send(["request", number, connection, message.method, message.target, fields, message.length])
        try:
            answer = await exchange.answer
        except asyncio.CancelledError:
            self._end_exchange(number, is_over=False)
            raise
        if answer.stream is None:
            self._end_exchange(number, is_over=True)
        return answer

    def _end_exchange(self, number: int, *, is_over: bool) -> None:
        exchange = self._exchanges.pop(number)
        if exchange.reading is not None:
            exchange.reading.cancel()
        if not is_over:
            self._pair.send(["cancel", number])

    async def _stream(self, number: int, exchange: _Exchange) -> AsyncIterator[bytes]:
        """The parts of an answer: the agent sends the next one when one is written."""
        is_over = False
        try:
            while part := await exchange.parts.get():
                yield part
                self._pair.send(["written", number])
            is_over = True
        finally:
            self._end_exchange(number, is_over=is_over)

    async def _read(self, number: int, message: HttpMessage) -> None:
        try:
            self._pair.send(["body", number], payload=await message.next_chunk())
        except BrokenBody:
            self._pair.send(["broken", number])

    def _received(self, message: Message, descriptors: list[int]) -> None:
        match message:
            case ["open", int(number), str(client), bool(has_tls)]:
                sock = socket.socket(fileno=descriptors[0])
                sock.setblocking(False)
                self._front.open(sock, number, client, self._tls if has_tls else None)
            case ["ping", number]:
                refused = [[labels[0], value] for _, _, labels, value in self._refused()]
                self._pair.send(["pong", number, refused])
            case [str(kind), int(number), *values] if (exchange := self._exchanges.get(number)) is not None:
                self._of_exchange(kind, number, exchange, values)

    def _refused(self) -> list[tuple[str, object, tuple[str, ...], float]]:
        counter = self._metrics.counter("weft_http_refused_total", "", "reason")
        return [(suffix, names, labels, value) for suffix, names, labels, value in counter.samples()]

    def _of_exchange(self, kind: str, number: int, exchange: _Exchange, values: list[object]) -> None:
        match kind, values:
            case "more", []:
                exchange.reading = asyncio.create_task(self._read(number, exchange.message))
            case "answer", [int(status), str(content), list(fields), bool(close), bool(streams), *body]:
                headers = {str(name): str(value) for name, value in cast(list[tuple[str, str]], fields)}
                stream = self._stream(number, exchange) if streams else None
                answer = HttpResponse(cast(bytes, body[0]) if body else b"", status, content, headers, stream, close)
                if not exchange.answer.done():
                    exchange.answer.set_result(answer)
            case "part", parts:
                exchange.parts.put_nowait(cast(bytes, parts[0]) if parts else b"")
