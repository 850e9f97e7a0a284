"""What keeps the catalog the same as the store: all of it once, then every change as it comes."""

from __future__ import annotations

import asyncio
import logging

from discovery import layout
from discovery.catalog import Catalog
from store import Compacted, Store, StoreError

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""How long to wait before a store that could not serve is asked again."""


class CatalogSync:
    """Feeds one catalog from one store."""

    def __init__(self, catalog: Catalog, store: Store) -> None:
        self._catalog = catalog
        self._store = store
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load all there is; then follow. Raises StoreError."""
        after = await self._load()
        self._task = asyncio.create_task(self._follow(after))

    async def stop(self) -> None:
        """End; the catalog stays as it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _load(self) -> int:
        found = await self._store.range(layout.ROOT)
        self._catalog.load(found.entries, found.revision)
        return found.revision

    async def _follow(self, after: int) -> None:
        while True:
            try:
                async for batch in self._store.watch(layout.ROOT, after):
                    self._catalog.apply(batch)
                    after = batch.revision
            except Compacted:
                log.info("the store's history after revision %d is gone; the catalog is loaded again", after)
            except StoreError as error:
                log.warning("the store cannot be followed: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            try:
                after = await self._load()
            except StoreError as error:
                log.warning("the store cannot be read: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
