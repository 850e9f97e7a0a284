"""How ``weft trace --live`` names what differs between a real packet and what was said of it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from cni_plugin.networks.live import Live, compare
from weft.kernel.linux.live import Sent, Step, traced
from weft.kernel.netlink import constants
from weft.kernel.netlink.attributes import attribute, nested, string
from weft.kernel.nft.socket import ATTRIBUTES, FAMILIES
from weft.kernel.trace.hops import Way
from weft.kernel.trace.packet import Packet
from weft.kernel.trace.ruleset import Match, RuleId

PACKET = Packet(ip_address("10.1.0.2"), ip_address("10.2.0.3"), port=80)
CHAIN = "inet weft", "filter_forward"


def live(way: Way, sent: Sent, *said: int, packet: Packet = PACKET) -> Live:
    matches = [Match(RuleId(*CHAIN, one), packet) for one in said]
    return compare(PACKET, way, matches, sent, lambda rule: f"rule {rule.handle}")


def steps(*handles: int, dropped: bool = False) -> tuple[Step, ...]:
    return tuple(Step(*CHAIN, one, dropped and one == handles[-1]) for one in handles)


def delivered(*, listening: bool | None = True, leaves: bool = False) -> Way:
    return Way([], True, listening, leaves, PACKET)


def test_what_was_said_has_no_differences() -> None:
    assert live(delivered(), Sent("connected", steps(1, 2)), 1, 2) == Live("connected", True, 2)
    dropped = live(Way(), Sent("", steps(1, 2, dropped=True)), 1, 2)
    assert dropped == Live("dropped by inet weft filter_forward", False, 2)


@pytest.mark.parametrize("sort", [constants.NFT_TRACETYPE_RULE, constants.NFT_TRACETYPE_RETURN])
@pytest.mark.parametrize("handle", [7, 0])
def test_a_rule_that_returns_is_one_on_every_kernel(sort: int, handle: int) -> None:
    """As Linux 6.7 and later tell of it, and as earlier ones do; without a handle a chain has ended."""
    code = constants.NFT_RETURN if handle else -1  # NFT_CONTINUE
    verdict = attribute(constants.NFTA_VERDICT_CODE, code.to_bytes(4, "big", signed=True))
    found = [
        string(constants.NFTA_TRACE_TABLE, "weft"),
        string(constants.NFTA_TRACE_CHAIN, "filter_forward"),
        attribute(constants.NFTA_TRACE_TYPE, sort.to_bytes(4, "big")),
        nested(constants.NFTA_TRACE_VERDICT, verdict),
    ]
    if handle:
        found.append(attribute(constants.NFTA_TRACE_RULE_HANDLE, handle.to_bytes(8, "big")))
    head = bytes(ATTRIBUTES - 4) + bytes([FAMILIES["inet"], 0, 0, 0])
    assert tuple(traced(constants.NFT_MSG_TRACE, head + b"".join(found))) == (steps(7) if handle else ())


def test_rules_that_differ_are_named() -> None:
    found = live(delivered(), Sent("connected", steps(1, 3)), 1, 2)
    assert found.differences == (
        "was said to match, and did not: inet weft filter_forward: rule 2",
        "matched, and was not said to: inet weft filter_forward: rule 3",
    )


def test_packets_that_a_router_has_changed_are_not_seen() -> None:
    other = Packet(ip_address("10.9.0.9"), PACKET.destination, port=80)
    assert live(delivered(), Sent("connected", ()), 1, packet=other).differences == ()


@pytest.mark.parametrize(
    ("way", "sent", "difference"),
    [
        (delivered(), Sent("", steps(1, dropped=True)), "it did not arrive, and was said to"),
        (delivered(), Sent("No route to host", steps(1)), "it did not arrive, and was said to"),
        (delivered(), Sent("", steps(1)), "no answer came, and it was said to arrive"),
        (Way(), Sent("connected", steps(1)), "it arrived, and was said not to"),
        (delivered(), Sent("refused", steps(1)), "refused, and was said to be accepted"),
        (delivered(listening=False), Sent("connected", steps(1)), "connected, and was said to be refused"),
        (delivered(listening=None, leaves=True), Sent("", steps(1)), ""),
        (delivered(listening=None), Sent("answered", steps(1)), ""),
    ],
)
def test_another_end_is_named(way: Way, sent: Sent, difference: str) -> None:
    assert live(way, sent, 1).differences == ((difference,) if difference else ())
