"""The first packet of a connection, as the hooks of netfilter see it on its way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from weft.types import Address

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmpv6": 58}
"""The transport protocols, and their numbers. Source: IANA, protocol numbers."""
WITH_PORTS = ("tcp", "udp", "sctp")
EPHEMERAL = 49152  # the first source port that RFC 6335 leaves to clients


@dataclass(frozen=True, slots=True)
class Packet:
    """Changed copies of it are made where the kernel changes it. ``port`` is the destination's.

    ``incoming`` and ``outgoing`` are links of the host, "" where there is none (yet). ``nexthop`` is what
    the route says, the destination where that is on the link.
    """

    source: Address
    destination: Address
    protocol: str = "tcp"
    source_port: int = EPHEMERAL
    port: int = 0
    source_mac: str = ""
    destination_mac: str = ""
    incoming: str = ""
    outgoing: str = ""
    nexthop: Address | None = None
    mark: int = 0
    connection_mark: int = 0
    status: frozenset[str] = field(default_factory=frozenset)
    """Of conntrack: ``dnat`` and ``snat``, once translated."""
    bound: frozenset[str] = field(default_factory=frozenset)
    """Which of ``dnat`` and ``snat`` conntrack has decided, also that there is none."""
    tracked: bool = True
    original: Packet | None = None
    """As it was when conntrack first saw it; None: unchanged."""

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.source.version

    @property
    def family(self) -> str:
        """``ip`` or ``ip6``, as nftables calls it."""
        return "ip" if self.version == 4 else "ip6"

    def untracked(self, incoming: str) -> Packet:
        """The packet as it comes into another network namespace by a link, where conntrack has not seen it."""
        return replace(
            self, incoming=incoming, outgoing="", nexthop=None, mark=0, connection_mark=0, status=frozenset(),
            bound=frozenset(), tracked=True, original=None,
        )  # fmt: skip

    @property
    def first(self) -> Packet:
        """The packet that conntrack's original direction is of."""
        return self.original or self

    def __str__(self) -> str:
        if self.protocol not in WITH_PORTS:
            return f"{self.protocol} {self.source} > {self.destination}"
        ends = [f"[{one}]" if self.version == 6 else str(one) for one in (self.source, self.destination)]
        return f"{self.protocol} {ends[0]} > {ends[1]}:{self.port}"
