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
from store.database import Replaced, connect, identity, lock_path, now, open_file, reporting
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
"""How soon another process's changes, and leases, are noticed where inotify did not tell."""

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


async def open_embedded(path: Path, *, history: int = 10_000, recover: bool = False) -> Store:
    """Open the store in that file, which is made (0600, in a folder of 0700) where missing.

    ``history`` is how many revisions watches can look back on; their values weigh 64 MiB at most. With ``recover`` a
    file that is damaged is renamed to ``PATH.damaged-1`` (-2 …), which is logged, and an empty one takes its place.

    A lease runs by the clock since boot (CLOCK_BOOTTIME), so setting the time has no effect on it; it runs on while no
    process has the store open or the host is suspended. All leases get their full time again when the store is first
    opened after a boot, and when renewals can be written again after they could not (disk full). Whichever process
    notices first that one has run out ends it.

    Raises Unavailable where the file cannot be used, with its name and what to do: links, folders that others may write
    to, other programs' databases, damage.
    """
    if history < 1:
        raise Invalid(f"a history of {history} revisions", hint="keep at least 1; the default is 10000")
    path = path.absolute()
    connection = await asyncio.to_thread(open_file, path, recover=recover)
    try:
        with reporting(str(path)):
            reader = connect(str(path))
            reader.execute("PRAGMA query_only = ON")
            revision = reading.glance(reader).revision
    except BaseException:
        connection.close()
        raise
    return EmbeddedStore(str(path), connection, reader, revision, history)


class EmbeddedStore:
    """See ``Store``. Writes go to one thread, reads to another, so that a slow disk never holds up the event loop."""

    def __init__(
        self, path: str, connection: sqlite3.Connection, reader: sqlite3.Connection, revision: int, history: int
    ) -> None:
        self._path = path
        self._identity = identity(path)
        self._reader = reader
        self._readers = ThreadPoolExecutor(1, "store-reader")
        self._hub = Hub(revision, self._changes)
        self._writer = Writer(connection, path, history, self._hub.offer)
        self._hurry = asyncio.Event()
        self._inotify = self._listen()
        self._attending = asyncio.create_task(self._attend(), name="store-attend")
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
        lease = await self._writer.submit(lambda writes: writes.grant(seconds), soft=True)
        self._hurry.set()
        return lease

    async def keep_alive(self, lease: int) -> None:
        check_number("lease", lease)
        asked = now()
        await self._writer.submit(lambda writes: writes.keep_alive(lease, asked), soft=True)

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
        self._attending.cancel()
        await asyncio.gather(self._attending, return_exceptions=True)
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
        await asyncio.to_thread(self._readers.shutdown)
        self._reader.close()
        await self._writer.close()

    async def _read(self, function: Callable[[sqlite3.Connection], Answer]) -> Answer:
        def read() -> Answer:
            if identity(self._path) != self._identity:
                raise Replaced(self._path)
            with reporting(self._path):
                return function(self._reader)

        if self._closing:
            raise Unavailable(f"{self._path} has been closed", hint="open it again")
        return await asyncio.get_running_loop().run_in_executor(self._readers, read)

    async def _changes(self, prefix: str, after: int) -> reading.Page:
        data = prefix.encode()
        return await self._read(lambda reader: reading.get_changes(reader, data, after))

    def _listen(self) -> int | None:
        """Have the kernel tell of other processes' writes; where it cannot, looking once in a while must do."""
        try:
            descriptor = open_inotify(lock_path(self._path))
        except OSError:
            return None
        asyncio.get_running_loop().add_reader(descriptor, self._told, descriptor)
        return descriptor

    def _told(self, descriptor: int) -> None:
        drain(descriptor)
        with contextlib.suppress(OSError), open(lock_path(self._path), "rb") as lock:
            if int.from_bytes(lock.read(8), "big") != self._hub.latest:
                self._hurry.set()

    async def _attend(self) -> None:
        """Look after what no caller asks for: other processes' changes, leases that run out, a file that is gone."""
        said = ""
        while True:
            pause = _POLL_SECONDS
            self._hurry.clear()
            try:
                glance = await self._read(reading.glance)
                await self._hub.fetch(glance.revision)
                if glance.deadline is not None:
                    pause = min(pause, (glance.deadline - now()) / 1e9)
                if pause <= 0:
                    await self._writer.submit(lambda _: None, soft=True)
                    continue
            except Replaced as error:
                self._hub.fail(error)
                return
            except StoreError as error:
                if self._closing:
                    return
                if str(error) != said:
                    log.warning("%s", error)
                said, pause = str(error), _POLL_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._hurry.wait()
