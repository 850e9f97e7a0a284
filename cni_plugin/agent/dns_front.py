"""DNS as the agent sees it: its listening sockets, and the worker that answers (``dns_worker``).

The sockets stay bound here while that process is replaced: queries wait in them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import astuple, fields

from cni_plugin.agent.workers import PING_SECONDS, Worker, count
from discovery.catalog import Catalog
from discovery.dns.listeners import Listeners, SocketAddress
from discovery.dns.network_zones import NetworkZone, NetworkZones
from discovery.dns.replica import Feed, servers_to_json, settings_to_json, zone_to_json
from discovery.dns.responder import Counters
from discovery.dns.server import export
from discovery.dns.service_index import Visible
from discovery.dns.settings import DnsSettings
from discovery.dns.upstreams import ResolvConf
from discovery.metrics import Metrics
from weft.pair import Malformed, Message
from weft.spawner import Spawner

NAME = "dns"
"""The worker's name."""
_MOST_BYTES = 1024  # of its messages


class DnsFront:
    """A part of the agent. ``visible`` as in ServiceIndex, None where everything is."""

    def __init__(
        self,
        catalog: Catalog,
        names: NetworkZones,
        settings: DnsSettings,
        metrics: Metrics,
        spawner: Spawner,
        visible: Visible | None = None,
    ) -> None:
        self.names = names
        self.counters = Counters()
        self.connections = self.inflight = 0
        self._worker = Worker(
            spawner, NAME, _MOST_BYTES, tell=self._tell, answered=self._counted, received=_refuse, metrics=metrics
        )
        self.feed = Feed(catalog, self._worker.send, visible)
        """The worker's copy of the catalog."""
        self.permissions_changed = self.feed.reload
        """Is called when ``visible`` answers differently."""
        self._settings = settings
        self._listeners = Listeners(names, settings, self)
        self._resolv_conf = ResolvConf(settings.resolv_conf)
        self._told_servers: list[object] = []
        self._sockets: dict[SocketAddress, tuple[socket.socket, socket.socket]] = {}
        self._former = Counters()
        self._following: asyncio.Task[None] | None = None
        names.subscribe(lambda changed: self._send_networks())
        export(metrics, self)
        metrics.read_before(self._worker.sync)

    @property
    def addresses(self) -> tuple[SocketAddress, ...]:
        """The addresses that are listened on."""
        return tuple(self._listeners.bound)

    @property
    def bind_errors(self) -> dict[SocketAddress, str]:
        """Addresses that could not be bound, and why."""
        return self._listeners.bind_errors

    def start_worker(self) -> None:
        """Start the worker: what the catalog loads is sent to it meanwhile. Raises WeftError."""
        self._worker.start()

    async def start(self) -> None:
        """Bind all listeners, and start the worker unless it runs. Raises WeftError."""
        if not self._worker.is_started:
            self.start_worker()
        await self._listeners.start()
        self._following = asyncio.create_task(self._follow_servers())
        await self._worker.sync()

    async def stop(self) -> None:
        """Close all sockets, here and in the worker."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._worker.stop()
        await self._listeners.stop()

    async def set_networks(self, networks: Iterable[NetworkZone]) -> None:
        """Replace the networks; returns when all listeners that can be bound are, and answer."""
        self.names.replace(networks)
        await self._listeners.reconcile()
        await self._worker.sync()

    # Listeners: Serving

    async def open(
        self, address: SocketAddress, networks: tuple[str, ...], udp: socket.socket, tcp: socket.socket
    ) -> None:
        self._sockets[address] = udp, tcp
        self._send_sockets(address, networks)

    def assign(self, address: SocketAddress, networks: tuple[str, ...]) -> None:
        self._worker.send(["assign", *address, networks])

    def withdraw(self, address: SocketAddress) -> None:
        self._worker.send(["withdraw", *address])
        for one in self._sockets.pop(address):
            one.close()

    # What the worker is told, and says

    def _tell(self) -> None:
        self._former, self._told_servers = self.counters, []
        self._worker.send(["settings", settings_to_json(self._settings)])
        self._send_servers()
        self._send_networks()
        self.feed.restart()
        for address, networks in self._listeners.bound.items():
            self._send_sockets(address, networks)

    def _send_networks(self) -> None:
        self._worker.send(["networks", [zone_to_json(one) for one in self.names.networks()]])

    def _send_sockets(self, address: SocketAddress, networks: tuple[str, ...]) -> None:
        self._worker.send(["open", *address, networks], [one.fileno() for one in self._sockets[address]])

    def _send_servers(self) -> None:
        servers = servers_to_json(self._resolv_conf)
        if servers != self._told_servers:
            self._worker.send(["servers", *servers])
            self._told_servers = servers

    async def _follow_servers(self) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            self._send_servers()

    def _counted(self, values: list[object]) -> None:
        """Take the counts of a pong. Raises Malformed."""
        if len(values) != 2 + len(fields(Counters)):
            raise Malformed(f"{len(values)} counts")
        self.connections, self.inflight, *counts = map(count, values)
        self.counters = Counters(*(one + former for one, former in zip(counts, astuple(self._former), strict=True)))


def _refuse(message: Message) -> None:
    raise Malformed(f"an unexpected message: {str(message)[:80]}")
