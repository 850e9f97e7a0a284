"""The table ``bridge weft``: what a bridge takes from the ports that containers are behind.

One chain that frames enter, before the bridge has learned anything from them: also those to the reserved
addresses 01:80:c2:00:00:0x, which the kernel hands to the host before this hook unless the port's
group_fwd_mask has their bit (``ops.bridges.Port``). Link-layer addresses
within neighbour discovery are checked where they must stand first (RFC 4861, 4.3 and 4.4); what a
fragment hides the receiver ignores (RFC 6980). Nearly all that a checked port sends is its own by
one look-up, after which TCP is accepted.
"""

from __future__ import annotations

from weft.kernel.schema import Chain, Rule, Set, Table, sets

NO_ROUTER_PORTS = "no_router_ports"
MAC_CHECKED_PORTS, PORT_MACS = "mac_checked_ports", "port_macs"
IP_CHECKED_PORTS = "ip_checked_ports"
PORT_MAC_IP4, PORT_MAC_IP6 = "port_mac_ip4", "port_mac_ip6"
ND_TARGETS6, ND_LINK_ADDRESSES = "nd_targets6", "nd_link_addresses"
TRUNK_PORTS, NATIVE_VLANS = "trunk_ports", "native_vlans"
VLAN_PORTS, VLAN_SOURCES4, VLAN_MACHINES4 = "vlan_ports", "vlan_sources4", "vlan_machines4"

_ROUTER = "icmpv6 type { mld-listener-query, nd-router-advert, nd-redirect } iifname @no_router_ports drop"
_QUERY = "igmp type membership-query iifname @no_router_ports drop"
_NO_QUERIER = "no multicast router is behind this bridge port"
_NO_ROUTER = "CVE-2020-10749: no router is behind this bridge port"
_RESERVED = "meta pkttype multicast ether daddr 01:80:c2:00:00:00-01:80:c2:00:00:0f"
_HIDDEN = "not an EtherType of its own after one VLAN tag"
_UNSPECIFIED = "ether type ip6 ip6 saddr :: exthdr frag missing"
"""Neighbour discovery is never fragmented (RFC 6980)."""
_ARP = "ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4"
_OTHER_MAC = "not its own MAC address in the link-layer address option"
_SETS = (
    Set(
        NO_ROUTER_PORTS,
        "ifname",
        "bridge ports that may not send router advertisements, redirects or multicast queries",
        "all but routerAdvertisements",
        formerly=("attached",),
    ),
    Set(
        MAC_CHECKED_PORTS,
        "ifname",
        "bridge ports that may send only from their addresses in port_macs",
        "macspoofchk",
        formerly=("stationed",),
    ),
    Set(
        PORT_MACS,
        "ifname . ether_addr",
        "bridge port, and a MAC address it may use",
        "macspoofchk",
        formerly=("stations",),
    ),
    Set(
        IP_CHECKED_PORTS,
        "ifname",
        "bridge ports that may send only from their addresses in port_mac_ip4 and port_mac_ip6",
        "ipspoofchk",
        formerly=("addressed",),
    ),
    *sets(
        "port_mac_ip{v}",
        "ifname . ether_addr . {address}",
        "bridge port, its MAC address, and an IPv{v} address it may use",
        "ipspoofchk",
        "own{v}",
    ),
    # Numbers: nftables 1.0.6 has no name for the target of an advertisement, nor for options of neighbour
    # discovery.
    Set(
        ND_TARGETS6,
        "iifname . @th,64,128",
        "bridge port, and an IPv6 address it may advertise",
        "ipspoofchk",
        typeof=True,
        formerly=("claims6",),
    ),
    Set(
        ND_LINK_ADDRESSES,
        "iifname . @th,208,48",
        "bridge port, and a MAC address it may advertise",
        "ipspoofchk",
        typeof=True,
        formerly=("link_addresses",),
    ),
    Set(
        TRUNK_PORTS,
        "ifname",
        "bridge ports that may send tagged frames; the bridge checks the VLAN",
        "ipspoofchk with vlanTrunk",
        formerly=("trunks",),
    ),
    Set(
        NATIVE_VLANS,
        "iifname . vlan id",
        "trunk port, and a tag with which a frame is in the VLAN of those without one",
        "ipspoofchk with vlanTrunk",
        typeof=True,
    ),
    Set(
        VLAN_PORTS,
        "ifname",
        "bridge ports by which a VLAN is part of an overlay network",
        "vlan-gateway, on that host",
    ),
    Set(
        VLAN_SOURCES4,
        "ifname . ipv4_addr",
        "such a port, and the addresses that machines on the VLAN may have",
        "vlan-range",
        flags=("interval",),
    ),
    Set(
        VLAN_MACHINES4,
        "ifname . ether_addr . ipv4_addr",
        "such a port, and the machines that have sent by it within the last hour",
        "their frames",
        flags=("dynamic", "timeout"),
        timeout=3600,
        size=1024,
    ),
)

_CHAINS = (
    Chain(
        "check_mac",
        "source MAC addresses of mac_checked_ports",
        (
            Rule("iifname . ether saddr != @port_macs drop", "a forged MAC address"),
            Rule("meta protocol arp iifname . arp saddr ether != @port_macs drop", "a forged MAC address within ARP"),
        ),
        formerly=("origin",),
    ),
    Chain(
        "check_arp",
        "ARP of ip_checked_ports",
        (
            Rule("arp htype != 1 drop", "not Ethernet"),
            Rule("arp ptype != ip drop", "not IPv4"),
            Rule("arp hlen != 6 drop", "not the length of a MAC address"),
            Rule("arp plen != 4 drop", "not the length of an IPv4 address"),
            Rule("arp saddr ip 0.0.0.0 accept", "a probe (RFC 5227)"),
            Rule("iifname . arp saddr ether . arp saddr ip @port_mac_ip4 accept", "its own address"),
            Rule("drop", "not its own address"),
        ),
        formerly=("arps",),
    ),
    Chain(
        "check_ipv4",
        "IPv4 whose source address is already checked: drops DHCP server replies and redirects",
        (
            Rule("meta l4proto tcp accept", "most traffic ends here"),
            Rule("udp sport != 67 accept", "and nearly all the rest"),
            Rule("udp sport 67 udp dport 68 drop", "no DHCP server is behind this bridge port"),
            Rule("icmp type redirect drop", "no router is behind this bridge port"),
            Rule(_QUERY, _NO_QUERIER),
        ),
        formerly=("sent4",),
    ),
    Chain(
        "check_nd_advert",
        "neighbour advertisements: only of the bridge port's own addresses",
        (
            Rule("iifname . @th,64,128 != @nd_targets6 drop", "not its own IPv6 address"),
            Rule("@th,192,16 != 0x0201 drop", "first option is not the target link-layer address"),
            Rule("iifname . @th,208,48 != @nd_link_addresses drop", _OTHER_MAC),
        ),
        formerly=("advertised",),
    ),
    Chain(
        "check_nd_solicit",
        "neighbour solicitations: only with the bridge port's own MAC address",
        (
            Rule("@th,192,16 != 0x0101 drop", "first option is not the source link-layer address"),
            Rule("iifname . @th,208,48 != @nd_link_addresses drop", _OTHER_MAC),
        ),
        formerly=("solicited",),
    ),
    Chain(
        "check_ipv6",
        "IPv6 whose source address is already checked: "
        "drops DHCP server replies, redirects, router advertisements; checks ND",
        (
            Rule("meta l4proto tcp accept", "most traffic ends here"),
            Rule("udp sport != 547 accept", "and nearly all the rest"),
            Rule("udp sport 547 udp dport 546 drop", "no DHCPv6 server is behind this bridge port"),
            Rule(_ROUTER, _NO_ROUTER),
            Rule("icmpv6 type nd-neighbor-advert goto check_nd_advert", "only for its own addresses"),
            Rule("icmpv6 type nd-neighbor-solicit goto check_nd_solicit", "only from its own MAC address"),
            Rule(
                "icmpv6 type nd-router-solicit @th,64,16 != 0x0101 drop",
                "first option is not the source link-layer address",
            ),
            Rule("icmpv6 type nd-router-solicit iifname . @th,80,48 != @nd_link_addresses drop", _OTHER_MAC),
        ),
        formerly=("sent6",),
    ),
    Chain(
        "check_other",
        "ip_checked_ports: frames that are not IP from an own address (ARP, DHCP, address detection)",
        (
            Rule(
                "ether type vlan iifname . vlan id @native_vlans drop",
                "a tag that the bridge removes: the receiver sees the contents, which have to be checked",
            ),
            Rule("ether type vlan iifname @trunk_ports accept", "tagged frames, whose contents are not checked"),
            Rule("ether type arp goto check_arp", "ARP"),
            Rule(
                "ether type ip ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
                "a DHCP client without an address",
            ),
            Rule(
                f"{_UNSPECIFIED} icmpv6 type nd-neighbor-solicit iifname . @th,64,128 @nd_targets6 accept",
                "duplicate address detection for its own addresses",
            ),
            Rule(
                f"{_UNSPECIFIED} icmpv6 type {{ 131, 132, 143, nd-router-solicit }} accept",
                "MLD reports and router solicitation before it has an address",
            ),
            Rule("drop", "forged addresses and other protocols"),
        ),
        formerly=("contents",),
    ),
    Chain(
        "check_vlan",
        "frames of machines on a VLAN: only with addresses of the range, which makes the machine known",
        (
            Rule(f"{_ARP} arp saddr ip 0.0.0.0 accept", "a probe (RFC 5227)"),
            Rule(
                f"{_ARP} iifname . arp saddr ip @vlan_sources4 "
                "update @vlan_machines4 { iifname . ether saddr . arp saddr ip } accept",
                "an address of the range",
            ),
            Rule(
                "ether type ip iifname . ip saddr @vlan_sources4 "
                "update @vlan_machines4 { iifname . ether saddr . ip saddr } goto check_ipv4",
                "an address of the range",
            ),
            # An update of a full set ends the rule.
            Rule(f"{_ARP} iifname . arp saddr ip @vlan_sources4 accept", "the set is full"),
            Rule("ether type ip iifname . ip saddr @vlan_sources4 goto check_ipv4", "the set is full"),
            Rule("drop", "other addresses, which may be containers', and other protocols"),
        ),
    ),
    Chain(
        "check_encapsulation",
        "headers that would hide the contents from the rules: stacked VLAN tags, SNAP",
        (
            Rule("meta protocol { 8021q, 8021ad } drop", "a tag within a tag (VU#855201): receivers remove both"),
            Rule("meta protocol 0x0004 @nh,0,48 0xaaaa03000000 drop", "an EtherType in a SNAP header (RFC 1042)"),
        ),
    ),
    Chain(
        "check_reserved",
        "addresses of one link (STP, LLDP, LACP ...), which no bridge forwards; containers are no switches",
        (
            Rule("iifname @no_router_ports drop", "all but routerAdvertisements"),
            Rule("iifname @mac_checked_ports drop", "macspoofchk"),
        ),
    ),
    Chain(
        "filter_prerouting",
        "frames from containers, before the bridge learns their source addresses",
        (
            Rule(f"{_RESERVED} jump check_reserved", "addresses of one link"),
            Rule("ether type ip iifname . ether saddr . ip saddr @port_mac_ip4 goto check_ipv4", "its own address"),
            Rule("ether type ip6 iifname . ether saddr . ip6 saddr @port_mac_ip6 goto check_ipv6", "its own address"),
            Rule("meta protocol { 0x0004, 8021q, 8021ad } iifname @no_router_ports jump check_encapsulation", _HIDDEN),
            Rule(
                "meta protocol { 0x0004, 8021q, 8021ad } iifname @mac_checked_ports jump check_encapsulation", _HIDDEN
            ),
            Rule(f"meta protocol ip6 {_ROUTER}", _NO_ROUTER),
            Rule(f"meta protocol ip {_QUERY}", _NO_QUERIER),
            Rule("iifname @mac_checked_ports jump check_mac", "macspoofchk"),
            Rule("iifname @ip_checked_ports goto check_other", "ipspoofchk"),
            Rule("iifname @vlan_ports goto check_vlan", "machines on a VLAN"),
        ),
        hook="prerouting",
        priority="dstnat",
        formerly=("frames",),
    ),
)

TABLE = Table(
    "bridge",
    "weft",
    "checks of frames from containers, against forged addresses; owner of an element: weft show COMMENT",
    _SETS,
    _CHAINS,
)
