"""The JSON of instances, written once as long as nothing about them changes.

A change of one instance would otherwise have those of all its siblings written anew: 40 ms of the agent's one thread
for a thousand of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from discovery.api.serialize import Json
from discovery.structs import Health

MAX_STALE = 64
"""Instances of a service that are remembered though they are gone, before all are forgotten."""

CacheKey = tuple[object, ...]


class JsonFragments:
    """Writes lists of instances. ``parts`` are what ``view`` is made of: while these are the same, so is that."""

    def __init__(self, view: Callable[[Health], Json], parts: Callable[[Health], CacheKey]) -> None:
        self._view = view
        self._parts = parts
        self._known: dict[str, dict[tuple[str, str], tuple[CacheKey, bytes]]] = {}

    def write(self, service: str, found: Sequence[Health], all_: int) -> bytes:
        """A list of instances of a service, of which there are ``all_`` in all."""
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
