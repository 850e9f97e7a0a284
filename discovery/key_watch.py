"""Who waits for changes of keys of the store, and is woken by theirs alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator

from store import Batch, Compacted, Range, Store, StoreError

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class KeyWatcher:
    """Follows all keys that begin with ``root``; ``tell`` is called with each revision's changes of them."""

    def __init__(self, store: Store, root: str, on_batch: Callable[[Batch], None] = lambda batch: None) -> None:
        self._store = store
        self._root = root
        self._on_batch = on_batch
        self._keys: dict[str, set[asyncio.Event]] = {}
        self._prefixes: dict[str, set[asyncio.Event]] = {}
        self._pending_reads: dict[tuple[str, int], asyncio.Task[Range]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self, load: Callable[[], Awaitable[int]]) -> None:
        """Follow all changes after what ``load`` reads, whose revision it returns. Raises StoreError.

        It is called again where the history between was no longer kept.
        """
        self._task = asyncio.create_task(self._follow(await load(), load))

    async def stop(self) -> None:
        """End; who waits goes on waiting for nothing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @contextlib.contextmanager
    def subscribe(self, key: str, *, prefix: bool = False) -> Iterator[asyncio.Event]:
        """An event that is set by every change of the key, or of any that begins so. Listen first, then read."""
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
        """Read the store, once for all who ask for the same in the same moment: those who were woken together.

        Raises StoreError.
        """
        request = (prefix, limit)
        if request not in self._pending_reads:
            self._pending_reads[request] = asyncio.create_task(self._read(request))
        return await asyncio.shield(self._pending_reads[request])

    async def _read(self, request: tuple[str, int]) -> Range:
        await asyncio.sleep(0)
        # Who asks from now on may have been told of something that this reading does not see.
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
                return  # the store is closed
            except Compacted:
                lost = True
            except StoreError as error:
                log.warning("the store cannot be followed: %s", error)
                self._notify_all()
                await asyncio.sleep(RETRY_SECONDS)

    def _notify(self, key: str) -> None:
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
