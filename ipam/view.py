"""Which addresses of a directory are leased: from the cache, the index, or the lease files.

Small directories are read; large ones have an index (``ipam/index.py``); a long-lived process
caches small ones (``ipam/cache.py``). All of these are hints: only creating a lease file leases an
address.

Reading the files also reclaims leases from before the boot, whose containers are gone. That is done
once in a boot (a stamp beside the index, on a tmpfs). In a large directory of a network without
attachments they count as free at once, and are removed by the calls that follow, each for
``_PURGE_SECONDS``; where the directory was not changed since the boot, its files are not even looked at.
A lease is reclaimed if its file is older
than the boot and weft has no record of its owner from this boot. Both times are wall-clock times.
If the clock is put forward after the boot, leases of this boot look older than it: weft's own are
kept because of their records, others only at the first reading in a boot. If the clock is put back,
old leases look new and leak until a DEL or GC: a leaked address is better than one leased twice.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from ipam import cache
from ipam.cache import LeaseTable
from ipam.directory import Directory, LeaseFile, as_address, new_generation
from ipam.index import Index, IndexDamaged
from ipam.values import HostState, Owner
from weft import files
from weft.errors import StateDamaged
from weft.identity import digest
from weft.types import Address

SMALL = 256
"""Up to so many files a directory is read (4 ms) instead of opening its index (8 ms)."""

_MARGIN = 5.0  # seconds by which a file must be older than the boot
_PURGE_SECONDS = 0.02
_FRESH = 60.0  # seconds for which an index is trusted that a pool is exhausted


class View:
    """The leased addresses of a directory.

    With ``write``, the lock is held and files may be changed.
    """

    def __init__(self, directory: Directory, network: str, state: HostState, *, write: bool) -> None:
        self._directory = directory
        self._network = network
        self._state = state
        self._write = write
        cached = cache.lookup(directory) if write else None
        self._is_cached = cached is not None
        self._reclaimed = self._is_cached or os.path.exists(self._beside("seen"))
        self._old_before = state.booted - _MARGIN
        self._is_purging = not self._reclaimed and self._read_purging()
        self._is_first = False  # of the calls that count those leases as free
        self._leases: Index | LeaseTable = self._load() if cached is None else cached

    def _beside(self, suffix: str) -> str:
        """The path of a file about the directory, on a tmpfs."""
        name = digest("leases", os.path.realpath(self._directory.path))
        return os.path.join(self._state.index, f"{name}.{suffix}")

    @property
    def may_be_stale(self) -> bool:
        """Whether it was not read from the files."""
        return self._is_cached or isinstance(self._leases, Index)

    def addresses_of(self, owner: Owner) -> tuple[Address, ...]:
        """The addresses leased to an owner."""
        try:
            return self._leases.addresses_of(owner)
        except IndexDamaged:
            return self._read_now().addresses_of(owner)

    def first_free_from(self, version: int, number: int) -> int:
        """The first number from ``number`` on whose address is not leased."""
        try:
            return self._leases.first_free_from(version, number)
        except IndexDamaged:
            return self._read_now().first_free_from(version, number)

    def add(self, address: Address, owner: Owner) -> None:
        with self._dropping_damaged_index():
            self._leases.add(address, owner)

    def discard(self, address: Address) -> None:
        with self._dropping_damaged_index():
            self._leases.discard(address)

    def reread(self) -> None:
        """Read the files."""
        self.close()
        self._is_cached = False
        self._leases = self._read(self._directory.names())

    def reread_if_stale(self) -> bool:
        """Read the files, unless that was done lately; whether it was done now."""
        if not self.may_be_stale:
            return False
        with contextlib.suppress(IndexDamaged):
            if isinstance(self._leases, Index) and self._leases.age() < _FRESH:
                return False
        self.reread()
        return True

    def commit(self) -> None:
        """Keep the changes for the next call. Setting the directory's generation comes last."""
        if isinstance(self._leases, LeaseTable):
            if len(self._leases) <= SMALL:
                cache.store(self._directory, self._leases)
            return
        if self._is_purging and not (self._reclaimed or self._is_first):
            self._purge()
        mtime = new_generation()
        with self._dropping_damaged_index():
            self._leases.commit(mtime)
        if isinstance(self._leases, Index):
            self.close()
            self._directory.set_generation(mtime)

    def reclaim(self, address: Address) -> bool:
        """Free an address of which an earlier boot has left a lease that was not removed yet; whether its
        name is free now.
        """
        if self._reclaimed or not (self._write and self._is_purging):
            return False
        lease = self._directory.read(address)
        return lease is None or (self._is_orphaned(lease) and self._reclaim(address))

    def close(self) -> None:
        """Close the index. Without ``commit`` after a change it is invalid from then on."""
        if isinstance(self._leases, Index):
            self._leases.close()

    @contextlib.contextmanager
    def _dropping_damaged_index(self) -> Iterator[None]:
        """If the index fails, delete it and read the files: the next call builds another."""
        try:
            yield
        except IndexDamaged:
            self.close()
            self._leases = LeaseTable({})
            with contextlib.suppress(OSError):
                os.unlink(self._beside("index"))
            self._leases = self._read_now()

    def _load(self) -> Index | LeaseTable:
        """Read a small directory; open the index of a large one if it is current."""
        names = self._directory.names(SMALL + 1)
        if len(names) <= SMALL:
            return self._read(names)
        path = self._beside("index")
        if (self._reclaimed or self._is_purging) and os.path.exists(path):
            index = None
            with contextlib.suppress(IndexDamaged):
                index = Index(path)
                if index.is_current(self._directory.generation()):
                    return index
            if index:
                index.close()
        if not self._reclaimed and self._write and (self._is_purging or self._begin_purging()):
            return self._index(self._recent_owners())
        return self._read(self._directory.names())

    def _read_now(self) -> LeaseTable:
        self.close()
        table = self._table(self._directory.names())
        self._leases = table
        return table

    def _table(self, names: list[str]) -> LeaseTable:
        before = self._directory.generation()[2]
        owners = self._owners(names)
        return LeaseTable(owners, before if before == self._directory.generation()[2] else 0)

    def _read(self, names: list[str]) -> Index | LeaseTable:
        """Read the files, and build the index of a large directory."""
        if len(names) <= SMALL or not self._write:
            return self._table(names)
        return self._index(self._owners(names))

    def _index(self, owners: dict[Address, Owner | None]) -> Index | LeaseTable:
        """A new index of these leases."""
        if not self._directory.set_generation(new_generation()):
            return LeaseTable(owners)
        index = None
        try:
            files.make_directory(self._state.index, "the index of leases")
            path = self._beside("index")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            index = Index(path)
            index.build(owners.items(), self._directory.generation())
            return index
        except (IndexDamaged, OSError, StateDamaged):
            if index:
                index.close()
            return LeaseTable(owners)

    # Leases of an earlier boot in a large directory

    def _read_purging(self) -> bool:
        """Whether those leases are being removed. Then a clock that is put forward makes no lease old, and one
        that is put back takes the time of the boot with it.
        """
        try:
            self._old_before = min(self._old_before, float(files.read(self._beside("purging"), 64)))
        except (OSError, ValueError):
            return False
        return True

    def _begin_purging(self) -> bool:
        """From now on count those leases as free; False where weft may have attachments with one."""
        if not self._state.unused(self._network):
            return False
        try:
            files.make_directory(self._state.index, "the index of leases")
            files.write(self._beside("purging"), repr(self._old_before).encode(), "the state of leases")
        except StateDamaged:
            return False
        self._is_purging = self._is_first = True
        return True

    def _recent_owners(self) -> dict[Address, Owner | None]:
        """The owners of this boot's leases; none if no file was added to the directory since."""
        if self._directory.generation()[2] < self._old_before * 1e9:
            return {}
        recent = [name for name, modified in self._directory.modified() if modified >= self._old_before]
        leases = [lease for lease in self._directory.scan(recent) if not self._is_orphaned(lease)]
        return {lease.address: lease.owner for lease in leases}

    def _purge(self) -> None:
        """Remove some of those leases; where none is left, all is as after reading all files."""
        deadline = time.monotonic() + _PURGE_SECONDS
        removed = False
        with contextlib.suppress(StateDamaged):
            for name, modified in self._directory.modified():
                if time.monotonic() > deadline:
                    return
                address = as_address(name)
                if modified < self._old_before and address is not None:
                    removed |= self.reclaim(address)
        if not removed:
            self._reclaimed = _touch(self._beside("seen"))

    def _owners(self, names: list[str]) -> dict[Address, Owner | None]:
        """The owners of all leases; orphaned leases are removed, or skipped without ``write``."""
        owners: dict[Address, Owner | None] = {}
        for lease in self._directory.scan(names):
            if not self._is_orphaned(lease) or not self._reclaim(lease.address):
                owners[lease.address] = lease.owner
        if self._write and not self._reclaimed:
            self._reclaimed = _touch(self._beside("seen"))
        return owners

    def _is_orphaned(self, lease: LeaseFile) -> bool:
        if lease.unreadable:
            return False
        if lease.owner is None:
            return True
        old = not self._reclaimed and lease.modified < self._old_before
        return old and not self._state.alive(self._network, lease.owner)

    def _reclaim(self, address: Address) -> bool:
        if not self._write:
            return True
        try:
            self._directory.remove(address)
        except StateDamaged:
            return False
        return True


def _touch(path: str) -> bool:
    """Create a file; False if that fails."""
    try:
        files.make_directory(os.path.dirname(path), "the index of leases")
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
    except (OSError, StateDamaged):
        return False
    return True
