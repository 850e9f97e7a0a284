"""Blocking queries: an index that changes if, and only if, the response does.

The catalog knows the revision that last changed a topic. That alone would advance the index of
``?passing`` with every check output. So the last response of each query is cached: if it is
recomputed unchanged it keeps its index, and blocked clients stay blocked. All clients of a query
share one body.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

from discovery import layout
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse
from discovery.catalog import Catalog, Topic
from discovery.metrics import Metrics
from store import Store

CACHE_ENTRIES = 4096
CACHE_BYTES = 32 * 1024 * 1024
"""Bounds of the cache; an evicted entry may wake its clients spuriously."""
CONSISTENT_SECONDS = 0.2
"""Seconds that a consistent read waits for the catalog to catch up with the store."""
JITTER = 16
"""Waits are extended by up to 1/16, as in Consul, to spread reconnects."""


@dataclass(slots=True)
class CachedResponse:
    """The last response to a query: body, index, and the revision that it was computed from.

    ``filtered``: something is missing that the caller may not see.
    """

    body: bytes
    index: int
    revision: int
    filtered: bool = False


class BlockingQueries:
    """Runs blocking queries and caches their responses."""

    def __init__(self, catalog: Catalog, store: Store, metrics: Metrics) -> None:
        self._catalog = catalog
        self._store = store
        self._cache: OrderedDict[Hashable, CachedResponse] = OrderedDict()
        self._cached_bytes = 0
        self.blocked = 0
        metrics.gauge("weft_http_waiting", "Blocking queries that wait for a change.", read=lambda: self.blocked)

    async def serve(
        self, request: HttpRequest, key: Hashable, topics: tuple[Topic, ...], build: Callable[[], object]
    ) -> HttpResponse:
        """Run a query: ``build`` computes the response (or its bytes) from the catalog.

        Blocks until the index exceeds ``?index`` or ``?wait`` has passed.
        """
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
        """Await something, counted as a blocked request."""
        self.blocked += 1
        try:
            await blocking_options
        finally:
            self.blocked -= 1

    def _current(
        self, key: Hashable, topics: tuple[Topic, ...], request: HttpRequest, build: Callable[[], object]
    ) -> CachedResponse:
        revision = self._catalog.changed(*topics)
        place = (request.acl.key, key)
        cached = self._cache.get(place)
        if cached is not None and cached.revision == revision:
            self._cache.move_to_end(place)
            request.filtered = cached.filtered
            return cached
        request.filtered = False
        built = build()
        body = built if isinstance(built, bytes) else encode_json(built, request)
        return self.cache_response(request, key, body, revision)

    def cache_response(
        self, request: HttpRequest, key: Hashable, body: bytes, revision: int, index: int = 0
    ) -> CachedResponse:
        """Cache a response computed from a revision, for callers that see the same; unchanged it keeps
        its index.

        Otherwise its index is ``index``, or the revision if that is 0.
        """
        key = (request.acl.key, key)
        cached = self._cache.get(key)
        if cached is not None and cached.revision > revision:
            request.filtered = cached.filtered
            return cached  # a concurrent, later read has been cached
        if cached is not None:
            del self._cache[key]
            self._cached_bytes -= len(cached.body)
        index = cached.index if cached is not None and cached.body == body else max(index or revision, 1)
        found = CachedResponse(body, index, revision, request.filtered)
        self._cache[key] = found
        self._cached_bytes += len(body)
        while len(self._cache) > CACHE_ENTRIES or (self._cached_bytes > CACHE_BYTES and len(self._cache) > 1):
            _, old = self._cache.popitem(last=False)
            self._cached_bytes -= len(old.body)
        return found

    def answer(self, found: CachedResponse, request: HttpRequest) -> HttpResponse:
        """A response with the headers of every read."""
        headers = consul_headers(found.index, request)
        return HttpResponse(found.body, headers=headers)

    async def wait_for_catalog(self) -> None:
        """Wait until the catalog has applied what is in the store now. Raises StoreError."""
        revision = (await self._store.range(layout.ROOT, limit=1)).revision
        await self._catalog.wait_for_revision(revision, CONSISTENT_SECONDS)


def consul_headers(index: int, request: HttpRequest) -> dict[str, str]:
    """The headers that Consul adds to reads."""
    return {
        "X-Consul-Index": str(index),
        "X-Consul-KnownLeader": "true",
        "X-Consul-LastContact": "0",
        "X-Consul-Effective-Consistency": request.consistency_mode() or "leader",
    }


def encode_json(value: object, request: HttpRequest) -> bytes:
    """Encode JSON, indented with ``?pretty``."""
    if request.has("pretty"):
        return json.dumps(value, ensure_ascii=False, indent=4).encode() + b"\n"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
