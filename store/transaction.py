"""The writes of one commit: each request has its own revision."""

from __future__ import annotations

import operator
import secrets
import sqlite3
from collections.abc import Callable, Sequence

from store.interface import Batch, Compare, Delete, Entry, Event, LeaseGone, Operation, Outcome, Put
from store.reading import ROW_BYTES, event_bytes, prefix_end

HISTORY_BYTES = 64 * 1024 * 1024
"""The most bytes of values in the history."""

_LEASE_BITS = 53
"""What JSON readers keep exactly in a double."""

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


class Transaction:
    """The writes of one commit, in an SQLite transaction that the caller begins and ends."""

    def __init__(self, connection: sqlite3.Connection, clock: int) -> None:
        self._connection = connection
        self._clock = clock
        ((self.revision, self._compacted),) = connection.execute("SELECT revision, compacted FROM state").fetchall()
        self._before = self.revision
        self._events: list[Event] = []
        self.batches: list[Batch] = []
        self.bytes = 0

    def transact(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation]
    ) -> Outcome:
        """Apply one request. Raises LeaseGone without changing anything."""
        succeeded = all(map(self._holds, compare))
        operations = success if succeeded else failure
        for lease in {operation.lease for operation in operations if isinstance(operation, Put) and operation.lease}:
            if not self._connection.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone():
                raise LeaseGone(lease)
        deleted = 0
        for operation in operations:
            if isinstance(operation, Put):
                self._put(operation)
            else:
                deleted += self._delete(operation)
        self._close_revision()
        return Outcome(succeeded, self.revision, deleted)

    def grant(self, seconds: float) -> int:
        """Grant a lease. Its id is random: ids from a lost store are not valid in the next."""
        while True:
            lease = secrets.randbits(_LEASE_BITS) or 1
            done = self._connection.execute(
                "INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (lease, float(seconds), self._clock + int(seconds * 1e9)),
            )
            if done.rowcount:
                return lease

    def keep_alive(self, lease: int, asked: int) -> None:
        """Renew a lease that had not expired at the time of the request. Raises LeaseGone."""
        done = self._connection.execute(
            "UPDATE leases SET deadline = ? + CAST(seconds * 1e9 AS INTEGER) WHERE id = ? AND deadline > ?",
            (self._clock, lease, asked),
        )
        if not done.rowcount:
            raise LeaseGone(lease)

    def renew_all(self) -> None:
        """Give every lease its full time again."""
        self._connection.execute("UPDATE leases SET deadline = ? + CAST(seconds * 1e9 AS INTEGER)", (self._clock,))

    def revoke(self, lease: int) -> None:
        """Revoke a lease and delete its keys in one revision."""
        rows = self._connection.execute("SELECT key FROM entries WHERE lease = ? ORDER BY key", (lease,)).fetchall()
        for (key,) in rows:
            self._delete(Delete(key.decode()))
        self._connection.execute("DELETE FROM leases WHERE id = ?", (lease,))
        self._close_revision()

    def expire(self) -> None:
        """Revoke the expired leases."""
        rows = self._connection.execute(
            "SELECT id FROM leases WHERE deadline <= ? ORDER BY deadline, id", (self._clock,)
        ).fetchall()
        for (lease,) in rows:
            self.revoke(lease)

    def finish(self, history: int, *, weigh: bool) -> None:
        """Store the revision, and compact the history."""
        if self.revision == self._before:
            return
        slack = min(history // 10, 256)
        if weigh or self.revision - self._compacted > history + slack:
            self._compacted = max(self._compacted, self.revision - history, self._excess_revision() if weigh else 0)
            self._connection.execute("DELETE FROM changes WHERE revision <= ?", (self._compacted,))
        self._connection.execute("UPDATE state SET revision = ?, compacted = ?", (self.revision, self._compacted))

    def _holds(self, compare: Compare) -> bool:
        entry = self._entry(compare.key.encode(), compare.key)
        if isinstance(compare.is_, bytes):
            return entry is not None and (entry.value == compare.is_) == (compare.op == "=")
        numbers = (
            {
                "create": entry.create_revision,
                "mod": entry.mod_revision,
                "version": entry.version,
                "lease": entry.lease,
            }
            if entry
            else {}
        )
        return _COMPARE[compare.op](numbers.get(compare.field, 0), compare.is_)

    def _entry(self, data: bytes, key: str) -> Entry | None:
        row = self._connection.execute(
            "SELECT value, create_revision, mod_revision, version, lease FROM entries WHERE key = ?", (data,)
        ).fetchone()
        return Entry(key, *row) if row else None

    def _put(self, put: Put) -> None:
        data = put.key.encode()
        previous = self._entry(data, put.key)
        revision = self.revision + 1
        created, version = (previous.create_revision, previous.version + 1) if previous else (revision, 1)
        entry = Entry(put.key, put.value, created, revision, version, put.lease)
        self._connection.execute(
            "INSERT INTO entries (key, value, create_revision, mod_revision, version, lease) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value, mod_revision = excluded.mod_revision,"
            " version = excluded.version, lease = excluded.lease",
            (data, put.value, created, revision, version, put.lease),
        )
        self._events.append(Event(put.key, entry, previous, revision))

    def _delete(self, delete: Delete) -> int:
        data = delete.key.encode()
        bounds = (data, prefix_end(data) if delete.prefix else data + b"\0")
        rows = self._connection.execute(
            "DELETE FROM entries WHERE key >= ? AND key < ?"
            " RETURNING key, value, create_revision, mod_revision, version, lease",
            bounds,
        ).fetchall()
        for key, *row in sorted(rows):
            name = key.decode()
            self._events.append(Event(name, None, Entry(name, *row), self.revision + 1))
        return len(rows)

    def _close_revision(self) -> None:
        """Assign a revision to the request's changes and add them to the history."""
        events, self._events = tuple(self._events), []
        if not events:
            return
        self.revision += 1
        self._connection.executemany(
            "INSERT INTO changes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (_row(position, event) for position, event in enumerate(events)),
        )
        self.batches.append(Batch(self.revision, events))
        self.bytes += sum(event_bytes(event) for event in events)

    def _excess_revision(self) -> int:
        """The last revision to compact so that the history is within HISTORY_BYTES."""
        # In SQLite, without the GIL: the event loop goes on meanwhile.
        (revision,) = self._connection.execute(
            "SELECT max(revision) FROM (SELECT revision, sum("
            "? + length(key) + ifnull(length(value), 0) + ifnull(length(was_value), 0)"
            ") OVER (ORDER BY revision DESC, position DESC) AS total FROM changes) WHERE total > ?",
            (ROW_BYTES, HISTORY_BYTES),
        ).fetchone()
        return int(revision or 0)


def _row(position: int, event: Event) -> tuple[object, ...]:
    new, old = event.entry, event.previous
    return (
        event.revision,
        position,
        event.key.encode(),
        *((new.value, new.create_revision, new.version, new.lease) if new else (None,) * 4),
        *((old.value, old.create_revision, old.mod_revision, old.version, old.lease) if old else (None,) * 5),
    )
