"""What ``inet weft`` keeps a container from taking of what all share: connections, name server, neighbours.

Each limit is an element of its own, with a counter of the packets that exceeded it. A packet matches
only such an element, by the link that it came from and its source address, which ``ipspoofchk``
keeps a container from forging. Sources: nft(8), ``net/netfilter/nf_conncount.c``.
"""

from __future__ import annotations

from weft.kernel.schema import Chain, Rule, Set, rules, sets

LIMITED_LINKS = "limited_links"
DNS_QUERIES4, DNS_QUERIES6 = "dns_queries4", "dns_queries6"
NEW_CONNECTIONS4, NEW_CONNECTIONS6 = "new_connections4", "new_connections6"
CONNECTIONS4, CONNECTIONS6 = "connections4", "connections6"
CONNECTIONS_SAMPLED4, CONNECTIONS_SAMPLED6 = "connections_sampled4", "connections_sampled6"
NEW_NEXTHOPS4, NEW_NEXTHOPS6 = "new_nexthops4", "new_nexthops6"

KEYS = {
    "dnsQueries": (DNS_QUERIES4, DNS_QUERIES6),
    "newConnections": (NEW_CONNECTIONS4, NEW_CONNECTIONS6),
    "connections": (CONNECTIONS4, CONNECTIONS6, CONNECTIONS_SAMPLED4, CONNECTIONS_SAMPLED6),
    "newNeighbours": (NEW_NEXTHOPS4, NEW_NEXTHOPS6),
}
"""The key in ``limits`` of each limit, and its sets."""

SAMPLED = 16
"""One new connection in so many is counted against a large limit.

``ct count`` looks at every connection that it has counted, at least once in each tick of the clock:
with 30,000 of them a new connection takes 1 ms.
"""
EXACT = 4096
"""The largest limit against which every connection is counted."""

_RESOLVED = "iifname . {ip} saddr . rt {ip} nexthop @nexthops{v}"

SETS = (
    Set(LIMITED_LINKS, "ifname", "links of containers with limits", "limits"),
    *sets(
        "dns_queries{v}",
        "ifname . {address}",
        "link, container, and how many DNS queries a second it may send to this host",
        "limits: dnsQueries",
        limit="limit rate over 1000/second burst 2000 packets",
    ),
    *sets(
        "new_connections{v}",
        "ifname . {address}",
        "link, container, and how many connections a second it may open",
        "limits: newConnections",
        limit="limit rate over 50000/second burst 50000 packets",
    ),
    *sets(
        "connections{v}",
        "ifname . {address}",
        "link, container, and how many connections it may have",
        f"limits: connections up to {EXACT}",
        limit=f"ct count over {EXACT}",
    ),
    *sets(
        "connections_sampled{v}",
        "ifname . {address}",
        f"link, container, and how many connections it may have of a sample: one in {SAMPLED}",
        f"limits: connections above {EXACT}",
        limit=f"ct count over {EXACT}",
    ),
    *sets(
        "too_many_connections{v}",
        "ifname . {address}",
        "link and container that had too many connections within the last minute",
        "packets that exceed connections_sampled{v}",
        flags=("dynamic", "timeout"),
        timeout=60,
        size=65535,
    ),
    *sets(
        "new_nexthops{v}",
        "ifname . {address}",
        "link, container, and how many addresses a second it may make this host resolve",
        "limits: newNeighbours",
        limit="limit rate over 50/second burst 256 packets",
    ),
    *sets(
        "nexthops{v}",
        "ifname . {address} . {address}",
        "link, container, and a next hop of its packets within the last 30 seconds",
        "packets that do not exceed new_nexthops{v}",
        flags=("dynamic", "timeout"),
        timeout=30,
        size=65535,
    ),
)

CHAINS = (
    Chain(
        "limit_dns",
        "DNS queries to this host, before they take a connection or time of the name server",
        (
            Rule("fib daddr type != local return", "to another name server"),
            *rules("iifname . {ip} saddr @dns_queries{v} drop", "more than the container's limit"),
        ),
    ),
    Chain(
        "limit_connections",
        "how many connections a container may have, and open in a second",
        (
            Rule("ct status confirmed return", "a further packet of a connection that has been counted"),
            Rule("ct state != new return", "of another connection, or of none"),
            *rules("iifname . {ip} saddr @too_many_connections{v} drop", "the container has too many"),
            *rules("iifname . {ip} saddr @new_connections{v} drop", "more in a second than the container's limit"),
            *rules("iifname . {ip} saddr @connections{v} drop", "more than the container's limit"),
            *rules(
                f"numgen random mod {SAMPLED} == 0 "
                "iifname . {ip} saddr @connections_sampled{v} "
                "add @too_many_connections{v} { iifname . {ip} saddr } drop",
                "more of a sample than the container's limit",
            ),
        ),
    ),
    Chain(
        "limit_forwarded",
        "limits of what containers send through this host: next hops, each of which takes a neighbour entry, "
        "and connections",
        (
            *rules(f"{_RESOLVED} goto limit_connections", "resolved a short time ago"),
            *rules("iifname . {ip} saddr @new_nexthops{v} drop", "more in a second than the container's limit"),
            *rules("add @nexthops{v} { iifname . {ip} saddr . rt {ip} nexthop }", "resolved from now on"),
            Rule("goto limit_connections", "connections"),
        ),
    ),
)


def confirmed(version: int) -> tuple[Rule, ...]:
    """The first of what ``filter_forward`` does with packets that nobody has answered yet.

    Of a flow without replies each packet comes here: where one look-up tells that no limit has to decide
    anything, as of nearly all of them, it is the only one.
    """
    why = "of a counted connection, to a next hop of late"
    return rules(f"ct status confirmed {_RESOLVED} goto isolation", why, version)


FORWARD = Rule("iifname @limited_links jump limit_forwarded", "limits")
