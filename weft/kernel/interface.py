"""What weft asks of the kernel, as verbs. ``netlink`` and ``nft`` do them; ``fake`` does them on dicts.

Every verb raises a ``KernelRefused`` (``Missing``, ``Exists``, ``KernelLacks`` among them) and never an
OSError. Links are named by their name; a name is what a person sees and what a record holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from weft.types import Address, Cidr, NamespaceId, Route, Subnet


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel shows it. ``peer_index`` is a veth's other end, 0 where there is none.

    ``options`` holds the kind's own attributes under pyroute2's names (``br_vlan_filtering``,
    ``macvlan_mode``, ``vlan_id`` …); ``port`` those of a bridge port (``brport_mode`` is hairpin,
    ``brport_isolated``).
    """

    name: str
    index: int
    kind: str = ""
    mac: str = ""
    mtu: int = 0
    up: bool = False
    alias: str = ""
    master: str = ""
    peer_index: int = 0
    promiscuous: bool = False
    carrier: bool = False
    all_multicast: bool = False
    queue_length: int = 0
    options: Mapping[str, int | str] = field(default_factory=dict)
    port: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VethPeer:
    """The other end of a veth pair to be made, in ``namespace`` (None: the same one)."""

    name: str
    mac: str = ""
    mtu: int = 0
    up: bool = False
    namespace: Namespace | None = None


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route as the kernel shows it; ``link`` is the outgoing link's name, ``source`` the preferred one.

    ``protocol`` is the kernel's number of who made it (2 kernel, 4 static, ``names.ROUTE_PROTOCOL`` weft).
    ``table`` is 254 (main) unless said otherwise; ``scope`` and ``mtu`` … as in ``types.Route``.
    """

    route: Route
    link: str = ""
    source: Address | None = None
    protocol: int = 0
    onlink: bool = False


@dataclass(frozen=True, slots=True)
class BridgeVlan:
    """One VLAN of a bridge port: ``bridge vlan show``."""

    vid: int
    pvid: bool = False
    untagged: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """How fast a link may send: a token bucket. All in bytes, ``rate`` in bytes a second.

    ``burst`` is what may leave at once, ``queue`` what may wait (with that burst); what is more is dropped. The kernel
    keeps the burst as a time, so it reads back within a thousandth, and not at all where that time is over 274 s.
    """

    rate: int
    burst: int
    queue: int


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """Packets from ``source`` are routed by ``table``: ``ip rule``. ``protocol`` tells who made it, as for routes."""

    source: Subnet
    table: int
    protocol: int = 0


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection that the kernel tracks: the original tuple, and the source of its replies."""

    protocol: str
    source: Address
    source_port: int
    destination: Address
    port: int
    reply_source: Address
    reply_port: int


class Namespace(Protocol):
    """One network namespace, open for requests. Usable from any thread; close it when done."""

    id: NamespaceId

    def close(self) -> None: ...

    def link(self, name: str) -> Link | None:
        """The link of that name, None if there is none. *Equivalent to:* ``ip -d link show NAME``."""

    def cached_link(self, name: str) -> Link | None:
        """The same without waiting for the kernel's lock of links, where it was looked at in the last seconds.

        Its name, index, MAC address, MTU and flags are as they are now, all else may be some seconds old.
        """

    def cached_mac(self, name: str) -> str:
        """The MAC address of a link that was used before, "" if it is not known without the kernel's lock.

        *Equivalent to:* ``cat /sys/class/net/NAME/address``.
        """

    def links(self) -> tuple[Link, ...]:
        """Every link. *Equivalent to:* ``ip -d link show``."""

    def add_link(
        self,
        name: str,
        kind: str,
        *,
        mac: str = "",
        mtu: int = 0,
        alias: str = "",
        up: bool = False,
        master: str = "",
        parent: str = "",
        parent_namespace: Namespace | None = None,
        peer: VethPeer | None = None,
        options: Mapping[str, int | str] | None = None,
        addrgen_none: bool = False,
    ) -> None:
        """Make a link. ``parent`` is the lower link (macvlan, vlan …), looked up in ``parent_namespace``.

        ``addrgen_none``: a veth with an alias gets no IPv6 address by itself (``addrgenmode none``).
        All of it happens or none: a link that cannot be finished (alias, master) is removed again.
        Raises ``Exists`` when the name (or the peer's) is taken, ``KernelLacks`` for an unknown kind.
        *Equivalent to:* ``ip link add NAME [link PARENT] type KIND …``.
        """

    def change_link(
        self,
        name: str,
        *,
        up: bool | None = None,
        mac: str | None = None,
        mtu: int | None = None,
        alias: str | None = None,
        master: str | None = None,
        promiscuous: bool | None = None,
        all_multicast: bool | None = None,
        queue_length: int | None = None,
        new_name: str | None = None,
        namespace: Namespace | None = None,
        options: Mapping[str, int | str] | None = None,
    ) -> None:
        """Change a link; ``master=""`` takes it from its master. *Equivalent to:* ``ip link set NAME …``."""

    def delete_link(self, name: str) -> None:
        """Delete a link; raises ``Missing``. *Equivalent to:* ``ip link delete NAME``."""

    def change_port(self, name: str, attributes: Mapping[str, int]) -> None:
        """Set bridge port attributes (``brport_mode``, ``brport_isolated`` …).

        *Equivalent to:* ``bridge link set dev NAME hairpin on isolated on …``.
        """

    def vlans(self, name: str) -> tuple[BridgeVlan, ...]:
        """The VLANs of a bridge port. *Equivalent to:* ``bridge vlan show dev NAME``."""

    def add_vlans(self, name: str, vlans: Iterable[BridgeVlan]) -> None:
        """*Equivalent to:* ``bridge vlan add dev NAME vid VID [pvid] [untagged]`` for each."""

    def delete_vlans(self, name: str, vids: Iterable[int]) -> None:
        """*Equivalent to:* ``bridge vlan del dev NAME vid VID`` for each; missing ones are fine."""

    def addresses(self, link: str, version: int = 0) -> tuple[Cidr, ...]:
        """The link's addresses, of one IP version where given, IPv6 link-local ones included.

        *Equivalent to:* ``ip address show dev``.
        """

    def add_address(self, link: str, address: Cidr, *, prefix_route: bool = True) -> None:
        """Give the link an address, without duplicate address detection for IPv6 where ``accept_dad`` is 0.

        *Equivalent to:* ``ip address add CIDR dev LINK [noprefixroute]``.
        """

    def delete_address(self, link: str, address: Cidr) -> None:
        """Raises ``Missing``. *Equivalent to:* ``ip address delete CIDR dev LINK``."""

    def tentative(self, link: str) -> tuple[bool, bool]:
        """Whether duplicate address detection still runs on an IPv6 address of the link, and whether one failed."""

    def routes(self, *, link: str = "", family: int = 0, table: int = 0) -> tuple[KernelRoute, ...]:
        """Unicast routes of the link (any), family 4 or 6 (both), table (all but local).

        *Equivalent to:* ``ip [-4|-6] route show table TABLE dev LINK``.
        """

    def add_route(self, route: KernelRoute, *, replace: bool = False) -> None:
        """*Equivalent to:* ``ip route append|replace DST via GW dev LINK …``; raises ``Exists`` for a twin."""

    def delete_route(self, route: KernelRoute) -> None:
        """Raises ``Missing``. *Equivalent to:* ``ip route delete DST via GW dev LINK …``."""

    def sysctl(self, key: str) -> str | None:
        """The value, None if there is no such key. ``net/ipv4/ip_forward``: slashes, since names hold dots."""

    def set_sysctl(self, key: str, value: str) -> None:
        """*Equivalent to:* ``sysctl -w KEY=VALUE`` in the namespace."""

    def limit(self, link: str) -> Limit | None:
        """How fast the link may send, None if as fast as it can. *Equivalent to:* ``tc qdisc show dev LINK root``."""

    def set_limit(self, link: str, limit: Limit | None) -> None:
        """Let the link send so fast; None takes weft's limit away, and another discipline is left alone.

        *Equivalent to:* ``tc qdisc replace dev LINK root tbf rate … burst … limit …``, ``tc qdisc delete …``.
        """

    def redirect(self, link: str) -> str:
        """The link by which all goes on that comes in by this one, "" if there is none.

        *Equivalent to:* ``tc filter show dev LINK ingress``.
        """

    def set_redirect(self, link: str, target: str) -> None:
        """Send on by ``target`` all that comes in by the link; ``target=""`` takes that back. Others' filters stay.

        *Equivalent to:* ``tc qdisc add dev LINK ingress; tc filter add dev LINK parent ffff: protocol all u32
        match u32 0 0 action mirred egress redirect dev TARGET``.
        """

    def routing_rules(self) -> tuple[RoutingRule, ...]:
        """The rules that send packets from somewhere to a table, of both families.

        *Equivalent to:* ``ip rule show``.
        """

    def add_routing_rule(self, rule: RoutingRule) -> None:
        """Raises ``Exists`` for a twin. *Equivalent to:* ``ip rule add from SOURCE table TABLE protocol PROTOCOL``."""

    def delete_routing_rule(self, rule: RoutingRule) -> None:
        """Raises ``Missing``. *Equivalent to:* ``ip rule delete from SOURCE table TABLE protocol PROTOCOL``."""

    def flows(self, protocol: str, port: int) -> tuple[Flow, ...]:
        """The tracked connections of a protocol (``udp``) to a port, before any translation, of both families.

        *Equivalent to:* ``conntrack -L -p PROTOCOL --orig-port-dst PORT``.
        """

    def delete_flows(self, flows: Iterable[Flow]) -> None:
        """Have the kernel decide anew about the connections; missing ones are fine.

        *Equivalent to:* ``conntrack -D``.
        """

    def listeners(self, protocol: str, port: int) -> tuple[tuple[Address, str], ...]:
        """Who waits for packets to a port (``tcp``, ``udp``): the address, and the process as "nginx (4711)".

        The unspecified address stands for all of its family; a socket that takes both families is there twice.
        *Equivalent to:* ``ss -lnp sport = PORT``.
        """

    def iptables(self, version: int, table: str) -> tuple[str, ...]:
        """The chains and rules of a table as ``iptables-save`` writes them: ``:CHAIN POLICY``, ``-A CHAIN …``.

        Raises ``KernelLacks`` where the programs are not installed. *Equivalent to:* ``iptables-save -t TABLE``.
        """

    def change_iptables(self, version: int, table: str, lines: Iterable[str]) -> None:
        """Do all of the lines (``-N``, ``-A``, ``-I``, ``-D``, ``-X``) or none.

        *Equivalent to:* ``iptables-restore --noflush``.
        """

    def drops_forwarded(self, version: int) -> bool:
        """Whether an iptables FORWARD chain drops what none of its rules accepts, as Docker's does."""


Scalar = Address | Subnet | int | str


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a set (``data`` empty) or a map of weft's table, with the mark of its owner.

    ``key`` and ``data`` are the parts of a concatenation; strings are protocols (``tcp``) or link names.
    """

    collection: str
    key: tuple[Scalar, ...]
    data: tuple[Scalar, ...] = ()
    mark: str = ""


class Ruleset(Protocol):
    """nftables in the host's namespace: one table, ``inet weft``, whose rules never change with attachments."""

    def lacks(self, base: str) -> str | None:
        """What of the base rules (chains, rules, sets) is not installed as ``base`` says; None if all is."""

    def install(self, base: str) -> None:
        """Make the base rules be as ``base`` (an nft script of table, sets and chains) says, keeping elements.

        *Equivalent to:* ``nft -f BASE``, in one transaction.
        """

    def remove(self) -> None:
        """Delete the table with all in it; missing is fine. *Equivalent to:* ``nft delete table inet weft``."""

    def add(self, elements: Iterable[Element]) -> None:
        """Add all or none; an element that is there with the same data and mark is fine.

        Raises ``Conflict`` naming the element and its owner's mark where the key is another's, and
        ``Missing`` where the collection is not installed. *Equivalent to:* ``nft add element inet weft …``.
        """

    def delete(self, elements: Iterable[Element]) -> None:
        """Delete those that are there with the same mark; others are left alone and missing is fine.

        *Equivalent to:* ``nft delete element inet weft …``.
        """

    def missing(self, elements: Iterable[Element]) -> tuple[Element, ...]:
        """Those of the elements that are not there with the same data and mark."""

    def elements(self, collection: str) -> tuple[Element, ...]:
        """All elements of a set or map. *Equivalent to:* ``nft list set inet weft NAME``."""

    def collections(self) -> tuple[str, ...]:
        """The names of weft's sets and maps, () where the table is missing."""


class Kernel(Protocol):
    """The way in: the host's namespace and rules, and any other namespace by its path."""

    @property
    def host(self) -> Namespace: ...

    @property
    def rules(self) -> Ruleset: ...

    def identify(self, path: str) -> NamespaceId:
        """Which namespace the path leads to; unknown (inode 0) where it leads to none. Never hangs."""

    def open(self, path: str) -> Namespace:
        """Open a namespace by path; raises ``NamespaceProblem`` where the path leads to none."""

    def close(self) -> None: ...


__all__ = [
    "BridgeVlan",
    "Element",
    "Flow",
    "Kernel",
    "KernelRoute",
    "Limit",
    "Link",
    "Namespace",
    "RoutingRule",
    "Ruleset",
    "Scalar",
    "Subnet",
    "VethPeer",
]
