"""Listening on every configured address, each on its own: one that is in use is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from discovery.api import listeners

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
BACKLOG = 1024
_AT_ONCE = 64
"""Connections that are accepted before others have their turn."""
_PAUSE_SECONDS = 1.0
Accepted = Callable[[socket.socket, bool], bool]
"""Takes a connection, and whether its address can be reached from other hosts; False: no more for a moment."""


class Listening:
    """The listening sockets of a server, and what they accept."""

    def __init__(self, addresses: Sequence[str], accepted: Accepted) -> None:
        self._wanted = tuple(addresses)
        self._accepted = accepted
        self._sockets: dict[str, socket.socket] = {}
        self._resuming: dict[str, asyncio.TimerHandle] = {}
        self._errors: dict[str, str] = {}
        self._retry: asyncio.Task[None] | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, with the actual port for port 0."""
        return tuple(listeners.format_address(one, self._sockets[one]) for one in self._wanted if one in self._sockets)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it does not listen at an address, with what to do."""
        return tuple(f"{why}; {_remedy(one)}" for one, why in self._errors.items())

    async def start(self) -> None:
        """Listen wherever that is possible, and go on trying elsewhere."""
        self._try_all()
        if self._errors:
            self._retry = asyncio.create_task(self._retry_all())

    async def stop(self) -> None:
        """Close the sockets. Connections stay open."""
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.gather(self._retry, return_exceptions=True)
        for address, sock in self._sockets.items():
            self._pause(address)
            sock.close()
            if address.startswith("/"):
                with contextlib.suppress(OSError):
                    Path(address).unlink(missing_ok=True)
        self._sockets.clear()

    async def _retry_all(self) -> None:
        while self._errors:
            await asyncio.sleep(RETRY_SECONDS)
            self._try_all()

    def _try_all(self) -> None:
        for address in self._wanted:
            if address in self._sockets:
                continue
            try:
                self._listen(address)
            except OSError as error:
                if address not in self._errors:
                    log.error("%s", error)
                self._errors[address] = str(error)
            else:
                log.info("HTTP API at %s", address)
                self._errors.pop(address, None)

    def _listen(self, address: str) -> None:
        """Raises OSError that names the address."""
        sock = listeners.bind(address)
        try:
            sock.setblocking(False)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise listeners.refused(address, error) from error
        self._sockets[address] = sock
        self._resume(address)

    def _resume(self, address: str) -> None:
        self._resuming.pop(address, None)
        sock = self._sockets[address]
        asyncio.get_running_loop().add_reader(sock, self._accept, address, sock)

    def _pause(self, address: str) -> None:
        asyncio.get_running_loop().remove_reader(self._sockets[address])
        if (resuming := self._resuming.pop(address, None)) is not None:
            resuming.cancel()

    def _accept(self, address: str, sock: socket.socket) -> None:
        is_remote = listeners.is_remote(address)
        for _ in range(_AT_ONCE):
            try:
                connection, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more descriptors
                log.error("accepting on %s: %s", address, error)
                more = False
            else:
                connection.setblocking(False)
                more = self._accepted(connection, is_remote)
            if not more:
                self._pause(address)
                loop = asyncio.get_running_loop()
                self._resuming[address] = loop.call_later(_PAUSE_SECONDS, self._resume, address)
                return


def _remedy(address: str) -> str:
    again = f"it is tried again every {RETRY_SECONDS:g} s"
    return again if address.startswith("/") else f"{again}; for another port set listen in [http] of weft.toml"
