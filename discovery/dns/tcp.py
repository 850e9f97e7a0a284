"""DNS over TCP: pipelined queries, with a bound on everything that a client can hold.

Source: RFC 7766 (pipelining, idle connections), RFC 9210.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import cast

from discovery.dns.codec import HEADER_LENGTH

MAX_CONNECTIONS = 512
MAX_CONNECTIONS_PER_CLIENT = 32
"""Connections in total, and per client."""
IDLE_TIMEOUT = 5.0
"""Seconds without a complete query or a query in flight until a connection is closed."""
WRITE_TIMEOUT = 12.0
"""Seconds that queries in flight may take, and a client may take to read the replies."""
MAX_QUERY_BYTES = 4096
MAX_INFLIGHT_PER_CONNECTION = 32
"""Queries in flight per connection; reading pauses above."""
MAX_UNSENT_BYTES = 1 << 17
"""Unsent reply bytes per connection; reading pauses above."""

AnswerQuery = Callable[[bytes, str, Callable[[bytes | None], None]], bool]
"""Takes a query, the client's address and a callback for the reply; False closes the connection."""


class TcpConnections:
    """All connections, least recently used first."""

    def __init__(self) -> None:
        self._open: dict[TcpConnection, None] = {}
        self._per_client: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(self, stream: TcpConnection) -> bool:
        """Register a connection, closing the least recently used one if full; False if the client
        has too many.
        """
        if self._per_client.get(stream.client, 0) >= MAX_CONNECTIONS_PER_CLIENT:
            return False
        if len(self._open) >= MAX_CONNECTIONS:
            next(iter(self._open)).abort()
        self._open[stream] = None
        self._per_client[stream.client] = self._per_client.get(stream.client, 0) + 1
        return True

    def mark_used(self, stream: TcpConnection) -> None:
        """Mark a connection as used."""
        if stream in self._open:
            del self._open[stream]
            self._open[stream] = None

    def remove(self, stream: TcpConnection) -> None:
        """Unregister a connection; an unknown one is no error."""
        if stream in self._open:
            del self._open[stream]
            left = self._per_client[stream.client] - 1
            if left:
                self._per_client[stream.client] = left
            else:
                del self._per_client[stream.client]

    def close(self) -> None:
        """Abort all connections."""
        for stream in tuple(self._open):
            stream.abort()


class TcpConnection(asyncio.Protocol):
    """One TCP connection of a client."""

    def __init__(self, connections: TcpConnections, answer: AnswerQuery) -> None:
        self.client = ""
        self._connections = connections
        self._answer = answer
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._inflight = 0
        self._write_paused = False
        self._eof = False
        self._last_used = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register, or abort if there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(MAX_UNSENT_BYTES)
        peer = transport.get_extra_info("peername")
        self.client = peer[0].partition("%")[0] if peer else ""
        if not self._connections.add(self):
            self._transport.abort()
            return
        self._last_used = asyncio.get_running_loop().time()
        self._start_timer(IDLE_TIMEOUT)

    def connection_lost(self, _: Exception | None) -> None:
        """Unregister."""
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._buffer.clear()
        self._connections.remove(self)

    def abort(self) -> None:
        """Close at once, discarding unsent replies."""
        self._connections.remove(self)
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Buffer data; complete queries are answered."""
        self._buffer += data
        self._process_buffer()

    def eof_received(self) -> bool:
        """The client has shut down its side; pending replies are still sent."""
        self._eof = True
        return self._inflight > 0

    def pause_writing(self) -> None:
        """Stop reading queries: the client does not read replies."""
        self._write_paused = True
        self._update_reading()

    def resume_writing(self) -> None:
        """Resume reading queries."""
        self._write_paused = False
        self._process_buffer()

    def _process_buffer(self) -> None:
        """Answer buffered queries, as far as replies can be sent."""
        buffer = self._buffer
        while self._transport is not None and len(buffer) >= 2 and not self._busy:
            length = buffer[0] << 8 | buffer[1]
            if not HEADER_LENGTH <= length <= MAX_QUERY_BYTES:
                self.abort()
                return
            if len(buffer) < 2 + length:
                break
            query = bytes(buffer[2 : 2 + length])
            del buffer[: 2 + length]
            self._last_used = asyncio.get_running_loop().time()
            self._connections.mark_used(self)
            self._inflight += 1
            if not self._answer(query, self.client, partial(self._send)):
                self.abort()
                return
        self._update_reading()

    @property
    def _busy(self) -> bool:
        return self._write_paused or self._inflight >= MAX_INFLIGHT_PER_CONNECTION

    def _send(self, reply: bytes | None) -> None:
        self._inflight -= 1
        if self._transport is None or self._transport.is_closing():
            return
        if reply is None:
            self.abort()
            return
        self._last_used = asyncio.get_running_loop().time()
        self._transport.write(len(reply).to_bytes(2, "big") + reply)
        if self._eof and not self._inflight:
            self._transport.close()
        elif self._inflight == MAX_INFLIGHT_PER_CONNECTION - 1:
            asyncio.get_running_loop().call_soon(self._process_buffer)

    def _update_reading(self) -> None:
        """Pause or resume reading."""
        if self._transport is None or self._transport.is_closing() or self._eof:
            return
        if self._busy:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _start_timer(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check_timeout)

    def _check_timeout(self) -> None:
        """Close if the timeout has expired, else re-arm the timer."""
        bound = WRITE_TIMEOUT if self._inflight else IDLE_TIMEOUT
        left = self._last_used + bound - asyncio.get_running_loop().time()
        if left <= 0:
            self.abort()
        else:
            self._start_timer(left)
