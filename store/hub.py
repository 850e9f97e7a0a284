"""Where watches wait: one memory of the latest changes for all of them, and the file for those that are behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from store.interface import Batch, Compacted, StoreError, Unavailable
from store.reading import Page, weight

_TAIL_EVENTS = 4096
_TAIL_BYTES = 16 * 1024 * 1024
_FEW = 1000

Read = Callable[[str, int], Awaitable[Page]]


class Hub:
    """The changes after ``_start`` up to ``_end``, without a gap; ``_latest`` is the last revision heard of."""

    def __init__(self, revision: int, read: Read) -> None:
        self._read = read
        self._tail: list[Batch] = []
        self._start = self._end = self._latest = revision
        self._events = self._bytes = 0
        self._watches = 0
        self._news = asyncio.Event()
        self._closed = False
        self._error: StoreError | None = None

    @property
    def latest(self) -> int:
        return self._latest

    def offer(self, batches: Sequence[Batch]) -> None:
        """Changes that have been committed; the memory begins anew where they do not follow what is in it."""
        batches = [batch for batch in batches if batch.revision > self._end]
        if not batches:
            return
        if batches[0].revision != self._end + 1:
            self._forget(batches[0].revision - 1)
        if self._watches:
            self._tail += batches
            self._events += sum(len(batch.events) for batch in batches)
            self._bytes += sum(map(_weight, batches))
        else:
            self._forget(batches[-1].revision)
        self._end = batches[-1].revision
        self._trim()
        self.notice(self._end)

    def notice(self, revision: int) -> None:
        """The store has come to that revision; wakes the watches if it is news."""
        if revision > self._latest:
            self._latest = revision
            self._wake()

    async def fetch(self, revision: int) -> None:
        """Another process has brought the store to that revision: read what it did, once for all watches."""
        try:
            while self._watches and self._end < revision <= self._end + _FEW:
                page = await self._read("", self._end)
                self.offer(page.batches)
                if page.upto >= page.revision:
                    break
        except Compacted:
            pass  # each watch finds out for itself
        self.notice(revision)

    def fail(self, error: StoreError) -> None:
        """End all watches with an error."""
        self._error = error
        self._wake()

    def close(self) -> None:
        """End all watches."""
        self._closed = True
        self._wake()

    async def watch(self, prefix: str, after: int) -> AsyncIterator[Batch]:
        """See ``Store.watch``."""
        self._watches += 1
        try:
            cursor, checked = after, False
            while not self._closed:
                if self._error:
                    raise self._error
                news = self._news
                if checked and self._start <= cursor < self._end:
                    batches: Sequence[Batch] = self._tail[cursor - self._start :]
                    cursor = self._end
                elif not checked or cursor < self._latest:
                    page = await self._page(prefix, cursor)
                    if page is None:
                        return
                    checked = True
                    self.notice(page.upto)
                    batches, cursor = page.batches, max(cursor, page.upto)
                else:
                    await news.wait()
                    continue
                for batch in batches:
                    if part := _part(batch, prefix):
                        yield part
        finally:
            self._watches -= 1

    async def _page(self, prefix: str, cursor: int) -> Page | None:
        """The next changes from the file; None if the store was closed meanwhile."""
        try:
            return await self._read(prefix, cursor)
        except Unavailable:
            if self._closed:
                return None
            raise

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _forget(self, revision: int) -> None:
        self._tail = []
        self._start = self._end = revision
        self._events = self._bytes = 0

    def _trim(self) -> None:
        """Forget the older half when it is too much; a watch that still wants it reads the file."""
        while self._tail and (self._events > _TAIL_EVENTS or self._bytes > _TAIL_BYTES):
            gone = self._tail[: max(len(self._tail) // 2, 1)]
            del self._tail[: len(gone)]
            self._start = gone[-1].revision
            self._events -= sum(len(batch.events) for batch in gone)
            self._bytes -= sum(map(_weight, gone))


def _weight(batch: Batch) -> int:
    return sum(map(weight, batch.events))


def _part(batch: Batch, prefix: str) -> Batch | None:
    """What a watch of the prefix sees of a revision, None if nothing."""
    if not prefix:
        return batch
    events = tuple(event for event in batch.events if event.key.startswith(prefix))
    if len(events) == len(batch.events):
        return batch
    return Batch(batch.revision, events) if events else None
