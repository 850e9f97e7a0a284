from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipam.ranges import Range, Span, address_at, describe, gateways, parse_span, read_sets, size, usable
from weft.section import Problems, Section


def parse(
    ipam: dict[str, Any], *, runtime: dict[str, Any] | None = None, version: str = "1.0.0"
) -> tuple[tuple[tuple[Range, ...], ...], list[str]]:
    problems = Problems()
    sets = read_sets(Section(ipam, "ipam", problems), Section(runtime or {}, "runtimeConfig", problems), version)
    return sets, problems.found


def test_defaults_are_those_of_host_local() -> None:
    sets, found = parse({"Subnet": "10.1.0.0/24"})
    assert not found
    [[each]] = sets
    assert (str(each.span), str(each.gateway)) == ("10.1.0.1-10.1.0.254", "10.1.0.1")
    assert size(sets[0], gateways(sets)) == 253


def test_empty_addresses_that_a_template_leaves_are_absent() -> None:
    empty = {"rangeStart": "", "rangeEnd": "", "gateway": ""}
    for ipam in ({**empty, "ranges": [[{"subnet": "10.1.0.0/24", **empty}]]}, {"subnet": "10.1.0.0/24", **empty}):
        sets, found = parse(ipam)
        assert (found, describe(sets[0]), str(sets[0][0].gateway)) == ([], "10.1.0.1-10.1.0.254", "10.1.0.1")


def test_ipv6_ranges_include_the_last_address() -> None:
    [[each]], found = parse({"ranges": [[{"subnet": "fd00::/64"}]]})
    assert not found
    assert str(each.span) == "fd00::1-fd00::ffff:ffff:ffff:ffff"


def test_sets_come_in_order_runtime_first() -> None:
    sets, found = parse(
        {"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.2.0.0/24"}, {"subnet": "10.3.0.0/24"}]]},
        runtime={"IPRanges": [[{"Subnet": "10.4.0.0/24"}]]},
    )
    assert not found
    assert [describe(ranges) for ranges in sets] == [
        "10.4.0.1-10.4.0.254", "10.1.0.1-10.1.0.254", "10.2.0.1-10.2.0.254, 10.3.0.1-10.3.0.254"
    ]  # fmt: skip


def test_a_link_local_router_is_a_gateway_for_ipv6() -> None:
    [[each]], found = parse({"subnet": "fd00::/64", "gateway": "fe80::1"})
    assert not found
    assert str(each.gateway) == "fe80::1"


@pytest.mark.parametrize(
    ("ipam", "said"),
    [
        ({}, "ipam.ranges is missing"),
        ({"ranges": []}, "ipam.ranges is missing"),
        ({"ranges": [[]]}, "ipam.ranges[0] is empty"),
        ({"ranges": [{}]}, "ipam.ranges[0] {} must be a list of ranges"),
        ({"ranges": [["x"]]}, 'ipam.ranges[0][0] must be an object, not "x"'),
        ({"ranges": [[{}]]}, "ipam.ranges[0][0].subnet is missing"),
        ({"subnet": "10.1.0.5/24"}, "did you mean 10.1.0.0/24"),
        ({"subnet": "x"}, 'ipam.subnet "x" is not a subnet'),
        ({"subnet": "10.1.0.0/31"}, 'ipam.subnet "10.1.0.0/31" is too small: the longest prefix is /30'),
        ({"subnet": "fd00::/127"}, "longest prefix is /126"),
        ({"subnet": "::ffff:10.0.0.0/120"}, "has IPv4-mapped addresses; use IPv4"),
        ({"rangeStart": "10.1.0.9"}, "needs ipam.subnet beside it"),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.255"}, "broadcast address of 10.1.0.0/24"),
        ({"subnet": "10.1.0.0/24", "rangeEnd": "10.1.0.0"}, "network address of 10.1.0.0/24"),
        ({"subnet": "fd00::/64", "rangeEnd": "fd00::"}, "network address of fd00::/64"),
        ({"subnet": "10.1.0.0/24", "rangeEnd": "10.2.0.9"}, 'ipam.rangeEnd "10.2.0.9" is not in 10.1.0.0/24'),
        ({"subnet": "10.1.0.0/24", "rangeEnd": "fd00::9"}, "is not in 10.1.0.0/24"),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.8"}, "is after the end"),
        ({"subnet": "10.1.0.0/24", "gateway": "10.2.0.1"}, 'ipam.gateway "10.2.0.1" is not a host address of'),
        ({"subnet": "10.1.0.0/24", "gateway": "10.1.0.255"}, "ipam.gateway"),
        ({"subnet": "10.1.0.0/24", "gateway": "fe80::1"}, "ipam.gateway"),
        ({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.1", "rangeEnd": "10.1.0.1"}, "has no address to lease"),
        ({"subnet": "10.1.0.0/30", "exclude": ["10.1.0.2"]}, "has no address to lease"),
        ({"subnet": "10.1.0.0/24", "exclude": ["10.1.0.9-10.1.0.8"]}, 'ipam.exclude "10.1.0.9-10.1.0.8" is not'),
        ({"subnet": "10.1.0.0/24", "exclude": "10.1.0.9"}, "must be a list"),
        ({"ranges": [[{"subnet": "10.1.0.0/24", "exclude": ["10.9.0.0/24"]}]]}, "which is not in 10.1.0.0/24"),
        ({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd00::/64"}]]}, "mix IPv4 and IPv6"),
        ({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/16"}]]}, "ipam.ranges[0][1] (10.1.0.1-10.1.255"),
        ({"subnet": "10.1.0.0/24", "ranges": [[{"subnet": "10.1.0.0/24"}]]}, "ranges[0][0] (10.1.0.1-10.1.0.254) over"),
    ],
)  # fmt: skip
def test_problems_name_key_and_value(ipam: dict[str, Any], said: str) -> None:
    _, found = parse(ipam)
    assert any(said in sentence for sentence in found), found
    assert len(found) == 1


@pytest.mark.parametrize(
    ("ipam", "span"),
    [
        ({"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.129", "rangeEnd": "192.0.2.255"}, "192.0.2.129-192.0.2.254"),
        ({"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.0", "rangeEnd": "192.0.2.9"}, "192.0.2.1-192.0.2.9"),
        ({"subnet": "fd00::/120", "rangeStart": "fd00::", "rangeEnd": "fd00::ff"}, "fd00::1-fd00::ff"),
    ],
)
def test_a_range_may_include_network_and_broadcast_address(ipam: dict[str, Any], span: str) -> None:
    """podman ends ``--ip-range`` with the broadcast address if it is the upper half of the subnet."""
    [[each]], problems = parse(ipam)
    assert problems == []
    assert str(each.span) == span


def test_old_versions_allow_one_address_of_each_family() -> None:
    two = {"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]}
    assert parse(two)[1] == []
    assert "cniVersion 0.2.0 allows one address" in parse(two, version="0.2.0")[1][0]
    assert parse({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}, version="0.1.0")[1] == []


@pytest.mark.parametrize("text", ["", "x", "10.0.0.1-", "10.0.0.1-fd00::1", "10.0.0.1/24", "fe80::1%eth0", "1-2-3"])
def test_invalid_spans(text: str) -> None:
    assert parse_span(text) is None


def test_spans_are_addresses_ranges_and_subnets() -> None:
    texts = ("10.0.0.1", "10.0.0.1 - 10.0.0.9", "10.0.0.0/30", "fd00::/126")
    assert [str(parse_span(text)) for text in texts] == [
        "10.0.0.1-10.0.0.1", "10.0.0.1-10.0.0.9", "10.0.0.0-10.0.0.3", "fd00::-fd00::3"
    ]  # fmt: skip


BASE = int(ip_address("10.1.0.0"))
PLACES = st.integers(1, 62)


@given(PLACES, PLACES, PLACES, st.lists(st.tuples(PLACES, PLACES), max_size=5))
def test_usable_excludes_reserved_addresses(one: int, other: int, gateway: int, holes: list[tuple[int, int]]) -> None:
    def at(place: int) -> Any:
        return address_at(4, BASE + place)

    start, end = sorted((one, other))
    exclude = tuple(Span(at(min(hole)), at(max(hole))) for hole in holes)
    each = Range(ip_network("10.1.0.0/26"), Span(at(start), at(end)), at(gateway), exclude)
    expected = [
        place
        for place in range(start, end + 1)
        if place != gateway and not any(min(hole) <= place <= max(hole) for hole in holes)
    ]
    parts = usable(each, frozenset([at(gateway)]))
    assert [number - BASE for first, last in parts for number in range(first, last + 1)] == expected
    assert all(first <= last for first, last in parts)
    assert size((each,), frozenset([at(gateway)])) == len(expected)
