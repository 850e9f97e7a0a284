"""Answers that can be waited for: an index that moves when, and only when, the answer changes.

The catalog says which revision last touched what an answer is made of. That alone would move the index of
``?passing`` with each output of a check. So the last answer of every question is remembered: where it comes out the
same, it keeps its index, and whoever waits for another goes on waiting. One body serves all who asked the same.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any

from discovery import layout
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse
from discovery.catalog import Catalog, Topic
from discovery.metrics import Metrics
from store import Store

CACHE_ENTRIES = 4096
CACHE_BYTES = 32 * 1024 * 1024
"""How many answers are remembered, and how much they weigh together; a forgotten one may wake its clients once more."""
CONSISTENT_SECONDS = 0.2
"""How long a read may wait for the catalog to have taken over what the store has."""
JITTER = 16
"""A wait is longer by up to a sixteenth of it, as in Consul, so that clients do not come back all at once."""


@dataclass(slots=True)
class CachedResponse:
    """The last answer to a question: its body, its index, and the revision as of which that was so."""

    body: bytes
    status: int
    index: int
    revision: int


class BlockingQueries:
    """Remembers answers, and parks those who wait for the next one."""

    def __init__(self, catalog: Catalog, store: Store, metrics: Metrics) -> None:
        self._catalog = catalog
        self._store = store
        self._cache: OrderedDict[Hashable, CachedResponse] = OrderedDict()
        self._cached_bytes = 0
        self.blocked = 0
        metrics.gauge("weft_http_waiting", "Requests that wait for a change.", read=lambda: self.blocked)

    async def serve(
        self, request: HttpRequest, key: Hashable, topics: tuple[Topic, ...], build: Callable[[], Any]
    ) -> HttpResponse:
        """The answer that ``build`` makes of the catalog (or bytes, written already), past the index asked for."""
        index, seconds = request.blocking_options()
        if request.consistency_mode() == "consistent":
            await self.wait_for_catalog()
        clock = asyncio.get_running_loop().time
        end = clock() + seconds * (1 + random.random() / JITTER)
        while True:
            found = self._current(key, topics, request, build)
            if index == 0 or found.index > index or clock() >= end:
                return self.answer(found, request)
            await self.block(self._catalog.wait(topics, found.revision, end - clock()))

    async def block(self, blocking_options: Awaitable[object]) -> None:
        """Wait for something, counted as a request that does."""
        self.blocked += 1
        try:
            await blocking_options
        finally:
            self.blocked -= 1

    def _current(
        self, key: Hashable, topics: tuple[Topic, ...], request: HttpRequest, build: Callable[[], Any]
    ) -> CachedResponse:
        revision = self._catalog.changed(*topics)
        cached = self._cache.get(key)
        if cached is not None and cached.revision == revision:
            self._cache.move_to_end(key)
            return cached
        built = build()
        body = built if isinstance(built, bytes) else encode_json(built, request)
        return self.cache_response(key, body, 200, revision)

    def cache_response(self, key: Hashable, body: bytes, status: int, revision: int, index: int = 0) -> CachedResponse:
        """Take note of an answer that is true as of a revision; it keeps its index if it is the same as the last.

        Else ``index`` is its index, or the revision where that is 0.
        """
        cached = self._cache.get(key)
        if cached is not None and cached.revision > revision:
            return cached  # a later reading overtook this one
        if cached is not None:
            del self._cache[key]
            self._cached_bytes -= len(cached.body)
        if cached is not None and cached.body == body and cached.status == status:
            index = cached.index
        else:
            index = max(index or revision, 1)
        found = CachedResponse(body, status, index, revision)
        self._cache[key] = found
        self._cached_bytes += len(body)
        while len(self._cache) > CACHE_ENTRIES or (self._cached_bytes > CACHE_BYTES and len(self._cache) > 1):
            _, old = self._cache.popitem(last=False)
            self._cached_bytes -= len(old.body)
        return found

    def answer(self, found: CachedResponse, request: HttpRequest) -> HttpResponse:
        """An answer with the headers that every read has."""
        headers = consul_headers(found.index, request)
        return HttpResponse(found.body, found.status, headers=headers)

    async def wait_for_catalog(self) -> None:
        """Wait until the catalog has taken over all that the store has now. Raises StoreError."""
        revision = (await self._store.range(layout.NODES, limit=1)).revision
        await self._catalog.wait_for_revision(revision, CONSISTENT_SECONDS)


def consul_headers(index: int, request: HttpRequest) -> dict[str, str]:
    """What Consul says with each read."""
    return {
        "X-Consul-Index": str(index),
        "X-Consul-KnownLeader": "true",
        "X-Consul-LastContact": "0",
        "X-Consul-Effective-Consistency": request.consistency_mode() or "leader",
    }


def encode_json(value: Any, request: HttpRequest) -> bytes:
    """JSON, indented if the question has ``?pretty``."""
    if request.has("pretty"):
        return json.dumps(value, ensure_ascii=False, indent=4).encode() + b"\n"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
