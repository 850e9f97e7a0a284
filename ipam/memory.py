"""What a small lease directory holds, as read from its files, and remembered by a process that lives long.

A memory is as good as the index of a large directory (``ipam/index.py``), and valid by the same sign: whoever changes
the directory and remembers it sets its mtime, last of all, to a moment in the past that nobody else chooses.
"""

from __future__ import annotations

from cni_plugin.types import Address
from ipam.directory import Directory
from ipam.index import past
from ipam.values import Owner

_MOST = 256  # directories

_remembered: dict[tuple[int, int], tuple[int, Read]] | None = None
"""What directories held when this process left them, by device and inode, with the mtime that it gave them."""


class Read:
    """What is taken, as read from all the files."""

    __slots__ = ("_owners", "_taken")

    def __init__(self, taken: dict[Address, Owner | None]) -> None:
        self._owners = taken
        self._taken = {(address.version, int(address)) for address in taken}

    def __len__(self) -> int:
        return len(self._owners)

    def held(self, owner: Owner) -> tuple[Address, ...]:
        return tuple(address for address, each in self._owners.items() if each == owner)

    def beyond(self, version: int, number: int) -> int:
        while (version, number) in self._taken:
            number += 1
        return number

    def add(self, address: Address, owner: Owner) -> None:
        self._owners[address] = owner
        self._taken.add((address.version, int(address)))

    def discard(self, address: Address) -> None:
        self._owners.pop(address, None)
        self._taken.discard((address.version, int(address)))


def keep() -> None:
    """From now on this process remembers."""
    global _remembered
    _remembered = {}


def recall(directory: Directory) -> Read | None:
    """What the directory holds, if nothing has come or gone since it was remembered; its lock must be held."""
    if _remembered is None:
        return None
    device, inode, modified = directory.identity()
    then, view = _remembered.get((device, inode), (None, None))
    return view if then == modified else None


def remember(directory: Directory, view: Read) -> None:
    """Remember it, at the end of a change; its lock must be held."""
    if _remembered is None:
        return
    modified = past()
    if directory.mark(modified):
        if len(_remembered) >= _MOST:
            _remembered.clear()
        _remembered[directory.identity()[:2]] = modified, view
