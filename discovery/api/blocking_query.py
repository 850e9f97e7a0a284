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
    seen: int


class BlockingQueries:
    """Remembers answers, and parks those who wait for the next one."""

    def __init__(self, catalog: Catalog, store: Store, metrics: Metrics) -> None:
        self._catalog = catalog
        self._store = store
        self._known: OrderedDict[Hashable, CachedResponse] = OrderedDict()
        self._bytes = 0
        self.parked = 0
        metrics.gauge("weft_http_waiting", "Requests that wait for a change.", read=lambda: self.parked)

    async def serve(
        self, question: HttpRequest, key: Hashable, topics: tuple[Topic, ...], build: Callable[[], Any]
    ) -> HttpResponse:
        """The answer that ``build`` makes of the catalog (or bytes, written already), past the index asked for."""
        index, seconds = question.waiting()
        if question.consistency() == "consistent":
            await self.settle()
        clock = asyncio.get_running_loop().time
        end = clock() + seconds * (1 + random.random() / JITTER)
        while True:
            found = self._current(key, topics, question, build)
            if index == 0 or found.index > index or clock() >= end:
                return self.answer(found, question)
            await self.park(self._catalog.wait(topics, found.seen, end - clock()))

    async def park(self, waiting: Awaitable[object]) -> None:
        """Wait for something, counted as a request that does."""
        self.parked += 1
        try:
            await waiting
        finally:
            self.parked -= 1

    def _current(
        self, key: Hashable, topics: tuple[Topic, ...], question: HttpRequest, build: Callable[[], Any]
    ) -> CachedResponse:
        seen = self._catalog.changed(*topics)
        known = self._known.get(key)
        if known is not None and known.seen == seen:
            self._known.move_to_end(key)
            return known
        built = build()
        body = built if isinstance(built, bytes) else encode_json(built, question)
        return self.remember(key, body, 200, seen)

    def remember(self, key: Hashable, body: bytes, status: int, seen: int, index: int = 0) -> CachedResponse:
        """Take note of an answer that is true as of a revision; it keeps its index if it is the same as the last.

        Else ``index`` is its index, or the revision where that is 0.
        """
        known = self._known.get(key)
        if known is not None and known.seen > seen:
            return known  # a later reading overtook this one
        if known is not None:
            del self._known[key]
            self._bytes -= len(known.body)
        if known is not None and known.body == body and known.status == status:
            index = known.index
        else:
            index = max(index or seen, 1)
        found = CachedResponse(body, status, index, seen)
        self._known[key] = found
        self._bytes += len(body)
        while len(self._known) > CACHE_ENTRIES or (self._bytes > CACHE_BYTES and len(self._known) > 1):
            _, old = self._known.popitem(last=False)
            self._bytes -= len(old.body)
        return found

    def answer(self, found: CachedResponse, question: HttpRequest) -> HttpResponse:
        """An answer with the headers that every read has."""
        headers = consul_headers(found.index, question)
        return HttpResponse(found.body, found.status, headers=headers)

    async def settle(self) -> None:
        """Wait until the catalog has taken over all that the store has now. Raises StoreError."""
        revision = (await self._store.range(layout.NODES, limit=1)).revision
        await self._catalog.reached(revision, CONSISTENT_SECONDS)


def consul_headers(index: int, question: HttpRequest) -> dict[str, str]:
    """What Consul says with each read."""
    return {
        "X-Consul-Index": str(index),
        "X-Consul-KnownLeader": "true",
        "X-Consul-LastContact": "0",
        "X-Consul-Effective-Consistency": question.consistency() or "leader",
    }


def encode_json(value: Any, question: HttpRequest) -> bytes:
    """JSON, indented if the question has ``?pretty``."""
    if question.has("pretty"):
        return json.dumps(value, ensure_ascii=False, indent=4).encode() + b"\n"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
