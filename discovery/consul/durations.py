"""Go's durations, as in Consul: ``10s``, ``1m30s``, ``100ms``."""

from __future__ import annotations

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_LONGEST_TEXT = 64
MAX_SECONDS = 2**63 / 1e9
"""Seconds; the range of Go's time.Duration."""


def parse_duration(text: str) -> float:
    """Parse ``1h15m30.918s`` to seconds; may be negative. Raises ValueError.

    Source: Go's time.ParseDuration.
    """
    sign, rest = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if rest == "0":
        return 0.0
    place, total = 0, 0.0
    while len(rest) <= _LONGEST_TEXT and (found := _PART.match(rest, place)):
        total += float(found[1]) * _UNITS[found[2]]
        place = found.end()
    if place != len(rest) or not rest or total >= MAX_SECONDS:
        raise ValueError(f'invalid duration "{text[:_LONGEST_TEXT]}", expected e.g. 10s, 1m30s or 100ms')
    return sign * total


def format_duration(seconds: float) -> str:
    """Format seconds as Go does: ``1m30s``, ``100ms``, ``0s``.

    Source: Go's time.Duration.String.
    """
    nanoseconds = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 and nanoseconds else ""
    if nanoseconds == 0:
        return "0s"
    for unit, size in (("ns", 1_000), ("µs", 1_000_000), ("ms", 1_000_000_000)):
        if nanoseconds < size:
            return f"{sign}{_decimal(nanoseconds, size // 1000)}{unit}"
    minutes, left = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if hours or minutes else ""
    return f"{sign}{text}{_decimal(left, 1_000_000_000)}s"


def _decimal(number: int, unit: int) -> str:
    whole, part = divmod(number, unit)
    digits = str(part).rjust(len(str(unit)) - 1, "0").rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)
