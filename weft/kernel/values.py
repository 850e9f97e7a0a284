"""What the kernel's networking consists of, as values: links, routes, neighbours, tunnels, flows, and the
elements of nftables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Network

from weft.types import Address, Route, Subnet


@dataclass(frozen=True, slots=True)
class Link:
    """A link as RTM_GETLINK returns it. ``peer_index`` is the ifindex of a veth's peer, or 0; ``elsewhere`` says that
    the peer, or the link that it is on, is in another namespace (link-netnsid).

    ``options`` are the kind's attributes (IFLA_INFO_DATA) under pyroute2's names
    (``br_vlan_filtering``, ``macvlan_mode``, ``vlan_id`` …), ``port`` a bridge port's
    (IFLA_BRPORT_*: ``brport_mode`` is hairpin, ``brport_isolated`` …). ``mtu`` is bytes.
    ``sysctls`` are those of ``net/ipv4/conf`` and ``net/ipv6/conf`` that the kernel lists with a link,
    by family and name (``ipv4/rp_filter``).
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
    group: int = 0
    elsewhere: bool = False
    options: Mapping[str, int | str] = field(default_factory=dict)
    port: Mapping[str, int] = field(default_factory=dict)
    sysctls: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route in the kernel: ``link`` is the outgoing interface, ``source`` the preferred source.

    ``protocol`` is rtm_protocol, the route's origin (2 kernel, 3 boot, 4 static,
    ``weft.identity.ROUTE_PROTOCOL``). A table of None is 254 (main). ``nexthop`` is the id of a
    nexthop object, instead of a gateway and a link. An ``unreachable`` one has none of these.
    """

    route: Route
    link: str = ""
    source: Address | None = None
    protocol: int = 0
    onlink: bool = False
    nexthop: int = 0
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class BridgeVlan:
    """A VLAN of a bridge port, as in ``bridge vlan show``."""

    vid: int
    pvid: bool = False
    untagged: bool = False


@dataclass(frozen=True, slots=True)
class Limit:
    """An egress rate limit (tbf). ``rate`` is bytes per second, ``burst`` and ``queue`` are bytes.

    ``queue`` is the limit of tbf(8): bytes that may wait for tokens, the burst included; more is
    dropped. The kernel stores the burst as a time, so it reads back within 0.1 %, and not above 274
    s.
    """

    rate: int
    burst: int
    queue: int


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """A class of a link's HTB scheduler, by the minor of its classid.

    ``parent`` is 0 for the class that has all others below it. ``rate`` (guaranteed) and ``ceil`` (with
    what others leave) are bytes per second. Of classes without others below, ``quantum`` is how many
    bytes it sends in its turn of what others leave, and those with a lower ``priority`` (0 to 7) come
    first. Source: ``tc-htb(8)``.
    """

    number: int
    parent: int
    rate: int
    ceil: int
    quantum: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ClassTraffic:
    """What the queue of a class has sent and dropped, and the bytes that wait there."""

    number: int
    sent: int = 0
    packets: int = 0
    drops: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """A policy routing rule: ``ip rule from SOURCE table TABLE``.

    ``protocol`` is its origin (FRA_PROTOCOL).
    """

    source: Subnet
    table: int
    protocol: int = 0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An address on a link and its MAC address, "" while that is unresolved.

    ``permanent`` ones are configured, the others learned by ARP or neighbour discovery.
    """

    address: Address
    mac: str
    link: str
    permanent: bool = True


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A row of a forwarding database: where frames to ``mac`` leave.

    ``master``: a row of the bridge that the link is a port of, with a ``vlan`` if it filters VLANs.
    Otherwise one of a VXLAN link's own: frames go to the host ``destination``, with the link's VNI and
    UDP port unless ``vni`` and ``port`` say otherwise, or to the FDB nexthop group ``nexthop``. The MAC
    address of zeros is for all receivers without a row.
    ``state`` is ``permanent``, ``static`` or ``dynamic`` (subject to ageing). A ``sticky`` row of a bridge
    stays where it is whatever port its MAC address is seen behind. 0 and None mean unset.
    """

    mac: str
    destination: Address | None = None
    vni: int = 0
    port: int = 0
    vlan: int = 0
    nexthop: int = 0
    master: bool = False
    state: str = "permanent"
    sticky: bool = False


@dataclass(frozen=True, slots=True)
class Nexthop:
    """A nexthop object, which routes refer to by its ``id``: a gateway on a link, a link, or a group.

    ``group`` has ids and weights (1 to 256). ``fdb`` ones, for rows of VXLAN links, have a gateway
    alone, or a group of such. ``protocol`` is the origin, as in ``KernelRoute``. ``id`` is 1 or more.
    """

    id: int
    gateway: Address | None = None
    link: str = ""
    group: tuple[tuple[int, int], ...] = ()
    fdb: bool = False
    onlink: bool = False
    protocol: int = 0


Row = Neighbour | FdbEntry | Nexthop | KernelRoute
"""What ``Namespace.add_rows`` and ``delete_rows`` take."""


@dataclass(frozen=True, slots=True)
class WireGuardPeer:
    """A peer of a WireGuard link: its public key (base64), where it is reached, and its addresses."""

    key: str
    endpoint: Address | None
    port: int
    allowed: tuple[IPv6Network, ...]


@dataclass(frozen=True, slots=True)
class WireGuard:
    """What a WireGuard link has: its private key (base64), the UDP port, and its peers, by their keys."""

    private: str = field(repr=False)
    port: int
    peers: tuple[WireGuardPeer, ...] = ()


@dataclass(frozen=True, slots=True)
class EspState:
    """How ESP in transport mode encrypts UDP packets from one host to a ``port`` of another (SA), by AES-GCM.

    ``spi`` tells it from others with the same ``destination``; ``reqid`` says to which policies it belongs.
    ``key`` is the cipher's, with four bytes of salt (RFC 4106); those that are listed have none.
    """

    source: Address
    destination: Address
    port: int
    reqid: int
    spi: int
    key: bytes = field(default=b"", repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class EspPolicy:
    """That UDP packets from one host to a ``port`` of another must be encrypted by the state with that ``spi``
    (0: by any of the ``reqid``). ``out``: this host sends them, else it receives them.
    """

    source: Address
    destination: Address
    port: int
    reqid: int
    spi: int
    out: bool


EspRow = EspState | EspPolicy


@dataclass(frozen=True, slots=True)
class Flow:
    """A conntrack entry: its original tuple, and the source of its reply tuple (``answers``)."""

    protocol: str
    source: Address
    source_port: int
    destination: Address
    port: int
    reply_source: Address
    reply_port: int


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket, with its process as "nginx (4711)".

    ``reserved``: the process only keeps others from binding the port, and never accepts.
    """

    address: Address
    port: int
    process: str
    reserved: bool = False


Scalar = Address | Subnet | int | str


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set (``data`` empty) or map in weft's table; its comment is its owner's mark.

    ``key`` and ``data`` are the fields of a concatenation; strings are protocols (``tcp``) or link
    names. ``limit`` is that of a set whose elements have one (``Set.limit``): packets a second and
    the burst, or a number of connections.
    """

    collection: str
    key: tuple[Scalar, ...]
    data: tuple[Scalar, ...] = ()
    mark: str = ""
    limit: tuple[int, ...] = ()
