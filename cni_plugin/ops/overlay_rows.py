"""What an overlay network has in the kernel beside its links: the maps of what should be and of what
is there, and the changes that lead from one to the other.

Level-triggered: no event is remembered, so one that was missed does not matter. Pure but for
``actual``, which reads the kernel, and ``Changes.make``.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from weft.errors import Exists, KernelLacks, Missing, WeftError
from weft.identity import ROUTE_PROTOCOL, link_local
from weft.kernel.interface import Namespace
from weft.kernel.route_lookup import RouteQuestion, RouteType
from weft.kernel.values import FdbEntry, KernelRoute, Neighbour, Nexthop, Row
from weft.overlay import OverlayNetwork, Peer
from weft.types import Address, Cidr, Route, Subnet

FIRST_NEXTHOP, LAST_NEXTHOP = 0x77000000, 0x77FFFFFF
"""The ids of the nexthops of all overlay networks of a host. The kernel's own table is the record of
which are taken: a file beside it could only differ.
"""

_UNREACHABLE_METRIC = 9999
_EVERY_MAC = "00:00:00:00:00:00"

Key = tuple[int, object]
"""The order in which rows are added (they are deleted in reverse), and what identifies the row."""

Rows = dict[Key, Row | Cidr]
DIRECT = "direct"
"""The mode of the rows of a network with direct routing."""
_ADDRESS, _NEIGHBOUR, _FDB, _NEXTHOP, _ROUTE = range(5)


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Without Python's garbage collector, which would go through all rows again and again; none of
    them refers to itself.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def desired(
    network: OverlayNetwork, peers: Iterable[Peer], bridge: str, link: str, nexthops: Sequence[Nexthop]
) -> Rows:
    """What should be there. ``nexthops`` are all that there are: a peer keeps the id that it has."""
    found: Rows = {}
    for address in network.own.values():
        put(found, ip_interface(address))
    for block in network.blocks:
        source = network.own[6] if block.version == 6 else None
        put(found, KernelRoute(Route(block), bridge, source, ROUTE_PROTOCOL))
    for subnet in network.subnets:
        put(found, KernelRoute(Route(subnet, priority=_UNREACHABLE_METRIC), protocol=ROUTE_PROTOCOL, unreachable=True))
    ids = {one.gateway: one.id for one in nexthops if one.link == link and FIRST_NEXTHOP <= one.id <= LAST_NEXTHOP}
    free = _free(nexthops)
    own = network.own
    # Keys as in put, but without finding out what each row is: there may be 50,000 peers.
    for peer in peers:
        # The gateway is derived from the MAC address, so that no number has to be agreed on.
        gateway = link_local(peer.mac)
        number = ids.get(gateway) or next(free)
        found[_NEIGHBOUR, gateway] = Neighbour(gateway, peer.mac, link)
        found[_FDB, peer.mac] = FdbEntry(peer.mac, network.vtep_of(peer))
        found[_NEXTHOP, number] = Nexthop(number, gateway, link, (), False, False, ROUTE_PROTOCOL)
        for block in peer.blocks:
            route = Route(block, None, peer.mtu or None)
            source = own.get(block.version)
            found[_ROUTE, _route_key(route)] = KernelRoute(route, "", source, ROUTE_PROTOCOL, False, number)
    return found


def _free(nexthops: Sequence[Nexthop]) -> Iterator[int]:
    taken = {one.id for one in nexthops}
    return (number for number in range(FIRST_NEXTHOP, LAST_NEXTHOP + 1) if number not in taken)


def actual(host: Namespace, bridge: str, link: str, subnets: Iterable[Subnet], nexthops: Sequence[Nexthop]) -> Rows:
    """What is there: all on the VXLAN link, and weft's routes on the bridge and of the subnets."""
    found: Rows = {}
    own = {each.id for each in nexthops if each.link == link}
    with contextlib.suppress(Missing):
        for address in host.addresses(link):
            if not address.is_link_local:
                put(found, address)
        for neighbour in host.neighbours(link):
            if neighbour.permanent:
                put(found, neighbour)
        for entry in host.fdb(link):
            if not entry.master:
                put(found, entry)
        for route in host.routes(link=link):
            if route.nexthop in own or route.protocol == ROUTE_PROTOCOL:
                put(found, route)
    with contextlib.suppress(Missing):
        for route in host.routes(link=bridge):
            if route.protocol == ROUTE_PROTOCOL:
                put(found, route)
    for nexthop in nexthops:
        if nexthop.link == link:
            put(found, nexthop)
    wanted = set(subnets)
    for route in host.unreachable_routes():
        if route.protocol == ROUTE_PROTOCOL and route.route.destination in wanted:
            put(found, route)
    return found


def segments(host: Namespace, network: OverlayNetwork, peers: Iterable[Peer]) -> dict[str, str]:
    """The link that a peer's packets leave by, by its name, for the peers that no gateway leads to."""
    found = {}
    for peer in peers:
        with contextlib.suppress(WeftError):
            route = host.find_route(RouteQuestion(peer.underlay))
            if route.type is RouteType.UNICAST and route.gateway is None and route.link:
                found[peer.name] = route.link
    return found


def direct(network: OverlayNetwork, peers: Iterable[Peer], links: Mapping[str, str]) -> Rows:
    """The routes to blocks of the peers in ``links``, instead of those by VXLAN."""
    found: Rows = {}
    for peer in peers:
        if peer.name in links:
            for block in peer.blocks:
                if block.version == peer.underlay.version:
                    route = Route(block, peer.underlay, peer.mtu or None)
                    source = network.own.get(block.version)
                    put(found, KernelRoute(route, links[peer.name], source, ROUTE_PROTOCOL))
    return found


def actual_direct(host: Namespace, subnets: Iterable[Subnet]) -> Rows:
    """What is there of them, on any link."""
    found: Rows = {}
    parts = tuple(subnets)
    for route in host.routes():
        to = route.route.destination
        direct_one = route.protocol == ROUTE_PROTOCOL and route.route.gateway is not None and not route.nexthop
        if direct_one and any(to.version == one.version and to[0] in one for one in parts):
            put(found, route)
    return found


def put(rows: Rows, row: Row | Cidr) -> None:
    """Add a row under its key."""
    if isinstance(row, IPv4Interface | IPv6Interface):
        rows[_ADDRESS, row] = row
    elif isinstance(row, Neighbour):
        rows[_NEIGHBOUR, row.address] = row
    elif isinstance(row, FdbEntry):
        rows[_FDB, (row.mac, True) if row.master else row.mac] = row
    elif isinstance(row, Nexthop):
        rows[_NEXTHOP, row.id] = row
    else:
        # In its canonical form, as the kernel lists it.
        rows[_ROUTE, _route_key(row.route, unreachable=row.unreachable)] = row


def _route_key(route: Route, *, unreachable: bool = False) -> tuple[object, ...]:
    at = route.destination
    return at.version, int(at.network_address), at.prefixlen, route.priority, route.table, unreachable


@dataclass(frozen=True, slots=True)
class Changes:
    """What is added or replaced, in order, and what is deleted, in order."""

    added: tuple[Row | Cidr, ...] = ()
    deleted: tuple[Row | Cidr, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.deleted)

    @property
    def first(self) -> str | None:
        """The first of the changes, in a sentence; None without any."""
        if self.added:
            return f"the kernel lacks {describe(self.added[0])}"
        return f"the kernel has {describe(self.deleted[0])}, which belongs to no peer" if self.deleted else None

    def make(self, host: Namespace, link: str, at: str = "") -> None:
        """Make the changes: what is new is there before what it replaces is gone. Addresses are those of the
        link ``at``, by default the VXLAN link.
        """
        for one in self.added:
            if isinstance(one, IPv4Interface | IPv6Interface):
                with contextlib.suppress(Exists):
                    host.add_address(at or link, one)
        rows = [one for one in self.added if not isinstance(one, IPv4Interface | IPv6Interface)]
        if rows:
            host.add_rows(link, rows)
        gone = [one for one in self.deleted if not isinstance(one, IPv4Interface | IPv6Interface)]
        if gone:
            host.delete_rows(link, gone)
        for one in self.deleted:
            if isinstance(one, IPv4Interface | IPv6Interface):
                with contextlib.suppress(Missing):
                    host.delete_address(at or link, one)

    def commands(self, link: str) -> Iterator[str]:
        """The equivalent shell commands."""
        for one in self.added:
            yield _command(one, link, "replace")
        for one in self.deleted:
            yield _command(one, link, "delete")


def changes(wanted: Rows, there: Rows, *, keep: bool = False) -> Changes:
    """What leads from ``there`` to ``wanted``; with ``keep`` nothing is deleted.

    Routes of one destination are replaced and never deleted first, so that packets to other blocks, and
    to the same one, are not lost meanwhile.
    """
    added = sorted((key for key, row in wanted.items() if there.get(key) != row), key=lambda key: key[0])
    gone = [] if keep else sorted((key for key in there if key not in wanted), key=lambda key: -key[0])
    return Changes(tuple(wanted[key] for key in added), tuple(_stripped(there[key]) for key in gone))


def _stripped(row: Row | Cidr) -> Row | Cidr:
    """A row as it is deleted: by what identifies it."""
    if isinstance(row, FdbEntry):
        return replace(row, destination=None, vni=0, port=0) if row.mac != _EVERY_MAC else row
    return row


def undoing(host: Namespace, bridge: str, link: str, subnets: Iterable[Subnet]) -> Changes:
    """What deletes all that is there; without nexthop objects in the kernel there is nothing of them."""
    nexthops: tuple[Nexthop, ...] = ()
    with contextlib.suppress(KernelLacks):
        nexthops = host.nexthops()
    return changes({}, actual(host, bridge, link, subnets, nexthops))


def describe(row: Row | Cidr) -> str:
    """A row in words."""
    if isinstance(row, Neighbour):
        return f"the neighbour {row.address} with the MAC address {row.mac}"
    if isinstance(row, FdbEntry):
        return f"the FDB row {row.mac}" + (f" to {row.destination}" if row.destination else "")
    if isinstance(row, Nexthop):
        return f"the nexthop {row.id:#x} via {row.gateway}"
    if isinstance(row, KernelRoute):
        return f"the {'unreachable ' if row.unreachable else ''}route {row.route.destination}"
    return f"the address {row}"


def _command(row: Row | Cidr, link: str, verb: str) -> str:
    if isinstance(row, Neighbour):
        return f"ip neigh {verb} {row.address} lladdr {row.mac} dev {row.link} nud permanent"
    if isinstance(row, FdbEntry):
        to = f" dst {row.destination}" if row.destination else ""
        return (
            f"bridge fdb {verb} {row.mac} dev {link}{to} {'master static sticky' if row.master else 'self permanent'}"
        )
    if isinstance(row, Nexthop):
        return f"ip nexthop {verb} id {row.id} via {row.gateway} dev {row.link} protocol {row.protocol}"
    if isinstance(row, KernelRoute):
        return f"ip route {verb} {_route(row)}"
    return f"ip address {verb} {row} dev {link}"


def _route(row: KernelRoute) -> str:
    route = row.route
    words = ["unreachable"] if row.unreachable else []
    words.append(str(route.destination))
    values: tuple[tuple[str, Address | str | int | None], ...] = (
        ("nhid", row.nexthop),
        ("via", route.gateway),
        ("dev", row.link),
        ("src", row.source),
        ("mtu", route.mtu),
        ("metric", route.priority),
        ("proto", row.protocol),
    )
    return " ".join([*words, *(f"{word} {value}" for word, value in values if value)])
