"""What the nftables ruleset does with a packet at a hook: libnftables-json(5) evaluated for one packet.

The base chains of a hook are passed in the order of their priorities; an accept ends its base chain, a
drop all. A condition that a packet alone does not decide is taken as false, and said where its rule would
have dropped or redirected the packet. Sources: nft(8), ``net/netfilter/nf_tables_core.c``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from weft.kernel.trace.expressions import ABSENT, UNKNOWN, Json, Situation, Surroundings, choices, holds, value
from weft.kernel.trace.packet import Packet
from weft.types import Address

ACCEPT, DROP = "accept", "drop"
_CONTINUE, _RETURN = "", "return"
_FAMILIES = {"ip": ("ip", "inet"), "ip6": ("ip6", "inet"), "bridge": ("bridge",), "netdev": ("netdev",)}
_SILENT = frozenset({
    "counter", "log", "limit", "quota", "ct count", "set", "add", "update", "last", "flow", "ct helper", "ct timeout",
    "ct expectation", "secmark", "dup",
})  # fmt: skip
"""Statements without a verdict or a change of the packet; a first packet is within every limit."""
_ADDING = frozenset({"set", "add", "update"})
_LIMITS = frozenset({"limit", "quota", "ct count"})
_UNREADABLE = frozenset({"xt", "queue", "synproxy", "tproxy", "fwd"})
_BOUND = {"prerouting": "dnat", "output": "dnat", "input": "snat", "postrouting": "snat"}
"""What conntrack binds to a new connection at a hook, once, whether a rule translates it or not."""
_DEPTH = 16


@dataclass(frozen=True, slots=True)
class RuleId:
    """A rule, by its table (``inet weft``), chain and handle; handle 0 is the chain's policy."""

    table: str
    chain: str
    handle: int = 0
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule did: ``accept``, ``drop``, ``dnat``, ``snat``, ``masquerade``, ``mark``, or with
    ``certain`` False what it may do, as far as the packet tells.
    """

    rule: RuleId
    what: str
    packet: Packet
    certain: bool = True
    choices: int = 1
    """Of how many targets this is one, where the kernel chooses."""
    trail: tuple[RuleId, ...] = ()
    """The rules that led to its chain, from the base chain on."""


@dataclass(frozen=True, slots=True)
class Match:
    """A rule whose conditions all hold for a packet, or the policy that drops it, as the kernel traces it."""

    rule: RuleId
    packet: Packet


@dataclass(frozen=True, slots=True)
class _Chain:
    name: str
    table: str
    kind: str = ""
    hook: str = ""
    priority: int = 0
    policy: str = ACCEPT
    links: tuple[str, ...] = ()
    rules: tuple[Json, ...] = ()


@dataclass(slots=True)
class _Run:
    """One packet in one base chain."""

    packet: Packet
    decisions: list[Decision] = field(default_factory=list)
    trail: list[RuleId] = field(default_factory=list)
    matches: list[Match] = field(default_factory=list)

    def decide(self, rule: RuleId, what: str, *, certain: bool = True, choices: int = 1) -> None:
        self.decisions.append(Decision(rule, what, self.packet, certain, choices, tuple(self.trail)))

    def match(self, rule: RuleId, *, certain: bool = True) -> None:
        if certain:
            self.matches.append(Match(rule, self.packet))


class Nftables:
    """A ruleset as ``nft --json --terse list ruleset`` prints it.

    ``matches`` are the rules that matched so far, in the order in which the kernel would evaluate them.
    """

    def __init__(self, document: Iterable[Json], around: Surroundings) -> None:
        self.matches: list[Match] = []
        self._around = around
        self._declared: dict[str, dict[str, Json]] = {}
        self._chains: dict[tuple[str, str], _Chain] = {}
        rules: dict[tuple[str, str], list[Json]] = {}
        for one in document:
            for kind, body in one.items():
                if not isinstance(body, Mapping) or kind == "metainfo":
                    continue
                table = f"{body.get('family')} {body.get('table', '')}"
                if kind == "chain":
                    self._chains[table, str(body["name"])] = _chain(table, body)
                elif kind in ("set", "map"):
                    self._declared.setdefault(table, {})[str(body["name"])] = body
                elif kind == "rule":
                    rules.setdefault((table, str(body["chain"])), []).append(body)
        for place, found in rules.items():
            self._chains[place] = replace(self._chains[place], rules=tuple(found))

    def passes(self, hook: str, family: str, packet: Packet, link: str = "") -> tuple[list[Decision], Packet, bool]:
        """What the base chains of a hook decide, the packet after them, and whether it passes.

        ``family`` is ``ip``, ``ip6``, ``bridge`` or ``netdev``, the last of a ``link``.
        """
        decisions: list[Decision] = []
        bound = _BOUND.get(hook, "")
        for chain in self._hooked(hook, family, link):
            run = _Run(packet)
            if chain.kind == "nat" and bound in packet.bound:
                continue
            verdict = self._chain(chain, family, run, 0)
            if verdict in (_CONTINUE, _RETURN):
                verdict = chain.policy
                if verdict == DROP:
                    run.match(RuleId(chain.table, chain.name))
                    run.decide(RuleId(chain.table, chain.name), DROP)
            decisions += run.decisions
            if hook != "ingress":  # before a packet can be traced
                self.matches += run.matches
            packet = run.packet
            if verdict == DROP:
                return decisions, packet, False
        if bound and family in ("ip", "ip6"):
            packet = replace(packet, bound=packet.bound | {bound})
        return decisions, packet, True

    def _hooked(self, hook: str, family: str, link: str) -> list[_Chain]:
        found = [
            one
            for one in self._chains.values()
            if one.hook == hook and one.table.split()[0] in _FAMILIES[family] and (not link or link in one.links)
        ]
        # Of those with one priority the kernel calls the newest first (nf_hook_entries_grow in net/netfilter/core.c).
        found.reverse()
        return sorted(found, key=lambda one: one.priority)

    def _chain(self, chain: _Chain, family: str, run: _Run, depth: int) -> str:
        for rule in chain.rules:
            verdict = self._rule(rule, chain, family, run, depth)
            if verdict == _RETURN:
                return _CONTINUE if depth else _RETURN
            if verdict == "goto":
                return _CONTINUE
            if verdict != _CONTINUE:
                return verdict
        return _CONTINUE

    def _rule(self, rule: Json, chain: _Chain, family: str, run: _Run, depth: int) -> str:
        certain = True
        identity = RuleId(chain.table, chain.name, int(str(rule.get("handle", 0))), str(rule.get("comment", "")))
        expressions = rule.get("expr")
        for statement in expressions if isinstance(expressions, list) else ():
            kind, body = next(iter(statement.items()))
            situation = self._situation(run.packet, family, chain.table)
            if kind == "match":
                found = holds(body, situation)
                if found is False:
                    return _CONTINUE
                certain = certain and found is not None
            elif kind in _UNREADABLE:
                run.decide(identity, kind, certain=False)
                return _CONTINUE
            elif kind in _LIMITS and isinstance(body, Mapping) and body.get("inv"):
                return _CONTINUE  # only what exceeds the limit goes on
            elif kind in _ADDING and isinstance(body, Mapping) and value(body.get("elem"), situation) is ABSENT:
                return _CONTINUE
            elif kind in _SILENT:
                continue
            elif kind == "mangle" and isinstance(body, Mapping):
                if not _mangle(body, identity, situation, certain, run):
                    return _CONTINUE
            elif kind == "notrack":
                run.packet = replace(run.packet, tracked=not certain)
            else:
                return self._statement(kind, body, identity, situation, certain, run, chain, family, depth)
        run.match(identity, certain=certain)
        return _CONTINUE

    def _statement(
        self, kind: str, body: object, identity: RuleId, situation: Situation, certain: bool, run: _Run,
        chain: _Chain, family: str, depth: int,
    ) -> str:  # fmt: skip
        if kind == "vmap" and isinstance(body, Mapping):
            verdicts = choices(body, situation)
            if len(verdicts) != 1:
                return _CONTINUE
            found = verdicts[0]
            kind, body = next(iter(found.items())) if isinstance(found, Mapping) else (str(found), None)
        if kind in ("jump", "goto") and isinstance(body, Mapping):
            return self._jump(kind, str(body["target"]), identity, certain, run, chain, family, depth)
        if kind in (ACCEPT, DROP, "reject"):
            verdict = ACCEPT if kind == ACCEPT else DROP
            run.match(identity, certain=certain)
            if verdict == DROP or not certain:
                run.decide(identity, kind, certain=certain)
            return verdict if certain else _CONTINUE
        if kind in ("return", "continue"):
            run.match(identity, certain=certain)
            return _RETURN if kind == "return" and certain else _CONTINUE
        if kind in ("dnat", "redirect", "snat", "masquerade"):
            return _translate(kind, body if isinstance(body, Mapping) else {}, identity, situation, certain, run)
        return _CONTINUE

    def _jump(
        self, kind: str, target: str, identity: RuleId, certain: bool, run: _Run, chain: _Chain, family: str,
        depth: int,
    ) -> str:  # fmt: skip
        there = self._chains.get((chain.table, target))
        if there is None or depth >= _DEPTH:
            return _CONTINUE
        if not certain:  # it may go there: what would become of it is told, and the packet goes on here
            trial = _Run(run.packet, trail=[*run.trail, identity])
            self._chain(there, family, trial, depth + 1)
            run.decisions += [replace(one, certain=False) for one in trial.decisions]
            return _CONTINUE
        run.match(identity)
        run.trail.append(identity)
        verdict = self._chain(there, family, run, depth + 1)
        run.trail.pop()
        return verdict or ("goto" if kind == "goto" else _CONTINUE)

    def _situation(self, packet: Packet, family: str, table: str) -> Situation:
        return Situation(packet, family, self._around, self._declared.get(table, {}))


def _chain(table: str, body: Json) -> _Chain:
    links = body.get("dev", ())
    return _Chain(
        str(body["name"]), table, str(body.get("type", "")), str(body.get("hook", "")), int(str(body.get("prio", 0))),
        str(body.get("policy", ACCEPT)), (links,) if isinstance(links, str) else tuple(_texts(links)),
    )  # fmt: skip


def _texts(links: object) -> Iterator[str]:
    yield from (str(one) for one in links) if isinstance(links, list) else ()


def _mangle(body: Json, identity: RuleId, situation: Situation, certain: bool, run: _Run) -> bool:
    """Change the packet; False where there is no value for it, which ends the rule."""
    key, found = body["key"], value(body["value"], situation)
    if found is ABSENT:
        return False
    if not isinstance(key, Mapping) or found is UNKNOWN or not certain:
        return True
    packet = run.packet
    meta, ct, payload = (one if isinstance(one := key.get(kind), Mapping) else {} for kind in ("meta", "ct", "payload"))
    if meta.get("key") == "mark" and isinstance(found, int):
        run.packet = replace(packet, mark=found)
    elif ct.get("key") == "mark" and isinstance(found, int):
        run.packet = replace(packet, connection_mark=found)
    elif payload.get("field") in ("saddr", "daddr") and payload.get("protocol") in ("ip", "ip6"):
        address = ip_address(str(found))
        changed = replace(packet, original=packet.first)
        is_source = payload["field"] == "saddr"
        run.packet = replace(changed, source=address) if is_source else replace(changed, destination=address)
        run.decide(identity, f"set {payload['field']}")
    return True


def _translate(kind: str, body: Json, identity: RuleId, situation: Situation, certain: bool, run: _Run) -> str:
    """A NAT statement: nothing where its map has no element for the packet, which goes on."""
    found = value(body["addr"], situation) if "addr" in body else None
    port = value(body["port"], situation) if "port" in body else None
    if found is ABSENT or port is ABSENT:
        return _CONTINUE
    packet = run.packet
    if body.get("family", own := "ip" if packet.version == 4 else "ip6") != own:  # nft_nat_inet_eval: the rule goes on
        run.match(identity, certain=certain)
        return _CONTINUE
    if found is UNKNOWN or port is UNKNOWN or not certain:
        run.decide(identity, kind, certain=False)
        return _CONTINUE
    if isinstance(found, Mapping) and isinstance(found.get("concat"), list):
        found, port = found["concat"][0], found["concat"][1]
    run.match(identity)
    what = "dnat" if kind in ("dnat", "redirect") else "snat"
    status = packet.status | {what}
    changed = replace(packet, status=status, bound=packet.bound | {what}, original=packet.first)
    if kind == "dnat" and found is not None:
        changed = replace(changed, destination=_address(found))
    elif kind == "snat" and found is not None:
        changed = replace(changed, source=_address(found))
    elif kind == "masquerade" and (given := situation.around.source(str(packet.nexthop or packet.destination))):
        changed = replace(changed, source=_address(given))
    if isinstance(port, int):
        changed = replace(changed, port=port) if "dnat" in status else replace(changed, source_port=port)
    run.packet = changed
    of = body.get("addr")
    number = len(choices(of["map"], situation)) if isinstance(of, Mapping) and "map" in of else 1
    run.decide(identity, kind, choices=number)
    return ACCEPT


def _address(found: object) -> Address:
    return ip_address(str(found))
