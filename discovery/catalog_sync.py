"""Replicates the store into the catalog: one full read, then a watch."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from discovery import layout
from discovery.catalog import Catalog
from store import Batch, Compacted, Entry, Store, StoreError

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Delay before the next attempt after an error of the store."""


class Follower(Protocol):
    """Another copy of the catalog, which is never behind it: who reads both sees no older state there."""

    def load(self, entries: Sequence[Entry], revision: int) -> None:
        """All entries of a revision, which the catalog loads next."""

    def apply(self, batch: Batch) -> None:
        """Changes that the catalog applies next."""


class CatalogSync:
    """Keeps one catalog in sync with one store, and a copy of it."""

    def __init__(self, catalog: Catalog, store: Store, copy: Follower | None = None) -> None:
        self._catalog = catalog
        self._copy = copy
        self._store = store
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the store, then watch it. Raises StoreError."""
        after = await self._load()
        self._task = asyncio.create_task(self._follow(after))

    async def stop(self) -> None:
        """Stop watching; the catalog keeps its contents."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _load(self) -> int:
        found = await self._store.range(layout.ROOT)
        if self._copy is not None:
            self._copy.load(found.entries, found.revision)
        self._catalog.load(found.entries, found.revision)
        return found.revision

    async def _follow(self, after: int) -> None:
        while True:
            try:
                async for batch in self._store.watch(layout.ROOT, after):
                    if self._copy is not None:
                        self._copy.apply(batch)
                    self._catalog.apply(batch)
                    after = batch.revision
            except Compacted:
                log.info("revision %d is compacted; reloading the catalog", after)
            except StoreError as error:
                log.warning("watch failed, retrying: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            try:
                after = await self._load()
            except StoreError as error:
                log.warning("cannot reload the catalog, retrying: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
