"""Slot tables: which instance owns each slot of a service. Pure.

The kernel picks a slot, the table says whose it is. ``weighted`` assigns by weight and moves few
slots, ``round_robin`` interleaves, ``maglev`` gives all hosts the same table with little
disruption. Names identify instances and are unique.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b


def table_size(weights: Sequence[float], sizes: Sequence[int], error: float = 0.1) -> int:
    """The smallest size in which no share is off by more than ``error``; else the largest size."""
    total = sum(weights)
    positive = [weight for weight in weights if weight > 0]
    if len(positive) <= 1:
        return sizes[0]
    for size in sizes:
        if size >= len(positive) and all(
            abs(count * total / (size * weight) - 1) <= error
            for count, weight in zip(_quotas(positive, size), positive, strict=True)
        ):
            return size
    return sizes[-1]


def weighted(weights: Mapping[str, float], size: int, current: Sequence[str] = ()) -> tuple[str, ...]:
    """Slots by weight; instances keep their slots of ``current`` (the previous table) up to their
    quota.

    Empty if no weight is positive. Every instance with a weight has a slot while there are enough.
    """
    names = sorted(name for name, weight in weights.items() if weight > 0)[:size]
    if not names:
        return ()
    remaining = dict(zip(names, _quotas([weights[name] for name in names], size), strict=True))
    slots = [""] * size
    for place, name in enumerate(current[:size] if len(current) == size else ()):
        if remaining.get(name, 0) > 0:
            slots[place] = name
            remaining[name] -= 1
    waiting = [name for name, count in remaining.items() for _ in range(count)]
    for place, name in enumerate(slots):
        if not name:
            slots[place] = waiting.pop()
    return tuple(slots)


def round_robin(weights: Mapping[str, float], size: int) -> tuple[str, ...]:
    """Slots interleaved: each instance by weight, evenly spaced."""
    names = sorted(name for name, weight in weights.items() if weight > 0)[:size]
    if not names:
        return ()
    quotas = _quotas([weights[name] for name in names], size)
    places = [((turn + 0.5) / quota, index) for index, quota in enumerate(quotas) for turn in range(quota)]
    return tuple(names[index] for _, index in sorted(places))


def maglev(weights: Mapping[str, float], size: int) -> tuple[str, ...]:
    """Maglev: each instance permutes the slots, and they take turns claiming their next free one.

    Lighter instances take fewer turns. ``size`` must be prime.

    Source: Eisenbud and others, "Maglev: A Fast and Reliable Software Network Load Balancer", 2016,
    section 3.4.
    """
    names = sorted(name for name, weight in weights.items() if weight > 0)[:size]
    if not names:
        return ()
    heaviest = max(weights[name] for name in names)
    steps = [weights[name] / heaviest for name in names]
    orders = [_preference(name, size) for name in names]
    next_place = [0] * len(names)
    credit = [0.0] * len(names)
    slots = [""] * size
    free = size
    while True:
        for index, name in enumerate(names):
            credit[index] += steps[index]
            if credit[index] < 1 - 1e-9:
                continue
            credit[index] -= 1
            offset, skip = orders[index]
            place = next_place[index]
            while slots[slot := (offset + place * skip) % size]:
                place += 1
            slots[slot] = name
            next_place[index] = place + 1
            free -= 1
            if not free:
                return tuple(slots)


def least_connections(weights: Mapping[str, float], connections: Mapping[str, int]) -> dict[str, float]:
    """Weights by open connections: those with few get more of the next ones.

    The next connections, a quarter of the present ones (at least one per instance), would level all
    by weight. Approximate: counts are seconds old, and slots are fixed between two counts.
    """
    names = [name for name, weight in weights.items() if weight > 0]
    if not names:
        return {}
    heights = {name: connections.get(name, 0) / weights[name] for name in names}
    coming = max(len(names), sum(connections.get(name, 0) for name in names) // 4)
    order = sorted(names, key=heights.__getitem__)
    level, volume, width = heights[order[0]], float(coming), 0.0
    for place, name in enumerate(order):
        width += weights[name]
        above = heights[order[place + 1]] if place + 1 < len(order) else float("inf")
        if volume <= (above - level) * width:
            level += volume / width
            break
        volume -= (above - level) * width
        level = above
    # Every instance keeps a minimum: counts may be stale, and one without connections would never
    # be probed.
    least = coming / len(names) / 50
    return {name: max((level - heights[name]) * weights[name], least) for name in names}


def _preference(name: str, size: int) -> tuple[int, int]:
    """Offset and skip of an instance's permutation; with a prime size it covers all slots."""
    digest = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16, person=b"weft-maglev").digest()
    return int.from_bytes(digest[:8], "big") % size, int.from_bytes(digest[8:], "big") % (size - 1) + 1


def _quotas(weights: Sequence[float], size: int) -> list[int]:
    """Slots per instance: largest remainder method, at least one each."""
    total = sum(weights)
    exact = [weight * size / total for weight in weights]
    counts = [max(int(share), 1) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda place: counts[place] - exact[place])
    missing = size - sum(counts)
    for step in range(missing):
        counts[by_remainder[step % len(counts)]] += 1
    while missing < 0:  # the minimum of one exceeded the size
        heavy = [place for place, count in enumerate(counts) if count > 1]
        counts[max(heavy, key=lambda place: counts[place] - exact[place])] -= 1
        missing += 1
    return counts
