"""Queries of the embedded store, each on one snapshot."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from store.interface import Batch, Compacted, Entry, Event, Range

_PAGE_EVENTS = 1000
_PAGE_BYTES = 4 * 1024 * 1024
_END = b"\xff"
"""Greater than every key: this byte is not in UTF-8."""

Row = tuple[int, bytes, bytes | None, int, int, int, bytes | None, int, int, int, int]
"""A row of ``get_changes``: revision, key, new entry, previous entry."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of history: all changes of a prefix up to ``upto``; the store is at ``revision``."""

    batches: tuple[Batch, ...]
    upto: int
    revision: int


@dataclass(frozen=True, slots=True)
class State:
    """The store's revision, and when the next lease expires (ns since boot), if any."""

    revision: int
    deadline: int | None


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys with a prefix."""
    return prefix[:-1] + bytes((prefix[-1] + 1,)) if prefix else _END


ROW_BYTES = 64
"""What SQLite and the numbers of a change take, about."""


def event_bytes(event: Event) -> int:
    """The size of an event in bytes: of many small values, keys and numbers are most of it."""
    values = sum(len(entry.value) for entry in (event.entry, event.previous) if entry)
    return ROW_BYTES + len(event.key) + values


def get(connection: sqlite3.Connection, key: bytes) -> Entry | None:
    row = connection.execute(
        "SELECT value, create_revision, mod_revision, version, lease FROM entries WHERE key = ?", (key,)
    ).fetchone()
    return Entry(key.decode(), *row) if row else None


def get_range(
    connection: sqlite3.Connection, prefix: bytes, without: bytes = b"", containing: bytes = b"", *, limit: int = 0
) -> Range:
    end = prefix_end(prefix)
    # Two ranges of the index: what is left out is not read.
    parts = ((prefix, max(prefix, without)), (max(prefix, prefix_end(without)), end)) if without else ((prefix, end),)
    rows: list[tuple[bytes, bytes, int, int, int, int]] = []
    with snapshot(connection):
        revision, _ = _state(connection)
        for first, last in parts:
            rows += connection.execute(
                "SELECT key, value, create_revision, mod_revision, version, lease FROM entries"
                " WHERE key >= ? AND key < ? AND instr(key, ?) ORDER BY key LIMIT ?",
                (first, min(last, end), containing, limit - len(rows) if limit else -1),
            )
    return Range(tuple(Entry(row[0].decode(), *row[1:]) for row in rows), revision)


def get_changes(connection: sqlite3.Connection, prefix: bytes, after: int) -> Page:
    """The next changes after a revision, in whole revisions. Raises Compacted."""
    with snapshot(connection):
        revision, compacted = _state(connection)
        if after < compacted:
            raise Compacted(compacted)
        rows = connection.execute(
            "SELECT revision, key, value, create_revision, version, lease,"
            " was_value, was_create, was_mod, was_version, was_lease FROM changes"
            " WHERE revision > ? AND key >= ? AND key < ? ORDER BY revision, position",
            (after, prefix, prefix_end(prefix)),
        )
        with contextlib.closing(rows):
            batches, whole = _take(rows)
    return Page(batches, revision if whole else batches[-1].revision, revision)


def get_state(connection: sqlite3.Connection) -> State:
    revision, deadline = connection.execute("SELECT revision, (SELECT min(deadline) FROM leases) FROM state").fetchone()
    return State(revision, deadline)


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Several queries of one state of the store."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def _state(connection: sqlite3.Connection) -> tuple[int, int]:
    revision, compacted = connection.execute("SELECT revision, compacted FROM state").fetchone()
    return revision, compacted


def _take(rows: Iterable[Row]) -> tuple[tuple[Batch, ...], bool]:
    """A page of batches, and whether it has all rows."""
    batches: list[Batch] = []
    count = size = 0
    for revision, members in groupby(rows, key=lambda row: row[0]):
        if count >= _PAGE_EVENTS or size >= _PAGE_BYTES:
            return tuple(batches), False
        events = tuple(_event(row) for row in members)
        batches.append(Batch(revision, events))
        count += len(events)
        size += sum(map(event_bytes, events))
    return tuple(batches), True


def _event(row: Row) -> Event:
    revision, data, value, create, version, lease, was_value, was_create, was_mod, was_version, was_lease = row
    key = data.decode()
    entry = None if value is None else Entry(key, value, create, revision, version, lease)
    previous = None if was_value is None else Entry(key, was_value, was_create, was_mod, was_version, was_lease)
    return Event(key, entry, previous, revision)
