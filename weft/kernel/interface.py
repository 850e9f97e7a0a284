"""The kernel's networking as protocols: network namespaces and the nftables ruleset.

Implemented by ``weft.kernel.linux`` on netlink and nftables, and by ``weft.kernel.fake`` for tests.
Methods raise ``KernelRefused`` or a subclass (``Missing``, ``Exists``, ``KernelLacks``), never
OSError. Links are referred to by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from weft.kernel.firewall_chains import Firewalls
from weft.kernel.schema import Tables
from weft.kernel.values import (
    BridgeVlan,
    ClassTraffic,
    Element,
    EspRow,
    FdbEntry,
    Flow,
    KernelRoute,
    Limit,
    Link,
    Listener,
    Neighbour,
    Nexthop,
    RoutingRule,
    Row,
    Scalar,
    TrafficClass,
    WireGuard,
)
from weft.types import Address, Cidr, NamespaceId, Subnet

if TYPE_CHECKING:
    from weft.kernel.route_lookup import FoundRoute, RouteQuestion
    from weft.kernel.verdicts import BaseChain


@dataclass(frozen=True, slots=True)
class VethPeer:
    """The peer of a veth pair to be created, in ``namespace`` (None: the same namespace)."""

    name: str
    mac: str = ""
    mtu: int = 0
    up: bool = False
    namespace: Namespace | None = None


class Namespace(Protocol):
    """An open network namespace, usable from any thread. Close it when done."""

    id: NamespaceId

    def close(self) -> None: ...

    def link(self, name: str) -> Link | None:
        """The link, None if it does not exist. *Equivalent to:* ``ip -d link show NAME``."""

    def cached_link(self, name: str) -> Link | None:
        """The link without taking RTNL, if ``link`` was called for it in the last seconds.

        Name, index, MAC address, MTU and flags are current; other attributes may be some seconds
        old.
        """

    def cached_mac(self, name: str) -> str:
        """The MAC address of a link used before, "" if reading it would take RTNL.

        *Equivalent to:* ``cat /sys/class/net/NAME/address``.
        """

    def is_loopback_up(self) -> bool:
        """Whether ``lo`` is up, without taking RTNL. *Equivalent to:* ``cat /sys/class/net/lo/flags``."""

    def links(self) -> tuple[Link, ...]:
        """All links. *Equivalent to:* ``ip -d link show``."""

    def ports(self, master: str) -> tuple[Link, ...]:
        """The links whose master is that bridge or VRF: the kernel chooses them. Raises Missing.

        *Equivalent to:* ``ip link show master NAME``.
        """

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
        """Create a link. ``parent`` is the lower link (macvlan, vlan …) in ``parent_namespace``.

        ``addrgen_none`` sets ``addrgenmode none`` on a veth with an alias: no IPv6 link-local
        address. A link on which a later step fails (alias, master) is deleted again. Raises
        ``Exists`` if the name or the peer's exists, ``KernelLacks`` for an unknown kind.
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
        group: int | None = None,
        new_name: str | None = None,
        namespace: Namespace | None = None,
        options: Mapping[str, int | str] | None = None,
    ) -> None:
        """Change a link; ``master=""`` is ``nomaster``. *Equivalent to:* ``ip link set NAME …``."""

    def delete_link(self, name: str) -> None:
        """Delete a link; raises ``Missing``. *Equivalent to:* ``ip link delete NAME``."""

    def change_port(self, name: str, attributes: Mapping[str, int]) -> None:
        """Set attributes of a bridge port (``brport_mode``, ``brport_isolated`` …).

        *Equivalent to:* ``bridge link set dev NAME hairpin on isolated on …``.
        """

    def is_operational(self, name: str, bridge: str = "") -> bool:
        """Whether a link sends what it is given, and forwards if it is a port of ``bridge``, as far as the
        spanning tree protocol lets it. Raises ``Missing``.

        Until then, for some time after it has got a carrier, the kernel drops it. Linux 6.8 and later first do
        here what they have put off (``linkwatch_sync_dev``). *Equivalent to:* ``ip -d link show NAME``: state
        UP, bridge_slave state forwarding. Sources: ``net/core/link_watch.c``, ``net/bridge/br_if.c``.
        """

    def announce(self, name: str) -> None:
        """Have the kernel announce the addresses of a link, as it does when one comes up: by gratuitous ARP
        if the sysctl ``arp_notify`` is set, and unsolicited neighbour advertisements (``ndisc_notify``).

        Raises ``Missing``. *Equivalent to:* ``ip link set NAME address MAC`` with the MAC address that it has.
        Sources: ``inetdev_event`` in ``net/ipv4/devinet.c``, ``ndisc_netdev_event`` in ``net/ipv6/ndisc.c``.
        """

    def vlans(self, name: str) -> tuple[BridgeVlan, ...]:
        """The VLANs of a bridge port. *Equivalent to:* ``bridge vlan show dev NAME``."""

    def add_vlans(self, name: str, vlans: Iterable[BridgeVlan]) -> None:
        """*Equivalent to:* ``bridge vlan add dev NAME vid VID [pvid] [untagged]`` for each."""

    def delete_vlans(self, name: str, vids: Iterable[int]) -> None:
        """*Equivalent to:* ``bridge vlan del dev NAME vid VID`` for each; ignores missing ones."""

    def addresses(self, link: str, version: int = 0, *, permanent: bool = False) -> tuple[Cidr, ...]:
        """The link's addresses of an IP version (0: both), including IPv6 link-local ones.

        ``permanent``: only those without a lifetime, which no router advertisement has given.
        *Equivalent to:* ``ip [-4|-6] address show dev LINK``.
        """

    def all_addresses(self, version: int = 0) -> tuple[tuple[str, Cidr], ...]:
        """The addresses of all links, of an IP version (0: both), each with its link's name, in a dump
        for each version however many there are.

        *Equivalent to:* ``ip -o address show``.
        """

    def add_address(self, link: str, address: Cidr, *, prefix_route: bool = True, link_scope: bool = False) -> None:
        """Add an address; for IPv6 with ``nodad`` where the sysctl ``accept_dad`` is 0.

        With ``link_scope`` an IPv4 one is no source of packets that leave by other links.
        *Equivalent to:* ``ip address add CIDR dev LINK [noprefixroute] [scope link]``.
        """

    def delete_address(self, link: str, address: Cidr) -> None:
        """Raises ``Missing``. *Equivalent to:* ``ip address delete CIDR dev LINK``."""

    def tentative(self, link: str) -> tuple[bool, bool]:
        """Whether IPv6 duplicate address detection runs on the link, and whether it failed."""

    def routes(self, *, link: str = "", family: int = 0, table: int = 0) -> tuple[KernelRoute, ...]:
        """Unicast routes by link ("": all), family 4 or 6 (0: both) and table (0: all but local).

        *Equivalent to:* ``ip [-4|-6] route show table TABLE dev LINK``.
        """

    def find_route(self, question: RouteQuestion) -> FoundRoute:
        """The route that one packet takes; a refusal is one of its types.

        *Equivalent to:* ``ip route get DESTINATION from SOURCE iif LINK``.
        """

    def unreachable_routes(self) -> tuple[KernelRoute, ...]:
        """The unreachable routes of the main table. *Equivalent to:* ``ip [-4|-6] route show type
        unreachable``.
        """

    def add_route(self, route: KernelRoute, *, replace: bool = False) -> None:
        """Raises ``Exists``.

        *Equivalent to:* ``ip route append|replace DST via GW dev LINK …``, ``ip route … DST nhid ID``,
        ``ip route … unreachable DST``.
        """

    def delete_route(self, route: KernelRoute) -> None:
        """Raises ``Missing``. *Equivalent to:* ``ip route delete DST via GW dev LINK …``."""

    def neighbours(self, link: str = "", version: int = 0) -> tuple[Neighbour, ...]:
        """The neighbours on a link (all), of one IP version (both), without those that need no ARP.

        *Equivalent to:* ``ip [-4|-6] neigh show dev LINK``, ``ip-neighbour(8)``.
        """

    def add_neighbour(self, neighbour: Neighbour, *, replace: bool = False) -> None:
        """Add a permanent neighbour, or with ``replace`` change an existing one. Raises ``Exists``.

        It stays until it is deleted or the link is set down.
        *Equivalent to:* ``ip neigh add|replace ADDRESS lladdr MAC dev LINK nud permanent``.
        """

    def delete_neighbour(self, link: str, address: Address) -> None:
        """Raises ``Missing``. *Equivalent to:* ``ip neigh delete ADDRESS dev LINK``."""

    def fdb(self, link: str) -> tuple[FdbEntry, ...]:
        """The forwarding database of a VXLAN link, and the rows of a bridge for this port.

        *Equivalent to:* ``bridge fdb show dev LINK``, ``bridge(8)``.
        """

    def all_ports_fdb(self) -> tuple[tuple[str, FdbEntry], ...]:
        """The rows of all bridges for their ports, each with its port's name, in one dump.

        *Equivalent to:* ``bridge fdb show``.
        """

    def add_fdb(self, link: str, entry: FdbEntry, *, append: bool = False, replace: bool = False) -> None:
        """Add a row. ``append``: another destination to a multicast or all-zero MAC address of a
        VXLAN link; ``replace``: instead of the row's destination or state. Raises ``Exists``.

        *Equivalent to:* ``bridge fdb add|append|replace MAC dev LINK [dst ADDRESS] [vni VNI] [port
        PORT] [vlan VLAN] [nhid ID] self|master permanent|static|dynamic``.
        """

    def delete_fdb(self, link: str, entry: FdbEntry) -> None:
        """Delete a row, or the destination from a row with several. Raises ``Missing``.

        A destination that the row does not have is no error. *Equivalent to:* ``bridge fdb del MAC dev
        LINK …``.
        """

    def nexthops(self) -> tuple[Nexthop, ...]:
        """All nexthop objects and groups, by id. *Equivalent to:* ``ip nexthop show``,
        ``ip-nexthop(8)``.
        """

    def add_nexthop(self, nexthop: Nexthop, *, replace: bool = False) -> None:
        """Add a nexthop or a group, or with ``replace`` change an existing one. Raises ``Exists``.

        It lasts until its link is set down or loses its carrier; a group, until its last member is
        deleted. *Equivalent to:* ``ip nexthop add|replace id ID [via GATEWAY] [dev LINK] [group
        ID,WEIGHT/…] [fdb]``.
        """

    def delete_nexthop(self, number: int) -> None:
        """Delete a nexthop or a group by its id, with the routes and FDB rows that refer to it.

        Raises ``Missing``. *Equivalent to:* ``ip nexthop delete id ID``.
        """

    def add_rows(self, link: str, rows: Iterable[Row]) -> None:
        """Add or replace many rows, in this order; FDB entries are those of the VXLAN link ``link``.

        All are tried; the first refusal is raised at the end. *Equivalent to:* ``ip -batch``, ``bridge
        -batch`` with ``replace`` for each.
        """

    def delete_rows(self, link: str, rows: Iterable[Row]) -> None:
        """Delete many rows, in this order; missing ones are ignored.

        All are tried; the first refusal is raised at the end. *Equivalent to:* ``ip -batch``, ``bridge
        -batch`` with ``delete`` for each.
        """

    def wireguard(self, link: str) -> WireGuard:
        """What a WireGuard link has; raises ``Missing``, and ``KernelLacks`` where it is of another kind.

        *Equivalent to:* ``wg show LINK dump``.
        """

    def set_wireguard(self, link: str, wanted: WireGuard) -> None:
        """Set what a WireGuard link has; peers that are not wanted are removed, and the sessions of the
        others are kept. *Equivalent to:* ``wg syncconf LINK FILE``.
        """

    def esp(self, reqid: int) -> tuple[EspRow, ...]:
        """The states and policies of IPsec with that reqid. *Equivalent to:* ``ip xfrm state list reqid REQID``,
        ``ip xfrm policy list``.
        """

    def add_esp(self, rows: Iterable[EspRow]) -> None:
        """Add states, and add or replace policies; raises ``Exists`` where a state's SPI is taken. A refusal does
        not stop the others. *Equivalent to:* ``ip xfrm state add``, ``ip xfrm policy update``.
        """

    def delete_esp(self, rows: Iterable[EspRow]) -> None:
        """Delete states and policies; those that are missing are skipped.

        *Equivalent to:* ``ip xfrm state delete``, ``ip xfrm policy delete``.
        """

    def sysctl(self, key: str) -> str | None:
        """The value, None if the key does not exist.

        Keys have slashes, since link names may have dots.
        """

    def set_sysctl(self, key: str, value: str) -> None:
        """*Equivalent to:* ``sysctl -w KEY=VALUE``."""

    def limit(self, link: str) -> Limit | None:
        """The link's rate limit, None without one.

        *Equivalent to:* ``tc qdisc show dev LINK root``.
        """

    def set_limit(self, link: str, limit: Limit | None) -> None:
        """Set the link's rate limit; None deletes it, but no qdisc of another kind.

        *Equivalent to:* ``tc qdisc replace dev LINK root tbf rate … burst … limit …``, ``tc qdisc
        delete …``.
        """

    def redirect(self, link: str, *, egress: bool = False) -> str:
        """The link that all ingress (or egress) traffic is redirected to (act_mirred), "" without a
        redirect.

        *Equivalent to:* ``tc filter show dev LINK ingress|egress``.
        """

    def set_redirect(self, link: str, target: str, *, egress: bool = False) -> None:
        """Redirect all ingress (or egress) traffic to ``target``; "" deletes weft's filter and no other.

        Redirected egress returns to the link after the target's queue.
        *Equivalent to:* ``tc qdisc add dev LINK ingress|clsact; tc filter add dev LINK parent
        ffff:|ffff:fff3 protocol all u32 match u32 0 0 action mirred egress redirect dev TARGET``.
        """

    def root_qdisc(self, link: str) -> str:
        """The link's root qdisc as ``KIND MAJOR:``, "" for the kernel's own choice, which has no handle.

        *Equivalent to:* ``tc qdisc show dev LINK root``.
        """

    def add_scheduler(self, link: str, major: int, default: int) -> None:
        """Make an HTB the link's root qdisc; what has no class of it goes to the class ``default``, with
        0 past all of them. Raises ``Exists`` where a root qdisc was set, ``KernelLacks``.

        *Equivalent to:* ``tc qdisc add dev LINK root handle MAJOR: htb default DEFAULT``.
        """

    def delete_scheduler(self, link: str, major: int) -> None:
        """Delete the link's root qdisc if it is an HTB of that major, with its classes.

        *Equivalent to:* ``tc qdisc delete dev LINK root``.
        """

    def classes(self, link: str) -> tuple[TrafficClass, ...]:
        """The classes of the link's HTB by number, () without one.

        *Equivalent to:* ``tc class show dev LINK``.
        """

    def set_class(self, link: str, major: int, wanted: TrafficClass, *, leaf: bool) -> None:
        """Add or change a class. A ``leaf`` gets a queue: fq_codel, or a plain one on kernels without it.

        Of a class below 200 Mbit/s large packets are segmented, so that others need not wait for them.

        Raises ``Missing`` without the HTB; where the parent is missing, it becomes a root. *Equivalent
        to:* ``tc class replace dev LINK parent MAJOR:PARENT classid MAJOR:NUMBER htb rate … ceil …
        quantum … prio …``.
        """

    def delete_class(self, link: str, major: int, number: int) -> None:
        """Delete a class; a missing one is ignored, one with others below it refused.

        *Equivalent to:* ``tc class delete dev LINK classid MAJOR:NUMBER``.
        """

    def class_traffic(self, link: str) -> tuple[ClassTraffic, ...]:
        """What the queues of the link's classes have sent and dropped, () without an HTB.

        *Equivalent to:* ``tc -s qdisc show dev LINK``.
        """

    def routing_rules(self) -> tuple[RoutingRule, ...]:
        """The policy routing rules with a source and a table, of both families.

        *Equivalent to:* ``ip rule show``.
        """

    def add_routing_rule(self, rule: RoutingRule) -> None:
        """Raises ``Exists``.

        *Equivalent to:* ``ip rule add from SOURCE table TABLE protocol PROTOCOL``.
        """

    def delete_routing_rule(self, rule: RoutingRule) -> None:
        """Raises ``Missing``.

        *Equivalent to:* ``ip rule delete from SOURCE table TABLE protocol PROTOCOL``.
        """

    def flows(self, ports: Collection[tuple[str, int]], version: int = 0) -> tuple[Flow, ...]:
        """The conntrack entries of any of the ports (protocol and original destination port) and of an
        IP version (0: both).

        *Equivalent to:* ``conntrack -L -p PROTOCOL --orig-port-dst PORT`` for each.
        """

    def translated_flows(self, target: Address, ports: Collection[tuple[str, int]]) -> tuple[Flow, ...]:
        """The conntrack entries of any of the ports (protocol and original destination port) whose
        replies come from ``target``.

        *Equivalent to:* ``conntrack -L --reply-src TARGET``.
        """

    def delete_flows(self, flows: Iterable[Flow]) -> None:
        """Delete conntrack entries; missing ones are ignored.

        *Equivalent to:* ``conntrack -D``.
        """

    def listeners(self, protocol: str, ports: Collection[int], caller: int = 0) -> tuple[Listener, ...]:
        """The sockets that listen on any of the ports (``tcp``, ``udp``).

        A wildcard socket has the unspecified address, a dual-stack one an entry for each family.
        ``caller`` is the process of a runtime's call, 0 if there is none: podman reserves the port of a
        call that it has made.
        *Equivalent to:* ``ss -lnp sport = PORT``.
        """

    def iptables(self, version: int, table: str, backend: str = "") -> tuple[str, ...]:
        """A table's chains and rules in ``iptables-save`` format: ``:CHAIN POLICY``, ``-A …``.

        ``backend`` is ``nft``, ``legacy``, or "" for the one that the administrator chose. Raises
        ``KernelLacks`` if iptables is not installed. *Equivalent to:* ``iptables-save -t TABLE``.
        """

    def change_iptables(self, version: int, table: str, lines: Iterable[str], backend: str = "") -> None:
        """Apply lines (``-N``, ``-A``, ``-I``, ``-D``, ``-F``, ``-X``) atomically.

        *Equivalent to:* ``iptables-restore --noflush``.
        """

    def drops_forwarded(self, version: int) -> bool:
        """Whether the policy of the iptables FORWARD chain is DROP, as Docker sets it."""

    def firewalls(self) -> Firewalls:
        """What other firewalls there are.

        *Equivalent to:* ``iptables -S DOCKER-USER`` …, ``nft list table inet firewalld``.
        """

    def base_chains(self) -> tuple[BaseChain, ...]:
        """Other programs' base chains of the hooks forward and input, of nftables and of iptables.

        *Equivalent to:* ``nft list ruleset``, ``iptables-save -t filter``.
        """

    def nftables_listing(self, what: str, *, as_json: bool = False, terse: bool = False) -> str:
        """Of all nftables rules here (``ruleset``), or of ``chain FAMILY TABLE NAME``, ``set …``, ``map …``:
        as text with handles, or as libnftables-json(5). "" where there is no such object, or no nftables.
        ``terse``: without the elements of sets.

        *Equivalent to:* ``nft --handle --numeric-protocol [--json] [--terse] list WHAT``.
        """

    def change_nftables(self, commands: str) -> None:
        """Run nft commands here, in one transaction: of tables that are not ``Ruleset``'s.

        *Equivalent to:* ``nft -f FILE``.
        """

    def firewalld_zone(self, place: str, *, permanent: bool = False) -> str | None:
        """firewalld's zone of a link or subnet, "" for none, None if no firewalld answers.

        *Equivalent to:* ``firewall-cmd [--permanent] --get-zone-of-interface=LINK``.
        """

    def set_firewalld_zone(self, place: str, zone: str) -> None:
        """Put a link or subnet in a zone, or "" take it from its zone, in the running configuration.

        *Equivalent to:* ``firewall-cmd --zone=ZONE --add-interface=LINK``.
        """


class Ruleset(Protocol):
    """weft's nftables tables in the host's namespace.

    Attachments change its elements, not its rules.
    """

    def lacks(self, tables: Tables) -> str | None:
        """Which part of the tables is not installed as declared, None if all of it is."""

    def install(self, tables: Tables) -> None:
        """Install the tables; elements are kept, also those of sets that had another name in an earlier
        release.

        *Equivalent to:* ``nft -f RULES``, in one transaction.
        """

    def remove(self) -> None:
        """Delete the tables if they exist. *Equivalent to:* ``nft destroy table inet weft`` …"""

    def add(self, elements: Iterable[Element]) -> None:
        """Add elements atomically; one that exists with the same data and mark is left as it is.

        Raises ``Conflict``, naming the element and its mark, if the key has another owner, and
        ``Missing`` if the set or map is not installed. *Equivalent to:* ``nft add element inet weft
        …``.
        """

    def delete(self, elements: Iterable[Element]) -> None:
        """Delete elements that have the same mark; others are kept, missing ones ignored.

        *Equivalent to:* ``nft delete element inet weft …``.
        """

    def existing(self, elements: Iterable[Element]) -> tuple[Element, ...]:
        """The installed elements with the keys of the given ones, whatever their data and mark.

        *Equivalent to:* ``nft get element inet weft …``.
        """

    def at(self, collection: str, key: tuple[Scalar, ...]) -> Element | None:
        """The element with a key, whatever else it has; not of a set of single intervals. Raises Missing
        without such a set. *Equivalent to:* ``nft get element inet weft …``.
        """

    def missing(self, elements: Iterable[Element]) -> tuple[Element, ...]:
        """The elements that are not installed with the same data and mark."""

    def elements(self, collection: str) -> tuple[Element, ...]:
        """All elements of a set or map. *Equivalent to:* ``nft list set inet weft NAME``."""

    def mark_digests(self, collection: str) -> frozenset[str]:
        """The digests of the marks of all elements of a set or map (``identity.mark_digest``), without a
        value for each element. *Equivalent to:* ``nft list set inet weft NAME | grep -o
        'weft:[0-9a-f]*'``.
        """

    def exceeded(self, collection: str) -> tuple[tuple[Element, int], ...]:
        """All elements of a set with limits, and how many packets exceeded the limit of each.

        *Equivalent to:* ``nft list set inet weft NAME``.
        """

    def drops(self) -> Mapping[tuple[str, str, str], int]:
        """How many packets rules have dropped, by table, chain and comment, since the table was installed.

        *Equivalent to:* ``nft list ruleset | grep "counter packets"``, of tables whose names begin with ``weft``.
        """

    def collections(self) -> tuple[str, ...]:
        """The names of the table's sets and maps, () if the table does not exist."""

    def once(self) -> Ruleset:
        """The same for one look at the elements of many: each set is listed once, for all ``missing``."""


class Kernel(Protocol):
    """The host's namespace and ruleset, and other namespaces by path."""

    @property
    def host(self) -> Namespace: ...

    @property
    def rules(self) -> Ruleset: ...

    def identify(self, path: str) -> NamespaceId:
        """The identity of the namespace at a path; inode 0 if it is not one. Never blocks."""

    def open(self, path: str) -> Namespace:
        """Open the namespace at a path. Raises ``NamespaceProblem`` if it is not one."""

    def add_namespace(self, path: str) -> None:
        """Make an empty network namespace and mount it at a path of ``/run/netns``. Raises ``Exists``.

        *Equivalent to:* ``ip netns add NAME``, ``ip-netns(8)``.
        """

    def remove_namespace(self, path: str) -> None:
        """Unmount it: the namespace ends with the last process in it. Raises ``Missing``.

        *Equivalent to:* ``ip netns delete NAME``.
        """

    def others(self) -> tuple[str, ...]:
        """A path of every network namespace but the host's that a process is in or a mount keeps.

        *Equivalent to:* ``lsns -t net -o PATH``.
        """

    def forked(self) -> None:
        """In a process that was forked: what was open is the other process's, and is opened anew on use."""

    def close(self) -> None: ...


__all__ = [
    "BridgeVlan",
    "ClassTraffic",
    "Element",
    "FdbEntry",
    "Flow",
    "Kernel",
    "KernelRoute",
    "Limit",
    "Link",
    "Namespace",
    "Neighbour",
    "Nexthop",
    "RoutingRule",
    "Row",
    "Ruleset",
    "Scalar",
    "Subnet",
    "TrafficClass",
    "VethPeer",
]
