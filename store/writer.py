"""The thread that writes: what waits at a moment is committed by one fsync, each under a revision of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from store.database import Replaced, explained, identity, now, primary_code, reporting, write_lock
from store.interface import Batch, StoreError, Unavailable
from store.transaction import HISTORY_BYTES, Transaction

_GROUP_REQUESTS = 256
_GROUP_BYTES = 8 * 1024 * 1024
_QUEUE_REQUESTS = 20_000
_QUEUE_BYTES = 64 * 1024 * 1024
_CHECKPOINT_PAGES = 1000
_PAGES_A_REQUEST = 5
_PAGE = 4096

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Request:
    """``perform`` does it and returns what delivers the answer; ``fail`` delivers an error instead.

    ``soft`` is what need not outlive a power cut: whoever asked for it does not, and time starts anew after a boot.
    """

    perform: Callable[[Transaction], Callable[[], None]]
    fail: Callable[[Exception], None]
    cancelled: Callable[[], bool]
    soft: bool
    size: int


class Writer:
    """Carries out requests on one connection; answers, and the changes made, arrive in the event loop."""

    def __init__(
        self, connection: sqlite3.Connection, path: str, history: int, changed: Callable[[Sequence[Batch]], None]
    ) -> None:
        self._connection = connection
        self._path = path
        self._identity = identity(path)
        self._history = history
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._ready = threading.Condition()
        self._queue: deque[_Request] = deque()
        self._queued_bytes = 0
        self._stopping = False
        self._suspect = False
        self._outage = False
        self._pages = 0
        self._unweighed = 0
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    async def submit(self, work: Callable[[Transaction], Answer], *, soft: bool = False, size: int = 0) -> Answer:
        """Have the work done in the next commit; answers when that is on disk. Raises its errors, and Unavailable."""
        future: asyncio.Future[Answer] = self._loop.create_future()

        def perform(transaction: Transaction) -> Callable[[], None]:
            answer = work(transaction)
            return lambda: None if future.done() else future.set_result(answer)

        def fail(error: Exception) -> None:
            if not future.done():
                future.set_exception(error)

        request = _Request(perform, fail, future.cancelled, soft, size)
        with self._ready:
            if self._stopping:
                raise Unavailable(f"{self._path} has been closed", hint="open it again")
            if len(self._queue) >= _QUEUE_REQUESTS or self._queued_bytes + size > _QUEUE_BYTES:
                raise Unavailable(
                    f"{self._path}: {len(self._queue)} writes wait for the disk already", hint="try again later"
                )
            self._queue.append(request)
            self._queued_bytes += size
            self._ready.notify()
        return await future

    async def close(self) -> None:
        """Finish what waits, then close the connection."""
        with self._ready:
            self._stopping = True
            self._ready.notify()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while group := self._next_group():
            try:
                with write_lock(self._path) as lock:
                    self._commit_all(group, lock)
                    self._checkpoint_if_due()
            except Exception as error:
                if self._loop.is_closed():  # before the store was: nobody is left to answer
                    break
                self._refuse(group, error)
        # The last to close makes a checkpoint, which is a write like any other.
        with contextlib.suppress(StoreError, sqlite3.Error), write_lock(self._path):
            self._connection.close()
        self._connection.close()

    def _next_group(self) -> list[_Request]:
        """Wait for requests and take as many as go into one commit; none when there will be no more."""
        group: list[_Request] = []
        size = 0
        with self._ready:
            self._ready.wait_for(lambda: self._queue or self._stopping)
            while self._queue and len(group) < _GROUP_REQUESTS and size < _GROUP_BYTES:
                request = self._queue.popleft()
                self._queued_bytes -= request.size
                size += request.size
                group.append(request)
        return group

    def _commit_all(self, group: list[_Request], lock: int) -> None:
        """Commit a group; if it fails for what may be the fault of one of them, each for itself."""
        try:
            deliveries, batches = self._commit(group)
        except Exception as error:
            if primary_code(error) == sqlite3.SQLITE_IOERR:
                self._suspect = True
            if len(group) > 1 and (primary_code(error) == sqlite3.SQLITE_FULL or not isinstance(error, _EVERYBODYS)):
                for request in group:
                    self._commit_all([request], lock)
                return
            known = explained(self._path, error) if isinstance(error, sqlite3.Error) else error
            self._refuse(group, known)
            return
        self._deliver(deliveries, batches)
        if batches:
            # Wakes other processes. SQLite's own writes to its log cannot: they come before the commit can be seen.
            with contextlib.suppress(OSError):
                os.pwrite(lock, batches[-1].revision.to_bytes(8, "big"), 0)

    def _commit(self, group: list[_Request]) -> tuple[list[Callable[[], None]], list[Batch]]:
        """One transaction of SQLite's; after it, what delivers the answers, and the changes."""
        if identity(self._path) != self._identity:
            raise Replaced(self._path)
        if self._suspect:
            self._rewrite()
        try:
            return self._try_commit(group)
        except sqlite3.Error as error:
            if primary_code(error) != sqlite3.SQLITE_FULL:
                raise
        # What is in the log already can go into the file, whose pages exist, and make room for this.
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)")
        return self._try_commit(group)

    def _try_commit(self, group: list[_Request]) -> tuple[list[Callable[[], None]], list[Batch]]:
        clock = now()
        connection = self._connection
        soft = all(request.soft for request in group)
        if (
            soft
            and not self._outage
            and connection.execute("SELECT 1 FROM leases WHERE deadline <= ?", (clock,)).fetchone()
        ):
            soft = False
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if soft else 'FULL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            transaction = Transaction(connection, clock)
            if self._outage:
                transaction.renew_all()
            # Renewals first: they were asked for in time, however long the disk kept them waiting.
            deliveries = [_perform(request, transaction) for request in group if request.soft]
            transaction.expire()
            deliveries += [_perform(request, transaction) for request in group if not request.soft]
            transaction.finish(self._history, weigh=self._unweighed + transaction.bytes > HISTORY_BYTES // 4)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._outage = False
        self._account(len(group), transaction.bytes)
        return deliveries, transaction.batches

    def _account(self, requests: int, size: int) -> None:
        self._pages += _PAGES_A_REQUEST * requests + 2 * size // _PAGE
        self._unweighed = self._unweighed + size if self._unweighed + size <= HISTORY_BYTES // 4 else 0

    def _rewrite(self) -> None:
        """After a failed write or fsync the kernel may hold for written what is not: write all of the log anew.

        See "fsyncgate", https://wiki.postgresql.org/wiki/Fsync_Errors. Raises Unavailable while the disk fails.
        """
        with reporting(self._path):
            busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        if busy:
            raise Unavailable(f"{self._path}: the disk failed, and another program reads", hint="try again")
        self._suspect = False

    def _checkpoint_if_due(self) -> None:
        """Bring the log into the file, after the answers, and as far as no reader is in the way."""
        if self._pages < _CHECKPOINT_PAGES:
            return
        self._pages = 0
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            self._suspect |= primary_code(error) == sqlite3.SQLITE_IOERR

    def _refuse(self, group: list[_Request], error: Exception) -> None:
        """Answer with the error. Where renewals cannot be written, that is nobody's fault who asked for them: when
        they can again, all leases have their full time, as after an outage of etcd."""
        self._outage |= any(request.soft for request in group)
        self._deliver([_failure(request, error) for request in group], [])

    def _deliver(self, deliveries: list[Callable[[], None]], batches: list[Batch]) -> None:
        self._loop.call_soon_threadsafe(self._settle, deliveries, batches)

    def _settle(self, deliveries: list[Callable[[], None]], batches: list[Batch]) -> None:
        for deliver in deliveries:
            deliver()
        if batches:
            self._changed(batches)


_EVERYBODYS = (sqlite3.Error, StoreError)
"""Errors of the file and not of a request."""


def _perform(request: _Request, transaction: Transaction) -> Callable[[], None]:
    if request.cancelled():
        return lambda: None
    try:
        return request.perform(transaction)
    except StoreError as error:
        return _failure(request, error)


def _failure(request: _Request, error: Exception) -> Callable[[], None]:
    return lambda: request.fail(error)
