from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from ipam.allocate import next_free
from ipam.ranges import Range, Span, address_at

BASE = int(ip_address("10.1.0.0"))


class Set:
    def __init__(self, taken: set[int]) -> None:
        self.taken = taken

    def first_free_from(self, version: int, number: int) -> int:
        assert version == 4
        while number in self.taken:
            number += 1
        return number


def ranges_of(bounds: list[tuple[int, int]]) -> tuple[Range, ...]:
    """Ranges in 10.1.0.0/24 with the gateway .1."""
    return tuple(
        Range(
            ip_network("10.1.0.0/24"),
            Span(address_at(4, BASE + first), address_at(4, BASE + last)),
            ip_address("10.1.0.1"),
            (Span(ip_address("10.1.0.7"), ip_address("10.1.0.8")),),
        )
        for first, last in bounds
    )


SOME_RANGES = st.sampled_from(
    [[(1, 14)], [(1, 5), (7, 12)], [(20, 24), (1, 4)], [(7, 9), (1, 3), (30, 33)], [(6, 6)], [(30, 34), (9, 9)]]
)


@given(SOME_RANGES, st.sets(st.integers(1, 34)), st.none() | st.integers(0, 40))
def test_the_next_address_is_the_first_free_one_after_the_last(
    bounds: list[tuple[int, int]], taken: set[int], last: int | None
) -> None:
    order = [place for first, end in bounds for place in range(first, end + 1)]
    if last in order:
        order = [*order[order.index(last) + 1 :], *order[: order.index(last) + 1]]
    expected = next((place for place in order if place not in taken and place not in (1, 7, 8)), None)
    found = next_free(
        ranges_of(bounds),
        frozenset([ip_address("10.1.0.1")]),
        None if last is None else address_at(4, BASE + last),
        Set({BASE + place for place in taken}),
    )
    assert (None if found is None else int(found) - BASE) == expected


@given(SOME_RANGES)
def test_a_freed_address_is_reused_last(bounds: list[tuple[int, int]]) -> None:
    ranges, kept = ranges_of(bounds), frozenset([ip_address("10.1.0.1")])
    first = next_free(ranges, kept, None, Set(set()))
    order, last = [first], first
    while (following := next_free(ranges, kept, last, Set(set()))) != first:
        order.append(following)
        last = following
    assert len(order) == len(set(order))
    usable = {place for begin, end in bounds for place in range(begin, end + 1)} - {1, 7, 8}
    assert {int(each) - BASE for each in order if each is not None} == usable


def test_a_large_ipv6_range_is_searched_at_once() -> None:
    subnet = ip_network("fd00::/64")
    whole = Range(subnet, Span(ip_address("fd00::1"), subnet.broadcast_address), ip_address("fd00::1"))

    class AllButTheLast:
        def first_free_from(self, version: int, number: int) -> int:
            return int(subnet.broadcast_address) if number <= int(subnet.broadcast_address) else number

    assert next_free((whole,), frozenset([ip_address("fd00::1")]), ip_address("fd00::99"), AllButTheLast()) == (
        subnet.broadcast_address
    )
