"""Versions of weft compared: a process of an older release makes way for a newer one."""

from __future__ import annotations


def newer(version: str, than: str) -> bool:
    """Whether a release is newer than another; "" is older than every release."""
    return _numbers(version) > _numbers(than)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split("+")[0].split("."))
