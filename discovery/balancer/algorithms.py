"""How the slots of a service are dealt out to its instances. Pure: weights in, owners of slots out.

The kernel chooses a slot; whose it is, is decided here. ``spread`` deals by weight and moves as few slots as it can,
``interleaved`` deals in turns, ``maglev`` deals so that all hosts come to the same table and little moves when an
instance comes or goes. Names stand for instances and must not repeat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b


def table_size(weights: Sequence[float], sizes: Sequence[int], error: float = 0.1) -> int:
    """The smallest table in which no instance's share is off by more than the error; the largest if none is good."""
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
    """Slots by weight. An instance keeps those of ``held`` (the table until now) that are not too many for it.

    Empty where no weight is above 0. An instance with a weight gets a slot while there are enough.
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
    """Slots in turns: an instance as often as its weight says, and each time as far from the last as can be."""
    names = sorted(name for name, weight in weights.items() if weight > 0)[:size]
    if not names:
        return ()
    quotas = _quotas([weights[name] for name in names], size)
    places = [((turn + 0.5) / quota, index) for index, quota in enumerate(quotas) for turn in range(quota)]
    return tuple(names[index] for _, index in sorted(places))


def maglev(weights: Mapping[str, float], size: int) -> tuple[str, ...]:
    """Slots by preference: every instance has its own order of all slots, and takes its next free one in turn.

    A lighter instance takes part in fewer turns. ``size`` is a prime.
    Source: Eisenbud and others, "Maglev: A Fast and Reliable Software Network Load Balancer", 2016, section 3.4.
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
    """Weights for the next connections, so that those who have few catch up: who has many gets next to nothing.

    The next quarter of what there is now (at least one for each) would level all out, each at its own weight. It is
    approximate: counts are some seconds old, and between two counts the slots stay as they are.
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
    # Nobody is cut off: a count may be wrong, and an instance without a connection is an instance nobody tries.
    least = coming / len(names) / 50
    return {name: max((level - heights[name]) * weights[name], least) for name in names}


def _preference(name: str, size: int) -> tuple[int, int]:
    """Offset and step of an instance's own order; as the size is a prime, every step meets all slots."""
    digest = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16, person=b"weft-maglev").digest()
    return int.from_bytes(digest[:8], "big") % size, int.from_bytes(digest[8:], "big") % (size - 1) + 1


def _quotas(weights: Sequence[float], size: int) -> list[int]:
    """How many slots each gets: its share, rounded so that the sum is right (largest remainder), at least one."""
    total = sum(weights)
    exact = [weight * size / total for weight in weights]
    counts = [max(int(share), 1) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda place: counts[place] - exact[place])
    missing = size - sum(counts)
    for step in range(missing):
        counts[by_remainder[step % len(counts)]] += 1
    while missing < 0:  # many light ones were given their one slot
        heavy = [place for place, count in enumerate(counts) if count > 1]
        counts[max(heavy, key=lambda place: counts[place] - exact[place])] -= 1
        missing += 1
    return counts
