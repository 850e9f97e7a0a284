"""Comparison of release numbers: a newer release replaces the daemons of an older one."""

from __future__ import annotations


def newer(version: str, than: str) -> bool:
    """Whether a release is newer than another; "" is the oldest."""
    return _numbers(version) > _numbers(than)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split("+")[0].split("."))
