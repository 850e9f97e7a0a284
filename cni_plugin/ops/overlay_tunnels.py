"""The WireGuard links of an encrypted overlay network: one for each of this host's keys.

Packets between VXLAN links have addresses that only these links lead to, and the rest of those
addresses is unreachable. So nothing leaves in clear where a link, a key or a route is missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv6Interface, IPv6Network

from cni_plugin.ops.links import has_mark
from cni_plugin.ops.operation import Machine
from cni_plugin.ops.overlay import Encryption, peers_of
from weft import identity, overlay, wireguard
from weft.errors import Conflict, Exists, Missing
from weft.identity import ROUTE_PROTOCOL as _PROTOCOL
from weft.kernel.interface import Namespace
from weft.kernel.values import KernelRoute, Link, WireGuard, WireGuardPeer
from weft.overlay import OverlayNetwork, Peer
from weft.types import Route
from weft.wireguard import TunnelKey

_PREFIX = "wvw"
"""What the names of these links begin with; the rules for encrypted networks know them by it."""
_VXLAN_OVERHEAD = 70
"""Bytes that VXLAN over IPv6 adds to an inner packet."""
_LAST_METRIC = 9999


def link_name(network: OverlayNetwork, key: TunnelKey) -> str:
    """The name of the link of one of this host's keys."""
    return _PREFIX + identity.digest("wireguard", network.name, network.mac, str(key.generation))[:10]


@dataclass(frozen=True, slots=True)
class WireGuardLinks(Encryption):
    """The WireGuard links of an encrypted overlay network, with peers, their addresses and routes.

    Peers' routes lead to the link of the generation that this host sends with; what comes in by any of
    them is accepted. *Equivalent to:* ``ip link add NAME type wireguard``, ``wg syncconf NAME FILE``,
    ``ip route replace PEER/128 dev NAME``. Raises Busy without a key, KernelLacks without WireGuard.
    """

    @property
    def _alias(self) -> str:
        return identity.alias(self.mark, f"overlay {self.network}")

    def undo(self, machine: Machine) -> None:
        host = machine.host
        for link in self._links(host):
            with contextlib.suppress(Missing):
                host.delete_link(link.name)
        with contextlib.suppress(Missing):
            host.delete_route(_unreachable(self.vni))

    def commands(self, namespace: str) -> tuple[str, ...]:
        found = overlay.read_network(self.path, self.network)
        lines = [f"ip route replace unreachable {wireguard.subnet(self.vni)} metric {_LAST_METRIC} proto {_PROTOCOL}"]
        for key in found.keys:
            name, file = link_name(found, key), wireguard.key_path(self.path, key.generation)
            lines += [
                f"ip link add {name} mtu {found.mtu + _VXLAN_OVERHEAD} type wireguard",
                f"wg set {name} private-key {file} listen-port {key.port}",
                f"ip address add {found.vtep}/128 dev {name} noprefixroute",
                f"ip link set {name} alias '{self._alias}' up",
            ]
        for peer in peers_of(found, self.path) or ():
            to = f"{found.vtep_of(peer)}/128"
            for key in peer.keys:
                at = f"[{peer.underlay}]" if peer.underlay.version == 6 else str(peer.underlay)
                of = next((link_name(found, own) for own in found.keys if own.generation == key.generation), "")
                if of:
                    lines.append(f"wg set {of} peer {key.key} endpoint {at}:{key.port} allowed-ips {to}")
            chosen = wireguard.sending(found.keys, found.generation, peer.keys)
            if chosen is not None:
                lines.append(f"ip route replace {to} dev {link_name(found, chosen)} proto {_PROTOCOL}")
        return tuple(lines)

    def _links(self, host: Namespace) -> list[Link]:
        return [one for one in host.links() if one.name.startswith(_PREFIX) and has_mark(one, self._alias)]

    def repairs(self, host: Namespace, *, only_tell: bool = False) -> Iterator[str]:
        found = overlay.read_network(self.path, self.network)
        listed = peers_of(found, self.path)
        unreachable = _unreachable(self.vni)
        if unreachable not in host.unreachable_routes():
            if not only_tell:
                host.add_route(unreachable, replace=True)
            yield f"the unreachable route {unreachable.route.destination} is missing"
        for key in found.keys:
            yield from self._repair_link(host, found, key, listed, only_tell=only_tell)
        if listed is not None:
            yield from _repair_routes(host, found, listed, only_tell=only_tell)
        # Last, when no route leads there any more.
        names = {link_name(found, key) for key in found.keys}
        for link in self._links(host):
            if link.name not in names:
                if not only_tell:
                    host.delete_link(link.name)
                yield f"the WireGuard link {link.name} belongs to no key"

    def _repair_link(
        self, host: Namespace, found: OverlayNetwork, key: TunnelKey, peers: tuple[Peer, ...] | None, *, only_tell: bool
    ) -> Iterator[str]:
        name, mtu = link_name(found, key), found.mtu + _VXLAN_OVERHEAD
        private = wireguard.read_key(self.path, key.generation)
        link = host.link(name)
        if link is None:
            if not only_tell:
                with contextlib.suppress(Exists):
                    host.add_link(name, "wireguard", mtu=mtu, alias=self._alias)
            yield f"the WireGuard link {name} is missing"
        elif link.kind not in ("wireguard", "tun"):
            raise Conflict(f"{name} is a link of another program", hint=f"ip link delete {name}")
        there = None if link is None and only_tell else host.wireguard(name)
        known = _peers(found, key, peers) if peers is not None else there.peers if there is not None else ()
        wanted = WireGuard(private, key.port, known)
        if there != wanted:
            if not only_tell:
                host.set_wireguard(name, wanted)
            yield f"the WireGuard link {name} has another key, port or peers"
        if link is None or not link.up or link.mtu != mtu or not has_mark(link, self._alias):
            if not only_tell:
                host.set_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "0")
                host.change_link(name, up=True, mtu=mtu, alias=self._alias)
            yield f"the WireGuard link {name} is down, or has another MTU or alias"
        own = IPv6Interface((found.vtep, 128))
        if link is None or own not in host.addresses(name, 6):
            if not only_tell:
                with contextlib.suppress(Exists):
                    host.add_address(name, own, prefix_route=False)
            yield f"the WireGuard link {name} lacks the address {own}"


def _peers(found: OverlayNetwork, own: TunnelKey, peers: tuple[Peer, ...]) -> tuple[WireGuardPeer, ...]:
    """The peers that have a key of the same generation, by their keys."""
    wanted = (
        WireGuardPeer(key.key, peer.underlay, key.port, (IPv6Network(found.vtep_of(peer)),))
        for peer in peers
        for key in peer.keys
        if key.generation == own.generation
    )
    return tuple(sorted(wanted, key=lambda one: one.key))


def _repair_routes(
    host: Namespace, found: OverlayNetwork, peers: tuple[Peer, ...], *, only_tell: bool
) -> Iterator[str]:
    """Replaced, so that no packet is lost where a peer is sent to with another key."""
    names = {key.generation: link_name(found, key) for key in found.keys}
    wanted: dict[object, KernelRoute] = {}
    for peer in peers:
        key = wireguard.sending(found.keys, found.generation, peer.keys)
        if key is not None:
            to = IPv6Network(found.vtep_of(peer))
            wanted[to] = KernelRoute(Route(to), names[key.generation], protocol=_PROTOCOL)
    there: dict[object, KernelRoute] = {}
    for name in names.values():
        with contextlib.suppress(Missing):
            for route in host.routes(link=name, family=6):
                if route.protocol == _PROTOCOL:
                    there[route.route.destination] = route
    missing = [route for to, route in wanted.items() if there.get(to) != route]
    stray = [route for to, route in there.items() if to not in wanted]
    if not only_tell:
        for name in names.values():
            host.add_rows(name, [route for route in missing if route.link == name])
            host.delete_rows(name, [route for route in stray if route.link == name])
    yield from (f"the route {route.route.destination} by {route.link} is missing" for route in missing)
    yield from (f"the route {route.route.destination} by {route.link} belongs to no peer" for route in stray)


def _unreachable(vni: int) -> KernelRoute:
    route = Route(wireguard.subnet(vni), priority=_LAST_METRIC)
    return KernelRoute(route, protocol=_PROTOCOL, unreachable=True)
