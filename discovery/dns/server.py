"""The DNS server: one listener per gateway address, each with its clients' views."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Protocol

from discovery.catalog import Catalog
from discovery.dns import codec, sockets
from discovery.dns.codec import SERVFAIL, Malformed
from discovery.dns.forwarder import Forwarder
from discovery.dns.listeners import Listeners, SocketAddress
from discovery.dns.network_zones import ClientConfig, NetworkZone, NetworkZones
from discovery.dns.responder import COUNTER_HELP, Counters, PendingQuery, Responder
from discovery.dns.service_index import Visible
from discovery.dns.settings import DnsSettings
from discovery.dns.tcp import TcpConnection, TcpConnections
from discovery.dns.upstreams import HostServers, ResolvConf
from discovery.dns.view import Subnet, View, parse_subnets
from discovery.dns.zone import Zone
from discovery.metrics import Metrics

MAX_BURST = 64
"""Datagrams read from one socket before the event loop runs other sockets."""
MAX_QUERY_BYTES = 4096
MAX_CACHED_SOURCES = 65_536
_NO_REACHABLE_SERVER = codec.ede_option(22, "no name server answered")

Send = Callable[[bytes | None], None]


@dataclass(slots=True, eq=False)
class _Listener:
    """A listening address and its networks; () for the host's own listeners."""

    address: SocketAddress
    networks: tuple[str, ...]
    udp: socket.socket
    tcp_server: asyncio.Server
    sources: dict[str, View | None]


class DnsServer:
    """Serves services to all clients, and container names to clients on the same network.

    It binds its listeners itself, unless ``binds`` is false: then ``open``, ``assign`` and ``withdraw``
    are called for those that another process has bound.
    """

    def __init__(
        self,
        catalog: Catalog,
        names: NetworkZones,
        settings: DnsSettings,
        metrics: Metrics | None = None,
        visible: Visible = lambda kind, name: True,
        *,
        binds: bool = True,
        resolv_conf: HostServers | None = None,
    ) -> None:
        self.names = names
        self.before_queries: Callable[[], None] = lambda: None
        """Is called before queries are answered, when some have come."""
        self._settings = settings
        self._resolv_conf = resolv_conf or ResolvConf(settings.resolv_conf)
        self._bound = Listeners(names, settings, self) if binds else None
        self._zone = Zone(catalog, settings, visible)
        self.permissions_changed = self._zone.permissions_changed
        """Is called when ``visible`` answers differently."""
        self._responder = Responder(self._zone, settings)
        self._forwarder = Forwarder(self._resolv_conf, lambda: self._listeners.keys())
        self._listeners: dict[SocketAddress, _Listener] = {}
        self._connections = TcpConnections()
        self._views: dict[tuple[tuple[str, ...], tuple[str, ...], int], View] = {}
        self._local_subnets: tuple[Subnet, ...] = ()
        self._unsubscribe: Callable[[], None] = lambda: None
        if metrics is not None:
            export(metrics, self)

    @property
    def addresses(self) -> tuple[SocketAddress, ...]:
        """The addresses that are listened on."""
        return tuple(self._listeners)

    @property
    def bind_errors(self) -> dict[SocketAddress, str]:
        """Addresses that could not be bound, and why."""
        return self._bound.bind_errors if self._bound is not None else {}

    @property
    def counters(self) -> Counters:
        """Event counters since the start."""
        return self._responder.counters

    async def start(self) -> None:
        """Bind all listeners, and follow changes of the networks."""
        self._zone.open()
        self._unsubscribe = self.names.subscribe(self._on_networks_changed)
        self._on_networks_changed(frozenset())
        if self._bound is not None:
            await self._bound.start()

    async def stop(self) -> None:
        """Close all sockets and cancel all queries."""
        self._unsubscribe()
        if self._bound is not None:
            await self._bound.stop()
        for address in tuple(self._listeners):
            self.withdraw(address)
        self._connections.close()
        await self._forwarder.close()
        self._zone.close()

    async def set_networks(self, networks: Iterable[NetworkZone]) -> None:
        """Replace the networks; returns when all listeners that can be bound are."""
        self.names.replace(networks)
        if self._bound is not None:
            await self._bound.reconcile()

    @property
    def connections(self) -> int:
        """TCP connections."""
        return len(self._connections)

    @property
    def inflight(self) -> int:
        """Upstream queries in flight."""
        return self._forwarder.inflight

    # Listeners

    def _on_networks_changed(self, changed: frozenset[str]) -> None:
        """Drop views and cached sources of changed networks."""
        self._local_subnets = tuple(subnet for one in self.names.networks() for subnet in parse_subnets(one.subnets))
        self._views = {key: view for key, view in self._views.items() if key[0] and not changed & set(key[0])}
        for listener in self._listeners.values():
            listener.sources.clear()

    async def open(
        self, address: SocketAddress, networks: tuple[str, ...], udp: socket.socket, tcp: socket.socket
    ) -> None:
        """Serve networks on listening sockets, which this server owns from now on."""
        loop = asyncio.get_running_loop()
        answer = partial(self._answer_tcp, address)
        tcp_server = await loop.create_server(
            lambda: TcpConnection(self._connections, answer), sock=tcp, backlog=sockets.BACKLOG
        )
        listener = self._listeners[address] = _Listener(address, networks, udp, tcp_server, {})
        drain = self._read_wildcard_datagrams if sockets.is_wildcard(address[0]) else self._read_datagrams
        loop.add_reader(udp.fileno(), drain, listener)

    def assign(self, address: SocketAddress, networks: tuple[str, ...]) -> None:
        """Serve other networks at an address."""
        if (listener := self._listeners.get(address)) is not None:
            listener.networks = networks
            listener.sources.clear()

    def withdraw(self, address: SocketAddress) -> None:
        """Close a listener; an unknown one is no error."""
        if (listener := self._listeners.pop(address, None)) is not None:
            asyncio.get_running_loop().remove_reader(listener.udp.fileno())
            listener.udp.close()
            listener.tcp_server.close()

    # Views

    def _view(self, listener: _Listener, source: str) -> View | None:
        """The view of a client of a listener; None if the client is not served."""
        if len(listener.sources) >= MAX_CACHED_SOURCES:
            listener.sources.clear()
        found = listener.sources[source] = self._find_view(listener, source)
        return found

    def _find_view(self, listener: _Listener, source: str) -> View | None:
        try:
            address = ip_address(source)
        except ValueError:
            return None
        if not listener.networks:
            # A public listener answers all clients, but recurses for private addresses only.
            size = self._udp_size(source, own=address.is_loopback)
            return self._view_for((), self._settings.recursors or None if address.is_private else None, size)
        served = [network for name in listener.networks if (network := self.names.network(name))]
        matching = [one for one in served if any(_contains(each, address) for each in parse_subnets(one.subnets))]
        if not matching:
            return None
        # Networks may share a gateway: the client is on the one that has its address.
        text = str(address)
        home = next((one for one in matching if text in one.reverse or text in one.clients), matching[0])
        holder = home.clients.get(text, ClientConfig())
        peers = [one for name in holder.networks if (one := self.names.network(name)) and one is not home]
        networks = (home, *peers)
        upstreams = holder.upstreams or next((one.upstreams for one in networks if one.upstreams), ())
        reachable = any(not one.internal for one in networks)
        size = self._udp_size(source, own=True)
        return self._view_for(tuple(one.network for one in networks), upstreams if reachable else None, size)

    def _udp_size(self, client: str, *, own: bool) -> int:
        """The largest UDP reply to a client: what is not fragmented. Of a client that is not this
        host's or on its networks (``own``) the path is unknown.
        """
        try:
            size = sockets.unfragmented_size(client)
        except OSError:
            size = codec.EDNS_UDP_SIZE
        if not own and size < sockets.LOOPBACK_PAYLOAD:
            size = codec.EDNS_UDP_SIZE
        return max(min(size, self._settings.udp_size or size), codec.DEFAULT_UDP_SIZE)

    def _view_for(self, networks: tuple[str, ...], upstreams: tuple[str, ...] | None, udp_size: int) -> View:
        key = (networks, ("none",) if upstreams is None else upstreams, udp_size)
        found = self._views.get(key)
        if found is None:
            known = [one for name in networks if (one := self.names.network(name))]
            found = View(
                known, self._settings, upstreams, lambda: self._local_subnets, self._resolv_conf.search, udp_size
            )
            self._views[key] = found
        return found

    # Queries

    def _read_datagrams(self, listener: _Listener) -> None:
        """Answer queued datagrams, at most MAX_BURST."""
        self.before_queries()
        sock = listener.udp
        receive, sources, respond = sock.recvfrom, listener.sources, self._responder.respond
        try:
            for _ in range(MAX_BURST):
                data, source = receive(MAX_QUERY_BYTES)
                client = source[0]
                view = sources.get(client) or self._view(listener, client)
                if view is None:
                    self.counters.foreign += 1
                    continue
                reply = respond(data, view)
                if type(reply) is bytes:
                    with contextlib.suppress(OSError):
                        sock.sendto(reply, source)
                elif reply is not None:
                    self._forward(reply, client, partial(_send_to, sock, source))  # type: ignore[arg-type]
        except OSError:
            return

    def _read_wildcard_datagrams(self, listener: _Listener) -> None:
        """The same on a wildcard address: the reply's source is the query's destination."""
        self.before_queries()
        sock = listener.udp
        for _ in range(MAX_BURST):
            try:
                data, ancillary, _, source = sock.recvmsg(MAX_QUERY_BYTES, 128)
            except OSError:
                return
            client = source[0].partition("%")[0]
            view = listener.sources.get(client) or self._view(listener, client)
            if view is None:
                self.counters.foreign += 1
                continue
            send = partial(_send_from, sock, source, sockets.reply_pktinfo(ancillary))
            reply = self._responder.respond(data, view)
            if isinstance(reply, PendingQuery):
                self._forward(reply, client, send)
            elif reply is not None:
                send(reply)

    def _answer_tcp(self, address: SocketAddress, data: bytes, client: str, send: Send) -> bool:
        self.before_queries()
        listener = self._listeners.get(address)
        view = (listener.sources.get(client) or self._view(listener, client)) if listener else None
        if view is None:
            self.counters.foreign += 1
            return False
        self.counters.streams += 1
        reply = self._responder.respond(data, view, True)
        if isinstance(reply, PendingQuery):
            self._forward(reply, client, send)
        else:
            send(reply)
        return True

    def _forward(self, pending: PendingQuery, client: str, send: Send) -> None:
        """Forward a query."""
        self.counters.forwarded += 1
        done = partial(self._on_forwarded_reply, pending, send)
        found = self._forwarder.resolve(pending.query, pending.question, pending.view.upstreams or (), client, done)
        if found is not None:
            self.counters.cached += 1
            done(found)

    def _on_forwarded_reply(self, pending: PendingQuery, send: Send, message: bytes | None) -> None:
        """Relay the upstream reply, or SERVFAIL without one."""
        responder = self._responder
        if message is None:
            self.counters.failed += 1
            send(responder.error_reply(pending.query, SERVFAIL, pending.view, _NO_REACHABLE_SERVER))
            return
        try:
            if pending.cname is not None:
                send(responder.append_to_cname(pending, pending.cname, message))
            else:
                send(responder.relay(pending, message))
        except Malformed:
            send(responder.error_reply(pending.query, SERVFAIL, pending.view))


class Measured(Protocol):
    """What the metrics are read from."""

    @property
    def counters(self) -> Counters: ...

    @property
    def connections(self) -> int: ...

    @property
    def inflight(self) -> int: ...


def export(metrics: Metrics, of: Measured) -> None:
    """Export the counters of a DNS server."""

    def read(name: str) -> float:
        return float(getattr(of.counters, name))

    for name, purpose in COUNTER_HELP.items():
        metrics.counter(f"weft_dns_{name}_total", purpose, read=partial(read, name))
    metrics.gauge("weft_dns_connections", "TCP connections.", read=lambda: of.connections)
    metrics.gauge("weft_dns_asked", "Upstream queries in flight.", read=lambda: of.inflight)


def _contains(subnet: Subnet, address: object) -> bool:
    return getattr(address, "version", 0) == subnet.version and address in subnet


def _send_to(sock: socket.socket, address: SocketAddress, reply: bytes | None) -> None:
    # Errors are ignored: listener closed, client gone or socket buffer full; the client retries.
    if reply is not None:
        with contextlib.suppress(OSError):
            sock.sendto(reply, address)


def _send_from(
    sock: socket.socket, address: SocketAddress, ancillary: list[tuple[int, int, bytes]], reply: bytes | None
) -> None:
    if reply is not None:
        with contextlib.suppress(OSError):
            sock.sendmsg([reply], ancillary, 0, address)
