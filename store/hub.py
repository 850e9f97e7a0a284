"""Watches: one buffer of recent changes for all of them, and the file for those that are behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from store.interface import Batch, Compacted, StoreError, Unavailable
from store.reading import Page, event_bytes

_BUFFER_EVENTS = 4096
_BUFFER_BYTES = 16 * 1024 * 1024
_CATCH_UP_REVISIONS = 1000

ReadChanges = Callable[[str, int], Awaitable[Page]]


class Hub:
    """A buffer of the changes after ``_start`` up to ``_end``; ``_latest`` is the revision."""

    def __init__(self, revision: int, read: ReadChanges) -> None:
        self._read = read
        self._buffer: list[Batch] = []
        self._start = self._end = self._latest = revision
        self._events = self._bytes = 0
        self._watches = 0
        self._changed = asyncio.Event()
        self._closed = False
        self._error: StoreError | None = None

    @property
    def latest(self) -> int:
        return self._latest

    def publish(self, batches: Sequence[Batch]) -> None:
        """Add committed changes. The buffer restarts if they do not follow it."""
        batches = [batch for batch in batches if batch.revision > self._end]
        if not batches:
            return
        if batches[0].revision != self._end + 1:
            self._reset(batches[0].revision - 1)
        if self._watches:
            self._buffer += batches
            self._events += sum(len(batch.events) for batch in batches)
            self._bytes += sum(map(_batch_bytes, batches))
        else:
            self._reset(batches[-1].revision)
        self._end = batches[-1].revision
        self._trim()
        self.advance(self._end)

    def advance(self, revision: int) -> None:
        """Wake the watches if the revision is newer than the last known one."""
        if revision > self._latest:
            self._latest = revision
            self._wake()

    async def catch_up(self, revision: int) -> None:
        """Read another process's changes up to a revision, once for all watches."""
        try:
            while self._watches and self._end < revision <= self._end + _CATCH_UP_REVISIONS:
                page = await self._read("", self._end)
                self.publish(page.batches)
                if page.upto >= page.revision:
                    break
        except Compacted:
            pass  # each watch raises it itself
        self.advance(revision)

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
                changed = self._changed
                if checked and self._start <= cursor < self._end:
                    batches: Sequence[Batch] = self._buffer[cursor - self._start :]
                    cursor = self._end
                elif not checked or cursor < self._latest:
                    page = await self._page(prefix, cursor)
                    if page is None:
                        return
                    checked = True
                    self.advance(page.upto)
                    batches, cursor = page.batches, max(cursor, page.upto)
                else:
                    await changed.wait()
                    continue
                for batch in batches:
                    if part := _filtered(batch, prefix):
                        yield part
        finally:
            self._watches -= 1

    async def _page(self, prefix: str, cursor: int) -> Page | None:
        """The next changes from the file, None if the store is closed."""
        try:
            return await self._read(prefix, cursor)
        except Unavailable:
            if self._closed:
                return None
            raise

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _reset(self, revision: int) -> None:
        self._buffer = []
        self._start = self._end = revision
        self._events = self._bytes = 0

    def _trim(self) -> None:
        """Drop the older half of a full buffer; slower watches read the file."""
        while self._buffer and (self._events > _BUFFER_EVENTS or self._bytes > _BUFFER_BYTES):
            gone = self._buffer[: max(len(self._buffer) // 2, 1)]
            del self._buffer[: len(gone)]
            self._start = gone[-1].revision
            self._events -= sum(len(batch.events) for batch in gone)
            self._bytes -= sum(map(_batch_bytes, gone))


def _batch_bytes(batch: Batch) -> int:
    return sum(map(event_bytes, batch.events))


def _filtered(batch: Batch, prefix: str) -> Batch | None:
    """The events of a revision with a prefix, None if there are none."""
    if not prefix:
        return batch
    events = tuple(event for event in batch.events if event.key.startswith(prefix))
    if len(events) == len(batch.events):
        return batch
    return Batch(batch.revision, events) if events else None
