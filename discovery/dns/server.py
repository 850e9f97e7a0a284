"""The DNS server: listeners that come and go with networks, each answering what its clients may see."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

from discovery.catalog import Catalog
from discovery.dns import codec, sockets
from discovery.dns.codec import SERVFAIL, Malformed
from discovery.dns.forwarder import Forwarder
from discovery.dns.network_zones import ClientConfig, NetworkZone, NetworkZones
from discovery.dns.responder import COUNTER_HELP, Counters, PendingQuery, Responder
from discovery.dns.settings import DnsSettings
from discovery.dns.tcp import TcpConnection, TcpConnections
from discovery.dns.upstreams import ResolvConf
from discovery.dns.view import Subnet, View, parse_subnets
from discovery.dns.zone import Zone
from discovery.metrics import Metrics

MAX_BURST = 64
"""Datagrams of one socket that are answered before others have their turn."""
MAX_QUERY_BYTES = 4096
MAX_CACHED_SOURCES = 65_536
BIND_RETRY_SECONDS = 2.0
"""Seconds until an address that somebody else holds is tried again."""
_NO_REACHABLE_SERVER = codec.ede_option(22, "no name server answered")
_log = logging.getLogger("weft.dns")

SocketAddress = tuple[str, int]
Send = Callable[[bytes | None], None]


@dataclass(slots=True, eq=False)
class _Listener:
    """An address that is listened at, and the networks whose it is; none for the host's own."""

    address: SocketAddress
    networks: tuple[str, ...]
    udp: socket.socket
    tcp_server: asyncio.Server
    sources: dict[str, View | None]


class DnsServer:
    """Answers for services to all, and for containers' names to those of the same network."""

    def __init__(
        self, catalog: Catalog, names: NetworkZones, settings: DnsSettings, metrics: Metrics | None = None
    ) -> None:
        self.names = names
        self.bind_errors: dict[SocketAddress, str] = {}
        """The addresses that cannot be listened at, and why."""
        self._settings = settings
        self._resolv_conf = ResolvConf(settings.resolv_conf)
        self._zone = Zone(catalog, settings)
        self._responder = Responder(self._zone, settings)
        self._forwarder = Forwarder(self._resolv_conf, lambda: self._listeners.keys())
        self._listeners: dict[SocketAddress, _Listener] = {}
        self._connections = TcpConnections()
        self._views: dict[tuple[tuple[str, ...], tuple[str, ...]], View] = {}
        self._local_subnets: tuple[Subnet, ...] = ()
        self._reconciling = asyncio.Lock()
        self._wake = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        if metrics is not None:
            self._register_metrics(metrics)

    @property
    def addresses(self) -> tuple[SocketAddress, ...]:
        """Where it listens now."""
        return tuple(self._listeners)

    @property
    def counters(self) -> Counters:
        """What happened since the start."""
        return self._responder.counters

    async def start(self) -> None:
        """Listen for the host and for all networks, and follow the networks from now on."""
        self._zone.open()
        self._unsubscribe = self.names.subscribe(self._on_networks_changed)
        self._on_networks_changed(frozenset())
        await self._reconcile()
        self._follower = asyncio.get_running_loop().create_task(self._follow_networks())

    async def stop(self) -> None:
        """Close everything."""
        self._unsubscribe()
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        for listener in tuple(self._listeners.values()):
            self._close(listener)
        self._connections.close()
        await self._forwarder.close()
        self._zone.close()

    async def set_networks(self, networks: Iterable[NetworkZone]) -> None:
        """These are the networks; returns when all that can be listened at is."""
        self.names.replace(networks)
        await self._reconcile()

    def _register_metrics(self, metrics: Metrics) -> None:
        """Have the counts read with all others of the agent."""
        for name, purpose in COUNTER_HELP.items():
            metrics.counter(f"weft_dns_{name}_total", purpose, read=partial(getattr, self.counters, name))
        metrics.gauge("weft_dns_connections", "Clients connected by TCP.", read=lambda: len(self._connections))
        metrics.gauge("weft_dns_asked", "Questions that others have not answered yet.", read=self._inflight)

    def _inflight(self) -> int:
        return self._forwarder.inflight

    # Listeners

    def _on_networks_changed(self, changed: frozenset[str]) -> None:
        """Networks are others now: nobody sees what was before."""
        self._local_subnets = tuple(subnet for one in self.names.networks() for subnet in parse_subnets(one.subnets))
        self._views = {key: view for key, view in self._views.items() if key[0] and not changed & set(key[0])}
        for listener in self._listeners.values():
            listener.sources.clear()
        self._wake.set()

    async def _follow_networks(self) -> None:
        """Open and close listeners as networks change; try again where an address was taken."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BIND_RETRY_SECONDS if self.bind_errors else None):
                    await self._wake.wait()
            self._wake.clear()
            await self._reconcile()

    def _wanted_listeners(self) -> dict[SocketAddress, tuple[str, ...]]:
        listeners: dict[SocketAddress, tuple[str, ...]] = {
            (each.address, each.port): () for each in self._settings.listen
        }
        for network in self.names.networks():
            for gateway in network.gateways:
                address = (gateway, self._settings.network_port)
                listeners[address] = (*listeners.get(address, ()), network.network)
        return listeners

    async def _reconcile(self) -> None:
        """Listen where it is wanted and nowhere else; what is listened at already is not touched."""
        async with self._reconciling:
            wanted = self._wanted_listeners()
            for address in self._listeners.keys() - wanted.keys():
                self._close(self._listeners.pop(address))
            self.bind_errors = {address: why for address, why in self.bind_errors.items() if address in wanted}
            for address, networks in wanted.items():
                held = self._listeners.get(address)
                if held is None:
                    await self._open(address, networks)
                elif held.networks != networks:
                    held.networks = networks
                    held.sources.clear()

    async def _open(self, address: SocketAddress, networks: tuple[str, ...]) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            try:
                udp = sockets.udp_socket(*address)
                stack.callback(udp.close)
                listening = sockets.tcp_socket(*address)
                stack.callback(listening.close)
                sources: dict[str, View | None] = {}
                answer = partial(self._answer_tcp, address)
                tcp_server = await loop.create_server(
                    lambda: TcpConnection(self._connections, answer), sock=listening, backlog=sockets.BACKLOG
                )
            except (OSError, ValueError) as error:
                why = f"cannot listen at {address[0]} port {address[1]}: {getattr(error, 'strerror', None) or error}"
                if self.bind_errors.get(address) != why:
                    _log.warning("%s; it is tried again every %g s", why, BIND_RETRY_SECONDS)
                self.bind_errors[address] = why
                return
            stack.pop_all()
        self.bind_errors.pop(address, None)
        listener = _Listener(address, networks, udp, tcp_server, sources)
        self._listeners[address] = listener
        drain = self._read_wildcard_datagrams if sockets.is_wildcard(address[0]) else self._read_datagrams
        loop.add_reader(udp.fileno(), drain, listener)

    def _close(self, listener: _Listener) -> None:
        self._listeners.pop(listener.address, None)
        asyncio.get_running_loop().remove_reader(listener.udp.fileno())
        listener.udp.close()
        listener.tcp_server.close()

    # Who sees what

    def _view(self, listener: _Listener, source: str) -> View | None:
        """What a client of a listener may see; None for somebody who has no business there."""
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
            # Whoever listens for the world answers it, but does not ask others on its behalf.
            return self._view_for((), self._settings.recursors or None if address.is_private else None)
        served = [network for name in listener.networks if (network := self.names.network(name))]
        matching = [one for one in served if any(_contains(each, address) for each in parse_subnets(one.subnets))]
        if not matching:
            return None
        # Networks may share a gateway: a container belongs to the one that knows its address.
        text = str(address)
        home = next((one for one in matching if text in one.reverse or text in one.clients), matching[0])
        holder = home.clients.get(text, ClientConfig())
        peers = [one for name in holder.networks if (one := self.names.network(name)) and one is not home]
        networks = (home, *peers)
        upstreams = holder.upstreams or next((one.upstreams for one in networks if one.upstreams), ())
        reachable = any(not one.internal for one in networks)
        return self._view_for(tuple(one.network for one in networks), upstreams if reachable else None)

    def _view_for(self, networks: tuple[str, ...], upstreams: tuple[str, ...] | None) -> View:
        key = (networks, ("none",) if upstreams is None else upstreams)
        found = self._views.get(key)
        if found is None:
            known = [one for name in networks if (one := self.names.network(name))]
            found = View(known, self._settings, upstreams, lambda: self._local_subnets, self._resolv_conf.search)
            self._views[key] = found
        return found

    # Queries

    def _read_datagrams(self, listener: _Listener) -> None:
        """Answer what has come, up to a bound, so that no client keeps others waiting."""
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
        """The same where queries come to any address: the answer leaves from the one that was asked."""
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
        """Have others answer."""
        self.counters.forwarded += 1
        done = partial(self._on_forwarded_reply, pending, send)
        found = self._forwarder.resolve(pending.query, pending.question, pending.view.upstreams or (), client, done)
        if found is not None:
            self.counters.cached += 1
            done(found)

    def _on_forwarded_reply(self, pending: PendingQuery, send: Send, message: bytes | None) -> None:
        """Others have answered, or have not."""
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


def _contains(subnet: Subnet, address: object) -> bool:
    return getattr(address, "version", 0) == subnet.version and address in subnet


def _send_to(sock: socket.socket, address: SocketAddress, reply: bytes | None) -> None:
    # The listener may be closed by now, the client gone or its queue full: it asks again.
    if reply is not None:
        with contextlib.suppress(OSError):
            sock.sendto(reply, address)


def _send_from(
    sock: socket.socket, address: SocketAddress, ancillary: list[tuple[int, int, bytes]], reply: bytes | None
) -> None:
    if reply is not None:
        with contextlib.suppress(OSError):
            sock.sendmsg([reply], ancillary, 0, address)
