"""The fake kernel's links, and the kernel's defaults for a new one."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Interface

from weft.errors import Missing
from weft.kernel.values import (
    BridgeVlan,
    EspRow,
    FdbEntry,
    KernelRoute,
    Limit,
    Link,
    Neighbour,
    Nexthop,
    TrafficClass,
    WireGuard,
)
from weft.types import Cidr

KINDS = frozenset(
    (
        "bridge",
        "dummy",
        "geneve",
        "ifb",
        "ipvlan",
        "macvlan",
        "macvtap",
        "tun",
        "veth",
        "vlan",
        "vrf",
        "vxlan",
        "wireguard",
    )
)
"""The supported kinds of links (IFLA_INFO_KIND)."""

OPTIONS: dict[str, dict[str, int | str]] = {
    "bridge": {"br_ageing_time": 30000, "br_stp_state": 0, "br_vlan_filtering": 0, "br_group_fwd_mask": 0},
    "macvlan": {"macvlan_mode": "vepa", "macvlan_bc_queue_len": 1000},
    "macvtap": {"macvtap_mode": "vepa"},
    "ipvlan": {"ipvlan_mode": 1, "ipvlan_flags": 0},
    "vlan": {"vlan_id": 0, "vlan_protocol": 0x8100},
    "vrf": {"vrf_table": 0},
    "vxlan": {
        "vxlan_id": 0,
        "vxlan_port": 8472,
        "vxlan_learning": 1,
        "vxlan_ttl": 0,
        "vxlan_ageing": 300,
        "vxlan_df": 0,
    },
    "tun": {"tun_type": 2, "tun_pi": 0, "tun_vnet_hdr": 0, "tun_multi_queue": 0, "tun_persist": 1},
}
MORE_OPTIONS = {
    "vxlan": ("vxlan_local", "vxlan_local6", "vxlan_group", "vxlan_group6", "vxlan_udp_csum"),
    "tun": ("tun_owner", "tun_group"),
    "bridge": (
        "br_forward_delay", "br_hello_time", "br_max_age", "br_priority", "br_mcast_snooping", "br_mcast_querier",
        "br_vlan_default_pvid", "br_vlan_protocol", "br_nf_call_iptables", "br_nf_call_ip6tables",
    ),
}  # fmt: skip
PORT = {
    "brport_mode": 0, "brport_guard": 0, "brport_protect": 0, "brport_fast_leave": 0, "brport_learning": 1,
    "brport_unicast_flood": 1, "brport_mcast_flood": 1, "brport_bcast_flood": 1, "brport_proxyarp": 0,
    "brport_isolated": 0, "brport_locked": 0, "brport_neigh_suppress": 0, "brport_cost": 2, "brport_priority": 32,
    "brport_group_fwd_mask": 0, "brport_multicast_router": 1, "brport_mcast_max_groups": 0,
}  # fmt: skip

CONF = {
    "net/ipv4/conf": {
        "accept_local": "0", "arp_announce": "0", "arp_ignore": "0", "arp_notify": "0", "forwarding": "0",
        "promote_secondaries": "0", "proxy_arp": "0", "route_localnet": "0", "rp_filter": "0", "send_redirects": "1",
        "accept_redirects": "1", "src_valid_mark": "0", "disable_policy": "0", "accept_source_route": "1",
    },
    "net/ipv4/neigh": {"proxy_delay": "80", "retrans_time_ms": "1000", "mcast_solicit": "3", "ucast_solicit": "3"},
    "net/ipv6/conf": {
        "accept_dad": "1", "accept_ra": "1", "accept_redirects": "1", "addr_gen_mode": "0", "autoconf": "1",
        "disable_ipv6": "0", "enhanced_dad": "1", "forwarding": "0", "keep_addr_on_down": "0", "ndisc_notify": "0",
        "proxy_ndp": "0", "use_tempaddr": "0", "dad_transmits": "1", "accept_source_route": "0",
    },
    "net/ipv6/neigh": {"retrans_time_ms": "1000", "mcast_solicit": "3", "ucast_solicit": "3"},
}  # fmt: skip
"""The sysctls of each link, with the kernel's defaults."""

GLOBAL = {
    "net/ipv4/ip_forward": "0",
    "net/ipv4/ip_nonlocal_bind": "0",
    "net/ipv4/ip_unprivileged_port_start": "1024",
    "net/ipv4/ping_group_range": "1\t0",
    "net/ipv4/tcp_congestion_control": "cubic",
    "net/ipv4/tcp_keepalive_time": "7200",
    "net/core/somaxconn": "4096",
    "net/netfilter/nf_conntrack_max": "65536",
    "net/bridge/bridge-nf-call-iptables": "0",
    "net/bridge/bridge-nf-call-ip6tables": "0",
}


@dataclass(slots=True, eq=False)
class FakeLink:
    """One link: ``peer`` of a veth and ``parent``, the lower link, may be in other namespaces."""

    name: str
    kind: str
    index: int
    mac: str
    mtu: int
    namespace: FakeState
    up: bool = False
    alias: str = ""
    master: FakeLink | None = None
    peer: FakeLink | None = None
    parent: FakeLink | None = None
    promiscuous: bool = False
    all_multicast: bool = False
    queue_length: int = 1000
    group: int = 0
    wireguard: WireGuard | None = None
    options: dict[str, int | str] = field(default_factory=dict)
    port: dict[str, int] = field(default_factory=dict)
    vlans: dict[int, BridgeVlan] = field(default_factory=dict)
    addresses: list[Cidr] = field(default_factory=list)
    without_route: set[Cidr] = field(default_factory=set)
    routes: list[KernelRoute] = field(default_factory=list)
    neighbours: list[Neighbour] = field(default_factory=list)
    fdb: list[FdbEntry] = field(default_factory=list)
    sysctls: dict[str, str] = field(default_factory=dict)
    dad: tuple[bool, bool] = (False, False)
    limit: Limit | None = None
    redirect: str = ""
    redirect_egress: str = ""
    root_qdisc: str = ""
    classes: dict[int, TrafficClass] = field(default_factory=dict)
    mac_set: bool = False
    """Whether the MAC address was given (NET_ADDR_SET): otherwise a bridge takes the lowest of its ports'."""

    def follow_ports(self) -> None:
        """Source: ``net/bridge/br_stp_if.c``, br_stp_recalculate_bridge_id."""
        if self.kind == "bridge" and not self.mac_set:
            ports = [link.mac for link in self.namespace.links_by_name.values() if link.master is self]
            self.mac = min(ports, default="00:00:00:00:00:00")

    @property
    def carrier(self) -> bool:
        """Whether the link has a carrier (IFF_LOWER_UP)."""
        if not self.up:
            return False
        if self.kind == "bridge":
            ports = [link for link in self.namespace.links_by_name.values() if link.master is self]
            return any(port.carrier for port in ports)
        if self.kind == "veth":
            return self.peer is not None and self.peer.up
        if self.kind == "tun":
            return False
        return self.parent is None or self.parent.up

    def release(self) -> None:
        """Take the link from its master."""
        before, self.master, self.port, self.vlans = self.master, None, {}, {}
        self.fdb = [entry for entry in self.fdb if not entry.master]
        if before is not None:
            before.follow_ports()

    def flush(self) -> None:
        """Delete what does not outlive the link's being set down, but routes."""
        self.neighbours = []
        self.fdb = [entry for entry in self.fdb if entry.state != "dynamic"]

    def link_local(self) -> Cidr:
        """The IPv6 link-local address derived from the MAC (EUI-64, RFC 4291)."""
        octets = [int(part, 16) for part in self.mac.split(":")]
        octets[0] ^= 0x02
        packed = bytes([0xFE, 0x80, 0, 0, 0, 0, 0, 0, *octets[:3], 0xFF, 0xFE, *octets[3:]])
        return IPv6Interface((packed, 64))

    def to_link(self) -> Link:
        """The link as ``Namespace.link`` returns it."""
        return Link(
            name=self.name,
            index=self.index,
            kind=self.kind,
            mac=self.mac,
            mtu=self.mtu,
            up=self.up,
            alias=self.alias,
            master=self.master.name if self.master is not None else "",
            peer_index=self.peer.index if self.peer is not None else 0,
            promiscuous=self.promiscuous,
            carrier=self.carrier,
            all_multicast=self.all_multicast,
            queue_length=self.queue_length,
            group=self.group,
            elsewhere=any(one is not None and one.namespace is not self.namespace for one in (self.peer, self.parent)),
            options=dict(self.options),
            port=dict(self.port),
        )


class FakeState:
    """A namespace's links by name, and its sysctls that belong to no link."""

    def __init__(self) -> None:
        self.links_by_name: dict[str, FakeLink] = {}
        self.nexthops_by_id: dict[int, Nexthop] = {}
        self.esp_rows: dict[tuple[object, ...], EspRow] = {}
        self.nexthop_routes: list[KernelRoute] = []
        self.rejected: list[KernelRoute] = []
        """The unreachable routes."""
        self.sysctls: dict[str, str] = {}

    def existing(self, name: str, doing: str) -> FakeLink:
        """The link of that name; raises ``Missing``."""
        if name not in self.links_by_name:
            raise Missing(f"cannot {doing}: the link {name} does not exist")
        return self.links_by_name[name]

    def every_address(self) -> list[Cidr]:
        return [cidr for link in self.links_by_name.values() for cidr in link.addresses]
