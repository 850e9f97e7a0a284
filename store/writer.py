"""The writer thread: pending requests share one fsync, each has its own revision."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from store.database import (
    Replaced,
    file_id,
    now,
    primary_code,
    translate_errors,
    unavailable,
    write_lock,
    write_revision,
)
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
    """``perform`` executes it and returns a callback with the result; ``fail`` delivers an error.

    ``relaxed`` requests (leases) need no fsync: all leases are renewed after a boot anyway.
    """

    perform: Callable[[Transaction], Callable[[], None]]
    fail: Callable[[Exception], None]
    cancelled: Callable[[], bool]
    relaxed: bool
    size: int


class Writer:
    """Executes requests on one connection; results and changes are delivered in the event loop."""

    def __init__(
        self, connection: sqlite3.Connection, path: str, history: int, changed: Callable[[Sequence[Batch]], None]
    ) -> None:
        self._connection = connection
        self._path = path
        self._identity = file_id(path)
        self._history = history
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._ready = threading.Condition()
        self._queue: deque[_Request] = deque()
        self._queued_bytes = 0
        self._stopping = False
        self._fsync_failed = False
        self._renewals_failed = False
        self._pages = 0
        self._uncounted_bytes = 0
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    async def submit(self, work: Callable[[Transaction], Answer], *, relaxed: bool = False, size: int = 0) -> Answer:
        """Execute work in the next commit; returns when that is durable.

        Raises its errors, and Unavailable.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()

        def perform(transaction: Transaction) -> Callable[[], None]:
            answer = work(transaction)
            return lambda: None if future.done() else future.set_result(answer)

        def fail(error: Exception) -> None:
            if not future.done():
                future.set_exception(error)

        request = _Request(perform, fail, future.cancelled, relaxed, size)
        with self._ready:
            if self._stopping:
                raise Unavailable(f"{self._path} has been closed", hint="open it again")
            if len(self._queue) >= _QUEUE_REQUESTS or self._queued_bytes + size > _QUEUE_BYTES:
                raise Unavailable(f"{self._path}: {len(self._queue)} writes are pending", hint="try again later")
            self._queue.append(request)
            self._queued_bytes += size
            self._ready.notify()
        return await future

    async def close(self) -> None:
        """Finish pending requests, then close the connection."""
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
                if self._loop.is_closed():  # closed before the store
                    break
                self._refuse(group, error)
        # Closing the last connection makes a checkpoint, which is a write.
        with contextlib.suppress(StoreError, sqlite3.Error), write_lock(self._path):
            self._connection.close()
        self._connection.close()

    def _next_group(self) -> list[_Request]:
        """Wait for requests, and dequeue those for one commit; none after ``close``."""
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
        """Commit a group; if one request may be the cause of an error, commit each by itself."""
        try:
            deliveries, batches = self._commit(group)
        except Exception as error:
            if primary_code(error) == sqlite3.SQLITE_IOERR:
                self._fsync_failed = True
            if len(group) > 1 and (
                primary_code(error) == sqlite3.SQLITE_FULL or not isinstance(error, _NOT_OF_A_REQUEST)
            ):
                for request in group:
                    self._commit_all([request], lock)
                return
            known = unavailable(self._path, error) if isinstance(error, sqlite3.Error) else error
            self._refuse(group, known)
            return
        self._deliver(deliveries, batches)
        if batches:
            write_revision(lock, batches[-1].revision)

    def _commit(self, group: list[_Request]) -> tuple[list[Callable[[], None]], list[Batch]]:
        """One SQLite transaction; returns callbacks that deliver the results, and the changes."""
        if file_id(self._path) != self._identity:
            raise Replaced(self._path)
        if self._fsync_failed:
            self._rewrite()
        try:
            return self._try_commit(group)
        except sqlite3.Error as error:
            if primary_code(error) != sqlite3.SQLITE_FULL:
                raise
        # A checkpoint writes to pages of the file that exist, and frees space in the WAL.
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)")
        return self._try_commit(group)

    def _try_commit(self, group: list[_Request]) -> tuple[list[Callable[[], None]], list[Batch]]:
        clock = now()
        connection = self._connection
        relaxed = all(request.relaxed for request in group)
        if (
            relaxed
            and not self._renewals_failed
            and connection.execute("SELECT 1 FROM leases WHERE deadline <= ?", (clock,)).fetchone()
        ):
            relaxed = False
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if relaxed else 'FULL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            transaction = Transaction(connection, clock)
            if self._renewals_failed:
                transaction.renew_all()
            # Renewals before expiry: they were requested in time, however long the disk took.
            deliveries = [_perform(request, transaction) for request in group if request.relaxed]
            transaction.expire()
            deliveries += [_perform(request, transaction) for request in group if not request.relaxed]
            transaction.finish(self._history, weigh=self._uncounted_bytes + transaction.bytes > HISTORY_BYTES // 4)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._renewals_failed = False
        self._account(len(group), transaction.bytes)
        return deliveries, transaction.batches

    def _account(self, requests: int, size: int) -> None:
        self._pages += _PAGES_A_REQUEST * requests + 2 * size // _PAGE
        self._uncounted_bytes = (
            self._uncounted_bytes + size if self._uncounted_bytes + size <= HISTORY_BYTES // 4 else 0
        )

    def _rewrite(self) -> None:
        """Checkpoint the WAL after a failed fsync, when unwritten pages may count as clean.

        Source: "fsyncgate", https://wiki.postgresql.org/wiki/Fsync_Errors. Raises Unavailable.
        """
        with translate_errors(self._path):
            busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        if busy:
            raise Unavailable(f"{self._path}: the disk failed, and a reader blocks recovery", hint="try again")
        self._fsync_failed = False

    def _checkpoint_if_due(self) -> None:
        """Checkpoint the WAL after results were delivered, as far as readers allow."""
        if self._pages < _CHECKPOINT_PAGES:
            return
        self._pages = 0
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            self._fsync_failed |= primary_code(error) == sqlite3.SQLITE_IOERR

    def _refuse(self, group: list[_Request], error: Exception) -> None:
        """Deliver an error.

        If renewals failed, all leases are renewed once writes succeed, as in etcd after a
        change of leader.
        """
        self._renewals_failed |= any(request.relaxed for request in group)
        self._deliver([_failure(request, error) for request in group], [])

    def _deliver(self, deliveries: list[Callable[[], None]], batches: list[Batch]) -> None:
        self._loop.call_soon_threadsafe(self._settle, deliveries, batches)

    def _settle(self, deliveries: list[Callable[[], None]], batches: list[Batch]) -> None:
        for deliver in deliveries:
            deliver()
        if batches:
            self._changed(batches)


_NOT_OF_A_REQUEST = (sqlite3.Error, StoreError)
"""Errors of the file, not of a request."""


def _perform(request: _Request, transaction: Transaction) -> Callable[[], None]:
    if request.cancelled():
        return lambda: None
    try:
        return request.perform(transaction)
    except StoreError as error:
        return _failure(request, error)


def _failure(request: _Request, error: Exception) -> Callable[[], None]:
    return lambda: request.fail(error)
