"""The ruleset digest and the nf_tables generation that were verified last."""

from __future__ import annotations

import contextlib
from _socket import AF_UNIX, SOCK_DGRAM, SOL_SOCKET, socket
from _thread import allocate_lock
from contextlib import AbstractContextManager

from weft import files
from weft.errors import StateDamaged
from weft.identity import digest
from weft.kernel.host import boot_id

Found = tuple[str, int]
"""The digest of the tables that were verified, and the kernel's nf_tables generation then."""

_SO_NETNS_COOKIE = 71
_LONGEST = 200  # bytes of the file


class VerifiedGeneration:
    """What the threads of one process share (those of several: ``engine.shared``)."""

    def __init__(self) -> None:
        self._lock: AbstractContextManager[object] = allocate_lock()
        self._found: Found | None = None

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held from reading ``found`` to the end of the survey or transaction that follows."""
        return self._lock

    @property
    def found(self) -> Found | None:
        return self._found

    @found.setter
    def found(self, found: Found | None) -> None:
        self._found = found

    def save(self) -> None:
        """Keep it for processes to come, where that is meant."""


class StoredGeneration(VerifiedGeneration):
    """Of processes that follow each other, as calls without an engine: kept in a file.

    Each transaction of any program has a generation of its own, so what was verified at one stays true
    for as long as that is the kernel's, whoever writes the file last. It names the network namespace by
    its cookie, which the kernel never gives to another one before the next boot, as it does inode
    numbers. Before Linux 5.14, which has none, nothing is kept. Source: ``socket(7)``, SO_NETNS_COOKIE.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._place = _namespace()
        self._stored = self._found = self._load() if self._place else None

    def save(self) -> None:
        """Write the file where that is news. A failure costs the next process a survey."""
        if self._found in (None, self._stored) or not self._place:
            return
        base, generation = self._found
        stated = f"{self._place} {base} {generation}"
        with contextlib.suppress(StateDamaged):
            files.write(self._path, f"{stated} {digest(stated)}\n".encode(), "the verified generation of the rules")
            self._stored = self._found

    def _load(self) -> Found | None:
        try:
            stated, _, check = files.read(self._path, _LONGEST).decode().strip().rpartition(" ")
            place, base, generation = stated.rsplit(" ", 2)
            if place == self._place and check == digest(stated):
                return base, int(generation)
        except (OSError, ValueError):
            pass
        return None


def _namespace() -> str:
    """What tells this thread's network namespace from all others, of other boots too; "" before Linux 5.14."""
    try:
        probe = socket(AF_UNIX, SOCK_DGRAM)
        try:
            return f"{boot_id()} {probe.getsockopt(SOL_SOCKET, _SO_NETNS_COOKIE, 8).hex()}"
        finally:
            probe.close()
    except OSError:
        return ""
