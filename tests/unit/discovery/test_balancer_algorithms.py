"""Slots of the algorithms: shares, disruption by changes, the same result on every host."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.balancer.algorithms import least_connections, maglev, round_robin, table_size, weighted
from discovery.balancer.rules import HASHED_SIZES, SIZES

NAMES = [f"10.0.0.{number}#80" for number in range(40)]
WEIGHTS = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 65535), min_size=0, max_size=40)


@given(WEIGHTS, st.sampled_from(SIZES))
def test_weighted_fills_every_slot_with_backends_of_positive_weight(weights: dict[str, float], size: int) -> None:
    slots = weighted(weights, size)
    owners = {name for name, weight in weights.items() if weight}
    assert len(slots) == (size if owners else 0)
    assert set(slots) <= owners
    if len(owners) <= size:
        assert set(slots) == owners
    assert slots == weighted(dict(reversed(weights.items())), size)


@given(WEIGHTS.filter(lambda weights: len(weights) > 0), st.sampled_from((61, 251)))
def test_shares_are_proportional_to_weights(weights: dict[str, int], size: int) -> None:
    weights = {name: weight % 3 + 1 for name, weight in weights.items()}
    for slots in (weighted(weights, size), round_robin(weights, size), maglev(weights, size)):
        for name, count in Counter(slots).items():
            assert abs(count - size * weights[name] / sum(weights.values())) <= 2.001


@given(WEIGHTS, WEIGHTS, st.sampled_from((12, 61, 251)))
def test_weighted_moves_as_few_slots_as_possible(before: dict[str, float], after: dict[str, float], size: int) -> None:
    held = weighted(before, size)
    slots = weighted(after, size, held)
    if not held or not slots:
        return
    kept = sum((Counter(held) & Counter(slots)).values())
    assert sum(one == other for one, other in zip(held, slots, strict=True)) == kept


@pytest.mark.parametrize("size", HASHED_SIZES)
def test_maglev_moves_less_than_twice_the_share_of_a_removed_backend(size: int) -> None:
    weights = dict.fromkeys(NAMES[:10], 1.0)
    table = maglev(weights, size)
    for gone in NAMES[:10]:
        rest = maglev({name: 1.0 for name in weights if name != gone}, size)
        moved = sum(one != other for one, other in zip(table, rest, strict=True))
        assert moved < 2 * size / 10, (gone, moved, size)


def test_maglev_is_the_same_on_every_host_and_in_every_version() -> None:
    """If it changed with a release, connections would move between hosts during an upgrade."""
    assert maglev({"10.0.0.1#80": 1, "10.0.0.2#80": 1, "10.0.0.3#80": 2}, 12 - 1) == (
        maglev({"10.0.0.3#80": 2, "10.0.0.2#80": 1, "10.0.0.1#80": 1}, 11)
    )
    equal = maglev({"10.0.0.1#80": 1, "10.0.0.2#80": 1, "10.0.0.3#80": 1}, 11)
    assert "".join(name[7] for name in equal) == "21113223132"


def test_round_robin_alternates() -> None:
    slots = round_robin({"a": 1, "b": 1, "c": 1}, 12)
    assert slots == ("a", "b", "c") * 4
    assert "".join(round_robin({"a": 2, "b": 1}, 12)) == "aba" * 4


def test_the_table_size_follows_the_shares() -> None:
    assert table_size([1], SIZES) == 1
    assert [table_size([1] * count, SIZES) for count in (2, 3, 4, 5, 6, 7, 10, 30, 200)] == [
        12, 12, 12, 61, 12, 61, 251, 251, 1021,
    ]  # fmt: skip
    assert table_size([100, 1], SIZES) == 1021


@given(
    st.dictionaries(st.sampled_from(NAMES), st.integers(1, 10), min_size=1, max_size=20),
    st.dictionaries(st.sampled_from(NAMES), st.integers(0, 1000), max_size=20),
)
def test_least_connections_prefers_backends_with_few(weights: dict[str, float], counts: dict[str, int]) -> None:
    found = least_connections(weights, counts)
    assert found.keys() == weights.keys() and all(weight > 0 for weight in found.values())
    heights = {name: counts.get(name, 0) / weights[name] for name in weights}
    for one in found:
        for other in found:
            if heights[one] <= heights[other] and weights[one] >= weights[other]:
                assert found[one] >= found[other] * 0.999


def test_least_connections_converges_to_the_weights() -> None:
    assert least_connections({"a": 1, "b": 1}, {}) == {"a": 1.0, "b": 1.0}
    found = least_connections({"a": 1, "b": 1}, {"a": 100, "b": 0})
    assert found["b"] > 20 * found["a"]
    found = least_connections({"a": 2, "b": 1}, {"a": 20, "b": 10})
    assert found["a"] == pytest.approx(2 * found["b"])
    assert least_connections({}, {}) == {}
    assert least_connections({"a": 0}, {"a": 3}) == {}
