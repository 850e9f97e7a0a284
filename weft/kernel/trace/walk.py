"""The way of a packet: from a process of this host, a container or a link, to where it is delivered or lost.

Each hop is what decides there: a route, a chain, a row of a bridge's forwarding database, a neighbour
entry, with the command that shows it. The first packet of a connection is followed; of its reply, whether
there is a route back. In a namespace that forwards, such as a router of ``weft apply``, it goes on. Sources:
``net/ipv4/ip_input.c``, ``net/bridge/br_input.c``, nft(8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from shlex import quote

from weft.kernel.interface import Namespace, Ruleset
from weft.kernel.route_lookup import FoundRoute, RouteQuestion, RouteType
from weft.kernel.trace.hops import Hop, Place, Way, sentence
from weft.kernel.trace.packet import Packet
from weft.kernel.trace.ruleset import Match, RuleId
from weft.kernel.trace.view import LOCAL, View, forwarding
from weft.kernel.values import Link
from weft.types import Address

_LISTENING = ("tcp", "udp")


def _quoted(rule: RuleId) -> str:
    """A rule's chain in a command that an operator may copy to a shell: containers name their own."""
    return " ".join(quote(word) for word in (*rule.table.split(" ", 1), rule.chain))


class _Lost(Exception):
    """The packet goes no further."""


class Walk:
    """Follows packets through a host: ``behind`` finds the container at a link of the host, and ``owner`` the
    container that has an address; None for others. ``rules`` are weft's elements.
    """

    def __init__(
        self,
        host: Namespace,
        rules: Ruleset,
        behind: Callable[[Link], Place | None],
        owner: Callable[[Address], Place | None],
    ) -> None:
        self._host, self._behind, self._owner = host, behind, owner
        self._here = Place("", host)
        self._view = View(self._here, rules)
        self._views = {"": self._view}
        self._links = self._view.links
        self._way = Way()
        self._seen: set[tuple[object, ...]] = set()

    def from_container(self, start: Place, destination: Address, packet: Callable[[Address], Packet]) -> Way:
        """``packet`` makes the packet, given the source address that the container's route says."""
        return self._run(lambda: self._leave_container(start, destination, packet))

    def from_host(self, destination: Address, packet: Callable[[Address], Packet]) -> Way:
        """Of a process of this host."""
        return self._run(lambda: self._send(destination, packet))

    def from_link(self, link: str, packet: Packet) -> Way:
        """What comes in by a link of the host from another machine."""
        return self._run(lambda: self._receive(self._here, replace(packet, incoming=link)))

    def text(self, rule: RuleId) -> str:
        """A rule of the host as nft lists it."""
        return self._view.text(rule)

    @property
    def matches(self) -> tuple[Match, ...]:
        """The rules of the host that matched, in the order of their evaluation."""
        return tuple(self._view.rules.matches)

    def _run(self, follow: Callable[[], None]) -> Way:
        self._way = Way()
        self._seen = set()
        try:
            follow()
        except _Lost:
            self._way.delivered = False
        return self._way

    # What is said on the way

    def _say(self, text: str, command: str = "", place: str = "") -> None:
        self._way.hops.append(Hop(place, text, command))

    def _lose(self, text: str, command: str = "", place: str = "") -> None:
        self._say(text, command, place)
        raise _Lost

    def _pass(self, hook: str, family: str, packet: Packet, link: str = "", place: Place | None = None) -> Packet:
        """The packet after the base chains of a hook, on the host or in a namespace that forwards."""
        view = self._view if place is None else self._views.setdefault(place.name, View(place))
        decisions, packet, passes = view.rules.passes(hook, family, packet, link)
        for one in decisions:
            command = f"{view.place.prefix}nft --handle list chain {_quoted(one.rule)}"
            self._way.hops.append(Hop(view.place.name, sentence(one), command, view.decided(one), one.certain))
        if not passes:
            raise _Lost
        return packet

    # In a container

    def _leave_container(self, start: Place, destination: Address, packet: Callable[[Address], Packet]) -> None:
        route = self._route(start, RouteQuestion(destination))
        if route.type is RouteType.LOCAL:
            self._say("the address is the container's own", f"{start.prefix}ip route get {destination}", start.name)
            self._deliver(start, packet(destination))
            return
        self._way_out(start, route, destination)
        link = start.namespace.link(route.link)
        if route.source is None or link is None:
            self._lose(f"{route.link} has no address of IPv{destination.version}", "", start.name)
            return
        self._leave_namespace(start, link, packet(route.source), route.gateway or destination)

    def _leave_namespace(self, start: Place, link: Link, packet: Packet, nexthop: Address) -> None:
        """Out of a link of a container, to the host's end of it."""
        self._up(start, link)
        outer = self._host_end(link)
        if outer is None:
            self._leave_by_parent(start, link, packet, nexthop)
            return
        mac = self._mac_of(start, link.name, nexthop, outer)
        sent = replace(packet.untracked(outer.name), source_mac=link.mac, destination_mac=mac, nexthop=nexthop)
        self._arrive(sent, outer)

    def _leave_by_parent(self, start: Place, link: Link, packet: Packet, nexthop: Address) -> None:
        said = f"{link.name} is of the kind {link.kind or 'unknown'}: what it sends passes no rule of this host"
        self._say(said, f"{start.prefix}ip -d link show {quote(link.name)}", start.name)
        if self._view.has(nexthop):
            self._lose(f"{nexthop} is this host's own, which a {link.kind} of its link does not reach", "", start.name)
        self._way.delivered, self._way.leaves, self._way.end = True, True, packet

    def _host_end(self, link: Link) -> Link | None:
        if link.kind != "veth":
            return None
        return next((one for one in self._links.values() if one.kind == "veth" and one.peer_index == link.index
                     and one.index == link.peer_index), None)  # fmt: skip

    def _mac_of(self, start: Place, link: str, nexthop: Address, outer: Link) -> str:
        """The MAC address that answers for the next hop; the packet is lost where nobody does."""
        top = self._links.get(outer.master, outer)
        if not outer.master or self._answers(top, nexthop):
            return top.mac
        if (found := self._neighbour(top, nexthop)) is not None:
            self._together(outer, found[0])  # its query would be lost as well
            return found[1]
        for one in start.namespace.neighbours(link, nexthop.version):
            if one.address == nexthop and one.mac:
                return one.mac
        query = "ARP" if nexthop.version == 4 else "neighbour discovery"
        self._lose(f"nobody known behind {top.name} has {nexthop}: no answer to {query}",
                   f"{start.prefix}ip neighbour show {nexthop}", start.name)  # fmt: skip
        return ""

    def _together(self, link: Link, port: Link) -> None:
        if port.port.get("brport_isolated") and link.port.get("brport_isolated"):
            said = f"{link.name} and {port.name} are isolated ports of {port.master}"
            self._lose(said, f"bridge -d link show {port.name}")

    def _neighbour(self, bridge: Link, address: Address) -> tuple[Link, str] | None:
        """The port of a bridge behind which the container with an address is, and its MAC address."""
        place = self._owner(address)
        for inner in place.namespace.links() if place else ():
            port = self._host_end(inner)
            if port is not None and port.master == bridge.name:
                return port, inner.mac
        return None

    def _answers(self, link: Link, address: Address) -> bool:
        """Whether the host answers for an address on a link; any of its own, as arp_ignore is 0."""
        if self._view.has(address):
            return True
        return self._host.sysctl(f"net/ipv4/conf/{link.name}/proxy_arp") == "1" and address.version == 4

    def _deliver(self, place: Place, packet: Packet) -> None:
        namespace = place.namespace
        where = place.name or "the host"
        self._way.delivered, self._way.end = True, packet
        if packet.protocol not in _LISTENING or not packet.port:
            self._say(f"delivered to {where}", "", place.name)
            return
        found = namespace.listeners(packet.protocol, [packet.port])
        command = f"{place.prefix}ss -ln{packet.protocol[0]} sport = :{packet.port}"
        self._way.listening = bool(found)
        nothing = f"; nothing listens on port {packet.port}, the connection is refused"
        self._say(f"delivered to {where}{'' if found else nothing}", command, place.name)

    # On the host

    def _arrive(self, packet: Packet, link: Link) -> None:
        """A frame that comes in by a link: by a bridge, or to the host itself."""
        self._up(self._here, link)
        self._guard(("in", link.name, packet.destination, packet.port, packet.destination_mac))
        packet = self._pass("ingress", "netdev", packet, link.name)
        if not link.master or self._links.get(link.master, link).kind != "bridge":
            self._receive(self._here, replace(packet, incoming=link.name))
            return
        bridge = self._links[link.master]
        self._up(self._here, bridge)
        packet = self._pass("prerouting", "bridge", packet)
        if not packet.destination_mac or packet.destination_mac == bridge.mac:
            packet = self._pass("input", "bridge", packet)
            self._say(
                f"{link.name} is a port of {bridge.name}, which takes it for the host",
                f"bridge link show {quote(link.name)}",
            )
            self._receive(self._here, replace(packet, incoming=bridge.name))
            return
        port = self._port_of(bridge, packet)
        if port.name == link.name and not link.port.get("brport_mode"):
            self._lose(
                f"{bridge.name} sends nothing back by {port.name}: hairpin is off", f"bridge -d link show {port.name}"
            )
        self._together(link, port)
        packet = self._pass("forward", "bridge", replace(packet, outgoing=port.name))
        packet = self._bridge_netfilter(bridge, packet)
        packet = self._pass("postrouting", "bridge", packet)
        self._leave_by(port, packet)

    def _bridge_netfilter(self, bridge: Link, packet: Packet) -> Packet:
        """With br_netfilter, bridged packets pass the IP hooks too."""
        key = "iptables" if packet.version == 4 else "ip6tables"
        if self._host.sysctl(f"net/bridge/bridge-nf-call-{key}") != "1":
            return packet
        port, family = packet.outgoing, packet.family
        self._say("br_netfilter: bridged packets pass the IP rules too", f"sysctl net.bridge.bridge-nf-call-{key}")
        seen = self._pass("prerouting", family, replace(packet, incoming=bridge.name, outgoing=""))
        seen = self._pass("forward", family, replace(seen, outgoing=bridge.name))
        seen = self._pass("postrouting", family, seen)
        return replace(seen, incoming=packet.incoming, outgoing=port)

    def _port_of(self, bridge: Link, packet: Packet) -> Link:
        """The port that the forwarding database names for a frame."""
        command = f"bridge fdb show br {quote(bridge.name)}"
        found = self._neighbour(bridge, packet.nexthop or packet.destination)
        if found is not None:
            rows = self._host.fdb(found[0].name)
            has_row = any(row.mac == packet.destination_mac and row.master for row in rows)
            what = "has" if has_row else "floods, having no row for,"
            self._say(f"{bridge.name} {what} {packet.destination_mac} behind {found[0].name}", command)
            return found[0]
        for port in self._ports(bridge.name):
            if self._behind(port) is None and any(
                row.mac == packet.destination_mac and row.master for row in self._host.fdb(port.name)
            ):
                self._say(f"{bridge.name} has {packet.destination_mac} behind {port.name}", command)
                return port
        self._lose(f"no known container has {packet.destination_mac}, for which {bridge.name} has no row", command)
        raise _Lost

    def _receive(self, place: Place, packet: Packet) -> None:
        """The IP layer of the host, or of a namespace that forwards, takes a packet from ``packet.incoming``."""
        family = packet.family
        packet = self._pass("ingress", family, packet, packet.incoming, place=place)
        packet = self._pass("prerouting", family, packet, place=place)
        route = self._route(place, RouteQuestion(packet.destination, packet.source, packet.incoming, packet.mark))
        if route.type in LOCAL:
            packet = self._pass("input", family, packet, place=place)
            self._deliver(place, packet)
            return
        key = forwarding(packet.version)
        if route.type in (RouteType.UNICAST, RouteType.UNREACHABLE) and place.namespace.sysctl(key) != "1":
            who = place.name or "this host"
            self._lose(f"{who} does not forward packets", f"{place.prefix}sysctl {key.replace('/', '.')}", place.name)
        if route.type is RouteType.INVALID:
            said = f"{packet.source} cannot come in by {packet.incoming}: the route back is another (rp_filter)"
            self._lose(said, f"{place.prefix}ip route get {packet.source}", place.name)
        self._way_out(place, route, packet.destination)
        packet = replace(packet, outgoing=route.link, nexthop=route.gateway or packet.destination)
        packet = self._pass("forward", family, packet, place=place)
        self._leave(place, route, packet)

    def _send(self, destination: Address, packet: Callable[[Address], Packet]) -> None:
        """A process of this host sends a packet: routed, the hook output, and routed again if that changed it."""
        here = self._here
        route = self._route(here, RouteQuestion(destination))
        if route.type not in LOCAL:
            self._way_out(here, route, destination)
        source = route.source or destination
        sent = replace(packet(source), outgoing=route.link, nexthop=route.gateway or destination)
        out = self._pass("output", sent.family, sent)
        if (out.destination, out.mark) != (sent.destination, sent.mark):
            route = self._route(here, RouteQuestion(out.destination, None, "", out.mark))
            if route.type not in LOCAL:
                self._way_out(here, route, out.destination)
            out = replace(out, outgoing=route.link, nexthop=route.gateway or out.destination)
        if route.type in LOCAL:
            packet_in = replace(self._pass("postrouting", out.family, out), incoming="lo", outgoing="")
            self._deliver(here, self._pass("input", out.family, self._pass("prerouting", out.family, packet_in)))
            return
        self._leave(here, route, out)

    def _leave(self, place: Place, route: FoundRoute, packet: Packet) -> None:
        """From the IP layer out of a link."""
        packet = self._pass("postrouting", packet.family, packet, place=place)
        nexthop = packet.nexthop or packet.destination
        link = (self._links.get(route.link) if place is self._here else None) or place.namespace.link(route.link)
        if link is None:
            self._lose(f"the link {route.link} is gone", f"{place.prefix}ip link", place.name)
            return
        if place is not self._here:
            self._leave_namespace(place, link, packet, nexthop)
            return
        self._up(place, link)
        if link.kind == "bridge":
            inner = self._neighbour(link, nexthop)
            if inner is None:
                self._outside(link, packet, nexthop)
                return
            port, mac = inner
            packet = replace(packet, outgoing=port.name, source_mac=link.mac, destination_mac=mac)
            packet = self._pass("output", "bridge", packet)
            packet = self._pass("postrouting", "bridge", packet)
            self._leave_by(port, packet)
            return
        self._leave_by(link, packet)

    def _leave_by(self, link: Link, packet: Packet) -> None:
        """Out of a link: into the container behind it, or away from this host."""
        behind = self._behind(link)
        if behind is None:
            self._outside(link, packet, packet.nexthop or packet.destination)
            return
        self._up(self._here, link)
        inside = behind.namespace
        inner = next((one for one in inside.links() if one.peer_index == link.index), None)
        if inner is not None:
            self._up(behind, inner)
            if inside.sysctl(forwarding(packet.version)) == "1":
                self._receive(behind, packet.untracked(inner.name))
                return
        route = inside.find_route(RouteQuestion(packet.destination))
        if route.type is not RouteType.LOCAL:
            self._lose(
                f"{packet.destination} is not an address of {behind.name}", f"{behind.prefix}ip address", behind.name
            )
        if inside.find_route(RouteQuestion(packet.source)).type not in (RouteType.UNICAST, RouteType.LOCAL):
            self._say(f"{behind.name} has no route back to {packet.source}",
                      f"{behind.prefix}ip route get {packet.source}", behind.name)  # fmt: skip
            raise _Lost
        self._deliver(behind, replace(packet, incoming="", outgoing=""))

    def _outside(self, link: Link, packet: Packet, nexthop: Address) -> None:
        """To another machine, or what weft knows nothing about."""
        if place := self._owner(packet.destination):
            self._lose(
                f"{packet.destination} is {place.name}'s, but the route to it leads away from this host",
                f"ip route get {packet.destination}",
            )
        failed = any(
            one.address == nexthop and not one.mac for one in self._host.neighbours(link.name, nexthop.version)
        )
        if failed:
            self._say(f"the MAC address of {nexthop} is not known (yet)", f"ip neighbour show {nexthop}")
        self._say(f"leaves this host by {link.name}, to {nexthop}", f"ip neighbour show {nexthop}")
        self._way.delivered, self._way.leaves, self._way.end = True, True, packet

    # Shared

    def _route(self, place: Place, question: RouteQuestion) -> FoundRoute:
        return place.namespace.find_route(question)

    def _way_out(self, place: Place, route: FoundRoute, destination: Address) -> None:
        command = f"{place.prefix}ip route get {destination}"
        if route.type is RouteType.UNICAST:
            via = f" via {route.gateway}" if route.gateway else ""
            self._say(f"routed{via} by {route.link}", command, place.name)
            return
        said = {
            RouteType.NONE: f"no route to {destination}",
            RouteType.UNREACHABLE: f"the route to {destination} is unreachable",
            RouteType.PROHIBIT: f"the route to {destination} prohibits it",
            RouteType.MULTICAST: f"{destination} is multicast, which is not forwarded",
        }.get(route.type, f"the route to {destination} discards it")
        self._lose(said, command, place.name)

    def _up(self, place: Place, link: Link) -> None:
        if not link.up:
            self._lose(f"{link.name} is down", f"{place.prefix}ip link show {quote(link.name)}", place.name)
        if not link.carrier and link.kind == "veth":
            self._lose(
                f"{link.name} has no carrier: its peer is down",
                f"{place.prefix}ip link show {quote(link.name)}",
                place.name,
            )

    def _ports(self, bridge: str) -> Iterator[Link]:
        return (link for link in self._links.values() if link.master == bridge)

    def _guard(self, at: tuple[object, ...]) -> None:
        if at in self._seen:
            self._lose("the packet goes in a circle")
        self._seen.add(at)
