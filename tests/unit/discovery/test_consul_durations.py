"""Durations in Go's syntax."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.consul.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("1m30s", 90),
        ("100ms", 0.1),
        ("1.5h", 5400),
        ("0", 0),
        ("-2s", -2),
        ("120000ms", 120),
        ("15us", 15e-6),
        ("15µs", 15e-6),
        ("+3s", 3),
        (".5s", 0.5),
        ("1h0m1s", 3601),
    ],
)
def test_durations_that_go_parses(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "10", "s", "1d", "1 s", "--1s", "1s ", "٣s", "1e3s", "inf", "9" * 40 + "h", "1s" * 60]
)
def test_durations_that_go_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (90, "1m30s"), (0.1, "100ms"), (3600, "1h0m0s"), (1.5, "1.5s"), (-1.25e-6, "-1.25µs")],
)
def test_durations_are_formatted_as_by_go(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=10**15))
def test_durations_round_trip(nanoseconds: int) -> None:
    assert parse_duration(format_duration(nanoseconds / 1e9)) == pytest.approx(nanoseconds / 1e9, rel=1e-12, abs=1e-12)
