"""Which addresses DNS listens on: binds them as the networks change, and retries those in use."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from discovery.dns import sockets
from discovery.dns.network_zones import NetworkZones
from discovery.dns.settings import DnsSettings

BIND_RETRY_SECONDS = 2.0
"""Seconds until binding an address in use is retried."""
_log = logging.getLogger("weft.dns")

SocketAddress = tuple[str, int]


class Serving(Protocol):
    """Serves the networks of an address; () are the host's own listeners."""

    async def open(
        self, address: SocketAddress, networks: tuple[str, ...], udp: socket.socket, tcp: socket.socket
    ) -> None: ...

    def assign(self, address: SocketAddress, networks: tuple[str, ...]) -> None: ...

    def withdraw(self, address: SocketAddress) -> None: ...


class Listeners:
    """Binds the addresses of the settings and the gateways of all networks, for ``serving``."""

    def __init__(self, names: NetworkZones, settings: DnsSettings, serving: Serving) -> None:
        self.bound: dict[SocketAddress, tuple[str, ...]] = {}
        """The addresses that are listened on, and their networks."""
        self.bind_errors: dict[SocketAddress, str] = {}
        """Addresses that could not be bound, and why."""
        self._names = names
        self._settings = settings
        self._serving = serving
        self._reconciling = asyncio.Lock()
        self._wake = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Bind all listeners, and follow changes of the networks."""
        self._unsubscribe = self._names.subscribe(lambda changed: self._wake.set())
        await self.reconcile()
        self._follower = asyncio.get_running_loop().create_task(self._follow_networks())

    async def stop(self) -> None:
        """Withdraw all listeners, and follow no longer."""
        self._unsubscribe()
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        for address in tuple(self.bound):
            del self.bound[address]
            self._serving.withdraw(address)

    async def _follow_networks(self) -> None:
        """Reconcile listeners with the networks; retry addresses in use."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BIND_RETRY_SECONDS if self.bind_errors else None):
                    await self._wake.wait()
            self._wake.clear()
            await self.reconcile()

    def _wanted(self) -> dict[SocketAddress, tuple[str, ...]]:
        listeners: dict[SocketAddress, tuple[str, ...]] = {
            (each.address, each.port): () for each in self._settings.listen
        }
        for network in self._names.networks():
            for gateway in network.gateways:
                address = (gateway, self._settings.network_port)
                listeners[address] = (*listeners.get(address, ()), network.network)
        return listeners

    async def reconcile(self) -> None:
        """Open missing listeners and close stale ones; others are untouched."""
        async with self._reconciling:
            wanted = self._wanted()
            for address in self.bound.keys() - wanted.keys():
                del self.bound[address]
                self._serving.withdraw(address)
            self.bind_errors = {address: why for address, why in self.bind_errors.items() if address in wanted}
            for address, networks in wanted.items():
                if address not in self.bound:
                    await self._open(address, networks)
                elif self.bound[address] != networks:
                    self.bound[address] = networks
                    self._serving.assign(address, networks)

    async def _open(self, address: SocketAddress, networks: tuple[str, ...]) -> None:
        with contextlib.ExitStack() as stack:
            try:
                udp = sockets.udp_socket(*address)
                stack.callback(udp.close)
                tcp = sockets.tcp_socket(*address)
                stack.callback(tcp.close)
                tcp.listen(sockets.BACKLOG)
                await self._serving.open(address, networks, udp, tcp)
            except (OSError, ValueError) as error:
                why = f"cannot listen on {address[0]} port {address[1]}: {getattr(error, 'strerror', None) or error}"
                if self.bind_errors.get(address) != why:
                    _log.warning("%s; retrying every %g s", why, BIND_RETRY_SECONDS)
                self.bind_errors[address] = why
                return
            stack.pop_all()
        self.bind_errors.pop(address, None)
        self.bound[address] = networks
