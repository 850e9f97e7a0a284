"""HTTP spoken in the process that answers, so that a test need not start another one."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from discovery.api import listeners
from discovery.api.exchange import Connection, HttpMessage
from discovery.api.http_front import HttpFront
from discovery.api.router import HttpResponse
from discovery.api.settings import HttpSettings
from discovery.metrics import Metrics


class LocalFront:
    """See ``discovery.api.server.Front``."""

    def __init__(self, settings: HttpSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.front: HttpFront[Connection] | None = None

    async def start(self, answer: Callable[[Connection, HttpMessage], Awaitable[HttpResponse]]) -> None:
        """Start. Raises OSError for TLS files."""
        self._tls = listeners.tls_context(self._settings.tls)
        self.front = HttpFront(self._settings, self._metrics, answer)

    def open(self, sock: socket.socket, connection: Connection) -> bool:
        """Serve an accepted connection."""
        assert self.front is not None
        self.front.open(sock, connection, connection.client, self._tls if connection.has_tls else None)
        return True

    async def stop(self, seconds: float) -> None:
        """Close all connections."""
        if self.front is not None:
            await self.front.stop(seconds)
