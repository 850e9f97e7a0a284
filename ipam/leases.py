"""Leases on disk, in host-local's layout and under its lock, so that both can run together.

An address is leased by creating its file where none exists, so that none is leased twice, whatever
the ``View`` of leased addresses says: that decides only which addresses are tried.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ipam.directory import LOCK, Directory
from ipam.values import HostState, Owner
from ipam.view import View
from weft import files
from weft.errors import StateDamaged
from weft.locks import TIMEOUT, hold
from weft.types import Address

__all__ = [
    "HostState",
    "Leases",
    "Owner",
    "make_directory",
    "open_locked",
    "open_readonly",
    "owners",
    "release",
    "release_address",
]

_LOCK_MODE = 0o750


class Leases:
    """The leases of a directory, opened by ``open_locked`` or ``open_readonly``."""

    def __init__(self, directory: Directory, network: str, state: HostState, *, write: bool) -> None:
        self.directory = directory
        self._view = View(directory, network, state, write=write)
        self._changed = False

    def addresses_of(self, owner: Owner) -> tuple[Address, ...]:
        """The addresses leased to an owner; a cached answer is checked against their files."""
        addresses = self._view.addresses_of(owner)
        if self._view.may_be_stale and any(self.owner_of(address) != owner for address in addresses):
            self._view.reread()
            addresses = self._view.addresses_of(owner)
        return addresses

    def first_free_from(self, version: int, number: int) -> int:
        """The first number from ``number`` on whose address is not leased."""
        return self._view.first_free_from(version, number)

    def owner_of(self, address: Address) -> Owner | None:
        """The owner in an address's file."""
        lease = self.directory.read(address)
        return lease.owner if lease else None

    def reread(self) -> None:
        """Read all files."""
        self._view.reread()

    def reread_if_stale(self) -> bool:
        """Read all files, unless that was done lately; whether it was done now."""
        return self._view.reread_if_stale()

    def lease(self, addresses: tuple[Address, ...], owner: Owner) -> bool:
        """Lease all addresses or none; False if one is leased already. Raises StateDamaged."""
        created: list[Address] = []
        try:
            for address in addresses:
                self._changed = True
                if not (self.directory.create(address, owner) or self._replace(address, owner)):
                    self._remove(created)
                    return False
                created.append(address)
        except BaseException:
            self._remove(created)
            raise
        for address in addresses:
            self._view.add(address, owner)
        return True

    def _replace(self, address: Address, owner: Owner) -> bool:
        """Lease an address of which an earlier boot has left a lease."""
        return self._view.reclaim(address) and self.directory.create(address, owner)

    def _remove(self, addresses: list[Address]) -> None:
        for address in addresses:
            with contextlib.suppress(StateDamaged):
                self.directory.remove(address)

    def release(self, owner: Owner) -> tuple[Address, ...]:
        """Free all of an owner's addresses and return them. Raises StateDamaged.

        If it has none, those with its container id alone (host-local before 0.8) are freed.
        """
        addresses = self.addresses_of(owner)
        if not addresses:
            owner = Owner(owner.container, "")
            addresses = self.addresses_of(owner)
        return tuple(address for address in addresses if self.free(address, owner))

    def free(self, address: Address, owner: Owner) -> bool:
        """Free an address if its file has that owner; whether it had. Raises StateDamaged."""
        if self.owner_of(address) != owner:
            return False
        self._changed = True
        self.directory.remove(address)
        self._view.discard(address)
        return True

    def commit(self) -> None:
        """Keep what is known for the next call."""
        if self._changed:
            self._view.commit()

    def close(self) -> None:
        self._view.close()


@contextlib.contextmanager
def open_locked(path: str, network: str, state: HostState, *, timeout: float = TIMEOUT) -> Iterator[Leases]:
    """The leases of an existing directory, with its lock held.

    Raises FileNotFoundError if it does not exist, Busy if the lock is not acquired within
    ``timeout`` seconds, StateDamaged if files cannot be read or written.
    """
    with Directory(path) as directory, hold(os.path.join(directory.path, LOCK), timeout=timeout, mode=_LOCK_MODE):
        leases = Leases(directory, network, state, write=True)
        try:
            yield leases
            leases.commit()
        finally:
            leases.close()


@contextlib.contextmanager
def open_readonly(path: str, network: str, state: HostState) -> Iterator[Leases]:
    """The leases of a directory, without creating or changing any file, the lock's included.

    Raises FileNotFoundError, Busy and StateDamaged like ``open_locked``.
    """
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(Directory(path))
        lock = os.path.join(path, LOCK)
        if os.path.isfile(lock) and not os.path.islink(lock):
            with contextlib.suppress(StateDamaged):  # a read-only filesystem has no writers
                stack.enter_context(hold(lock, mode=_LOCK_MODE))
        leases = Leases(directory, network, state, write=False)
        stack.callback(leases.close)
        yield leases


def make_directory(path: str) -> None:
    """Create a network's lease directory, mode 0755 like host-local's. Raises StateDamaged."""
    try:
        files.make_directory(path, "leases", 0o755)
    except StateDamaged as error:
        message = error.message.replace("the directory", "the lease directory", 1)
        raise StateDamaged(message, hint="check the disk, or set ipam.dataDir") from error


def release(path: str, network: str, owner: Owner, state: HostState) -> tuple[Address, ...]:
    """Free all addresses of an owner in a directory and return them; a missing directory has none.

    Raises Busy, and StateDamaged if an address of the owner cannot be freed. A damaged or read-only
    directory without leases of the owner is no error.
    """
    try:
        with open_locked(path, network, state) as leases:
            return leases.release(owner)
    except FileNotFoundError:
        return ()
    except StateDamaged:
        same = {owner, Owner(owner.container, "")}
        if any(each in same for _, each, _ in owners(path)):
            raise
        return ()


def owners(path: str) -> Iterator[tuple[Address, Owner, float]]:
    """All leases of a directory: address, owner and creation time (wall-clock seconds).

    Takes no lock.

    Raises StateDamaged if the directory cannot be read; a missing one has no leases.
    """
    try:
        directory = Directory(path)
    except FileNotFoundError:
        return
    with directory:
        for lease in directory.scan():
            if lease.unreadable:
                raise StateDamaged(
                    f"cannot read {os.path.join(path, str(lease.address))}",
                    hint="check the disk and the permissions of the file",
                )
            if lease.owner is not None:
                yield lease.address, lease.owner, lease.modified


def release_address(path: str, address: Address, owner: Owner, state: HostState) -> bool:
    """Free an address if it is leased to that owner now; whether it was. For GC.

    Raises Busy and StateDamaged.
    """
    try:
        with open_locked(path, os.path.basename(path), state) as leases:
            return leases.free(address, owner)
    except FileNotFoundError:
        return False
