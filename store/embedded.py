"""The store of one host: a SQLite file that several processes may have open at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from store import reading
from store.database import Rename, Replaced, connect, file_id, lock_path, now, open_file, translate_errors
from store.hub import Hub
from store.inotify import drain, open_inotify
from store.interface import (
    Batch,
    Compare,
    Delete,
    Entry,
    Invalid,
    Operation,
    Outcome,
    Put,
    Range,
    Store,
    StoreError,
    Unavailable,
)
from store.limits import check_number, check_seconds, check_transaction, encoded
from store.writer import Writer

_POLL_SECONDS = 1.0
"""Polling interval for changes by other processes and expired leases, besides inotify."""

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


async def open_embedded(
    path: Path, *, history: int = 10_000, recover: bool = False, rename: Rename = lambda key, value: key
) -> Store:
    """Open the store in a file, created with mode 0600 in a directory of mode 0700 if missing.

    ``history`` is the number of revisions kept for watches, at most 64 MiB. With
    ``recover`` a damaged file is renamed to ``PATH.damaged-1`` (-2 …), logged, and replaced by an
    empty store. A file of the first layout is copied to ``PATH.v1``, and its keys become what
    ``rename`` returns for each key and value.

    Leases run on CLOCK_BOOTTIME, also while no process has the store open and during suspend;
    setting the clock does not affect them. All leases are renewed at the first open after a boot,
    and when writes succeed again after renewals failed (disk full). An expired lease is revoked by
    the first process that notices.

    Raises Unavailable, with the file and a hint, if it cannot be used: symlinks, directories that
    other users may write to, databases of other programs, damage.
    """
    if history < 1:
        raise Invalid(f"a history of {history} revisions", hint="keep at least 1; the default is 10000")
    path = path.absolute()
    connection = await asyncio.to_thread(open_file, path, recover=recover, rename=rename)
    try:
        with translate_errors(str(path)):
            reader = connect(str(path))
            reader.execute("PRAGMA query_only = ON")
            revision = reading.get_state(reader).revision
    except BaseException:
        connection.close()
        raise
    return EmbeddedStore(str(path), connection, reader, revision, history)


class EmbeddedStore:
    """See ``Store``. One thread writes and one reads: the disk never blocks the event loop."""

    def __init__(
        self, path: str, connection: sqlite3.Connection, reader: sqlite3.Connection, revision: int, history: int
    ) -> None:
        self._path = path
        self._identity = file_id(path)
        self._reader = reader
        self._readers = ThreadPoolExecutor(1, "store-reader")
        self._hub = Hub(revision, self._changes)
        self._writer = Writer(connection, path, history, self._hub.publish)
        self._wakeup = asyncio.Event()
        self._inotify = self._watch_lock_file()
        self._maintenance = asyncio.create_task(self._maintain(), name="store-maintain")
        self._closing: asyncio.Task[None] | None = None

    async def get(self, key: str) -> Entry | None:
        data = encoded(key)
        return await self._read(lambda reader: reading.get(reader, data))

    async def range(self, prefix: str, *, limit: int = 0) -> Range:
        data = encoded(prefix, prefix=True)
        check_number("limit", limit)
        return await self._read(lambda reader: reading.get_range(reader, data, limit))

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        return (await self.transact((), (Put(key, value, lease),))).revision

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        return (await self.transact((), (Delete(key, prefix),))).deleted

    async def transact(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> Outcome:
        check_transaction(compare, success, failure)
        size = sum(len(operation.value) for operation in (*success, *failure) if isinstance(operation, Put))
        return await self._writer.submit(lambda writes: writes.transact(compare, success, failure), size=size)

    async def grant(self, seconds: float) -> int:
        check_seconds(seconds)
        lease = await self._writer.submit(lambda writes: writes.grant(seconds), relaxed=True)
        self._wakeup.set()
        return lease

    async def keep_alive(self, lease: int) -> None:
        check_number("lease", lease)
        asked = now()
        await self._writer.submit(lambda writes: writes.keep_alive(lease, asked), relaxed=True)

    async def revoke(self, lease: int) -> None:
        check_number("lease", lease)
        await self._writer.submit(lambda writes: writes.revoke(lease))

    def watch(self, prefix: str, after: int) -> AsyncIterator[Batch]:
        encoded(prefix, prefix=True)
        check_number("after", after)
        return self._hub.watch(prefix, after)

    async def close(self) -> None:
        if self._closing is None:
            self._hub.close()
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._maintenance.cancel()
        await asyncio.gather(self._maintenance, return_exceptions=True)
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
        await asyncio.to_thread(self._readers.shutdown)
        self._reader.close()
        await self._writer.close()

    async def _read(self, function: Callable[[sqlite3.Connection], Answer]) -> Answer:
        def read() -> Answer:
            if file_id(self._path) != self._identity:
                raise Replaced(self._path)
            with translate_errors(self._path):
                return function(self._reader)

        if self._closing:
            raise Unavailable(f"{self._path} has been closed", hint="open it again")
        return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    async def _changes(self, prefix: str, after: int) -> reading.Page:
        data = prefix.encode()
        return await self._read(lambda reader: reading.get_changes(reader, data, after))

    def _watch_lock_file(self) -> int | None:
        """Watch for other processes' commits with inotify; None if unavailable."""
        try:
            descriptor = open_inotify(lock_path(self._path))
        except OSError:
            return None
        asyncio.get_running_loop().add_reader(descriptor, self._on_inotify, descriptor)
        return descriptor

    def _on_inotify(self, descriptor: int) -> None:
        drain(descriptor)
        with contextlib.suppress(OSError), open(lock_path(self._path), "rb") as lock:
            if int.from_bytes(lock.read(8), "big") != self._hub.latest:
                self._wakeup.set()

    async def _maintain(self) -> None:
        """Follow other processes' commits, revoke expired leases, and notice a replaced file."""
        logged = ""
        while True:
            pause = _POLL_SECONDS
            self._wakeup.clear()
            try:
                state = await self._read(reading.get_state)
                await self._hub.catch_up(state.revision)
                if state.deadline is not None:
                    pause = min(pause, (state.deadline - now()) / 1e9)
                if pause <= 0:
                    await self._writer.submit(lambda _: None, relaxed=True)
                    continue
            except Replaced as error:
                self._hub.fail(error)
                return
            except StoreError as error:
                if self._closing:
                    return
                if str(error) != logged:
                    log.warning("%s", error)
                logged, pause = str(error), _POLL_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wakeup.wait()
