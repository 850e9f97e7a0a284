"""Replicates the store into the catalog: one full read, then a watch."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from discovery import layout
from discovery.catalog import Catalog
from discovery.structs import CatalogEntry
from store import Batch, Compacted, Entry, Range, Store, StoreError

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Delay before the next attempt after an error of the store."""
SAVED_EVERY = 0.5
"""Seconds between two writes of what is kept, at least: what changed since is lost if store and agent end together."""


class Follower(Protocol):
    """Another copy of the catalog, which is never behind it: who reads both sees no older state there."""

    def load(self, entries: Sequence[Entry], revision: int) -> None:
        """All entries of a revision, which the catalog loads next."""

    def apply(self, batch: Batch) -> None:
        """Changes that the catalog applies next."""


class Kept(Protocol):
    """What was last known, for a start while the store does not answer. Its methods block."""

    def save(self, values: Iterable[CatalogEntry], revision: int) -> None: ...

    def read(self) -> Range | None: ...


class CatalogSync:
    """Keeps one catalog in sync with one store, and a copy of it; and ``kept`` about half a second behind.

    ``without`` is a prefix of keys that are not the catalog's, and need not be read.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        copy: Follower | None = None,
        kept: Kept | None = None,
        *,
        without: str = "",
    ) -> None:
        self._without = without
        self._catalog = catalog
        self._copy = copy
        self._store = store
        self._kept = kept
        self._saved = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.loaded = asyncio.Event()
        """Set once the catalog has what the store has, or had."""

    async def start(self) -> None:
        """Load the store, then watch it. Raises StoreError, unless ``restore`` has found something."""
        after = await self._load() if not self.loaded.is_set() else None
        self._tasks = [asyncio.create_task(self._follow(after))]
        if self._kept is not None:
            self._tasks.append(asyncio.create_task(self._keep(self._kept)))

    async def restore(self) -> bool:
        """Load what was kept, before ``start``; whether there was something."""
        found = await asyncio.to_thread(self._kept.read) if self._kept is not None else None
        if found is None:
            return False
        log.warning("services are those that were known at revision %d, until the store answers", found.revision)
        await self._set(found)
        return True

    async def stop(self) -> None:
        """Stop watching; the catalog keeps its contents."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks and self._kept is not None:
            await self._save(self._kept)
        self._tasks = []

    async def _keep(self, kept: Kept) -> None:
        """Save after changes, for at most 2 % of the time."""
        pause = SAVED_EVERY
        while True:
            await asyncio.sleep(pause)
            begun = time.monotonic()
            await self._save(kept)
            pause = max(SAVED_EVERY, 50 * (time.monotonic() - begun))

    async def _save(self, kept: Kept) -> None:
        revision = self._catalog.index
        if revision != self._saved:
            await asyncio.to_thread(kept.save, [*self._catalog.entries()], revision)
            self._saved = revision

    async def _load(self) -> int:
        found = await self._store.range(layout.ROOT, without=self._without)
        await self._set(found)
        return found.revision

    async def _set(self, found: Range) -> None:
        if self._copy is not None:
            self._copy.load(found.entries, found.revision)
        for _ in self._catalog.loading(found.entries, found.revision):
            await asyncio.sleep(0)  # the copy, in another process, is sent its entries meanwhile
        self.loaded.set()

    async def _follow(self, after: int | None) -> None:
        while True:
            try:
                if after is None:
                    after = await self._load()
                async for batch in self._store.watch(layout.ROOT, after):
                    if self._copy is not None:
                        self._copy.apply(batch)
                    self._catalog.apply(batch)
                    after = batch.revision
            except Compacted:
                log.info("revision %d is compacted; reloading the catalog", after)
            except StoreError as error:
                log.warning("the catalog is not followed, retrying: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            after = None
