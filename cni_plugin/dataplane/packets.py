"""The table ``inet weft``: what this host does with the packets of containers.

Its rules are the same whether one container runs or ten thousand. What belongs to a container is an
element of a set or map, with the mark of its attachment as the comment, so a packet costs the same
few look-ups however many there are.

Priorities are those that other software expects (dstnat, srcnat, raw): the first rule that
translates a connection decides, and these rules match only weft's ports and containers. Sources:
nft(8), ``linux/netfilter_ipv4.h``, the reference plugins ``portmap`` and ``bridge``.
"""

from __future__ import annotations

from cni_plugin.dataplane import limits, nat, overlay, uplink
from weft.kernel.schema import Chain, Rule, Set, Table, rules, sets

CLOSED_LINKS, ROUTED_LINKS = "closed_links", "routed_links"
CLOSED_OR_ROUTED_LINKS, INTERNAL_LINKS = "closed_or_routed_links", "internal_links"
INTRA_NETWORK_LINKS = "intra_network_links"
INTRA_NETWORK4, INTRA_NETWORK6 = "intra_network4", "intra_network6"
NO_METADATA_LINKS, DNS_ONLY_LINKS = "no_metadata_links", "dns_only_links"
SOURCE_CHECKED_LINKS = "source_checked_links"
LINK_SOURCES4, LINK_SOURCES6 = "link_sources4", "link_sources6"
INGRESS_POLICY_LINKS, INTRA_LINK = "ingress_policy_links", "intra_link"
INGRESS_POLICY4, INGRESS_POLICY6 = "ingress_policy4", "ingress_policy6"
INGRESS_ISOLATED4, INGRESS_ISOLATED6 = "ingress_isolated4", "ingress_isolated6"

_INTERVAL = ("interval",)
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
_METADATA6 = "ip6 daddr { fd00:ec2::23, fd00:ec2::254, fd20:ce::254 }"
_OF_METADATA = Rule("iifname @no_metadata_links goto block_metadata", "networks with the key metadata: false")
_RAW_BY_LINK = (
    Rule("udp dport 53 iifname @limited_links jump limit_dns", "limits"),
    Rule("iifname @source_checked_links jump check_source", "ipspoofchk of ptp links, which have no bridge"),
)
_RAW = (
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
            Rule("ip daddr 168.63.129.16 tcp dport { 80, 32526 } drop", "WireServer of Azure, which also sends probes"),
            Rule(f"{_METADATA6} drop", "metadata services of clouds, IPv6"),
        ),
        formerly=("metadata",),
    ),
    Chain(
        "special_destinations",
        "IPv4 to loopback addresses, metadata services and link-local addresses",
        (
            Rule("ip daddr 127.0.0.0/8 drop", "CVE-2020-8558: with route_localnet the kernel would let it in"),
            _OF_METADATA,
        ),
    ),
    Chain(
        "raw_ipv6",
        "IPv6 before connection tracking",
        (
            Rule("ip6 daddr ::1 drop", "published ports on ::1 are for this host's processes"),
            Rule("ip6 saddr ::1 drop", "a loopback source never arrives on a link"),
            *_RAW_BY_LINK,
            Rule(f"{_METADATA6} {_OF_METADATA.text}", _OF_METADATA.why),
        ),
    ),
    Chain(
        "raw_prerouting",
        "before connection tracking: loopback addresses, forged sources, metadata services",
        (
            Rule(f"{overlay.PACKET} goto overlay_outer", "VXLAN of an overlay network"),
            Rule('iif "lo" accept', "packets between this host's own processes"),
            Rule("meta nfproto ipv6 goto raw_ipv6", "the same for IPv6"),
            Rule(
                "ip daddr { 100.100.100.200, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16 } jump special_destinations",
                "few packets are sent there: one look-up for all",
            ),
            Rule("ip saddr 127.0.0.0/8 drop", "a loopback source never arrives on a link"),
            *_RAW_BY_LINK,
        ),
        hook="prerouting",
        priority="raw",
        formerly=("guard",),
    ),
)
EXPECTED = Rule(
    "meta l4proto != icmp meta l4proto != ipv6-icmp accept",
    "a connection that a helper expects, which an administrator has set up",
)
_FROM_PEER = Rule('iifname "wvx*" iifname @overlay_links goto intra_network', "from a peer of an overlay network")


def _isolation(version: int) -> tuple[Rule, ...]:
    """What a network may reach by a link that is not closed."""
    return (
        *rules(
            "{ip} daddr @direct_closed{v} goto published_or_intra_network", "isolation closed, by the uplink", version
        ),
        *rules(
            "{ip} daddr @direct_routed{v} iifname @closed_or_routed_links goto published_or_intra_network",
            "isolation routed, by the uplink",
            version,
        ),
        Rule(
            "oifname @routed_links iifname @closed_or_routed_links goto published_or_intra_network",
            "isolation routed: open to the outside, not to containers of other networks",
        ),
    )


def _unanswered(version: int) -> tuple[Rule, ...]:
    """What is done with packets of connections that nobody has answered yet."""
    return (
        *rules(
            "oifname . {ip} daddr @ingress_policy{v} jump ingress_policy",
            "to a container with an ingressPolicy",
            version,
        ),
        *rules(
            "ct state invalid {ip} saddr @masquerade{v} jump drop_untranslatable",
            "from a container with ipMasq",
            version,
        ),
        *limits.confirmed(version),
        _FROM_PEER,
        limits.FORWARD,
        Rule("goto isolation", "networks"),
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
    Chain("isolation_ipv6", "which networks may open IPv6 connections to which", _isolation(6)),
    Chain(
        "isolation",
        "which networks may open connections to which",
        (
            Rule("iifname @internal_links goto intra_network", "internal: no way out"),
            Rule("oifname @closed_links goto published_or_intra_network", "isolation closed"),
            Rule("meta nfproto ipv6 goto isolation_ipv6", "the same for IPv6"),
            *_isolation(4),
        ),
    ),
    Chain(
        "related_packets",
        "ICMP errors: whoever knows a connection's addresses and ports can make one, and send it to either end",
        (
            _FROM_PEER,
            EXPECTED,
            Rule("iifname @closed_or_routed_links goto isolation", "only where its sender may open connections to"),
            Rule("oifname @internal_links goto published_or_intra_network", "internal: of no router outside"),
            Rule("accept", "of a router on the way"),
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
    Chain("forward_ipv6", "IPv6 of connections that nobody has answered yet", _unanswered(6)),
    Chain(
        "filter_forward",
        "what this host forwards: the uplink's scheduler, ingressPolicy of single containers, limits, isolation",
        (
            *uplink.FORWARD,
            Rule("ct state established accept", "only new connections are judged"),
            Rule("ct state related goto related_packets", "and what may be about a connection of others"),
            Rule("meta nfproto ipv6 goto forward_ipv6", "the same for IPv6"),
            *_unanswered(4),
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
            Rule("ct state invalid meta l4proto { icmp, ipv6-icmp } drop", "ICMP errors about no connection"),
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
            Rule(
                "ct state invalid meta l4proto { icmp, ipv6-icmp } iifname @limited_links drop",
                "ICMP errors about no connection: the kernel would lower the MTU to any destination that they name",
            ),
            Rule("iifname @dns_only_links goto dns_and_echo", "hostAccess dns, or internal"),
        ),
        hook="input",
        priority="filter",
        formerly=("visiting",),
    ),
)
TABLE = Table(
    "inet",
    "weft",
    "container networking (IP): published ports, masquerading, isolation; owner of an element: weft show COMMENT",
    (*nat.SETS, *_ISOLATION, *_POLICIES, *overlay.SETS, *limits.SETS, *uplink.SETS),
    (*limits.CHAINS, *uplink.CHAINS, *overlay.CHAINS, *_RAW, *_FORWARD, *_INPUT, *nat.CHAINS),
)
