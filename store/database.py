"""The embedded store's database file: opening, permissions, schema, recovery, and error messages.

SQLite in WAL mode, for its crash recovery, snapshots for readers and access from several processes.

All writes and checkpoints are serialised by a lock file (``write_lock``). It is fair among
processes, which SQLite's own lock is not, and it avoids a bug of concurrent writes and checkpoints
in SQLite before 3.51.3 (https://www.sqlite.org/wal.html#walresetbug).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from store.interface import StoreError, Unavailable
from weft import files, locks
from weft.errors import WeftError

_APPLICATION = 0x77656674
SCHEMA = 2
"""1 until keys were renamed (``Rename``); the tables are the same."""
MOST_REVISIONS = 1 << 53
"""What JSON's numbers can count; a greater one in a file is damage."""
SUFFIXES = ("", "-wal", "-shm", ".lock", ".turn")
"""The store's files, by what follows the path."""
_BUSY_SECONDS = 5.0
_BOOT_ID = "/proc/sys/kernel/random/boot_id"

_TABLES = """
CREATE TABLE state (revision INTEGER NOT NULL, compacted INTEGER NOT NULL, boot TEXT NOT NULL);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL, create_revision INTEGER NOT NULL,
    mod_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL
);
CREATE INDEX leased ON entries (lease) WHERE lease != 0;
CREATE TABLE leases (id INTEGER PRIMARY KEY, seconds REAL NOT NULL, deadline INTEGER NOT NULL);
CREATE INDEX deadlines ON leases (deadline);
CREATE TABLE changes (
    revision INTEGER, position INTEGER, key BLOB NOT NULL,
    value BLOB, create_revision INTEGER, version INTEGER, lease INTEGER,
    was_value BLOB, was_create INTEGER, was_mod INTEGER, was_version INTEGER, was_lease INTEGER,
    PRIMARY KEY (revision, position)
) WITHOUT ROWID;
INSERT INTO state VALUES (0, 0, '');
"""

_COLUMNS = (
    "SELECT revision, compacted, boot FROM state",
    "SELECT key, value, create_revision, mod_revision, version, lease FROM entries LIMIT 1",
    "SELECT id, seconds, deadline FROM leases LIMIT 1",
    "SELECT revision, position, key, value, was_value FROM changes LIMIT 1",
)

_REMEDIES = {
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space; the failed request changed nothing"),
    sqlite3.SQLITE_IOERR: ("disk I/O error", "check dmesg and the disk"),
    sqlite3.SQLITE_READONLY: ("it is read-only", "check its mode and whether the filesystem is mounted read-only"),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "check its mode and that of its directory"),
    sqlite3.SQLITE_BUSY: ("it is locked by another program", "stop that program (fuser shows it), then try again"),
    sqlite3.SQLITE_PERM: ("permission denied", "check its owner and mode"),
}
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

log = logging.getLogger(__name__)

Rename = Callable[[str, bytes], str]
"""The key in today's layout of an entry of the first one (schema 1), by its key and value."""


class Damaged(Unavailable):
    """The file is not a database, or it is corrupt."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(
            f"{path} is damaged: {what}",
            hint=f"restore a backup, or remove {path}* to start with an empty store (weft restores it with recover)",
        )
        self.what = what


class Replaced(Unavailable):
    """The path leads to another file than the open one: writes would be lost."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} was removed or replaced while it was open", hint="restart to use the new file")


def now() -> int:
    """CLOCK_BOOTTIME in nanoseconds: includes suspend, cannot be set, the same in all processes."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@contextlib.contextmanager
def translate_errors(path: str) -> Iterator[None]:
    """Raise SQLite's errors as Unavailable, with the file and a hint."""
    try:
        yield
    except sqlite3.Error as error:
        raise unavailable(path, error) from error


def primary_code(error: BaseException) -> int:
    """SQLite's primary result code of an error, 0 if it is not from SQLite."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF if isinstance(code, int) else 0


@contextlib.contextmanager
def write_lock(path: str) -> Iterator[int]:
    """Serialise writers across processes and threads; yields the lock file's descriptor.

    A second lock, ``.turn``, is a queue: whoever has just written waits behind the others. Raises
    Unavailable after 30 s.
    """
    with refused_files(path), contextlib.ExitStack() as held:
        with locks.hold(f"{path}.turn"):
            descriptor = held.enter_context(locks.hold(lock_path(path)))
        yield descriptor


def lock_path(path: str) -> str:
    """The lock file.

    It has the last revision, and inotify on it reports commits to other processes.
    """
    return f"{path}.lock"


def file_id(path: str) -> tuple[int, int]:
    """The file's device and inode. Raises Replaced if it does not exist."""
    try:
        status = os.lstat(path)
    except OSError as error:
        raise Replaced(path) from error
    return status.st_dev, status.st_ino


def open_file(
    path: Path, *, check: bool, expected: int = 0, rename: Rename = lambda key, value: key
) -> sqlite3.Connection:
    """Create the file if missing, rename the keys of an older one, and connect for writing.

    ``check``: check its integrity, whether or not the host has booted since. ``expected``: a revision
    that it had, besides the one in the lock file. The caller holds ``write_lock``. Raises Damaged, also
    where the file is empty or of an earlier revision, and Unavailable; see ``open_embedded``.
    """
    name = str(path)
    expected = max(expected, last_revision(name))
    with refused_files(name):
        if expected and not os.path.lexists(name):
            raise Damaged(name, f"it is missing, and revision {expected} was confirmed")
        _create(path)
        return _prepare(name, rename, check=check, expected=expected)


@contextlib.contextmanager
def refused_files(name: str) -> Iterator[None]:
    """Raise errors of files and of locks as Unavailable."""
    try:
        yield
    except StoreError:
        raise
    except WeftError as error:
        raise Unavailable(error.message, hint=error.hint) from error
    except OSError as error:
        raise Unavailable(
            f"{name}: {error.strerror}", hint="check the directory's owner, mode and free space"
        ) from error


def last_revision(path: str) -> int:
    """The last revision that a process wrote, 0 where the lock file does not tell.

    It is there twice, so that a damaged number is none; earlier releases wrote it once.
    """
    try:
        content = files.read(lock_path(path), 16)
    except OSError:
        return 0
    number = int.from_bytes(content[:8], "big")
    return number if content[8:] in (b"", content[:8]) and number <= MOST_REVISIONS else 0


def write_revision(lock: int, revision: int) -> None:
    """Write the last revision, which inotify reports to other processes.

    The WAL is no signal: it is written before the commit is visible.
    """
    with contextlib.suppress(OSError):
        os.pwrite(lock, revision.to_bytes(8, "big") * 2, 0)


def connect(path: str) -> sqlite3.Connection:
    """A connection to the file. The caller must not use it in two threads at once."""
    with translate_errors(path):
        connection = sqlite3.connect(
            path, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False, cached_statements=64
        )
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def unavailable(path: str, error: sqlite3.Error) -> Unavailable:
    """An error of SQLite as Unavailable."""
    code = primary_code(error)
    if code in _CORRUPT:
        return Damaged(path, str(error))
    reason, hint = _REMEDIES.get(code, ("it cannot be used", "check the free memory and disk space"))
    return Unavailable(f"{path}: {reason}: {error}", hint=hint)


def secure_directory(path: Path) -> None:
    """Create the file's directory (0700) if missing. Raises Unavailable if other users can write to it."""
    directory = path.parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise Unavailable(f"{directory} is not a directory", hint="give the directory itself, not a symlink")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Unavailable(
            f"other users may write to {directory} (owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o})",
            hint="chown it to weft's user, and chmod 700",
        )


def irregular(path: str, suffixes: Iterable[str] = SUFFIXES) -> list[str]:
    """Those of the store's files that are no regular files with one link."""
    return [name for suffix in suffixes if (status := _status(name := f"{path}{suffix}")) and not _is_regular(status)]


def refuse_irregular(path: str) -> None:
    """Raise Unavailable if one of the files is a link or no file."""
    for name in irregular(path):
        raise Unavailable(f"{name} is not a regular file with one link", hint="remove it, or use another path")


def _create(path: Path) -> None:
    """Create the file (0600); refuse links and what is no file.

    SQLite creates its two other files with the same mode. An existing file is only lstat'ed: closing
    any descriptor of it would release the POSIX locks of an SQLite connection in this process.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        sync_directory(path.parent)
        sync_directory(path.parent.parent)
    refuse_irregular(str(path))
    for suffix in SUFFIXES:
        status = _status(f"{path}{suffix}")
        if status is not None and status.st_mode & 0o077:
            os.chmod(f"{path}{suffix}", 0o600)


def _status(name: str) -> os.stat_result | None:
    try:
        return os.lstat(name)
    except FileNotFoundError:
        return None


def _is_regular(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def sync_directory(directory: Path) -> None:
    """Make new names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prepare(path: str, rename: Rename, *, check: bool, expected: int) -> sqlite3.Connection:
    connection = connect(path)
    try:
        with translate_errors(path):
            schema = _create_or_verify_schema(connection, path, expected)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            # The writer makes checkpoints after it has answered, not within a commit.
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            for columns in _COLUMNS:
                connection.execute(columns).fetchall()
            ((revision,),) = connection.execute("SELECT revision FROM state").fetchall()
            if revision < expected:
                raise Damaged(path, f"it ends with revision {revision}, and {expected} was confirmed")
            _renew_leases_after_boot(connection, path, check)
            if schema == 1:
                _upgrade(connection, path, rename)
    except BaseException:
        connection.close()
        raise
    return connection


def _create_or_verify_schema(connection: sqlite3.Connection, path: str, expected: int) -> int:
    """Create the tables in an empty database; returns its schema. Raises Damaged if it had a revision,
    Unavailable for one of another program or a later release.
    """
    application, schema, tables = connection.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if application == _APPLICATION and 1 <= schema <= SCHEMA:
        return int(schema)
    if application == _APPLICATION:
        raise Unavailable(
            f"{path} was written by a later release of weft (schema {schema}, this one reads up to {SCHEMA})",
            hint=f"run that release, or put back the copy made before its first start ({path}.v{SCHEMA})",
        )
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if names >= {"state", "entries", "leases", "changes"}:
        raise Damaged(path, f"its application id is {application:x} and its schema {schema}")
    if application or tables:
        raise Unavailable(f"{path} is a database of another program", hint="use another path")
    if expected:
        raise Damaged(path, f"it is empty, and revision {expected} was confirmed")
    create_tables(connection, "WAL")
    return SCHEMA


def create_tables(connection: sqlite3.Connection, journal: str, schema: int = SCHEMA) -> None:
    """Create the tables of an empty store."""
    connection.executescript(
        f"PRAGMA journal_mode = {journal}; PRAGMA synchronous = FULL; BEGIN IMMEDIATE; {_TABLES}"
        f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {schema}; COMMIT;"
    )


def _upgrade(connection: sqlite3.Connection, path: str, rename: Rename) -> None:
    """Rename the keys of a file of schema 1, in one transaction, after a copy to ``PATH.v1``.

    Revisions and leases stay; the history is compacted. Earlier releases refuse the file by its
    schema.
    """
    copy = f"{path}.v1"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{copy}.new")
    os.close(os.open(f"{copy}.new", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    with contextlib.closing(sqlite3.connect(f"{copy}.new")) as target:
        connection.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, without a WAL beside it
    os.rename(f"{copy}.new", copy)
    sync_directory(Path(path).parent)
    connection.execute("BEGIN IMMEDIATE")
    try:
        rows = connection.execute("SELECT key, value FROM entries").fetchall()
        keys = [(rename(key.decode(), value).encode(), key) for key, value in rows]
        connection.executemany(
            "UPDATE OR REPLACE entries SET key = ? WHERE key = ?", [new for new in keys if new[0] != new[1]]
        )
        connection.execute("DELETE FROM changes")
        connection.execute("UPDATE state SET compacted = revision")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    log.info("%s: renamed %d keys; the file as it was is %s", path, len(keys), copy)


def _renew_leases_after_boot(connection: sqlite3.Connection, path: str, check: bool) -> None:
    """At the first open after a boot, check the file's integrity and renew all leases."""
    with open(_BOOT_ID, encoding="ascii") as file:
        boot = file.read().strip()
    ((known,),) = connection.execute("SELECT boot FROM state").fetchall()
    if check or known not in ("", boot):
        [(verdict, *_), *_] = connection.execute("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise Damaged(path, str(verdict))
    if known != boot:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE leases SET deadline = ? + CAST(seconds * 1e9 AS INTEGER)", (now(),))
        connection.execute("UPDATE state SET boot = ?", (boot,))
        connection.execute("COMMIT")
