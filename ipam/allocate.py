"""Which address comes next: round robin over a set's ranges, given what is taken. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ipam.ranges import Range, address_at, usable
from weft.types import Address


class Leased(Protocol):
    """A view of the addresses that are taken."""

    def first_free_from(self, version: int, number: int) -> int:
        """The first number, from ``number`` on, that is not taken; ``number`` itself if it is free."""


def next_free(
    ranges: tuple[Range, ...], kept: frozenset[Address], last: Address | None, taken: Leased
) -> Address | None:
    """The free address that follows ``last`` in a set, wrapping over all its ranges; None when all are taken.

    ``last`` is what was leased most recently; where it lies in no range of the set, the first range's start
    comes first. ``kept`` (gateways) and exclusions are passed over. So an address that was released comes last,
    and a late packet for its old owner finds nobody for as long as can be (RFC 826 caches, DNS answers).
    """
    for version, first, end in _rounds(ranges, kept, last):
        number = taken.first_free_from(version, first)
        if number <= end:
            return address_at(version, number)
    return None


def _rounds(
    ranges: tuple[Range, ...], kept: frozenset[Address], last: Address | None
) -> Iterator[tuple[int, int, int]]:
    """All that a set may lease, as (version, first, last), in the order in which it is tried."""
    start = next((place for place, each in enumerate(ranges) if last is not None and last in each.span), None)
    if start is None or last is None:
        for each in ranges:
            yield from ((each.subnet.version, first, end) for first, end in usable(each, kept))
        return
    version, mark = last.version, int(last)
    here = usable(ranges[start], kept)
    yield from ((version, max(first, mark + 1), end) for first, end in here if end > mark)
    for each in (*ranges[start + 1 :], *ranges[:start]):
        yield from ((version, first, end) for first, end in usable(each, kept))
    yield from ((version, first, min(end, mark)) for first, end in here if first <= mark)
