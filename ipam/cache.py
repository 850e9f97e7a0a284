"""The leases of a small directory in memory, and a cache of them across calls.

A cached table is valid for one generation of its directory (``ipam/directory.py``). The processes
of one engine publish the changes between two generations to each other, so that each can update its
own cache instead of reading the directory again.
"""

from __future__ import annotations

import marshal
from _thread import allocate_lock
from ipaddress import ip_address
from typing import Protocol

from ipam.directory import Directory, new_generation
from ipam.values import Owner
from weft.types import Address

_MAX_DIRECTORIES = 256


class ChangeFeed(Protocol):
    """A broadcast channel among cooperating processes."""

    def publish(self, news: bytes) -> None:
        """Send to all processes."""

    def poll(self) -> list[bytes] | None:
        """Messages since the last poll, including one's own, in order; None if some were lost."""


DirectoryId = tuple[int, int]
"""A directory's device and inode."""

_cached: dict[DirectoryId, tuple[int, LeaseTable]] | None = None
"""Tables with the mtime of their generation; None while caching is disabled."""
_feed: ChangeFeed | None = None
_polling = allocate_lock()


class LeaseTable:
    """All leases of a directory.

    ``since`` is the mtime of the directory when it was read, 0 if reading it removed files;
    ``changes`` are those since then: the packed address, and the owner's two names or None if it
    was freed.
    """

    __slots__ = ("_leased", "_owners", "changes", "since")

    def __init__(self, owners: dict[Address, Owner | None], since: int = 0) -> None:
        self._owners = owners
        self._leased = {(address.version, int(address)) for address in owners}
        self.since = since
        self.changes: list[tuple[bytes, tuple[str, str] | None]] = []

    def __len__(self) -> int:
        return len(self._owners)

    def addresses_of(self, owner: Owner) -> tuple[Address, ...]:
        return tuple(address for address, each in self._owners.items() if each == owner)

    def first_free_from(self, version: int, number: int) -> int:
        while (version, number) in self._leased:
            number += 1
        return number

    def add(self, address: Address, owner: Owner) -> None:
        self._owners[address] = owner
        self._leased.add((address.version, int(address)))
        self.changes.append((address.packed, (owner.container, owner.interface)))

    def discard(self, address: Address) -> None:
        self._owners.pop(address, None)
        self._leased.discard((address.version, int(address)))
        self.changes.append((address.packed, None))


def enable(feed: ChangeFeed | None = None) -> None:
    """Cache tables in this process; ``feed`` connects it with cooperating processes."""
    global _cached, _feed
    _cached, _feed = {}, feed


def lookup(directory: Directory) -> LeaseTable | None:
    """The cached table of a directory, if it is current. The directory's lock must be held."""
    if _cached is None:
        return None
    _apply_changes(_cached)
    device, inode, mtime = directory.generation()
    cached, table = _cached.get((device, inode), (None, None))
    return table if cached == mtime else None


def store(directory: Directory, table: LeaseTable) -> None:
    """Cache a changed table, and start a new generation. The directory's lock must be held."""
    if _cached is None:
        return
    mtime = new_generation()
    if directory.set_generation(mtime):
        if len(_cached) >= _MAX_DIRECTORIES:
            _cached.clear()
        key = directory.generation()[:2]
        _cached[key] = mtime, table
        if _feed is not None and table.since:
            _feed.publish(marshal.dumps((key, table.since, mtime, table.changes)))
        table.since = mtime
        table.changes = []


def _apply_changes(cached: dict[DirectoryId, tuple[int, LeaseTable]]) -> None:
    """Apply the changes of other processes. A directory whose lock is held has no newer ones."""
    if _feed is None:
        return
    with _polling:
        messages = _feed.poll()
        if messages is None:
            cached.clear()
        for message in messages or ():
            key, since, mtime, changes = marshal.loads(message)
            generation, table = cached.get(key, (None, None))
            if table is None or generation != since:
                continue  # one's own, or not cached in that generation
            for packed, names in changes:
                address = ip_address(packed)
                if names is None:
                    table.discard(address)
                else:
                    table.add(address, Owner(*names))
            table.changes = []
            table.since = mtime
            cached[key] = mtime, table
