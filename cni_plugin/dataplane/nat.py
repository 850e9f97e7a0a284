"""Address translation in the table ``inet weft``: published ports and masquerading.

A published port is an element of a map, so the rules are the same however many there are. Replies to a process of this
host that connected from a loopback address are translated by hand: the kernel sends no such address out of a link.
Sources: nft(8), the reference plugins ``portmap`` and ``bridge``.
"""

from __future__ import annotations

from weft.kernel.schema import Chain, Rule, maps, rules, sets

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

PUBLISHED = frozenset({PORTS4, PORTS6, PORTS4_AT, PORTS6_AT})
"""The maps from a port of the host to a port of a container."""
PORTS = PUBLISHED | {LOOPBACK_PORTS4, LOOPBACK_PORTS6, LOOPBACK_PORTS4_AT, LOOPBACK_PORTS6_AT}
"""The collections in which an element is a port of the host."""

LOOPBACK_SOURCE4 = "192.0.0.8"
"""The source of packets from 127.0.0.1 on their way to a container: the dummy address of RFC 7600."""
LOOPBACK_SOURCE6 = "100:0:0:1::8"
"""The same for ::1, of the dummy prefix of RFC 9780."""

SETS = (
    *sets("masquerade{v}", "{address}", "containers whose outgoing connections get the host's address", "ipMasq"),
    *sets(
        "masquerade_exempt{v}",
        "{address} . {address}",
        "source and destination that are not masqueraded: within one network",
        "ipMasq, for each subnet",
        "local{v}",
        ("interval",),
    ),
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
CHAINS = (
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
            # Packets with these sources from the wire are not made this host's.
            Rule(
                f"ip saddr {LOOPBACK_SOURCE4} ct original ip saddr 127.0.0.0/8 masquerade",
                "from a process at 127.0.0.1",
            ),
            Rule(f"ip6 saddr {LOOPBACK_SOURCE6} ct original ip6 saddr ::1 masquerade", "from a process at ::1"),
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
