"""Recovery of the embedded store's file: its copy, and what can still be read of a damaged one.

A damaged file is never changed or deleted: it is renamed to ``PATH.damaged-1`` (-2 …), and a new one
is built from what can be read of it and from the last copy (``PATH.backup``). A report beside it,
``PATH.damaged-1.txt``, says what happened until the operator removes it.

The new file continues with the last revision that was confirmed, and its history is compacted, as
with ``etcdutl snapshot restore --bump-revision --mark-compacted``: watchers list everything again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from store import database
from store.database import Damaged, Rename, last_revision, refused_files, translate_errors, write_lock
from store.reading import snapshot
from weft import files, locks

_PAGE = 4096
_SLACK = 1 << 20
"""By how much a revision in a row may exceed the last known one: the lock file is written without fsync."""

Row = tuple[bytes, int, int, int, int]
"""An entry: value, create_revision, mod_revision, version, lease."""
_ENTRY = "SELECT id, key, value, create_revision, mod_revision, version, lease FROM entries"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a store has at a revision, without its history. ``whole``: nothing of it was unreadable."""

    revision: int
    entries: dict[bytes, Row]
    leases: dict[int, float]
    whole: bool = True
    schema: int = database.SCHEMA


@dataclass(frozen=True, slots=True)
class Damage:
    """What a report says: what happened, and what is left to do."""

    what: str
    remedy: str


def backup_path(path: str) -> str:
    """The copy of the store, a database without history."""
    return f"{path}.backup"


def reports(path: str) -> list[Damage]:
    """The reports beside the store's file that the operator has not removed yet."""
    folder, name = os.path.split(path)
    found = []
    with contextlib.suppress(OSError):
        for one in sorted(os.listdir(folder)):
            if one.startswith(f"{name}.damaged-") and one.endswith(".txt"):
                what, _, remedy = (
                    files.read(os.path.join(folder, one), 1 << 16).decode(errors="replace").partition("\n")
                )
                found.append(Damage(what, remedy.strip()))
    return found


def open_recovering(path: Path, rename: Rename, suspected: str = "") -> sqlite3.Connection:
    """Open the file as ``open_file`` does; one that is damaged, missing or outdated is built anew.

    ``suspected``: damage that a process has met while it had the file open.
    """
    name = str(path)
    with refused_files(name):
        database.secure_directory(path)
        for one in database.irregular(name, (".lock", ".turn", ".backup")):
            log.warning("%s is no regular file with one link; renamed to %s", one, _rename(one, one))
        with write_lock(name) as lock:
            last = last_revision(name)
            try:
                return _open_intact(path, rename, suspected, max(last, _backup_revision(name)))
            except Damaged as damage:
                backup = read_backup(name)
                if backup is None:  # what the copy says about itself may be all the damage
                    with contextlib.suppress(Damaged):
                        return _open_intact(path, rename, suspected, last)
                revision = _recover(name, damage, backup, max(last, backup.revision if backup else 0))
                database.write_revision(lock, revision)
            return database.open_file(path, check=False, rename=rename)


def _open_intact(path: Path, rename: Rename, suspected: str, expected: int) -> sqlite3.Connection:
    """Open the file, which has this revision or a later one. Raises Damaged."""
    name = str(path)
    if suspected:
        raise Damaged(name, suspected)
    if found := database.irregular(name, ("", "-wal", "-shm")):
        raise Damaged(name, f"{found[0]} is no regular file with one link")
    with _kept_wal(name):
        return database.open_file(path, check=True, expected=expected, rename=rename)


@contextlib.contextmanager
def _kept_wal(path: str) -> Iterator[None]:
    """Put the WAL back if the file turns out to be damaged: SQLite deletes it with its last connection,
    also what is behind a damaged frame.
    """
    wal, kept = f"{path}-wal", f"{path}-wal.kept"
    with contextlib.suppress(FileNotFoundError):
        shutil.copyfile(wal, kept)
    try:
        yield
    except Damaged:
        with contextlib.suppress(FileNotFoundError):
            os.replace(kept, wal)
        raise
    with contextlib.suppress(FileNotFoundError):
        os.unlink(kept)


def read(connection: sqlite3.Connection) -> Contents:
    """All of an open store, in one snapshot. Raises sqlite3.Error if it is damaged."""
    with snapshot(connection):
        ((revision, schema),) = connection.execute(
            "SELECT revision, user_version FROM state, pragma_user_version"
        ).fetchall()
        entries = {key: row for _, key, *row in connection.execute(_ENTRY)}
        leases = dict(connection.execute("SELECT id, seconds FROM leases").fetchall())
    return Contents(revision, {key: (a, b, c, d, e) for key, (a, b, c, d, e) in entries.items()}, leases, True, schema)


def read_backup(path: str) -> Contents | None:
    """The copy, None if there is none that is intact."""
    try:
        with _backup(path) as connection:
            [(verdict,), *_] = connection.execute("PRAGMA integrity_check(1)").fetchall()
            return read(connection) if verdict == "ok" else None
    except (FileNotFoundError, sqlite3.Error, ValueError):
        return None


def _backup_revision(path: str) -> int:
    """The revision of the copy, which is not checked: that takes longer than to open a large store."""
    try:
        with _backup(path) as connection:
            ((revision,),) = connection.execute("SELECT revision FROM state").fetchall()
    except (FileNotFoundError, sqlite3.Error, ValueError):
        return 0
    return revision if isinstance(revision, int) else 0


def _backup(path: str) -> contextlib.closing[sqlite3.Connection]:
    """A connection to the copy. Raises FileNotFoundError, sqlite3.Error."""
    name = backup_path(path)
    if not os.path.isfile(name) or database.irregular(name, ("",)):
        raise FileNotFoundError(name)
    return contextlib.closing(sqlite3.connect(f"file:{name}?mode=ro", uri=True, isolation_level=None))


def write_backup(path: str, contents: Contents) -> None:
    """Replace the copy atomically. Raises Unavailable."""
    with refused_files(path), translate_errors(backup_path(path)):
        _build(backup_path(path), contents)


def _recover(path: str, damage: Damaged, backup: Contents | None, expected: int) -> int:
    """Build a new file and report it; returns its revision.

    The copy is replaced first, with everything that was found: a kill at any point loses nothing.
    """
    found = _salvage(path, expected)
    contents = _merged(found, backup)
    sources = _sources(contents, found, backup, expected)
    contents = Contents(max(expected, contents.revision), contents.entries, contents.leases, schema=contents.schema)
    with translate_errors(path):
        _build(backup_path(path), contents)
        aside = _set_aside(path)
        _build(path, contents)
    kept = [name for name in (aside, f"{aside}-wal") if os.path.lexists(name)]
    stored = f"what was there is kept as {kept[0]}" if kept else "nothing was left of it"
    what = f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}: {path} was damaged: {damage.what}; {stored}; {sources}"
    remedy = (
        "check the services that were registered by hand and the keys, then remove the report: "
        f"rm -r {' '.join([*kept, f'{aside}.txt'])}"
    )
    Path(f"{aside}.txt").write_text(f"{what}\n{remedy}\n", encoding="utf-8")
    log.warning("%s; %s", what, remedy)
    return contents.revision


def _sources(contents: Contents, found: Contents, backup: Contents | None, expected: int) -> str:
    count = len(contents.entries)
    if found.whole and contents is found:
        lost = "none is lost" if found.revision >= expected else f"changes after revision {found.revision} are lost"
        return f"all {count} keys were read from it, {lost}"
    if backup is None:
        return (
            f"{count} keys could be read, the rest is lost: there was no copy" if count else "there was no copy of it"
        )
    if contents is backup:
        lost = "none is lost" if backup.revision >= expected else f"changes after revision {backup.revision} are lost"
        return f"{count} keys were restored from the copy, {lost}"
    return (
        f"{count} keys were restored, {len(found.entries)} from it and the rest from the copy of revision "
        f"{backup.revision}; later changes may be lost (the last revision was {expected})"
    )


def _merged(found: Contents, backup: Contents | None) -> Contents:
    """The newest entries; keys whose lease is lost end with it."""
    if backup is None or (found.whole and found.revision >= backup.revision):
        return found
    if found.whole or not found.entries:
        return backup
    entries = dict(backup.entries)
    for key, row in found.entries.items():
        if key not in entries or row[2] >= entries[key][2]:
            entries[key] = row
    leases = backup.leases | found.leases
    held = {key: row for key, row in entries.items() if not row[4] or row[4] in leases}
    return Contents(max(found.revision, backup.revision), held, leases, False, backup.schema)


def _salvage(path: str, expected: int) -> Contents:
    """What can be read of a damaged file, in a copy of it.

    SQLite reads nothing where the first page is damaged, or the file shorter than that page says. The
    tables' roots are where they are in every store, so the first page of an empty one takes its place.
    """
    best = Contents(0, {}, {}, False)
    if database.irregular(path, ("",)) or not os.path.exists(path):
        return best
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        for number, page in enumerate((b"", _first_page(f"{folder}/empty.db"))):
            copy = f"{folder}/{number}.db"
            for suffix in ("", "-wal"):
                if os.path.isfile(f"{path}{suffix}") and not database.irregular(path, (suffix,)):
                    shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
            with open(copy, "r+b") as file:
                file.write(page)
                if file.seek(0, os.SEEK_END) < _PAGE:  # SQLite deletes the WAL of an empty file
                    file.truncate(_PAGE)
            found = _readable(copy, expected)
            if found.whole:
                return found
            best = max(best, found, key=lambda one: len(one.entries))
    return best


def _first_page(path: str) -> bytes:
    """The first page of an empty store, whose length it does not tell."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        database.create_tables(connection, "WAL")
    with open(path, "rb") as file:
        page = file.read(_PAGE)
    return page[:28] + bytes(4) + page[32:]  # offset 28: the number of pages


def _readable(path: str, expected: int) -> Contents:
    """What can be read of a file that may be damaged anywhere."""
    revision, schema, whole = 0, database.SCHEMA, True
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            try:
                ((revision, schema),) = connection.execute(
                    "SELECT revision, user_version FROM state, pragma_user_version"
                ).fetchall()
            except (sqlite3.Error, ValueError):
                whole = False
            rows, all_rows = _rows(connection, f"{_ENTRY} WHERE id >= ? ORDER BY id")
            leases, all_leases = _rows(connection, "SELECT id, seconds FROM leases WHERE id >= ? ORDER BY id")
    except sqlite3.Error:
        return Contents(0, {}, {}, False)
    if not isinstance(revision, int) or not 0 <= revision <= database.MOST_REVISIONS:
        revision, whole = 0, False
    most = max(revision, expected) + _SLACK
    entries = dict(entry for row in rows if (entry := _entry(row, most)))
    times = {one: time for one, time in leases if isinstance(one, int) and isinstance(time, float) and time > 0}
    whole = whole and all_rows and all_leases and len(entries) == len(rows) and len(times) == len(leases)
    last = max([revision, *(row[2] for row in entries.values())])
    return Contents(last, entries, times, whole, schema if schema == 1 else database.SCHEMA)


def _rows(connection: sqlite3.Connection, query: str) -> tuple[list[tuple[object, ...]], bool]:
    """All rows that can be read, by their ids, and whether these are all.

    After an error it goes on behind the page that cannot be read: at ever greater ids, so at most as
    many again are skipped as were on that page.
    """
    rows: list[tuple[object, ...]] = []
    start, step, whole = 0, 1, True
    while start < 1 << 62:
        try:
            for row in connection.execute(query, (start,)):
                if row[0] < start:
                    raise sqlite3.DatabaseError("ids are out of order")
                rows.append(row)
                start, step = row[0] + 1, 1
            break
        except (sqlite3.Error, TypeError):
            whole = False
            start, step = start + step, step * 2
    return rows, whole


def _entry(row: Sequence[object], most: int) -> tuple[bytes, Row] | None:
    """The entry of a row, None if it cannot have been written."""
    match row:
        case (_, bytes(key), bytes(value), int(create), int(modified), int(version), int(lease)):
            if _is_text(key) and 0 < create <= modified <= most and version > 0 and lease >= 0:
                return key, (value, create, modified, version, lease)
    return None


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True


def _build(path: str, contents: Contents) -> None:
    """Write a database with the contents, and rename it to the path once it is durable."""
    new = f"{path}.new"
    with locks.hold(new), contextlib.closing(sqlite3.connect(new, isolation_level=None)) as target:
        os.truncate(new, 0)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{new}-journal")
        database.create_tables(target, "DELETE", contents.schema)
        target.execute("BEGIN")
        target.executemany(
            "INSERT INTO entries (key, value, create_revision, mod_revision, version, lease) VALUES (?, ?, ?, ?, ?, ?)",
            ((key, *row) for key, row in contents.entries.items()),
        )
        # Deadlines are set at the first open of a boot, and this boot is not known to the new file.
        target.executemany("INSERT INTO leases VALUES (?, ?, 0)", contents.leases.items())
        target.execute("UPDATE state SET revision = ?, compacted = ?", (contents.revision, contents.revision))
        target.execute("COMMIT")
        os.rename(new, path)
    database.sync_directory(Path(path).parent)


def _set_aside(path: str) -> str:
    """Rename the file and its WAL to an unused name; returns it."""
    number = 1
    while any(os.path.lexists(f"{path}.damaged-{number}{suffix}") for suffix in ("", "-wal", ".txt")):
        number += 1
    aside = f"{path}.damaged-{number}"
    for suffix in ("-wal", ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{aside}{suffix}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}-shm") if not os.path.isdir(f"{path}-shm") else os.rename(f"{path}-shm", f"{aside}-shm")
    return aside


def _rename(name: str, stem: str) -> str:
    """Rename what is in a file's place to an unused name."""
    aside = f"{stem}.damaged-{time.time_ns()}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(name, aside)
    return aside
