"""Cached JSON of instances, encoded again only when they change.

Without it one changed instance has all instances of its service encoded again: 40 ms of the event
loop per thousand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from discovery.api.serialize import Json
from discovery.structs import Health

MAX_STALE = 64
"""Cached instances beyond the current ones before a service's cache is cleared."""

CacheKey = tuple[object, ...]


class JsonFragments:
    """Encodes lists of instances. ``parts`` are the objects that ``view`` reads: if identical, so
    is the JSON.
    """

    def __init__(self, view: Callable[[Health], Json], parts: Callable[[Health], CacheKey]) -> None:
        self._view = view
        self._parts = parts
        self._known: dict[str, dict[tuple[str, str], tuple[CacheKey, bytes]]] = {}

    def write(self, service: str, found: Sequence[Health], all_: int) -> bytes:
        """The JSON list of some instances of a service, which has ``all_`` in total."""
        if not all_:
            self._known.pop(service, None)
            return b"[]"
        known = self._known.setdefault(service, {})
        if len(known) > all_ + MAX_STALE:
            known.clear()
        return b"[" + b",".join([self._fragment(known, one) for one in found]) + b"]"

    def _fragment(self, known: dict[tuple[str, str], tuple[CacheKey, bytes]], one: Health) -> bytes:
        parts = self._parts(one)
        last = known.get(one.instance.order)
        if last is not None and len(last[0]) == len(parts) and all(a is b for a, b in zip(last[0], parts, strict=True)):
            return last[1]
        written = json.dumps(self._view(one), ensure_ascii=False, separators=(",", ":")).encode()
        known[one.instance.order] = (parts, written)
        return written
