"""The file of the embedded store: who may see it, what is in it, and what to say when it cannot be used.

SQLite in WAL mode, and no journal of our own: recovery after a crash, checksums, snapshots for readers and several
processes are what SQLite has been tested for longer than this could ever be, and ``sqlite3 FILE`` shows what is in it.

All that weft writes happens under a lock file beside it (``write_lock``), checkpoints too. So processes take turns,
which SQLite's own lock does not promise, and no two ever write and checkpoint at the same instant, which SQLite before
3.51.3 does not survive in every case (https://www.sqlite.org/wal.html#walresetbug).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from store.interface import Unavailable
from weft import locks
from weft.errors import WeftError

_APPLICATION = 0x77656674
_SCHEMA = 1
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
    sqlite3.SQLITE_FULL: ("the disk is full", "free some space; what was refused changed nothing"),
    sqlite3.SQLITE_IOERR: ("the disk fails", "see dmesg and the free space of the disk"),
    sqlite3.SQLITE_READONLY: ("it cannot be written", "see its mode, and whether the file system is read-only"),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "see its mode and that of its folder"),
    sqlite3.SQLITE_BUSY: ("another program keeps it locked", "end that program (fuser shows it), then try again"),
    sqlite3.SQLITE_PERM: ("it may not be used", "see its owner and mode"),
}
_DAMAGES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

log = logging.getLogger(__name__)


class Damaged(Unavailable):
    """The file is no database, or a broken one."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(
            f"{path} is damaged: {what}",
            hint="restore a copy of it, or move it away (with recover, weft does) and begin with an empty store",
        )


class Replaced(Unavailable):
    """The file that is open is no longer the one of that name: what is written to it would be lost."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} was removed or replaced while it was open", hint="start anew with what is there")


def now() -> int:
    """Nanoseconds since boot, suspended ones too: a clock that nobody sets, the same for all processes."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@contextlib.contextmanager
def reporting(path: str) -> Iterator[None]:
    """Turn SQLite's errors into Unavailable, naming file and remedy."""
    try:
        yield
    except sqlite3.Error as error:
        raise explained(path, error) from error


def primary_code(error: BaseException) -> int:
    """SQLite's primary result code of an error, 0 if it is none of SQLite's."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF if isinstance(code, int) else 0


@contextlib.contextmanager
def write_lock(path: str) -> Iterator[int]:
    """Be the one process, and thread, that writes; yields the lock file's descriptor. Raises Unavailable after 30 s.

    Who wants to write waits in one line: whoever has just written joins it at its end.
    """
    try:
        with contextlib.ExitStack() as held:
            with locks.hold(f"{path}.turn"):
                descriptor = held.enter_context(locks.hold(lock_path(path)))
            yield descriptor
    except Unavailable:
        raise
    except WeftError as error:
        raise Unavailable(error.message, hint=error.hint) from error


def lock_path(path: str) -> str:
    """The lock file. It holds the last revision, so that its modification tells other processes of news."""
    return f"{path}.lock"


def identity(path: str) -> tuple[int, int]:
    """Device and inode of the file. Raises Replaced if there is none."""
    try:
        there = os.lstat(path)
    except OSError as error:
        raise Replaced(path) from error
    return there.st_dev, there.st_ino


def open_file(path: Path, *, recover: bool) -> sqlite3.Connection:
    """Make the file where missing and connect to it for writing. Raises Unavailable; see ``open_embedded``."""
    name = str(path)
    try:
        _secure(path)
        with write_lock(name):
            try:
                return _prepare(name, examine=recover)
            except Damaged as damage:
                if not recover:
                    raise
                log.warning("%s; it was put aside as %s", damage.message, _put_aside(name))
                return _prepare(name, examine=False)
    except OSError as error:
        raise Unavailable(f"{name}: {error.strerror}", hint="see the folder's owner, mode and free space") from error


def connect(path: str) -> sqlite3.Connection:
    """Another connection to the file. Its user sees to it that one thread uses it at a time."""
    with reporting(path):
        connection = sqlite3.connect(
            path, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False, cached_statements=64
        )
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def explained(path: str, error: sqlite3.Error) -> Unavailable:
    """What to tell of an error of SQLite's."""
    code = primary_code(error)
    if code in _DAMAGES:
        return Damaged(path, str(error))
    said, hint = _REMEDIES.get(code, ("it cannot be used", "see the free memory and space of this host"))
    return Unavailable(f"{path}: {said}: {error}", hint=hint)


def _secure(path: Path) -> None:
    """Make the folder and the file, 0700 and 0600; refuse what others could have put there or could exchange."""
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    there = os.lstat(folder)
    if not stat.S_ISDIR(there.st_mode):
        raise Unavailable(f"{folder} is no folder but a link or a file", hint="name the folder itself")
    if there.st_uid != os.geteuid() or there.st_mode & 0o022:
        raise Unavailable(
            f"others may write to {folder} (owner {there.st_uid}, mode {stat.S_IMODE(there.st_mode):o})",
            hint="chown it to the user that weft runs as, and chmod 700",
        )
    # SQLite gives its two other files the mode of this one. Nobody may close a descriptor of it while SQLite has it
    # open, since that would take SQLite's locks away; so an existing one is looked at by name only.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        _sync_folder(folder)
        _sync_folder(folder.parent)
    for suffix in ("", "-wal", "-shm", ".lock", ".turn"):
        _secure_file(f"{path}{suffix}")


def _secure_file(name: str) -> None:
    try:
        there = os.lstat(name)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1:
        raise Unavailable(f"{name} is a link or no plain file", hint="remove it, or name another store")
    if there.st_mode & 0o077:
        os.chmod(name, 0o600)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prepare(path: str, *, examine: bool) -> sqlite3.Connection:
    connection = connect(path)
    try:
        with reporting(path):
            _claim(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            # Checkpoints are made when callers have their answers, not by whose commit happens to be the thousandth.
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            for columns in _COLUMNS:
                connection.execute(columns).fetchall()
            _greet_boot(connection, path, examine)
    except BaseException:
        connection.close()
        raise
    return connection


def _claim(connection: sqlite3.Connection, path: str) -> None:
    """Make the tables of an empty database; raise Unavailable, having changed nothing, for one of somebody else's."""
    application, schema, tables = connection.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if (application, schema) == (_APPLICATION, _SCHEMA):
        return
    if application == _APPLICATION:
        raise Unavailable(f"{path} is of another version of weft (schema {schema})", hint="use that version")
    if application or tables:
        raise Unavailable(f"{path} is a database of some other program", hint="name another file")
    connection.executescript(
        f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; BEGIN IMMEDIATE; {_TABLES}"
        f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_SCHEMA}; COMMIT;"
    )


def _greet_boot(connection: sqlite3.Connection, path: str, examine: bool) -> None:
    """After a boot: look through the file, which may have lost power, and give all leases their full time again."""
    with open(_BOOT_ID, encoding="ascii") as file:
        boot = file.read().strip()
    ((known,),) = connection.execute("SELECT boot FROM state").fetchall()
    if examine or known not in ("", boot):
        [(verdict, *_), *_] = connection.execute("PRAGMA quick_check(1)").fetchall()
        if verdict != "ok":
            raise Damaged(path, str(verdict))
    if known != boot:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE leases SET deadline = ? + CAST(seconds * 1e9 AS INTEGER)", (now(),))
        connection.execute("UPDATE state SET boot = ?", (boot,))
        connection.execute("COMMIT")


def _put_aside(path: str) -> str:
    """Rename the file, and its log, which belongs to it, to a free name."""
    number = 1
    while os.path.lexists(f"{path}.damaged-{number}"):
        number += 1
    aside = f"{path}.damaged-{number}"
    with contextlib.suppress(FileNotFoundError):
        os.rename(f"{path}-wal", f"{aside}-wal")
    os.rename(path, aside)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}-shm")
    _secure(Path(path))
    return aside
