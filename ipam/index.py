"""An index of a large lease directory, so that the cost of a lease does not grow with their number.

It is a cache of the lease files: a SQLite file for each lease directory, on a tmpfs, without a
journal. It has the leases by address and by owner, and the *runs* of consecutive leased addresses,
so that the next free one in a nearly full /16 or in a /64 takes one query. It is valid for one
generation (``ipam/directory.py``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

from ipam.ranges import address_at
from ipam.values import Owner
from weft.types import Address

_SCHEMA = 1

_TABLES = """
CREATE TABLE meta (schema INTEGER, device INTEGER, inode INTEGER, modified INTEGER, built REAL);
CREATE TABLE leases (address BLOB PRIMARY KEY, container TEXT, interface TEXT) WITHOUT ROWID;
CREATE TABLE runs (first BLOB PRIMARY KEY, last BLOB) WITHOUT ROWID;
"""


class IndexDamaged(Exception):
    """The index is unusable; read the directory instead."""


class Index:
    """An open index. The lease directory's lock must be held."""

    __slots__ = ("_connection", "_error", "path")

    def __init__(self, path: str) -> None:
        import sqlite3  # 8 ms, only for large directories

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

    def is_current(self, generation: tuple[int, int, int]) -> bool:
        """Whether it is of the directory's generation."""
        rows = self._all("SELECT schema, device, inode, modified FROM meta")
        return rows == [(_SCHEMA, *_signed(generation))]

    def age(self) -> float:
        """Seconds since it was built from the lease files."""
        [(built,)] = self._all("SELECT built FROM meta")
        return time.monotonic() - float(built)

    def build(self, leases: Iterable[tuple[Address, Owner | None]], generation: tuple[int, int, int]) -> None:
        """Fill a new, empty index."""
        rows = sorted((_key(address), owner) for address, owner in leases)
        with self._guard():
            self._connection.executescript(_TABLES)
            self._connection.execute("BEGIN")
            self._connection.execute(
                "INSERT INTO meta VALUES (?, ?, ?, ?, ?)", (_SCHEMA, *_signed(generation), time.monotonic())
            )
            self._connection.executemany(
                "INSERT INTO leases VALUES (?, ?, ?)",
                ((key, owner.container, owner.interface) if owner else (key, None, None) for key, owner in rows),
            )
            self._connection.executemany("INSERT INTO runs VALUES (?, ?)", _runs(key for key, _ in rows))
            self._connection.execute("CREATE INDEX owners ON leases (container, interface)")
            self._connection.execute("COMMIT")

    def addresses_of(self, owner: Owner) -> tuple[Address, ...]:
        """The addresses leased to an owner."""
        rows = self._all(
            "SELECT address FROM leases WHERE container = ? AND interface = ?", owner.container, owner.interface
        )
        return tuple(address_at(key[0], int.from_bytes(key[1:], "big")) for (key,) in rows)

    def first_free_from(self, version: int, number: int) -> int:
        """The first number from ``number`` on whose address is not leased."""
        key = _pack(version, number)
        last = self._run_before(key)[1]
        return int.from_bytes(last[1:], "big") + 1 if last >= key else number

    def add(self, address: Address, owner: Owner) -> None:
        """Add a lease; not visible to others before ``commit``."""
        self._begin()
        key = _key(address)
        if self._all("SELECT 1 FROM leases WHERE address = ?", key):
            raise IndexDamaged("the address is leased already")
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
        """Remove a lease; not visible to others before ``commit``."""
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

    def commit(self, mtime: int) -> None:
        """Commit changes, for the generation with that mtime."""
        self._begin()
        self._all("UPDATE meta SET modified = ?", mtime)
        self._all("COMMIT")

    def _run_before(self, key: bytes) -> tuple[bytes, bytes]:
        """The run that starts at or before a key, a pair of empty keys if there is none."""
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
    """A key that sorts by family and number; it has room for the number after the last address."""
    return bytes((version,)) + number.to_bytes(17, "big")


def _key(address: Address) -> bytes:
    return _pack(address.version, int(address))


def _signed(generation: tuple[int, int, int]) -> tuple[int, int, int]:
    """A generation in SQLite's signed 64-bit integers."""
    device, inode, mtime = generation
    return _wrap(device), _wrap(inode), mtime


def _wrap(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _runs(keys: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The runs of consecutive keys; keys are ascending."""
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
