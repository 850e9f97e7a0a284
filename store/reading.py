"""What the embedded store reads: each function one snapshot of the tables."""

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
"""Greater than every key: no UTF-8 has this byte."""

Row = tuple[int, bytes, bytes | None, int, int, int, bytes | None, int, int, int, int]
"""What ``get_changes`` selects: revision and key, then the new entry, then what was before."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the history: all changes of a prefix up to ``upto``, of a store that is at ``revision``."""

    batches: tuple[Batch, ...]
    upto: int
    revision: int


@dataclass(frozen=True, slots=True)
class Glance:
    """The store's revision, and when the next lease runs out (nanoseconds since boot), if there is any."""

    revision: int
    deadline: int | None


def beyond(prefix: bytes) -> bytes:
    """The first key after all that begin so."""
    return prefix[:-1] + bytes((prefix[-1] + 1,)) if prefix else _END


def weight(event: Event) -> int:
    """The bytes of an event's values."""
    return sum(len(entry.value) for entry in (event.entry, event.previous) if entry)


def get(connection: sqlite3.Connection, key: bytes) -> Entry | None:
    row = connection.execute(
        "SELECT value, create_revision, mod_revision, version, lease FROM entries WHERE key = ?", (key,)
    ).fetchone()
    return Entry(key.decode(), *row) if row else None


def get_range(connection: sqlite3.Connection, prefix: bytes, limit: int) -> Range:
    with _snapshot(connection):
        revision, _ = _state(connection)
        rows = connection.execute(
            "SELECT key, value, create_revision, mod_revision, version, lease FROM entries"
            " WHERE key >= ? AND key < ? ORDER BY key LIMIT ?",
            (prefix, beyond(prefix), limit or -1),
        ).fetchall()
    return Range(tuple(Entry(key.decode(), *row) for key, *row in rows), revision)


def get_changes(connection: sqlite3.Connection, prefix: bytes, after: int) -> Page:
    """The next changes after a revision, whole revisions of them. Raises Compacted."""
    with _snapshot(connection):
        revision, compacted = _state(connection)
        if after < compacted:
            raise Compacted(compacted)
        rows = connection.execute(
            "SELECT revision, key, value, create_revision, version, lease,"
            " was_value, was_create, was_mod, was_version, was_lease FROM changes"
            " WHERE revision > ? AND key >= ? AND key < ? ORDER BY revision, position",
            (after, prefix, beyond(prefix)),
        )
        with contextlib.closing(rows):
            batches, whole = _take(rows)
    return Page(batches, revision if whole else batches[-1].revision, revision)


def glance(connection: sqlite3.Connection) -> Glance:
    revision, deadline = connection.execute("SELECT revision, (SELECT min(deadline) FROM leases) FROM state").fetchone()
    return Glance(revision, deadline)


@contextlib.contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("COMMIT")


def _state(connection: sqlite3.Connection) -> tuple[int, int]:
    revision, compacted = connection.execute("SELECT revision, compacted FROM state").fetchone()
    return revision, compacted


def _take(rows: Iterable[Row]) -> tuple[tuple[Batch, ...], bool]:
    """Batches of the first rows, and whether these were all."""
    batches: list[Batch] = []
    count = size = 0
    for revision, members in groupby(rows, key=lambda row: row[0]):
        if count >= _PAGE_EVENTS or size >= _PAGE_BYTES:
            return tuple(batches), False
        events = tuple(_event(row) for row in members)
        batches.append(Batch(revision, events))
        count += len(events)
        size += sum(map(weight, events))
    return tuple(batches), True


def _event(row: Row) -> Event:
    revision, data, value, create, version, lease, was_value, was_create, was_mod, was_version, was_lease = row
    key = data.decode()
    entry = None if value is None else Entry(key, value, create, revision, version, lease)
    previous = None if was_value is None else Entry(key, was_value, was_create, was_mod, was_version, was_lease)
    return Event(key, entry, previous, revision)
