"""HTTP and TLS: parses what clients send, and writes the answers. Has no part in what they say.

In the agent it runs in a process without privileges (``cni_plugin.agent.api_worker``).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

from aiohttp import web

from discovery.api.exchange import BrokenBody, Headers, HttpMessage
from discovery.api.http_connections import HttpConnection, HttpConnections
from discovery.api.router import HttpResponse
from discovery.api.settings import HttpSettings
from discovery.metrics import Metrics

Peer = TypeVar("Peer")
"""What its user calls a connection."""
Answer = Callable[[Peer, HttpMessage], Awaitable[HttpResponse]]
"""Answers a request; is cancelled when its client disconnects. Raises nothing."""


class HttpFront(Generic[Peer]):
    """Serves accepted connections. ``closed`` is called when one has ended."""

    def __init__(
        self,
        settings: HttpSettings,
        metrics: Metrics,
        answer: Answer[Peer],
        closed: Callable[[Peer], None] = lambda peer: None,
    ) -> None:
        self._settings = settings
        self._answer = answer
        self._peers: dict[HttpConnection, Peer] = {}
        self._closed = closed
        self._connections = HttpConnections(self._handle, settings, metrics, self._ended)
        self._sweeper = asyncio.create_task(self._connections.sweep())
        self._opening: set[asyncio.Task[None]] = set()

    @property
    def count(self) -> int:
        """How many connections are open."""
        return len(self._connections.connections)

    def open(self, sock: socket.socket, peer: Peer, client: str, tls: ssl.SSLContext | None) -> None:
        """Serve an accepted connection, whose socket is this object's from now on."""
        opening = asyncio.ensure_future(self._open(sock, peer, client, tls))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket, peer: Peer, client: str, tls: ssl.SSLContext | None) -> None:
        handler = self._connections.new(client)
        self._peers[handler] = peer
        limit = self._settings.header_time if tls is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: handler, sock, ssl=tls, ssl_handshake_timeout=limit
            )
        except (OSError, asyncio.CancelledError) as error:
            sock.close()
            self._ended(handler)
            if isinstance(error, asyncio.CancelledError):
                raise

    async def stop(self, seconds: float) -> None:
        """Close all connections, after as many seconds at the latest."""
        self._sweeper.cancel()
        await asyncio.gather(self._sweeper, return_exceptions=True)
        for opening in tuple(self._opening):
            opening.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        await self._connections.shutdown(seconds)

    def _ended(self, handler: HttpConnection) -> None:
        if handler in self._peers:
            self._closed(self._peers.pop(handler))

    # One request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, HttpConnection)
        self._connections.mark_busy(connection)
        try:
            answer = await self._answer(self._peers[connection], _message(request))
        finally:
            self._connections.mark_idle(connection)
        headers = {"Content-Type": answer.type, **answer.headers}
        if answer.stream is not None:
            return await self._send(answer, request, headers)
        response = web.Response(body=answer.body, status=answer.status, headers=headers)
        # An unread body would be parsed as the next request.
        if answer.close or not request.content.is_eof():
            response.force_close()
        return response

    async def _send(
        self, answer: HttpResponse, request: web.BaseRequest, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Send a response of unknown length until it ends or the client disconnects."""
        connection = request.protocol
        assert isinstance(connection, HttpConnection) and answer.stream is not None
        self._connections.mark_busy(connection)  # else it would be closed when idle
        try:
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            async for part in answer.stream:
                await response.write(part)
            await response.write_eof()
        finally:
            self._connections.mark_idle(connection)
            if isinstance(answer.stream, AsyncGenerator):
                await answer.stream.aclose()
        return response


def _message(request: web.BaseRequest) -> HttpMessage:
    waits = request.headers.get("Expect", "").lower() == "100-continue"

    async def next_chunk() -> bytes:
        nonlocal waits
        if waits and request.protocol.transport is not None:
            request.protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        waits = False
        try:
            return await request.content.readany()
        except web.RequestPayloadError as error:
            raise BrokenBody from error

    fields = Headers((name, value) for name, value in request.headers.items())
    return HttpMessage(request.method, request.raw_path, fields, request.content_length or 0, next_chunk)
