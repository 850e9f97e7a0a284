"""Which address a set leases next: round robin over its ranges. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ipam.ranges import Range, address_at, usable
from weft.types import Address


class Leased(Protocol):
    """The addresses that are leased."""

    def first_free_from(self, version: int, number: int) -> int:
        """The first number from ``number`` on whose address is not leased."""


def next_free(
    ranges: tuple[Range, ...], gateways: frozenset[Address], last: Address | None, leased: Leased
) -> Address | None:
    """The next free address of a set after ``last``, wrapping around; None if all are leased.

    ``last`` is the address leased last; if it is in no range, the search starts at the first range.
    Gateways and exclusions are skipped. Round robin delays the reuse of a released address, so that
    caches (ARP, DNS) have expired by then.
    """
    for version, first, end in _search_order(ranges, gateways, last):
        number = leased.first_free_from(version, first)
        if number <= end:
            return address_at(version, number)
    return None


def _search_order(
    ranges: tuple[Range, ...], gateways: frozenset[Address], last: Address | None
) -> Iterator[tuple[int, int, int]]:
    """The intervals to search, in order, as (IP version, first number, last number)."""
    start = next((index for index, each in enumerate(ranges) if last is not None and last in each.span), None)
    if start is None or last is None:
        for each in ranges:
            yield from ((each.subnet.version, first, end) for first, end in usable(each, gateways))
        return
    version, after = last.version, int(last)
    current = usable(ranges[start], gateways)
    yield from ((version, max(first, after + 1), end) for first, end in current if end > after)
    for each in (*ranges[start + 1 :], *ranges[:start]):
        yield from ((version, first, end) for first, end in usable(each, gateways))
    yield from ((version, first, min(end, after)) for first, end in current if first <= after)
