"""Listening on every configured address, each on its own: one that is in use is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from discovery.api import listeners

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
NewServer = Callable[[socket.socket, ssl.SSLContext | None], Awaitable[asyncio.Server]]


class Listening:
    """The listening sockets of a server. ``tls`` is for addresses beyond loopback."""

    def __init__(self, addresses: Sequence[str], tls: ssl.SSLContext | None, new_server: NewServer) -> None:
        self._wanted = tuple(addresses)
        self._tls = tls
        self._new_server = new_server
        self._servers: dict[str, asyncio.Server] = {}
        self._errors: dict[str, str] = {}
        self._retry: asyncio.Task[None] | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, with the actual port for port 0."""
        return tuple(
            listeners.format_address(one, self._servers[one].sockets[0]) for one in self._wanted if one in self._servers
        )

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it does not listen at an address, with what to do."""
        return tuple(f"{why}; {_remedy(one)}" for one, why in self._errors.items())

    async def start(self) -> None:
        """Listen wherever that is possible, and go on trying elsewhere."""
        await self._try_all()
        if self._errors:
            self._retry = asyncio.create_task(self._retry_all())

    async def stop(self) -> None:
        """Close the sockets. Connections stay open."""
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.gather(self._retry, return_exceptions=True)
        for address, server in self._servers.items():
            server.close()
            if address.startswith("/"):
                with contextlib.suppress(OSError):
                    Path(address).unlink(missing_ok=True)
        self._servers.clear()

    async def _retry_all(self) -> None:
        while self._errors:
            await asyncio.sleep(RETRY_SECONDS)
            await self._try_all()

    async def _try_all(self) -> None:
        for address in self._wanted:
            if address in self._servers:
                continue
            try:
                await self._listen(address)
            except OSError as error:
                if address not in self._errors:
                    log.error("%s", error)
                self._errors[address] = str(error)
            else:
                log.info("HTTP API at %s", address)
                self._errors.pop(address, None)

    async def _listen(self, address: str) -> None:
        """Raises OSError that names the address."""
        sock = listeners.bind(address)
        try:
            self._servers[address] = await self._new_server(sock, self._tls if listeners.is_remote(address) else None)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise listeners.refused(address, error) from error
            raise


def _remedy(address: str) -> str:
    again = f"it is tried again every {RETRY_SECONDS:g} s"
    return again if address.startswith("/") else f"{again}; for another port set listen in [http] of weft.toml"
