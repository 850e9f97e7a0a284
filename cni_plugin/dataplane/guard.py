"""The tables ``inet weft-guard-engine`` and ``inet weft-guard-agent``: drops that need no elements, in
tables that survive a flush.

Each daemon's follower owns one (NFT_TABLE_F_OWNER, NFT_TABLE_F_PERSIST), so that nobody else can change
or flush it; both have the same rules, so that the death of one daemon opens nothing. A link's group has
its network's policy as bits; nothing is dropped here that ``inet weft`` accepts. Masquerading,
published ports and single addresses are elements, and come back when ``inet weft`` is restored.
"""

from __future__ import annotations

from enum import StrEnum

from cni_plugin.dataplane.packets import EXPECTED
from weft.kernel.schema import Chain, Rule, Table

GROUP, GROUP_MASK = 0x77660000, 0xFFFF0000
"""The group of weft's links: "wf" in the upper half, the policy in the lower."""
CLOSED, ROUTED, INTERNAL, DNS_ONLY, NO_METADATA, PAIR, OVERLAY = 1, 2, 4, 8, 16, 32, 64
"""The policy: `isolation`, `internal`, `hostAccess: dns`, `metadata: false`; PAIR is the host end of a ptp pair,
OVERLAY the bridge or the VXLAN link of an overlay network."""


class Owner(StrEnum):
    """The daemons that own a table each."""

    ENGINE = "engine"
    AGENT = "agent"


def _has(group: str, bits: int) -> str:
    return f"{group} & {GROUP_MASK | bits:#x} == {GROUP | bits:#x}"


_AS_CONNECTIONS = "only where its sender may open connections to"
_UNRELATED = "ICMP errors about no connection"
_DNS = "DNS at the link's address"
_RULES = Table(
    "inet",
    "weft-guard",
    "drops that need no elements",
    (),
    (
        Chain(
            "intra_network",
            "accepts connections within one network, drops anything else",
            (
                Rule(f"{_has('iifgroup', PAIR)} {_has('oifgroup', PAIR)} accept", "two ptp pairs: inet weft decides"),
                Rule(
                    f"{_has('iifgroup', OVERLAY)} {_has('oifgroup', OVERLAY)} accept",
                    "bridges and VXLAN links of overlay networks: inet weft decides",
                ),
                Rule("fib daddr . iif oif exists accept", "leaves by the link that it came from"),
                Rule("drop", "another network, or the outside"),
            ),
        ),
        Chain(
            "published_or_intra_network",
            "what may enter a closed or routed network",
            (
                Rule("ct status dnat accept", "to a published port"),
                Rule("goto intra_network", "from the network itself"),
            ),
        ),
        Chain(
            "isolation",
            "which networks may open connections to which",
            (
                Rule(f"{_has('iifgroup', INTERNAL)} goto intra_network", "internal: no way out"),
                Rule(f"{_has('oifgroup', CLOSED)} goto published_or_intra_network", "isolation closed"),
                Rule(
                    f"{_has('oifgroup', ROUTED)} {_has('iifgroup', CLOSED)} goto published_or_intra_network",
                    "isolation routed: not from containers of other networks",
                ),
                Rule(
                    f"{_has('oifgroup', ROUTED)} {_has('iifgroup', ROUTED)} goto published_or_intra_network",
                    "isolation routed: not from containers of other networks",
                ),
            ),
        ),
        Chain(
            "related_packets",
            "ICMP errors: whoever knows a connection's addresses and ports can make one, and send it to either end",
            (
                EXPECTED,
                Rule(f"{_has('iifgroup', CLOSED)} goto isolation", _AS_CONNECTIONS),
                Rule(f"{_has('iifgroup', ROUTED)} goto isolation", _AS_CONNECTIONS),
                Rule(f"{_has('oifgroup', INTERNAL)} goto published_or_intra_network", "internal: of no router outside"),
                Rule("accept", "of a router on the way"),
            ),
        ),
        Chain(
            "block_metadata",
            "keeps containers from metadata services (credentials) and link-local addresses",
            (
                Rule("udp dport 53 return", "some clouds serve DNS at such an address"),
                Rule("tcp dport 53 return", "some clouds serve DNS at such an address"),
                Rule("ip daddr 100.100.100.200 fib daddr . iif type != local drop", "a cloud's metadata service"),
                Rule("ip daddr 169.254.0.0/16 fib daddr . iif type != local drop", "metadata services, link-local"),
                Rule("ip daddr 168.63.129.16 tcp dport 80 drop", "WireServer of Azure"),
                Rule("ip daddr 168.63.129.16 tcp dport 32526 drop", "WireServer of Azure"),
                Rule("ip6 daddr fd00:ec2::23 drop", "a cloud's metadata service"),
                Rule("ip6 daddr fd00:ec2::254 drop", "a cloud's metadata service"),
                Rule("ip6 daddr fd20:ce::254 drop", "a cloud's metadata service"),
            ),
        ),
        Chain(
            "dns_and_echo",
            "what containers with hostAccess dns may reach on this host",
            (
                Rule("ct state established,related accept", "replies to connections that this host opened"),
                Rule("ct state invalid meta l4proto icmp drop", _UNRELATED),
                Rule("ct state invalid meta l4proto ipv6-icmp drop", _UNRELATED),
                Rule("udp dport 53 fib daddr . iif type local accept", _DNS),
                Rule("tcp dport 53 fib daddr . iif type local accept", _DNS),
                Rule("meta l4proto icmp fib daddr . iif type local accept", "ping of the gateway"),
                Rule("meta l4proto ipv6-icmp fib daddr . iif type local accept", "ping of the gateway"),
                Rule("icmpv6 type nd-neighbor-solicit accept", "neighbour discovery, multicast"),
                Rule("icmpv6 type nd-router-solicit accept", "neighbour discovery, multicast"),
                Rule("drop", "anything else"),
            ),
        ),
        Chain(
            "raw_prerouting",
            "before connection tracking: loopback addresses, metadata services",
            (
                Rule('iif "lo" accept', "packets between this host's own processes"),
                Rule("ip daddr 127.0.0.0/8 drop", "CVE-2020-8558: with route_localnet the kernel would let it in"),
                Rule("ip saddr 127.0.0.0/8 drop", "a loopback source never arrives on a link"),
                Rule("ip6 daddr ::1 drop", "published ports on ::1 are for this host's processes"),
                Rule("ip6 saddr ::1 drop", "a loopback source never arrives on a link"),
                Rule(f"{_has('iifgroup', NO_METADATA)} goto block_metadata", "the key metadata: false"),
            ),
            hook="prerouting",
            priority="raw",
        ),
        Chain(
            "filter_forward",
            "isolation of networks",
            (
                Rule("ct state established accept", "only new connections are judged"),
                Rule("ct state related goto related_packets", "and what may be about a connection of others"),
                Rule("goto isolation", "networks"),
            ),
            hook="forward",
            priority="filter",
        ),
        Chain(
            "filter_input",
            "what containers may reach on this host",
            (Rule(f"{_has('iifgroup', DNS_ONLY)} goto dns_and_echo", "hostAccess dns, or internal"),),
            hook="input",
            priority="filter",
        ),
    ),
)
TABLES = {
    owner: _RULES._replace(
        name=f"{_RULES.name}-{owner}",
        why=f"drops that need no elements; owned by weft's {owner}, so that no other program flushes it",
    )
    for owner in Owner
}
"""The table of each owner."""
