"""The route that the kernel chooses for one packet: the question, and the answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from weft.types import Address


class RouteType(StrEnum):
    """What a route does with a packet (ip-route(8)), or ``none``, ``invalid`` where it is refused."""

    UNICAST = "unicast"
    LOCAL = "local"
    BROADCAST = "broadcast"
    ANYCAST = "anycast"
    MULTICAST = "multicast"
    BLACKHOLE = "blackhole"
    UNREACHABLE = "unreachable"
    PROHIBIT = "prohibit"
    NONE = "none"
    INVALID = "invalid"
    """The source cannot come in by that link: rp_filter, or an address that is no source."""


@dataclass(frozen=True, slots=True)
class RouteQuestion:
    """A packet: ``incoming`` is the link that it comes by, "" for one that this host sends."""

    destination: Address
    source: Address | None = None
    incoming: str = ""
    mark: int = 0


@dataclass(frozen=True, slots=True)
class FoundRoute:
    """The answer: ``source`` is the address that the host sends from. ``table`` is 0 where unknown."""

    type: RouteType
    link: str = ""
    gateway: Address | None = None
    source: Address | None = None
    table: int = 0
    mtu: int = 0
