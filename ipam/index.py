"""An index of a large lease directory, so that nothing grows with the number of leases.

It is a cache and nothing but: the files are the truth. One SQLite file per lease directory, on a tmpfs, holding
the leases by address and by owner, and the *runs* of taken addresses, so that the next free one of a nearly full
/16 or of a /64 is one look-up.

Whether it still fits is told by the directory's mtime. Whoever changes the directory through the index sets that
mtime, last of all, to a moment in the past that the index holds too; whoever else adds or removes a file
(host-local, a person, a process killed half-way) leaves the present there. So the two are equal only if
nothing else happened, however coarse the kernel's clock is, and a process killed at any point needs no
journal: it leaves them different.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator

from ipam.ranges import address_at
from ipam.values import Owner
from weft.types import Address

_SCHEMA = 1
_PAST = 2_000_000_000  # nanoseconds; more than the coarsest timestamps round by

_TABLES = """
CREATE TABLE meta (schema INTEGER, device INTEGER, inode INTEGER, modified INTEGER, built REAL);
CREATE TABLE leases (address BLOB PRIMARY KEY, container TEXT, interface TEXT) WITHOUT ROWID;
CREATE TABLE runs (first BLOB PRIMARY KEY, last BLOB) WITHOUT ROWID;
"""


class IndexDamaged(Exception):
    """The index cannot be used; the directory must be read instead."""


def unique_past_mtime() -> int:
    """A moment in the past that nobody else chooses, in nanoseconds."""
    return time.time_ns() - _PAST - int.from_bytes(os.urandom(4), "big") % 1_000_000_000


class Index:
    """The open index of one lease directory, whose lock is held."""

    __slots__ = ("_connection", "_error", "path")

    def __init__(self, path: str) -> None:
        import sqlite3  # 8 ms, which small pools and most calls need not spend

        self.path = path
        self._error = sqlite3.Error
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=1, check_same_thread=False)
        except sqlite3.Error as error:
            raise IndexDamaged(str(error)) from error
        for setting in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE", "temp_store = MEMORY"):
            self._all(f"PRAGMA {setting}")

    def close(self) -> None:
        with contextlib.suppress(self._error):
            self._connection.close()

    def fits(self, identity: tuple[int, int, int]) -> bool:
        """Whether it describes the directory of that device, inode and mtime."""
        rows = self._all("SELECT schema, device, inode, modified FROM meta")
        return rows == [(_SCHEMA, *_signed(identity))]

    def age(self) -> float:
        """Seconds since it was built from the files."""
        [(built,)] = self._all("SELECT built FROM meta")
        return time.monotonic() - float(built)

    def build(self, taken: Iterable[tuple[Address, Owner | None]], identity: tuple[int, int, int]) -> None:
        """Fill a new, empty file."""
        rows = sorted((_key(address), owner) for address, owner in taken)
        with self._guard():
            self._connection.executescript(_TABLES)
            self._connection.execute("BEGIN")
            self._connection.execute(
                "INSERT INTO meta VALUES (?, ?, ?, ?, ?)", (_SCHEMA, *_signed(identity), time.monotonic())
            )
            self._connection.executemany(
                "INSERT INTO leases VALUES (?, ?, ?)",
                ((key, owner.container, owner.interface) if owner else (key, None, None) for key, owner in rows),
            )
            self._connection.executemany("INSERT INTO runs VALUES (?, ?)", _runs(key for key, _ in rows))
            self._connection.execute("CREATE INDEX owners ON leases (container, interface)")
            self._connection.execute("COMMIT")

    def held(self, owner: Owner) -> tuple[Address, ...]:
        """The addresses of an owner."""
        rows = self._all(
            "SELECT address FROM leases WHERE container = ? AND interface = ?", owner.container, owner.interface
        )
        return tuple(address_at(key[0], int.from_bytes(key[1:], "big")) for (key,) in rows)

    def first_free_from(self, version: int, number: int) -> int:
        """The first number from there on that is not taken."""
        key = _pack(version, number)
        last = self._run_before(key)[1]
        return int.from_bytes(last[1:], "big") + 1 if last >= key else number

    def add(self, address: Address, owner: Owner) -> None:
        """Note a lease."""
        self._begin()
        key = _key(address)
        if self._all("SELECT 1 FROM leases WHERE address = ?", key):
            raise IndexDamaged("it knows the address already")
        self._all("INSERT INTO leases VALUES (?, ?, ?)", key, owner.container, owner.interface)
        number = int(address)
        first, last = key, key
        before = self._run_before(key)
        if number and before[1] == _pack(address.version, number - 1):
            first = before[0]
            self._all("DELETE FROM runs WHERE first = ?", first)
        after = _pack(address.version, number + 1)
        for (end,) in self._all("SELECT last FROM runs WHERE first = ?", after):
            last = end
            self._all("DELETE FROM runs WHERE first = ?", after)
        self._all("INSERT INTO runs VALUES (?, ?)", first, last)

    def discard(self, address: Address) -> None:
        """Note that an address is free."""
        self._begin()
        key = _key(address)
        self._all("DELETE FROM leases WHERE address = ?", key)
        first, last = self._run_before(key)
        if last < key:
            return
        self._all("DELETE FROM runs WHERE first = ?", first)
        if first < key:
            self._all("INSERT INTO runs VALUES (?, ?)", first, _pack(address.version, int(address) - 1))
        if key < last:
            self._all("INSERT INTO runs VALUES (?, ?)", _pack(address.version, int(address) + 1), last)

    def commit(self, modified: int) -> None:
        """Keep what was noted, for a directory that will have that mtime."""
        self._begin()
        self._all("UPDATE meta SET modified = ?", modified)
        self._all("COMMIT")

    def _run_before(self, key: bytes) -> tuple[bytes, bytes]:
        """The run that starts at or before a key; a pair of empty keys where there is none."""
        rows = self._all("SELECT first, last FROM runs WHERE first <= ? ORDER BY first DESC LIMIT 1", key)
        return rows[0] if rows else (b"", b"")

    def _begin(self) -> None:
        if not self._connection.in_transaction:
            self._all("BEGIN")

    def _all(self, statement: str, *values: object) -> list[tuple]:  # type: ignore[type-arg]
        with self._guard():
            return self._connection.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise IndexDamaged(str(error)) from error


def _pack(version: int, number: int) -> bytes:
    """A key that sorts by family, then by number; one past a family's last number is still above it."""
    return bytes((version,)) + number.to_bytes(17, "big")


def _key(address: Address) -> bytes:
    return _pack(address.version, int(address))


def _signed(identity: tuple[int, int, int]) -> tuple[int, int, int]:
    """Device and inode as SQLite's 64-bit signed integers."""
    device, inode, modified = identity
    return _wrap(device), _wrap(inode), modified


def _wrap(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _runs(keys: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Rising keys, put together where each follows the one before."""
    first = last = b""
    for key in keys:
        if last and key == _pack(last[0], int.from_bytes(last[1:], "big") + 1):
            last = key
            continue
        if first:
            yield first, last
        first = last = key
    if first:
        yield first, last
