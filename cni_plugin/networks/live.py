"""``weft trace --live``: what became of a real packet, beside what was said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from weft.kernel.linux.live import SECONDS, Sent, Step
from weft.kernel.trace.hops import Way
from weft.kernel.trace.packet import Packet
from weft.kernel.trace.ruleset import Match, RuleId


@dataclass(frozen=True, slots=True)
class Live:
    """``differences`` are sentences, () where all was as said. ``matched`` counts the rules that matched."""

    verdict: str
    delivered: bool
    matched: int
    differences: tuple[str, ...] = ()


def compare(packet: Packet, way: Way, matches: Sequence[Match], sent: Sent, text: Callable[[RuleId], str]) -> Live:
    """What the packet met, rule by rule, and what was said. ``text`` is a rule as nft lists it."""
    said = [one.rule for one in matches if _is_same(one.packet.first, packet)]
    differences = (*_rules(said, sent.steps, text), *_end(way, sent))
    return Live(_verdict(sent), sent.arrived, len(sent.steps), differences)


def _is_same(one: Packet, sent: Packet) -> bool:
    """Whether it is the packet that was marked: not one that a router on the way has changed."""
    return (one.source, one.destination, one.source_port, one.port) == (
        sent.source, sent.destination, sent.source_port, sent.port,
    )  # fmt: skip


def _rules(said: Sequence[RuleId], steps: Sequence[Step], text: Callable[[RuleId], str]) -> list[str]:
    real = [RuleId(one.table, one.chain, one.handle) for one in steps]
    plain = [RuleId(one.table, one.chain, one.handle) for one in said]
    found: list[str] = []
    for kind, first, last, begin, end in SequenceMatcher(None, plain, real, autojunk=False).get_opcodes():
        if kind != "equal":
            found += [f"was said to match, and did not: {_named(one, text)}" for one in plain[first:last]]
            found += [f"matched, and was not said to: {_named(one, text)}" for one in real[begin:end]]
    return found


def _named(rule: RuleId, text: Callable[[RuleId], str]) -> str:
    return f"{rule.table} {rule.chain}: {text(rule)}"


def _verdict(sent: Sent) -> str:
    if dropped := sent.dropped:
        return f"dropped by {dropped.table} {dropped.chain}"
    return sent.answer or f"no rule of this host dropped it, and no answer came within {SECONDS} s"


def _end(way: Way, sent: Sent) -> list[str]:
    """How it ended otherwise than was said. That a service does not answer UDP is no difference."""
    if sent.dropped or (sent.answer and not sent.arrived):
        return ["it did not arrive, and was said to"] if way.delivered else []
    if not sent.answer:
        is_awaited = way.delivered and not way.leaves and way.end is not None and way.end.protocol != "udp"
        return ["no answer came, and it was said to arrive"] if is_awaited else []
    if not way.delivered:
        return ["it arrived, and was said not to"]
    if way.listening is not None and way.listening is (sent.answer == "refused"):
        return [f"{sent.answer}, and was said to be {'accepted' if way.listening else 'refused'}"]
    return []
