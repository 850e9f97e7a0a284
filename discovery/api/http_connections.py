"""Limits on HTTP connections: number, per client, and time for a request header.

When full, the longest idle connection is closed; blocking queries are not idle. Without an idle one it is
the oldest of the client that has most, for a client that has fewer: none can keep the others out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Required, TypedDict, Unpack

from aiohttp import web

from discovery.api.settings import HttpSettings
from discovery.metrics import Metrics

SWEEP_SECONDS = 1.0
MAX_LINE_SIZE = 16 * 1024
MAX_HEADER_SIZE = 8 * 1024
MAX_HEADERS = 100

_http_log = logging.getLogger("discovery.api.http")
_http_log.setLevel(logging.CRITICAL)
"""Malformed HTTP is answered with 400, and not logged."""


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _ConnectionOptions(TypedDict, total=False):
    """The options of aiohttp's RequestHandler that ``HttpConnections`` sets.

    Without ``access_log``, whose None (no access log) aiohttp takes but does not annotate.
    """

    loop: Required[asyncio.AbstractEventLoop]
    keepalive_timeout: float
    logger: logging.Logger
    max_line_size: int
    max_field_size: int
    max_headers: int
    lingering_time: float
    auto_decompress: bool


class HttpConnection(web.RequestHandler):
    """A connection. ``client`` is as in exchange.Connection; ``idle_since`` is None during a request,
    ``request_started`` the arrival of its first byte.
    """

    __slots__ = ("client", "idle_since", "request_started")

    def __init__(self, manager: web.Server, **options: Unpack[_ConnectionOptions]) -> None:
        super().__init__(manager, **options)
        self.client = ""
        self.idle_since: float | None = None
        self.request_started: float | None = None

    def data_received(self, data: bytes) -> None:
        if self.idle_since is not None and self.request_started is None:
            self.request_started = asyncio.get_running_loop().time()
        super().data_received(data)


class HttpConnections(web.Server):
    """The HTTP server, with its limits on connections. ``ended`` is called when one has ended."""

    def __init__(
        self, handler: Handler, settings: HttpSettings, metrics: Metrics, ended: Callable[[HttpConnection], None]
    ) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            keepalive_timeout=settings.idle_time,
            access_log=None,
            logger=_http_log,
            max_line_size=MAX_LINE_SIZE,
            max_field_size=MAX_HEADER_SIZE,
            max_headers=MAX_HEADERS,
            lingering_time=0.0,
            auto_decompress=False,
        )
        self._settings = settings
        self._ended = ended
        self._per_client: Counter[str] = Counter()
        self._open: dict[HttpConnection, None] = {}
        self._refused = metrics.counter("weft_http_refused_total", "Connections closed by a limit.", "reason")
        metrics.gauge("weft_http_connections", "Open connections.", read=lambda: len(self._open))

    def new(self, client: str) -> HttpConnection:
        """The protocol of a new connection of a client."""
        handler = HttpConnection(self, loop=self._loop, **self._kwargs)
        handler.client = client
        return handler

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        assert isinstance(handler, HttpConnection)
        if not self._make_room(handler.client):
            self._refused.add(1, "too many")
            transport.abort()
            return
        handler.idle_since = self._loop.time()
        self._open[handler] = None
        self._per_client[handler.client] += 1
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family != socket.AF_UNIX:
            # The kernel closes connections whose client does not read.
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self._settings.write_time * 1000))

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if isinstance(handler, HttpConnection):
            if handler in self._open:
                self._remove(handler)
            self._ended(handler)

    def _remove(self, handler: HttpConnection) -> None:
        del self._open[handler]
        self._per_client[handler.client] -= 1
        if not self._per_client[handler.client]:
            del self._per_client[handler.client]

    def _make_room(self, client: str) -> bool:
        """Whether a connection is accepted, closing another one if full."""
        of_peer = self._per_client[client] >= self._settings.connections_of_peer
        if not of_peer and len(self._open) < self._settings.connections:
            return True
        idle = [one for one in self._open if one.idle_since is not None and (one.client == client or not of_peer)]
        if idle:
            self._refused.add(1, "idle")
            self._abort(min(idle, key=lambda one: one.idle_since or 0.0))
            return True
        if of_peer:
            return False
        most = max(self._per_client.values())
        if most <= self._per_client[client]:
            return False
        self._refused.add(1, "too many")
        self._abort(next(one for one in self._open if self._per_client[one.client] == most))
        return True

    def _abort(self, handler: HttpConnection) -> None:
        if handler in self._open:
            self._remove(handler)
        if handler.transport is not None:
            handler.transport.abort()

    def mark_busy(self, handler: HttpConnection) -> None:
        """A request has begun."""
        handler.idle_since = handler.request_started = None

    def mark_idle(self, handler: HttpConnection) -> None:
        """The request is answered."""
        handler.idle_since = self._loop.time()

    async def sweep(self) -> None:
        """Close connections that have not completed their request header in time; runs forever."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            late = self._loop.time() - self._settings.header_time
            for handler in [
                one for one in self._open if one.request_started is not None and one.request_started < late
            ]:
                self._refused.add(1, "slow")
                self._abort(handler)
