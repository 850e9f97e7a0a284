"""The points of a packet's way, and what is said of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from weft.kernel.interface import Namespace
from weft.kernel.trace.packet import WITH_PORTS, Packet
from weft.kernel.trace.ruleset import Decision


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace by its name: a container's, or the host ("")."""

    name: str
    namespace: Namespace
    prefix: str = ""
    """What commands there begin with, such as ``nsenter --net=PATH ``."""


@dataclass(frozen=True, slots=True)
class Hop:
    """What happens at one point of the way. ``command`` shows what decided, "" where none does.

    ``certain`` is False where the packet may be lost there, as far as the rules tell.
    """

    place: str
    sentence: str
    command: str = ""
    rules: tuple[str, ...] = ()
    """The rules that led there and the one that decided, each as nft lists it, with its chain."""
    certain: bool = True


@dataclass(slots=True)
class Way:
    """The hops, and how it ends: ``delivered`` True or False. ``listening`` is False where nothing there
    takes a connection, None where that is not known (outside, or without a port). ``leaves``: to what this
    host does not see.
    """

    hops: list[Hop] = field(default_factory=list)
    delivered: bool = False
    listening: bool | None = None
    leaves: bool = False
    end: Packet | None = None


def sentence(decision: Decision) -> str:
    """A decision of a rule, in a sentence."""
    rule, packet = decision.rule, decision.packet
    where = f"{rule.table} {rule.chain}"
    if not decision.certain:
        return f"{where} may {decision.what} it: not known from the packet alone"
    if decision.what in ("drop", "reject"):
        return f"dropped by {where}" if decision.what == "drop" else f"rejected by {where}"
    if decision.what in ("dnat", "redirect"):
        among = f", one of {decision.choices}" if decision.choices > 1 else ""
        target = (
            f"{packet.destination} port {packet.port}" if packet.protocol in WITH_PORTS else str(packet.destination)
        )
        return f"the destination becomes {target}{among}, by {where}"
    if decision.what in ("masquerade", "snat"):
        return f"the source becomes {packet.source}, by {where}"
    return f"{decision.what}, by {where}"
