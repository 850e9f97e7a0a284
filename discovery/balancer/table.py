"""The kernel's side: the table installed and verified, its elements, and the ranges' routes.

Everything here blocks and belongs to one thread, the one that made it, whose network namespace is
the host's.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_network

from discovery.balancer import rules
from discovery.balancer.program import Data, Key
from discovery.balancer.settings import Address, Network
from weft.errors import Exists, KernelRefused, Missing
from weft.identity import ROUTE_PROTOCOL, mac
from weft.kernel.interface import Namespace
from weft.kernel.linux.kernel import LinuxKernel
from weft.kernel.netlink.neighbours import bridge_ports, resolve
from weft.kernel.nft.batch import ElementSocket
from weft.kernel.nft.ruleset import Nft
from weft.kernel.values import KernelRoute, Link
from weft.types import Route

log = logging.getLogger(__name__)

LINK = "weft-services"
"""The device that the ranges are routed to, so that this host's own processes have a route to them.

A bridge without ports: a connection that is translated never gets there, and what is not translated
ends there. The loopback would do for IPv4, but routes of IPv6 by it refuse; and a local route would
make virtual addresses this host's own, with all that listens on any address.
"""
_LINK_SETS = (rules.OUTSIDE_LINKS, rules.HAIRPIN_LINKS)
_OWN = "weft:"  # how the aliases of links that weft has created begin
_CONTAINERS = ("veth", "tun", "vxlan", "geneve")
"""Kinds of links that a bridge has for containers and virtual machines, here or on other hosts."""
MAPS = tuple(
    names[version]
    for names in (
        rules.SERVICES, rules.PORTS, rules.SLOTS, rules.STICKY_SLOTS, rules.PORT_SLOTS,
        rules.VIRTUAL_IPS, rules.LOCAL_BACKENDS, rules.REMOTE_BACKENDS, rules.HAIRPIN_SELF,
    )
    for version in (4, 6)
)  # fmt: skip
"""The sets and maps that hold services."""
TOGETHER = 4000
"""Elements in one transaction when there are many to write: changes of other programs wait no
longer than for these.
"""


class KernelTable:
    """``inet weft-services`` in this thread's network namespace. Raises KernelRefused."""

    def __init__(self, ranges: tuple[Network, ...]) -> None:
        self._ranges = ranges
        self._elements = ElementSocket(rules.TABLE)
        self._kernel = LinuxKernel()
        self._tables = rules.tables(ranges)
        self._nft = Nft(self._tables)

    @property
    def host(self) -> Namespace:
        """This host's links, addresses and connections."""
        return self._kernel.host

    @property
    def port(self) -> int:
        """The netlink port that elements are written from."""
        return self._elements.port

    def close(self) -> None:
        """Give back sockets and memory; the table stays."""
        self._elements.close()
        self._kernel.close()
        self._nft.close()

    @property
    def installed(self) -> bool:
        """Whether the table exists. *Equivalent to:* ``nft list table inet weft-services``."""
        return self._nft.installed

    def install(self) -> bool:
        """Install the rules unless they are installed, keeping elements; whether that was needed.

        *Equivalent to:* ``nft -f``, in one transaction.
        """
        if self._nft.verify(self._tables):
            return False
        try:
            self._nft.install(self._tables)
        except KernelRefused as error:  # its elements are written again
            log.warning("the table %s cannot be updated and is deleted and created again: %s", rules.TABLE, error)
            self._nft.remove()
            self._nft.install(self._tables)
        return True

    def route_virtual_ranges(self) -> None:
        """Route the ranges to a device of their own.

        *Equivalent to:* ``ip link add weft-services type bridge``, ``ip route add RANGE dev …``.
        """
        host = self._kernel.host
        if host.link(LINK) is None:
            with suppress(Exists):
                host.add_link(LINK, "bridge", mac=mac("", LINK), alias="virtual addresses of services")
        with suppress(KernelRefused):  # a host without IPv6 has no such key
            host.set_sysctl(f"net/ipv6/conf/{LINK}/addr_gen_mode", "1")
        host.change_link(LINK, up=True)
        there = {route.route.destination for route in host.routes(link=LINK)}
        for network in self._ranges:
            if network not in there:
                with suppress(Exists):
                    host.add_route(KernelRoute(Route(network), LINK, protocol=ROUTE_PROTOCOL))

    def overlapping(self) -> list[str]:
        """The ranges of which this host has a route already that leads elsewhere, in sentences."""
        return [
            f"the range for services {network} overlaps {route.route.destination} on {route.link}"
            for route in self._kernel.host.routes()
            for network in self._ranges
            if route.link != LINK
            and route.route.destination.prefixlen
            and route.route.destination.version == network.version
            and network.overlaps(ip_network(route.route.destination))
        ]

    def write(self, delete: Iterable[Key], add: Iterable[tuple[str, bytes, Data]]) -> None:
        """One transaction. Raises Missing or KernelRefused where the table is not as it was
        believed to be.
        """
        self._elements.write(delete, add)

    def virtual_addresses(self) -> list[bytes]:
        """The virtual addresses in the kernel, each in network byte order."""
        return [key for names in rules.VIRTUAL_IPS.values() for key, _ in self._elements.read(names)]

    def read(self) -> dict[Key, Data]:
        """Every element of a service."""
        return {(name, key): data for name in MAPS for key, data in self._elements.read(name)}

    def make(self, wanted: Mapping[Key, Data], there: Mapping[Key, Data]) -> int:
        """Write the difference, in several transactions if it is large; how many elements changed.

        Slots and instances come before the element that leads to them, and go after it. An element
        that changes is never missing.
        """
        new = {key: data for key, data in wanted.items() if there.get(key) != data}
        changed = [key for key in new if key in there]
        gone = [key for key in there if key not in wanted]
        leading = {*rules.SERVICES.values(), *rules.PORTS.values()}
        for first in range(0, len(changed), TOGETHER):
            keys = changed[first : first + TOGETHER]
            self._elements.write(keys, [(*key, new[key]) for key in keys])
        rest = [key for key in new if key not in there]
        for keys in ([key for key in rest if key[0] not in leading], [key for key in rest if key[0] in leading]):
            for first in range(0, len(keys), TOGETHER):
                self._elements.write((), [(*key, new[key]) for key in keys[first : first + TOGETHER]])
        for keys in ([key for key in gone if key[0] in leading], [key for key in gone if key[0] not in leading]):
            for first in range(0, len(keys), TOGETHER):
                self._elements.write(keys[first : first + TOGETHER], ())
        return len(new) + len(gone)

    def links(self, outside: tuple[str, ...] | None) -> None:
        """Tell the rules which links lead outside, and behind which answers may go past this host."""
        host = self._kernel.host
        if outside is None:
            default = (ip_network("0.0.0.0/0"), ip_network("::/0"))
            uplinks = {route.link for route in host.routes() if route.route.destination in default}
            outside = outside_links(host.links(), uplinks)
        filtered = all(host.sysctl(f"net/bridge/bridge-nf-call-{what}") == "1" for what in ("iptables", "ip6tables"))
        bridges = (
            () if filtered else tuple(link.name for link in host.links() if link.kind == "bridge" and link.name != LINK)
        )
        wanted = {(rules.OUTSIDE_LINKS, _padded(name)) for name in outside if name}
        wanted |= {(rules.HAIRPIN_LINKS, _padded(name) * 2) for name in bridges}
        there = {(name, key) for name in _LINK_SETS for key, _ in self._elements.read(name)}
        self._elements.write(there - wanted, [(*key, b"") for key in wanted - there])

    def enable_hairpin(self, addresses: Collection[Address]) -> set[Address]:
        """Let instances reach themselves by their service when bridge-nf-call-iptables=1.

        Such a packet is translated before the bridge has decided where it goes, and a bridge sends
        nothing back by the port that it came from, unless told to. Ports that are isolated from
        their siblings stay as they are. The answer are those of which nothing is known yet.
        *Equivalent to:* ``bridge link set dev PORT hairpin on``.
        """
        if not addresses or not self._bridge_netfilter():
            return set()
        ports = bridge_ports(addresses)
        links = {link.index: link for link in self._kernel.host.links() if link.master} if ports else {}
        for index in set(ports.values()) - {0}:
            link = links.get(index)
            if link is not None and not link.port.get("brport_mode") and not link.port.get("brport_isolated"):
                with suppress(KernelRefused):  # it may be gone
                    self._kernel.host.change_port(link.name, {"brport_mode": 1})
        unknown = set(addresses) - ports.keys()
        resolve(unknown)
        return unknown

    def _bridge_netfilter(self) -> bool:
        """Whether br_netfilter passes bridged packets to the rules, of either family."""
        host = self._kernel.host
        return any(host.sysctl(f"net/bridge/bridge-nf-call-{what}") == "1" for what in ("iptables", "ip6tables"))

    def remove(self) -> None:
        """Take the table and the device away; missing is fine.

        *Equivalent to:* ``nft delete table inet weft-services; ip link delete weft-services``.
        """
        self._nft.remove()
        with suppress(Missing):
            self._kernel.host.delete_link(LINK)


def outside_links(links: Collection[Link], uplinks: Collection[str]) -> tuple[str, ...]:
    """All links but those known to be containers': links that weft has created, and bridges whose ports are
    only those of containers and virtual machines. ``uplinks`` are never containers'.

    A bridge with another port has other machines behind it. A set of what is outside, and not of what is
    inside: then a container can call services from its first packet, whether or not the agent runs.
    """
    ports: dict[str, list[Link]] = {}
    for link in links:
        ports.setdefault(link.master, []).append(link)
    inside = {"lo", LINK}
    for link in links:
        if link.kind == "bridge":
            contained = all(
                port.kind in _CONTAINERS or port.alias.startswith(_OWN) for port in ports.get(link.name, ())
            )
        else:
            contained = link.alias.startswith(_OWN)
        if contained:
            inside.add(link.name)
    return tuple(link.name for link in links if link.name not in inside or link.name in uplinks)


def _padded(name: str) -> bytes:
    return name.encode("ascii", "replace").ljust(16, b"\0")
