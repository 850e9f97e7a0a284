"""The store of one host: a SQLite file that several processes may have open at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from store import reading, recovery
from store.database import (
    Damaged,
    Rename,
    Replaced,
    connect,
    file_id,
    last_revision,
    lock_path,
    now,
    open_file,
    refuse_irregular,
    secure_directory,
    translate_errors,
    write_lock,
)
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
    StoreError,
    Unavailable,
)
from store.limits import check_number, check_seconds, check_transaction, encoded
from store.transaction import Transaction
from store.writer import Writer

_POLL_SECONDS = 1.0
"""Polling interval for changes by other processes and expired leases, besides inotify."""
_COPY_SECONDS = 60.0
"""Between two copies of a store that changes."""
_FIRST_COPY_SECONDS = 10.0
"""Until the first copy where there is one already: a large store is not copied while its agent starts."""
_COPY_SHARE = 0.01
"""The part of the time that making copies may take, however large the store is."""

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


async def open_embedded(
    path: Path,
    *,
    history: int = 10_000,
    recover: bool = False,
    suspected: str = "",
    rename: Rename = lambda key, value: key,
) -> EmbeddedStore:
    """Open the store in a file, created with mode 0600 in a directory of mode 0700 if missing.

    ``history`` is the number of revisions kept for watches, at most 64 MiB. With ``recover`` a file
    that is damaged, missing although it was written, or older than what was confirmed is set aside,
    and what can be read of it and of its last copy makes a new one (``store.recovery``); the copy is
    renewed every minute in which there were changes. ``suspected`` is damage that was met while
    the file was open. A file of the first layout is copied to ``PATH.v1``, and its keys become what
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
    opened = recovery.open_recovering if recover else _open
    connection = await asyncio.to_thread(opened, path, rename, suspected)
    try:
        with translate_errors(str(path)):
            reader = connect(str(path))
            reader.execute("PRAGMA query_only = ON")
            revision = reading.get_state(reader).revision
    except BaseException:
        connection.close()
        raise
    return EmbeddedStore(str(path), connection, reader, revision, history, copied=recover)


def _open(path: Path, rename: Rename, suspected: str) -> sqlite3.Connection:
    secure_directory(path)
    refuse_irregular(str(path))
    with write_lock(str(path)):
        return open_file(path, check=bool(suspected), rename=rename)


class EmbeddedStore:
    """See ``Store``. One thread writes and one reads: the disk never blocks the event loop.

    ``copied``: keep a copy of it for recovery.
    """

    def __init__(
        self,
        path: str,
        connection: sqlite3.Connection,
        reader: sqlite3.Connection,
        revision: int,
        history: int,
        *,
        copied: bool = False,
    ) -> None:
        self.damage = ""
        """Damage of the file that was met while reading or writing it, "" if none was."""
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
        self._ended = asyncio.Event()
        self._copied_revision = -1
        self._copying = asyncio.create_task(self._keep_copy(), name="store-copy") if copied else None

    async def get(self, key: str) -> Entry | None:
        data = encoded(key)
        return await self._read(lambda reader: reading.get(reader, data))

    async def range(self, prefix: str, *, limit: int = 0, without: str = "", containing: str = "") -> Range:
        wanted = [encoded(one, prefix=True) for one in (prefix, without, containing)]
        check_number("limit", limit)
        return await self._read(lambda reader: reading.get_range(reader, *wanted, limit=limit))

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        return (await self.transact((), (Put(key, value, lease),))).revision

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        return (await self.transact((), (Delete(key, prefix),))).deleted

    async def transact(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> Outcome:
        check_transaction(compare, success, failure)
        size = sum(len(operation.value) for operation in (*success, *failure) if isinstance(operation, Put))
        return await self._submit(lambda writes: writes.transact(compare, success, failure), size=size)

    async def grant(self, seconds: float) -> int:
        check_seconds(seconds)
        lease = await self._submit(lambda writes: writes.grant(seconds), relaxed=True)
        self._wakeup.set()
        return lease

    async def keep_alive(self, lease: int) -> None:
        check_number("lease", lease)
        asked = now()
        await self._submit(lambda writes: writes.keep_alive(lease, asked), relaxed=True)

    async def revoke(self, lease: int) -> None:
        check_number("lease", lease)
        await self._submit(lambda writes: writes.revoke(lease))

    def watch(self, prefix: str, after: int) -> AsyncIterator[Batch]:
        encoded(prefix, prefix=True)
        check_number("after", after)
        return self._hub.watch(prefix, after)

    @property
    def lost(self) -> str:
        why = self.damage
        if not why:
            try:
                replaced = file_id(self._path) != self._identity
            except Replaced:
                replaced = True
            why = "it was removed or replaced" if replaced else ""
        return f"{self._path} is damaged: {why}" if why else ""

    async def close(self) -> None:
        if self._closing is None:
            self._hub.close()
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._maintenance.cancel()
        await asyncio.gather(self._maintenance, return_exceptions=True)
        self._ended.set()
        if self._copying is not None:
            await self._copying
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)
        await asyncio.to_thread(self._readers.shutdown)
        self._reader.close()
        await self._writer.close()

    async def _submit(self, work: Callable[[Transaction], Answer], *, relaxed: bool = False, size: int = 0) -> Answer:
        try:
            return await self._writer.submit(work, relaxed=relaxed, size=size)
        except Damaged as error:
            self.damage = error.what
            raise

    async def _read(self, function: Callable[[sqlite3.Connection], Answer]) -> Answer:
        if self._closing:
            raise Unavailable(f"{self._path} has been closed", hint="open it again")

        def read(reader: sqlite3.Connection) -> Answer:
            if file_id(self._path) != self._identity:
                raise Replaced(self._path)
            return function(reader)

        return await self._read_any(read)

    async def _read_any(self, function: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Read from the open file, even if its path leads to another one."""

        def read() -> Answer:
            with translate_errors(self._path):
                return function(self._reader)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, read)
        except Damaged as error:
            self.damage = error.what
            raise

    async def _keep_copy(self) -> None:
        """Copy the store soon after it was opened, from time to time while it changes, and when it is closed."""
        if os.path.exists(recovery.backup_path(self._path)):
            await self._ended_within(min(_FIRST_COPY_SECONDS, _COPY_SECONDS))
        while True:
            started, is_last = time.monotonic(), self._ended.is_set()
            try:
                await self._copy()
            except StoreError as error:
                log.warning("no copy of %s was made: %s", self._path, error)
            if is_last:
                return
            await self._ended_within(max(_COPY_SECONDS, (time.monotonic() - started) / _COPY_SHARE))

    async def _ended_within(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

    async def _copy(self) -> None:
        """Write the copy, if there were changes since; of a file that was deleted, too, which still is open.

        Raises Unavailable.
        """
        if self.damage or self._copied_revision == self._hub.latest:
            return
        contents = await self._read_any(recovery.read)
        await asyncio.to_thread(recovery.write_backup, self._path, contents)
        self._copied_revision = contents.revision

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
        if last_revision(self._path) != self._hub.latest:
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
                    await self._submit(lambda _: None, relaxed=True)
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
