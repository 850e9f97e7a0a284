"""The table ``inet weft``: what this host does with the packets of containers.

Its rules are the same whether one container runs or ten thousand. What belongs to a container is an
element of a set or map, with the mark of its attachment as the comment, so a packet costs the same
few look-ups however many there are.

Priorities are those that other software expects (dstnat, srcnat, raw): the first rule that
translates a connection decides, and these rules match only weft's ports and containers. Sources:
nft(8), ``linux/netfilter_ipv4.h``, the reference plugins ``portmap`` and ``bridge``.
"""

from __future__ import annotations

from cni_plugin.dataplane import limits, uplink
from weft.kernel.schema import Chain, Rule, Set, Table, maps, rules, sets

MASQUERADE4, MASQUERADE6 = "masquerade4", "masquerade6"
MASQUERADE_EXEMPT4, MASQUERADE_EXEMPT6 = "masquerade_exempt4", "masquerade_exempt6"
PORTS4, PORTS6 = "ports4", "ports6"
PORTS4_AT, PORTS6_AT = "ports4_at", "ports6_at"
DNS_SERVER4, DNS_SERVER6 = "dns_server4", "dns_server6"
DNS_REDIRECTED4, DNS_REDIRECTED6 = "dns_redirected4", "dns_redirected6"
LOOPBACK_PORTS4, LOOPBACK_PORTS6 = "loopback_ports4", "loopback_ports6"
LOOPBACK_PORTS4_AT, LOOPBACK_PORTS6_AT = "loopback_ports4_at", "loopback_ports6_at"
HAIRPIN4, HAIRPIN6 = "hairpin4", "hairpin6"
HAIRPIN_SELF4, HAIRPIN_SELF6 = "hairpin_self4", "hairpin_self6"
MASQUERADE_ALL4, MASQUERADE_ALL6 = "masquerade_all4", "masquerade_all6"
CLOSED_LINKS, ROUTED_LINKS = "closed_links", "routed_links"
CLOSED_OR_ROUTED_LINKS, INTERNAL_LINKS = "closed_or_routed_links", "internal_links"
INTRA_NETWORK_LINKS = "intra_network_links"
INTRA_NETWORK4, INTRA_NETWORK6 = "intra_network4", "intra_network6"
NO_METADATA_LINKS, DNS_ONLY_LINKS = "no_metadata_links", "dns_only_links"
SOURCE_CHECKED_LINKS = "source_checked_links"
LINK_SOURCES4, LINK_SOURCES6 = "link_sources4", "link_sources6"
OVERLAY_LINKS, OVERLAY_VNIS = "overlay_links", "overlay_vnis"
OVERLAY_ENCRYPTED_VNIS = "overlay_encrypted_vnis"
OVERLAY_IPSEC_VNIS = "overlay_ipsec_vnis"
OVERLAY_PEERS4, OVERLAY_PEERS6 = "overlay_peers4", "overlay_peers6"
DIRECT_PEERS4, DIRECT_PEERS6 = "direct_peers4", "direct_peers6"
DIRECT_CLOSED4, DIRECT_CLOSED6 = "direct_closed4", "direct_closed6"
DIRECT_ROUTED4, DIRECT_ROUTED6 = "direct_routed4", "direct_routed6"
INGRESS_POLICY_LINKS, INTRA_LINK = "ingress_policy_links", "intra_link"
INGRESS_POLICY4, INGRESS_POLICY6 = "ingress_policy4", "ingress_policy6"
INGRESS_ISOLATED4, INGRESS_ISOLATED6 = "ingress_isolated4", "ingress_isolated6"

PUBLISHED = frozenset({PORTS4, PORTS6, PORTS4_AT, PORTS6_AT})
"""The maps from a port of the host to a port of a container."""
PORTS = PUBLISHED | {LOOPBACK_PORTS4, LOOPBACK_PORTS6, LOOPBACK_PORTS4_AT, LOOPBACK_PORTS6_AT}
"""The collections in which an element is a port of the host."""

LOOPBACK_SOURCE4 = "192.0.0.8"
"""The source of packets from 127.0.0.1 on their way to a container: the dummy address of RFC 7600."""
LOOPBACK_SOURCE6 = "100:0:0:1::8"
"""The same for ::1, of the dummy prefix of RFC 9780."""

_INTERVAL = ("interval",)
_MASQUERADING = (
    *sets("masquerade{v}", "{address}", "containers whose outgoing connections get the host's address", "ipMasq"),
    *sets(
        "masquerade_exempt{v}",
        "{address} . {address}",
        "source and destination that are not masqueraded: within one network",
        "ipMasq, for each subnet",
        "local{v}",
        _INTERVAL,
    ),
)
_PUBLISHING = (
    *maps(
        "ports{v}",
        "inet_proto . inet_service",
        "{address} . inet_service",
        "ports published at every host address, and the container address and port of each",
        "portmap",
    ),
    *maps(
        "ports{v}_at",
        "{address} . inet_proto . inet_service",
        "{address} . inet_service",
        "ports published at a certain host address, and the container address and port of each",
        "portmap with hostIP",
    ),
    *maps(
        "dns_server{v}",
        "ifname",
        "{address}",
        "links from which this host answers queries to other DNS servers, and its address there",
        "names with redirectDns",
    ),
    *sets(
        "dns_redirected{v}",
        "ifname . {address}",
        "link, and a DNS server to which queries from there are answered by this host",
        "names with redirectDns",
    ),
    *sets(
        "loopback_ports{v}",
        "inet_proto . inet_service",
        "published ports that host processes can also reach at {loopback}",
        "portmap",
        "loopback{v}",
    ),
    *sets(
        "loopback_ports{v}_at",
        "{address} . inet_proto . inet_service",
        "ports published only at a certain loopback address",
        "portmap with a loopback hostIP",
        "loopback{v}_at",
    ),
    *sets(
        "hairpin{v}",
        "ifname . {address}",
        "link and container with published ports: clients behind the same link are masqueraded",
        "portmap",
    ),
    *sets(
        "hairpin_self{v}",
        "{address} . {address}",
        "source and destination: a container that connects to its own published port",
        "portmap",
        "self{v}",
    ),
    *sets(
        "masquerade_all{v}",
        "{address}",
        "containers to which every client of a published port appears as this host (masqAll)",
        "portmap with masqAll",
    ),
)
_ISOLATION = (
    Set(
        CLOSED_LINKS,
        "ifname",
        "links that accept new connections only from their own network and to published ports",
        "isolation closed",
        formerly=("closed",),
    ),
    Set(
        ROUTED_LINKS,
        "ifname",
        "links that accept new connections from outside, but not from closed or routed links of other networks",
        "isolation routed",
        formerly=("routed",),
    ),
    Set(
        CLOSED_OR_ROUTED_LINKS,
        "ifname",
        "links of closed and routed networks, which may not connect to routed_links",
        "isolation closed and routed",
        formerly=("private",),
    ),
    Set(
        INTERNAL_LINKS,
        "ifname",
        "links that may connect only to their own network",
        "internal",
        formerly=("internal",),
    ),
    Set(
        INTRA_NETWORK_LINKS,
        "ifname . ifname",
        "incoming and outgoing link of the same network",
        "isolation, internal",
        formerly=("within",),
    ),
    *sets(
        "intra_network{v}",
        "ifname . {address}",
        "incoming link, and a destination subnet of the same network (networks without a bridge)",
        "isolation, internal",
        "within{v}",
        _INTERVAL,
    ),
    Set(
        NO_METADATA_LINKS,
        "ifname",
        "links that may not reach metadata services and link-local addresses",
        "metadata",
        formerly=("no_metadata",),
    ),
    Set(
        DNS_ONLY_LINKS,
        "ifname",
        "links from which only DNS and ping of this host are allowed",
        "hostAccess, internal",
        formerly=("no_host",),
    ),
    Set(
        SOURCE_CHECKED_LINKS,
        "ifname",
        "links that may send only from their addresses in link_sources4 and link_sources6",
        "ipspoofchk, by ptp",
        formerly=("sourced",),
    ),
    *sets("link_sources{v}", "ifname . {address}", "link, and a source address it may use", "ipspoofchk", "sources{v}"),
)
_POLICIES = (
    Set(
        INGRESS_POLICY_LINKS,
        "ifname",
        "links of containers with an ingressPolicy",
        "firewall",
        formerly=("policed",),
    ),
    Set(
        INTRA_LINK,
        "ifname . ifname",
        "incoming and outgoing link, where both are the same link of ingress_policy_links",
        "firewall",
        formerly=("same",),
    ),
    *sets(
        "ingress_policy{v}",
        "ifname . {address}",
        "link and container: not reachable from other ingress_policy_links",
        "firewall with ingressPolicy same-bridge or isolated",
        "separate{v}",
    ),
    *sets(
        "ingress_isolated{v}",
        "ifname . {address}",
        "link and container: not reachable even from its own link",
        "firewall with ingressPolicy isolated",
        "isolated{v}",
    ),
)
_VNI = "udp dport . @th,96,24"
"""UDP port and VNI of a VXLAN packet: other programs may use the same port with other VNIs. RFC 7348."""
_OVERLAY_PACKET = f"meta l4proto udp @th,64,32 0x08000000 {_VNI} @overlay_vnis"
"""Without the flags of a VXLAN header, which the kernel asks for too (``vxlan_rcv``), no look-up is needed."""
_OVERLAY = (
    Set(
        OVERLAY_LINKS,
        "ifname",
        "VXLAN links, from which packets may go only to the bridge of the same network and to this host",
        "driver overlay",
    ),
    Set(OVERLAY_VNIS, _VNI, "UDP port and VNI of overlay networks", "driver overlay", typeof=True),
    Set(
        OVERLAY_ENCRYPTED_VNIS,
        _VNI,
        "those of encrypted overlay networks, whose packets pass WireGuard links (wvw*) or IPsec alone",
        "driver overlay with encryption",
        typeof=True,
    ),
    Set(OVERLAY_IPSEC_VNIS, _VNI, "those of them with IPsec", "driver overlay with encryption ipsec", typeof=True),
    *(
        Set(
            f"overlay_peers{v}",
            f"{ip} saddr . {_VNI}",
            "a peer's address, and UDP port and VNI of an overlay network that it takes part in",
            "driver overlay, for each peer",
            typeof=True,
        )
        for v, ip in ((4, "ip"), (6, "ip6"))
    ),
)

_DIRECT = (
    *sets(
        "direct_closed{v}",
        "{address}",
        "subnets of closed overlay networks of which the uplink leads to a part",
        "driver overlay with direct",
        flags=_INTERVAL,
    ),
    *sets(
        "direct_routed{v}",
        "{address}",
        "the same of networks with isolation routed",
        "driver overlay with direct",
        flags=_INTERVAL,
    ),
    *sets(
        "direct_peers{v}",
        "ifname . {address} . ifname",
        "incoming link, a block of a peer behind it, and the bridge of the same network",
        "driver overlay with direct, for each peer",
        flags=_INTERVAL,
    ),
)

_METADATA = ("ip daddr 169.254.0.0/16", "ip daddr 100.100.100.200", "ip6 daddr { fd00:ec2::254, fd20:ce::254 }")
"""Compared before the link is looked up: few packets are sent there."""
_RAW = (
    Chain(
        "overlay_decrypted",
        "of encrypted networks, VXLAN packets that came in clear are dropped",
        (
            Rule(f"{_VNI} @overlay_ipsec_vnis meta ipsec exists return", "by ESP"),
            Rule(f"{_VNI} @overlay_ipsec_vnis drop", "in clear"),
            Rule('iifname != "wvw*" drop', "in clear"),
        ),
    ),
    Chain(
        "overlay_encrypted",
        "of encrypted networks, VXLAN packets that would leave in clear are dropped",
        (
            Rule(f"{_VNI} @overlay_ipsec_vnis rt ipsec exists return", "by ESP"),
            Rule(f"{_VNI} @overlay_ipsec_vnis drop", "would leave in clear"),
            Rule('oifname != "wvw*" drop', "would leave in clear"),
        ),
    ),
    Chain(
        "overlay_outer",
        "VXLAN packets of overlay networks: only from their peers, and without connection tracking",
        (
            Rule("iifname @closed_or_routed_links drop", "made by a container"),
            Rule(f"{_VNI} @overlay_encrypted_vnis jump overlay_decrypted", "none in clear"),
            *rules(f"{{ip}} saddr . {_VNI} @overlay_peers{{v}} notrack accept", "from a peer"),
            Rule("drop", "from an unknown address"),
        ),
    ),
    Chain(
        "overlay_to_peer",
        "VXLAN packets of this host's overlay networks are not tracked, and so never translated",
        (
            Rule(f"{_VNI} @overlay_encrypted_vnis jump overlay_encrypted", "none in clear"),
            Rule("notrack", "to a peer"),
        ),
    ),
    Chain(
        "raw_output",
        "VXLAN packets of overlay networks",
        (Rule(f"{_OVERLAY_PACKET} goto overlay_to_peer", "to a peer"),),
        hook="output",
        priority="raw",
    ),
    Chain(
        "check_source",
        "source addresses of links in source_checked_links",
        (
            *rules("iifname . {ip} saddr @link_sources{v} return", "its own IPv{v} address"),
            Rule("ip6 saddr :: meta l4proto ipv6-icmp return", "duplicate address detection has no source yet"),
            Rule("drop", "a forged source address"),
        ),
        formerly=("senders",),
    ),
    Chain(
        "block_metadata",
        "keeps containers from metadata services (credentials) and link-local addresses",
        (
            Rule("meta l4proto { tcp, udp } th dport 53 return", "some clouds serve DNS at such an address"),
            Rule(
                "ip daddr { 100.100.100.200, 169.254.0.0/16 } fib daddr . iif type != local drop",
                "metadata services of clouds, and IPv4 link-local, unless it is this link's own address",
            ),
            Rule("ip6 daddr { fd00:ec2::254, fd20:ce::254 } drop", "metadata services of clouds, IPv6"),
        ),
        formerly=("metadata",),
    ),
    Chain(
        "raw_prerouting",
        "before connection tracking: loopback addresses, forged sources, metadata services",
        (
            Rule(f"{_OVERLAY_PACKET} goto overlay_outer", "VXLAN of an overlay network"),
            Rule('iif "lo" accept', "packets between this host's own processes"),
            Rule("ip daddr 127.0.0.0/8 drop", "CVE-2020-8558: with route_localnet the kernel would let it in"),
            Rule("ip saddr 127.0.0.0/8 drop", "a loopback source never arrives on a link"),
            Rule("ip6 daddr ::1 drop", "published ports on ::1 are for this host's processes"),
            Rule("ip6 saddr ::1 drop", "a loopback source never arrives on a link"),
            Rule("udp dport 53 iifname @limited_links jump limit_dns", "limits"),
            Rule("iifname @source_checked_links jump check_source", "ipspoofchk of ptp links, which have no bridge"),
            *(
                Rule(f"{each} iifname @no_metadata_links goto block_metadata", "networks with the key metadata: false")
                for each in _METADATA
            ),
        ),
        hook="prerouting",
        priority="raw",
        formerly=("guard",),
    ),
)
_FORWARD = (
    Chain(
        "intra_network",
        "accepts connections within one network, drops anything else",
        (
            Rule("iifname . oifname @intra_network_links accept", "within one bridge"),
            *rules("iifname . {ip} daddr @intra_network{v} accept", "a network without a bridge, by its subnets"),
            *rules("iifname . {ip} saddr . oifname @direct_peers{v} accept", "from a peer, without VXLAN"),
            Rule("drop", "another network, or the outside"),
        ),
        formerly=("inward",),
    ),
    Chain(
        "published_or_intra_network",
        "what may enter a closed or routed network",
        (
            Rule("ct status dnat accept", "to a published port"),
            Rule("goto intra_network", "from the network itself"),
        ),
        formerly=("entering",),
    ),
    Chain(
        "drop_untranslatable",
        "packets of no known connection (after its end, or out of its window), which the kernel does not masquerade",
        (
            *rules("{ip} saddr . {ip} daddr @masquerade_exempt{v} return", "within its own network"),
            Rule("drop", "would leave this host with the container's address"),
        ),
    ),
    Chain(
        "isolation",
        "which networks may open connections to which",
        (
            Rule("iifname @internal_links goto intra_network", "internal: no way out"),
            Rule("oifname @closed_links goto published_or_intra_network", "isolation closed"),
            *rules("{ip} daddr @direct_closed{v} goto published_or_intra_network", "isolation closed, by the uplink"),
            *rules(
                "{ip} daddr @direct_routed{v} iifname @closed_or_routed_links goto published_or_intra_network",
                "isolation routed, by the uplink",
            ),
            Rule(
                "oifname @routed_links iifname @closed_or_routed_links goto published_or_intra_network",
                "isolation routed: open to the outside, not to containers of other networks",
            ),
        ),
    ),
    Chain(
        "ingress_policy",
        "which links may open connections to a container with an ingressPolicy",
        (
            Rule("ct status dnat return", "to a published port"),
            Rule(
                "iifname . oifname != @intra_link iifname @ingress_policy_links drop",
                "from another link of ingress_policy_links",
            ),
            Rule("iifname . oifname != @intra_link return", "from the outside"),
            *rules(
                "oifname . {ip} daddr @ingress_isolated{v} drop", "ingressPolicy isolated: not even from its own link"
            ),
        ),
        formerly=("separate",),
    ),
    Chain(
        "filter_forward",
        "what this host forwards: the uplink's scheduler, ingressPolicy of single containers, limits, isolation",
        (
            *uplink.FORWARD,
            Rule("ct state established,related accept", "only new connections are judged"),
            *rules(
                "oifname . {ip} daddr @ingress_policy{v} jump ingress_policy", "to a container with an ingressPolicy"
            ),
            *rules(
                "ct state invalid {ip} saddr @masquerade{v} jump drop_untranslatable", "from a container with ipMasq"
            ),
            Rule('iifname "wvx*" iifname @overlay_links goto intra_network', "from a peer of an overlay network"),
            *limits.FORWARD,
            Rule("goto isolation", "networks"),
        ),
        hook="forward",
        priority="filter",
        formerly=("forwarding",),
    ),
)
_INPUT = (
    Chain(
        "dns_and_echo",
        "what containers behind dns_only_links may reach on this host",
        (
            Rule("ct state established,related accept", "replies to connections that this host opened"),
            Rule(
                "meta l4proto { tcp, udp } th dport 53 fib daddr . iif type local accept", "DNS at the link's address"
            ),
            Rule("meta l4proto { icmp, ipv6-icmp } fib daddr . iif type local accept", "ping of the gateway"),
            Rule("icmpv6 type { nd-neighbor-solicit, nd-router-solicit } accept", "neighbour discovery, multicast"),
            Rule("drop", "anything else"),
        ),
        formerly=("visitors",),
    ),
    Chain(
        "filter_input",
        "what containers may reach on this host",
        (
            Rule("ct state new iifname @limited_links jump limit_connections", "limits"),
            Rule("iifname @dns_only_links goto dns_and_echo", "hostAccess dns, or internal"),
        ),
        hook="input",
        priority="filter",
        formerly=("visiting",),
    ),
)
_PORTS = (
    Chain(
        "dnat_published",
        "translates connections to a published port to its container",
        (
            *rules(
                "dnat {ip} to {ip} daddr . meta l4proto . th dport map @ports{v}_at",
                "published at this host address; takes precedence over every address",
            ),
            *rules("dnat {ip} to meta l4proto . th dport map @ports{v}", "published at every host address"),
        ),
        formerly=("ports",),
    ),
    Chain(
        "nat_prerouting",
        "published ports, for connections from other hosts and from containers",
        (
            Rule("fib daddr type local goto dnat_published", "to any address of this host"),
            *rules(
                "meta l4proto { tcp, udp } th dport 53 iifname . {ip} daddr @dns_redirected{v} "
                "dnat {ip} to iifname map @dns_server{v}",
                "queries of containers to the DNS servers that their runtime uses",
            ),
        ),
        hook="prerouting",
        priority="dstnat",
        type="nat",
        formerly=("arriving",),
    ),
    *(
        Chain(
            f"loopback_source{v}",
            f"replaces source {loopback} by {source}, because the kernel sends no loopback address out of a link",
            (
                Rule(
                    f"{ip} daddr . meta l4proto . th dport @loopback_ports{v}_at {ip} saddr set {source} return",
                    "to a port published at a loopback address",
                ),
                Rule(
                    f"meta l4proto . th dport @loopback_ports{v} {ip} saddr set {source}",
                    "to a port published at every address",
                ),
            ),
            formerly=(f"lend{v}",),
        )
        for v, ip, source, loopback in (
            (4, "ip", LOOPBACK_SOURCE4, "127.0.0.1"),
            (6, "ip6", LOOPBACK_SOURCE6, "::1"),
        )
    ),
    Chain(
        "mangle_output",
        "published ports reached from a loopback address: replaces that source after conntrack has recorded it",
        (
            Rule("ct status & (confirmed | dnat) == confirmed accept", "not a connection to a published port"),
            Rule('oif "lo" ip saddr 127.0.0.0/8 ct direction original goto loopback_source4', "from 127.0.0.0/8"),
            Rule('oif "lo" ip6 saddr ::1 ct direction original goto loopback_source6', "from ::1"),
        ),
        hook="output",
        priority="mangle",
        formerly=("lending",),
    ),
    Chain(
        "nat_output",
        "published ports, for connections of this host's own processes",
        (
            Rule(
                "ip saddr 127.0.0.0/8 return",
                "not a port published at a loopback address, or mangle_output would have replaced this source",
            ),
            Rule(
                "ip6 saddr ::1 return",
                "not a port published at a loopback address, or mangle_output would have replaced this source",
            ),
            Rule("fib daddr type local goto dnat_published", "to any address of this host"),
        ),
        hook="output",
        priority="-100",
        type="nat",
        formerly=("leaving",),
    ),
    Chain(
        "restore_reply_destination",
        "sets a reply's destination to the address and port from which the first packet left this host",
        (
            *(Rule(f"{one} dport set ct reply proto-dst", f"{one} port") for one in ("tcp", "udp")),
            *rules("{ip} daddr set ct reply {ip} daddr", "IPv{v} address"),
        ),
        formerly=("as_sent",),
    ),
    Chain(
        "filter_prerouting_reply",
        "replies to a loopback address: undoes conntrack's translation for now, "
        "as the kernel drops packets to 127.0.0.0/8 from a link",
        (
            Rule("ct status ! dnat accept", "not a connection to a published port"),
            Rule('iif != "lo" ip daddr 127.0.0.0/8 ct direction reply goto restore_reply_destination', "to 127.0.0.1"),
            Rule('iif != "lo" ip6 daddr ::1 ct direction reply goto restore_reply_destination', "to ::1"),
        ),
        hook="prerouting",
        priority="dstnat + 10",
        formerly=("answering",),
    ),
    Chain(
        "restore_loopback_destination",
        "sets a reply's destination to the loopback address and port of the process",
        (
            *(Rule(f"{one} dport set ct original proto-src", f"{one} port") for one in ("tcp", "udp")),
            *rules("{ip} daddr set ct original {ip} saddr", "IPv{v} address"),
        ),
        formerly=("as_asked",),
    ),
    Chain(
        "filter_input_reply",
        "replies that the kernel has accepted: delivers them to the process at the loopback address",
        (
            Rule("ct status ! dnat accept", "not a connection to a published port"),
            Rule(
                'iif != "lo" ct direction reply ct original ip saddr 127.0.0.0/8 goto restore_loopback_destination',
                "the process connected from 127.0.0.0/8",
            ),
            Rule(
                'iif != "lo" ct direction reply ct original ip6 saddr ::1 goto restore_loopback_destination',
                "the process connected from ::1",
            ),
        ),
        hook="input",
        priority="110",
        formerly=("returning",),
    ),
)
_SNAT = (
    Chain(
        "snat_published",
        "masquerades connections to a published port whose replies would otherwise bypass this host",
        (
            *(
                Rule(
                    f"{ip} saddr {source} oifname . {ip} daddr != @hairpin{v} drop",
                    f"{source} may go only to a container with published ports",
                )
                for v, ip, source in ((4, "ip", LOOPBACK_SOURCE4), (6, "ip6", LOOPBACK_SOURCE6))
            ),
            Rule(f"ip saddr {LOOPBACK_SOURCE4} masquerade", "from a process at 127.0.0.1"),
            Rule(f"ip6 saddr {LOOPBACK_SOURCE6} masquerade", "from a process at ::1"),
            *rules("iifname . {ip} daddr @hairpin{v} masquerade", "client and container behind the same link"),
            *rules(
                "{ip} saddr . {ip} daddr @hairpin_self{v} masquerade",
                "a container to its own published port; matched by address, "
                "because br_netfilter hides the incoming link",
            ),
            *rules("{ip} daddr @masquerade_all{v} masquerade", "masqAll"),
        ),
        formerly=("published",),
    ),
    Chain(
        "masquerade_outgoing",
        "masquerades connections of containers to other networks",
        (
            Rule("ip daddr 224.0.0.0/4 return", "multicast keeps its source"),
            Rule("ip6 daddr ff00::/8 return", "multicast keeps its source"),
            *rules("{ip} saddr . {ip} daddr @masquerade_exempt{v} return", "within its own network"),
            Rule("masquerade", "ipMasq"),
        ),
        formerly=("outgoing",),
    ),
    Chain(
        "nat_postrouting",
        "masquerading: of connections to published ports that need it, and ipMasq",
        (
            Rule("ct status dnat jump snat_published", "connections to a published port"),
            *rules("{ip} saddr @masquerade{v} goto masquerade_outgoing", "from a container with ipMasq"),
        ),
        hook="postrouting",
        priority="srcnat",
        type="nat",
        formerly=("sources",),
    ),
)

TABLE = Table(
    "inet",
    "weft",
    "container networking (IP): published ports, masquerading, isolation; owner of an element: weft show COMMENT",
    (*_MASQUERADING, *_PUBLISHING, *_ISOLATION, *_POLICIES, *_OVERLAY, *_DIRECT, *limits.SETS, *uplink.SETS),
    (*limits.CHAINS, *uplink.CHAINS, *_RAW, *_FORWARD, *_INPUT, *_PORTS, *_SNAT),
)
