"""What a small lease directory holds, as read from its files, and remembered by a process that lives long.

A memory is as good as the index of a large directory (``ipam/index.py``), and valid by the same sign: whoever changes
the directory and remembers it sets its mtime, last of all, to a moment in the past that nobody else chooses.

Processes that work together (those of one engine) tell each other what each has changed between which two of those
moments, so that none reads a directory again because of the others.
"""

from __future__ import annotations

import marshal
from _thread import allocate_lock
from ipaddress import ip_address
from typing import Protocol

from ipam.directory import Directory
from ipam.index import unique_past_mtime
from ipam.values import Owner
from weft.types import Address

_MOST = 256  # directories


class ChangeFeed(Protocol):
    """What processes that work together tell each other."""

    def publish(self, news: bytes) -> None:
        """Tell all the others."""

    def poll(self) -> list[bytes] | None:
        """What was told since the last time, one's own too, in order; None where some of it was missed."""


Place = tuple[int, int]
"""The device and inode of a directory."""

_remembered: dict[Place, tuple[int, LeaseTable]] | None = None
"""What directories held when this process left them, with the mtime that it gave them."""
_feed: ChangeFeed | None = None
_hearing = allocate_lock()


class LeaseTable:
    """What is taken, as read from all the files.

    ``since`` is the directory's mtime then, 0 where it was changed by the reading; ``changes`` is what came after:
    the address as bytes, and its owner's two names or None where it was freed.
    """

    __slots__ = ("_owners", "_taken", "changes", "since")

    def __init__(self, taken: dict[Address, Owner | None], since: int = 0) -> None:
        self._owners = taken
        self._taken = {(address.version, int(address)) for address in taken}
        self.since = since
        self.changes: list[tuple[bytes, tuple[str, str] | None]] = []

    def __len__(self) -> int:
        return len(self._owners)

    def held(self, owner: Owner) -> tuple[Address, ...]:
        return tuple(address for address, each in self._owners.items() if each == owner)

    def first_free_from(self, version: int, number: int) -> int:
        while (version, number) in self._taken:
            number += 1
        return number

    def add(self, address: Address, owner: Owner) -> None:
        self._owners[address] = owner
        self._taken.add((address.version, int(address)))
        self.changes.append((address.packed, (owner.container, owner.interface)))

    def discard(self, address: Address) -> None:
        self._owners.pop(address, None)
        self._taken.discard((address.version, int(address)))
        self.changes.append((address.packed, None))


def enable(news: ChangeFeed | None = None) -> None:
    """From now on this process remembers; ``news`` tells what the processes do that it works with."""
    global _remembered, _feed
    _remembered, _feed = {}, news


def recall(directory: Directory) -> LeaseTable | None:
    """What the directory holds, if nothing has come or gone since it was remembered; its lock must be held."""
    if _remembered is None:
        return None
    _hear(_remembered)
    device, inode, modified = directory.identity()
    then, view = _remembered.get((device, inode), (None, None))
    return view if then == modified else None


def remember(directory: Directory, view: LeaseTable) -> None:
    """Remember it, at the end of a change; its lock must be held."""
    if _remembered is None:
        return
    modified = unique_past_mtime()
    if directory.set_mtime(modified):
        if len(_remembered) >= _MOST:
            _remembered.clear()
        place = directory.identity()[:2]
        _remembered[place] = modified, view
        if _feed is not None and view.since:
            _feed.publish(marshal.dumps((place, view.since, modified, view.changes)))
        view.since = modified
        view.changes = []


def _hear(remembered: dict[Place, tuple[int, LeaseTable]]) -> None:
    """Follow what others have done to directories; nobody does anything to one whose lock is held."""
    if _feed is None:
        return
    with _hearing:
        told = _feed.poll()
        if told is None:
            remembered.clear()
        for news in told or ():
            place, since, modified, changes = marshal.loads(news)
            then, view = remembered.get(place, (None, None))
            if view is None or then != since:
                continue  # one's own, or of a directory that is not remembered so
            for packed, names in changes:
                address = ip_address(packed)
                if names is None:
                    view.discard(address)
                else:
                    view.add(address, Owner(*names))
            view.changes = []
            view.since = modified
            remembered[place] = modified, view
