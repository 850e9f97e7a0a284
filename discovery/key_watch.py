"""Wakes blocking queries on keys: one watch of the store, many subscribers by key and prefix."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator

from store import Batch, Compacted, Range, Store, StoreError

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class KeyWatcher:
    """Watches all keys under ``root``; ``on_batch`` is called with the changes of each revision.

    ``name_of`` returns the key that the subscribers of a key have subscribed to, "" for none.
    """

    def __init__(
        self,
        store: Store,
        root: str,
        on_batch: Callable[[Batch], None] = lambda batch: None,
        *,
        name_of: Callable[[str], str] = str,
    ) -> None:
        self._store = store
        self._root = root
        self._on_batch = on_batch
        self._name_of = name_of
        self._keys: dict[str, set[asyncio.Event]] = {}
        self._prefixes: dict[str, set[asyncio.Event]] = {}
        self._pending_reads: dict[tuple[str, int], asyncio.Task[Range]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self, load: Callable[[], Awaitable[int]]) -> None:
        """Watch changes after the revision that ``load`` returns. Raises StoreError.

        ``load`` is called again when that history has been compacted.
        """
        self._task = asyncio.create_task(self._follow(await load(), load))

    async def stop(self) -> None:
        """Stop watching; subscribers are not woken."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @contextlib.contextmanager
    def subscribe(self, key: str, *, prefix: bool = False) -> Iterator[asyncio.Event]:
        """An event set by each change of the key, or with ``prefix`` below it. Subscribe, then
        read.
        """
        event = asyncio.Event()
        subscribers = self._prefixes if prefix else self._keys
        subscribers.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            subscribers[key].discard(event)
            if not subscribers[key]:
                del subscribers[key]

    async def read(self, prefix: str, *, limit: int = 0) -> Range:
        """Read a range; concurrent identical reads share one, as after waking many subscribers.

        Raises StoreError.
        """
        request = (prefix, limit)
        if request not in self._pending_reads:
            self._pending_reads[request] = asyncio.create_task(self._read(request))
        return await asyncio.shield(self._pending_reads[request])

    async def _read(self, request: tuple[str, int]) -> Range:
        await asyncio.sleep(0)
        # Later readers may know of a change that this read does not see: they start their own.
        del self._pending_reads[request]
        return await self._store.range(request[0], limit=request[1])

    async def _follow(self, after: int, load: Callable[[], Awaitable[int]]) -> None:
        lost = False
        while True:
            try:
                if lost:
                    after, lost = await load(), False
                    self._notify_all()
                async for batch in self._store.watch(self._root, after):
                    after = batch.revision
                    self._on_batch(batch)
                    for event in batch.events:
                        self._notify(event.key)
                return  # store closed
            except Compacted:
                lost = True
            except StoreError as error:
                log.warning("watch failed, retrying: %s", error)
                self._notify_all()
                await asyncio.sleep(RETRY_SECONDS)

    def _notify(self, key: str) -> None:
        if not (key := self._name_of(key)):
            return
        for event in self._keys.get(key, ()):
            event.set()
        if self._prefixes:
            for end in range(len(self._root), len(key) + 1):
                for event in self._prefixes.get(key[:end], ()):
                    event.set()

    def _notify_all(self) -> None:
        for subscribers in (self._keys, self._prefixes):
            for events in subscribers.values():
                for event in events:
                    event.set()
