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

    place: SocketAddress
    networks: tuple[str, ...]
    datagrams: socket.socket
    streams: asyncio.Server
    sources: dict[str, View | None]


class DnsServer:
    """Answers for services to all, and for containers' names to those of the same network."""

    def __init__(
        self, catalog: Catalog, names: NetworkZones, settings: DnsSettings, metrics: Metrics | None = None
    ) -> None:
        self.names = names
        self.problems: dict[SocketAddress, str] = {}
        """The addresses that cannot be listened at, and why."""
        self._settings = settings
        self._resolv_conf = ResolvConf(settings.resolv_conf)
        self._zone = Zone(catalog, settings)
        self._responder = Responder(self._zone, settings)
        self._forwarder = Forwarder(self._resolv_conf, lambda: self._listeners.keys())
        self._listeners: dict[SocketAddress, _Listener] = {}
        self._connections = TcpConnections()
        self._views: dict[tuple[tuple[str, ...], tuple[str, ...]], View] = {}
        self._local: tuple[Subnet, ...] = ()
        self._opening = asyncio.Lock()
        self._wake = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        if metrics is not None:
            self._publish(metrics)

    @property
    def places(self) -> tuple[SocketAddress, ...]:
        """Where it listens now."""
        return tuple(self._listeners)

    @property
    def counts(self) -> Counters:
        """What happened since the start."""
        return self._responder.counts

    async def start(self) -> None:
        """Listen for the host and for all networks, and follow the networks from now on."""
        self._zone.open()
        self._unsubscribe = self.names.subscribe(self._changed)
        self._changed(frozenset())
        await self._reconcile()
        self._follower = asyncio.get_running_loop().create_task(self._follow())

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

    async def serve(self, networks: Iterable[NetworkZone]) -> None:
        """These are the networks; returns when all that can be listened at is."""
        self.names.replace(networks)
        await self._reconcile()

    def _publish(self, metrics: Metrics) -> None:
        """Have the counts read with all others of the agent."""
        for name, purpose in COUNTER_HELP.items():
            metrics.counter(f"weft_dns_{name}_total", purpose, read=partial(getattr, self.counts, name))
        metrics.gauge("weft_dns_connections", "Clients connected by TCP.", read=lambda: len(self._connections))
        metrics.gauge("weft_dns_asked", "Questions that others have not answered yet.", read=self._under_way)

    def _under_way(self) -> int:
        return self._forwarder.under_way

    # Listeners

    def _changed(self, changed: frozenset[str]) -> None:
        """Networks are others now: nobody sees what was before."""
        self._local = tuple(subnet for one in self.names.networks() for subnet in parse_subnets(one.subnets))
        self._views = {key: view for key, view in self._views.items() if key[0] and not changed & set(key[0])}
        for listener in self._listeners.values():
            listener.sources.clear()
        self._wake.set()

    async def _follow(self) -> None:
        """Open and close listeners as networks change; try again where an address was taken."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BIND_RETRY_SECONDS if self.problems else None):
                    await self._wake.wait()
            self._wake.clear()
            await self._reconcile()

    def _wanted(self) -> dict[SocketAddress, tuple[str, ...]]:
        places: dict[SocketAddress, tuple[str, ...]] = {(each.address, each.port): () for each in self._settings.listen}
        for network in self.names.networks():
            for gateway in network.gateways:
                place = (gateway, self._settings.network_port)
                places[place] = (*places.get(place, ()), network.network)
        return places

    async def _reconcile(self) -> None:
        """Listen where it is wanted and nowhere else; what is listened at already is not touched."""
        async with self._opening:
            wanted = self._wanted()
            for place in self._listeners.keys() - wanted.keys():
                self._close(self._listeners.pop(place))
            self.problems = {place: why for place, why in self.problems.items() if place in wanted}
            for place, networks in wanted.items():
                held = self._listeners.get(place)
                if held is None:
                    await self._open(place, networks)
                elif held.networks != networks:
                    held.networks = networks
                    held.sources.clear()

    async def _open(self, place: SocketAddress, networks: tuple[str, ...]) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            try:
                datagrams = sockets.udp_socket(*place)
                stack.callback(datagrams.close)
                listening = sockets.tcp_socket(*place)
                stack.callback(listening.close)
                sources: dict[str, View | None] = {}
                answer = partial(self._answer_stream, place)
                streams = await loop.create_server(
                    lambda: TcpConnection(self._connections, answer), sock=listening, backlog=sockets.BACKLOG
                )
            except (OSError, ValueError) as error:
                why = f"cannot listen at {place[0]} port {place[1]}: {getattr(error, 'strerror', None) or error}"
                if self.problems.get(place) != why:
                    _log.warning("%s; it is tried again every %g s", why, BIND_RETRY_SECONDS)
                self.problems[place] = why
                return
            stack.pop_all()
        self.problems.pop(place, None)
        listener = _Listener(place, networks, datagrams, streams, sources)
        self._listeners[place] = listener
        drain = self._drain_any if sockets.is_wildcard(place[0]) else self._drain
        loop.add_reader(datagrams.fileno(), drain, listener)

    def _close(self, listener: _Listener) -> None:
        self._listeners.pop(listener.place, None)
        asyncio.get_running_loop().remove_reader(listener.datagrams.fileno())
        listener.datagrams.close()
        listener.streams.close()

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
            return self._made((), self._settings.recursors or None if address.is_private else None)
        served = [network for name in listener.networks if (network := self.names.network(name))]
        near = [one for one in served if any(_contains(each, address) for each in parse_subnets(one.subnets))]
        if not near:
            return None
        # Networks may share a gateway: a container belongs to the one that knows its address.
        text = str(address)
        home = next((one for one in near if text in one.reverse or text in one.holders), near[0])
        holder = home.holders.get(text, ClientConfig())
        others = [one for name in holder.networks if (one := self.names.network(name)) and one is not home]
        networks = (home, *others)
        upstreams = holder.upstreams or next((one.upstreams for one in networks if one.upstreams), ())
        open_ = any(not one.internal for one in networks)
        return self._made(tuple(one.network for one in networks), upstreams if open_ else None)

    def _made(self, networks: tuple[str, ...], upstreams: tuple[str, ...] | None) -> View:
        key = (networks, ("none",) if upstreams is None else upstreams)
        found = self._views.get(key)
        if found is None:
            known = [one for name in networks if (one := self.names.network(name))]
            found = View(known, self._settings, upstreams, lambda: self._local, self._resolv_conf.search)
            self._views[key] = found
        return found

    # Queries

    def _drain(self, listener: _Listener) -> None:
        """Answer what has come, up to a bound, so that no client keeps others waiting."""
        sock = listener.datagrams
        receive, sources, respond = sock.recvfrom, listener.sources, self._responder.respond
        try:
            for _ in range(MAX_BURST):
                data, source = receive(MAX_QUERY_BYTES)
                client = source[0]
                view = sources.get(client) or self._view(listener, client)
                if view is None:
                    self.counts.foreign += 1
                    continue
                reply = respond(data, view)
                if type(reply) is bytes:
                    with contextlib.suppress(OSError):
                        sock.sendto(reply, source)
                elif reply is not None:
                    self._ask(reply, client, partial(_send_to, sock, source))  # type: ignore[arg-type]
        except OSError:
            return

    def _drain_any(self, listener: _Listener) -> None:
        """The same where queries come to any address: the answer leaves from the one that was asked."""
        sock = listener.datagrams
        for _ in range(MAX_BURST):
            try:
                data, ancillary, _, source = sock.recvmsg(MAX_QUERY_BYTES, 128)
            except OSError:
                return
            client = source[0].partition("%")[0]
            view = listener.sources.get(client) or self._view(listener, client)
            if view is None:
                self.counts.foreign += 1
                continue
            send = partial(_send_from, sock, source, sockets.reply_pktinfo(ancillary))
            reply = self._responder.respond(data, view)
            if isinstance(reply, PendingQuery):
                self._ask(reply, client, send)
            elif reply is not None:
                send(reply)

    def _answer_stream(self, place: SocketAddress, data: bytes, client: str, send: Send) -> bool:
        listener = self._listeners.get(place)
        view = (listener.sources.get(client) or self._view(listener, client)) if listener else None
        if view is None:
            self.counts.foreign += 1
            return False
        self.counts.streams += 1
        reply = self._responder.respond(data, view, True)
        if isinstance(reply, PendingQuery):
            self._ask(reply, client, send)
        else:
            send(reply)
        return True

    def _ask(self, pending: PendingQuery, client: str, send: Send) -> None:
        """Have others answer."""
        self.counts.forwarded += 1
        done = partial(self._asked, pending, send)
        found = self._forwarder.ask(pending.query, pending.asked, pending.view.upstreams or (), client, done)
        if found is not None:
            self.counts.cached += 1
            done(found)

    def _asked(self, pending: PendingQuery, send: Send, message: bytes | None) -> None:
        """Others have answered, or have not."""
        responder = self._responder
        if message is None:
            self.counts.failed += 1
            send(responder.brief(pending.query, SERVFAIL, pending.view, _NO_REACHABLE_SERVER))
            return
        try:
            if pending.start is not None:
                send(responder.splice(pending, pending.start, message))
            else:
                send(responder.relay(pending, message))
        except Malformed:
            send(responder.brief(pending.query, SERVFAIL, pending.view))


def _contains(subnet: Subnet, address: object) -> bool:
    return getattr(address, "version", 0) == subnet.version and address in subnet


def _send_to(sock: socket.socket, place: SocketAddress, reply: bytes | None) -> None:
    # The listener may be closed by now, the client gone or its queue full: it asks again.
    if reply is not None:
        with contextlib.suppress(OSError):
            sock.sendto(reply, place)


def _send_from(
    sock: socket.socket, place: SocketAddress, ancillary: list[tuple[int, int, bytes]], reply: bytes | None
) -> None:
    if reply is not None:
        with contextlib.suppress(OSError):
            sock.sendmsg([reply], ancillary, 0, place)
