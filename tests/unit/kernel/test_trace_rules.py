"""What the evaluation of nftables rules for a packet says, on rules as libnftables prints them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from weft.kernel.trace.packet import Packet
from weft.kernel.trace.ruleset import Nftables


class Around:
    """A host where every other machine is behind the link weft-red."""

    def elements(self, declared: Any, key: object) -> tuple[object, ...]:
        return tuple(declared.get("elem", ()))

    def address_type(self, address: str, link: str) -> str:
        return "unicast"

    def leaves_by(self, address: str) -> str:
        return "weft-red"

    def source(self, nexthop: str) -> str:
        return "192.0.2.1"

    def group(self, link: str) -> int:
        return {"weft-blue": 0x77660001, "weft-red": 0x77660005}.get(link, 0)


def meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


LINK_AND_PORT = {"concat": [meta("iifname"), payload("tcp", "dport")]}
DROP = {"drop": None}
ACCEPT = {"accept": None}


def ruleset(*rules: list[dict[str, Any]], policy: str = "accept", kind: str = "filter", more: Any = ()) -> Nftables:
    """A base chain of the hook forward (prerouting for NAT) with the rules."""
    hook = "prerouting" if kind == "nat" else "forward"
    chain = {"family": "inet", "table": "t", "name": "c", "type": kind, "hook": hook, "prio": 0, "policy": policy}
    found: list[dict[str, Any]] = [{"metainfo": {"version": "1"}}, {"chain": chain}, *more]
    found += [
        {"rule": {"family": "inet", "table": "t", "chain": "c", "handle": number, "expr": list(rule)}}
        for number, rule in enumerate(rules, 1)
    ]
    return Nftables(found, Around())


def packet(**changes: Any) -> Packet:
    known = {
        "source": ip_address("10.1.0.2"), "destination": ip_address("10.2.0.3"), "protocol": "tcp", "port": 80,
        "incoming": "weft-blue", "outgoing": "weft-red",
    }  # fmt: skip
    return Packet(**(known | changes))


@pytest.mark.parametrize(
    ("rule", "dropped"),
    [
        ([match(meta("iifname"), "weft-blue"), DROP], True),
        ([match(meta("iifname"), "weft-*"), DROP], True),
        ([match(meta("iifname"), "weft-blue", "!="), DROP], False),
        ([match(meta("l4proto"), "6"), DROP], True),
        ([match(meta("l4proto"), {"set": ["udp", "icmp"]}), DROP], False),
        ([match(payload("ip", "saddr"), {"prefix": {"addr": "10.1.0.0", "len": 16}}), DROP], True),
        ([match(payload("ip", "saddr"), {"range": ["10.0.0.0", "10.1.0.1"]}), DROP], False),
        ([match(payload("ip6", "saddr"), "fd00::1", "!="), DROP], False),
        ([match(payload("tcp", "dport"), {"set": [{"range": [70, 90]}, 443]}), DROP], True),
        ([match(payload("udp", "dport"), 80), DROP], False),
        ([match(payload("udp", "dport"), 53, "!="), DROP], False),
        ([match(payload("th", "dport"), 80), DROP], True),
        ([match(payload("tcp", "dport"), 1024, "<"), DROP], True),
        ([match({"ct": {"key": "state"}}, ["established", "related"], "in"), DROP], False),
        ([match({"ct": {"key": "state"}}, "new", "in"), DROP], True),
        ([match({"&": [payload("tcp", "flags"), ["fin", "syn", "rst"]]}, "syn"), DROP], True),
        ([match(LINK_AND_PORT, {"set": [{"concat": ["weft-blue", 80]}]}), DROP], True),
        ([{"limit": {"rate": 1, "per": "second"}}, ACCEPT], False),
        ([{"counter": {"packets": 1, "bytes": 1}}, {"reject": {"type": "tcp reset"}}], True),
        ([match({"socket": {"key": "mark"}}, 1), DROP], False),
        ([match({"&": [meta("iifgroup"), 0xFFFF0004]}, 0x77660004), DROP], False),
        ([match({"&": [meta("oifgroup"), 0xFFFF0004]}, 0x77660004), DROP], True),
        ([match({"fib": {"result": "oif", "flags": ["daddr", "iif"]}}, True), DROP], False),
        ([match({"fib": {"result": "oif", "flags": ["daddr", "iif"]}}, False), DROP], True),
        ([match({"fib": {"result": "oif", "flags": ["daddr", "oif"]}}, True), DROP], True),
        ([{"limit": {"rate": 1, "per": "second", "inv": True}}, DROP], False),
        ([{"mangle": {"key": meta("mark"), "value": 7}}, DROP], True),
    ],
)  # fmt: skip
def test_a_condition_and_its_verdict(rule: list[dict[str, Any]], dropped: bool) -> None:
    decisions, _, passes = ruleset(rule).passes("forward", "ip", packet())
    assert passes is not dropped
    assert not dropped or decisions[-1].rule.handle == 1


def test_what_is_not_known_is_said() -> None:
    decisions, _, passes = ruleset([match({"socket": {"key": "mark"}}, 1), DROP]).passes("forward", "ip", packet())
    assert passes and [(one.what, one.certain) for one in decisions] == [("drop", False)]


def test_the_policy_drops_what_no_rule_accepts() -> None:
    rules = ruleset([match(payload("tcp", "dport"), 443), ACCEPT], policy="drop")
    decisions, _, passes = rules.passes("forward", "ip", packet())
    assert not passes and decisions[-1].rule.handle == 0
    assert rules.passes("forward", "ip", packet(port=443))[2]


@pytest.mark.parametrize(("verb", "dropped"), [("jump", True), ("goto", False)])
def test_a_chain_returns_to_where_it_was_jumped_to_from(verb: str, dropped: bool) -> None:
    inner = {"chain": {"family": "inet", "table": "t", "name": "inner"}}
    rule = {"rule": {"family": "inet", "table": "t", "chain": "inner", "handle": 9, "expr": [{"return": None}]}}
    rules = ruleset([{verb: {"target": "inner"}}], [DROP], more=[inner, rule])
    assert rules.passes("forward", "ip", packet())[2] is not dropped


def test_a_decision_names_the_rules_that_led_to_it() -> None:
    inner = {"chain": {"family": "inet", "table": "t", "name": "inner"}}
    rule = {"rule": {"family": "inet", "table": "t", "chain": "inner", "handle": 9, "expr": [DROP]}}
    (decision,), _, _ = ruleset([{"jump": {"target": "inner"}}], more=[inner, rule]).passes("forward", "ip", packet())
    assert [one.handle for one in decision.trail] == [1] and decision.rule.handle == 9


def test_priorities_order_the_chains_and_an_accept_ends_one() -> None:
    first = {"family": "ip", "table": "u", "name": "first", "type": "filter", "hook": "forward", "prio": -10}
    rule = {"rule": {"family": "ip", "table": "u", "chain": "first", "handle": 1, "expr": [ACCEPT]}}
    decisions, _, passes = ruleset([DROP], more=[{"chain": first}, rule]).passes("forward", "ip", packet())
    assert not passes and decisions[-1].rule.table == "inet t"


def test_elements_over_a_limit_match_no_first_packet() -> None:
    key = {"concat": [meta("iifname"), payload("ip", "saddr")]}
    element = {"elem": {"val": {"concat": ["weft-blue", "10.1.0.2"]}}}
    limited = {"elem": {**element["elem"], "limit": {"rate": 1, "per": "second", "inv": True}}}
    for one, dropped in ((element, True), (limited, False)):
        named = {"set": {"family": "inet", "table": "t", "name": "s", "elem": [one]}}
        rules = ruleset([match(key, "@s"), DROP], more=[named])
        assert rules.passes("forward", "ip", packet())[2] is not dropped


def slots(*targets: str) -> dict[str, Any]:
    """A map from a destination and a slot to a target, as a balancer's."""
    found = [[{"concat": ["10.2.0.3", slot]}, {"concat": [to, 8080]}] for slot, to in enumerate(targets)]
    return {"map": {"family": "inet", "table": "t", "name": "slots", "elem": found}}


def test_destinations_are_translated_once() -> None:
    key = {"concat": [payload("ip", "daddr"), {"numgen": {"mode": "random", "mod": 2}}]}
    dnat = [{"dnat": {"family": "ip", "addr": {"map": {"key": key, "data": "@slots"}}}}]
    rules = ruleset(dnat, kind="nat", more=[slots("10.9.0.1", "10.9.0.2")])
    (decision,), changed, passes = rules.passes("prerouting", "ip", packet())
    assert passes and decision.choices == 2
    assert (str(changed.destination), changed.port, changed.status) == ("10.9.0.1", 8080, {"dnat"})
    assert changed.first.destination == packet().destination
    assert rules.passes("prerouting", "ip", changed)[1] == changed


def test_a_map_without_the_key_ends_the_rule_and_not_the_chain() -> None:
    dnat = [
        {
            "dnat": {
                "family": "ip",
                "addr": {"map": {"key": payload("ip", "daddr"), "data": {"set": [["10.3.0.1", "10.4.0.1"]]}}},
            }
        }
    ]
    rules = ruleset(dnat, [DROP], kind="nat")
    assert not rules.passes("prerouting", "ip", packet())[2]


def test_masquerading_takes_the_address_of_the_way_out() -> None:
    chain = {"family": "ip", "table": "n", "name": "p", "type": "nat", "hook": "postrouting", "prio": 100}
    rule = {"rule": {"family": "ip", "table": "n", "chain": "p", "handle": 1, "expr": [{"masquerade": None}]}}
    _, changed, _ = ruleset(more=[{"chain": chain}, rule]).passes("postrouting", "ip", packet())
    assert str(changed.source) == "192.0.2.1"


def test_what_matched_is_noted_in_the_kernels_order() -> None:
    inner = {"chain": {"family": "inet", "table": "t", "name": "inner"}}
    rule = {"rule": {"family": "inet", "table": "t", "chain": "inner", "handle": 9, "expr": [{"counter": None}]}}
    other = [match(payload("tcp", "dport"), 443), DROP]
    rules = ruleset([{"jump": {"target": "inner"}}], other, policy="drop", more=[inner, rule])
    rules.passes("forward", "ip", packet())
    assert [(one.rule.chain, one.rule.handle) for one in rules.matches] == [("c", 1), ("inner", 9), ("c", 0)]


def test_verdict_maps() -> None:
    vmap = [{"vmap": {"key": payload("tcp", "dport"), "data": {"set": [[80, DROP], [443, ACCEPT]]}}}]
    assert not ruleset(vmap).passes("forward", "ip", packet())[2]
    assert ruleset(vmap, [DROP]).passes("forward", "ip", packet(port=443))[2]
    assert not ruleset(vmap, [DROP]).passes("forward", "ip", packet(port=22))[2]


def test_marks_are_kept_for_later_rules() -> None:
    mark = [{"mangle": {"key": meta("mark"), "value": 7}}]
    rules = ruleset(mark, [match(meta("mark"), 7), DROP])
    assert not rules.passes("forward", "ip", packet())[2]


def test_what_iptables_matches_is_not_guessed() -> None:
    decisions, _, passes = ruleset([{"xt": None}, DROP]).passes("forward", "ip", packet())
    assert passes and not decisions[0].certain
