"""Leases on disk, under the lock that host-local takes too: either may run beside the other.

The files are the truth. An address is given out only by making its file where there was none, so nothing is
given out twice, whatever any cache believes. Small directories are simply read; for large ones there is an index
(``ipam/index.py``).

Leases of before this boot are leftovers: their containers died with it. They go when weft first looks at a
directory in a boot (a stamp beside the index, on a tmpfs, says that it has). A lease counts as one of them when
its file is older than the boot and weft has no record, made in this boot, of its owner. Both times are wall-clock
times, and the boot's is derived from now, so a clock that is *put forward* after the boot makes early leases of
this boot look old: for weft's own the record speaks, and for the others' the question is asked once, not for ever
after. A clock *put back* makes leftovers look new: they stay, as a leak, until a DEL or GC. Erring that way
is right: an address that is kept costs an address, one that is freed too early costs two containers theirs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator

from ipam.cache import LeaseTable, recall, remember
from ipam.directory import LOCK, Directory, LeaseFile
from ipam.index import Index, IndexDamaged, unique_past_mtime
from ipam.values import HostState, Owner
from weft.errors import StateDamaged
from weft.identity import digest
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

SMALL = 256
"""Up to so many names a directory is read whole: 4 ms, less than it takes to load and ask an index (8 ms).

A process that lives long reads it once (``ipam/cache.py``)."""

_MARGIN = 5.0  # seconds by which a file must be older than the boot
_FRESH = 60.0  # seconds for which an index is believed that a pool is exhausted
_LOCK_MODE = 0o750


class Leases:
    """The leases of one directory. ``open_locked`` makes it, with the lock held; ``write``: it may change files."""

    def __init__(self, directory: Directory, network: str, state: HostState, *, write: bool) -> None:
        self.directory = directory
        self._network = network
        self._state = state
        self._write = write
        self._changed = False
        recalled = recall(directory) if write else None
        self._recalled = recalled is not None
        self._seen = self._recalled or os.path.exists(self._beside("seen"))
        self._view: Index | LeaseTable = self._look() if recalled is None else recalled

    def _beside(self, ending: str) -> str:
        """The path of a file about the directory, on a tmpfs."""
        mark = digest("leases", os.path.realpath(self.directory.path))
        return os.path.join(self._state.index, f"{mark}.{ending}")

    def held(self, owner: Owner) -> tuple[Address, ...]:
        """The addresses leased to an owner; what an index says of them is checked against their files."""
        try:
            mine = self._view.held(owner)
        except IndexDamaged:
            return self._read_now().held(owner)
        believed = self._recalled or isinstance(self._view, Index)
        if believed and any(self.holder(address) != owner for address in mine):
            self.reread()
            mine = self._view.held(owner)
        return mine

    def first_free_from(self, version: int, number: int) -> int:
        """The first number from there on that is not leased (``ipam.allocate.Leased``)."""
        try:
            return self._view.first_free_from(version, number)
        except IndexDamaged:
            return self._read_now().first_free_from(version, number)

    def holder(self, address: Address) -> Owner | None:
        """Whom an address's file names now."""
        found = self.directory.read(address)
        return found.owner if found else None

    def reread(self) -> None:
        """Forget what was believed and read the files."""
        self.close()
        self._recalled = False
        self._view = self._build(self.directory.names())

    def reread_if_stale(self) -> bool:
        """LeaseTable the files again if that was not done lately; says whether it was done."""
        if not isinstance(self._view, Index) and not self._recalled:
            return False
        with contextlib.suppress(IndexDamaged):
            if isinstance(self._view, Index) and self._view.age() < _FRESH:
                return False
        self.reread()
        return True

    def take(self, addresses: tuple[Address, ...], owner: Owner) -> bool:
        """Lease all of them or none; False where one is taken after all. Raises StateDamaged, having left none."""
        made: list[Address] = []
        try:
            for address in addresses:
                self._changed = True
                if not self.directory.create(address, owner):
                    self._take_back(made)
                    return False
                made.append(address)
        except BaseException:
            self._take_back(made)
            raise
        for address in addresses:
            with self._noting():
                self._view.add(address, owner)
        return True

    def _take_back(self, made: list[Address]) -> None:
        for address in made:
            with contextlib.suppress(StateDamaged):
                self.directory.remove(address)

    def release(self, owner: Owner) -> tuple[Address, ...]:
        """Free all of an owner's addresses, each looked at once more right before; says which.

        Where the owner has none, those that name its container alone (an old host-local's) are meant.
        Raises StateDamaged where a file stays.
        """
        whom = owner
        mine = self.held(whom)
        if not mine:
            whom = Owner(owner.container, "")
            mine = self.held(whom)
        return tuple(address for address in mine if self.free(address, whom))

    def free(self, address: Address, owner: Owner) -> bool:
        """Free one address if its file names that owner; False where it does not. Raises StateDamaged."""
        if self.holder(address) != owner:
            return False
        self._changed = True
        self.directory.remove(address)
        with self._noting():
            self._view.discard(address)
        return True

    def finish(self) -> None:
        """Keep what is known for the next call. The directory's mtime comes last: it is what makes that valid."""
        if isinstance(self._view, LeaseTable):
            if self._changed and len(self._view) <= SMALL:
                remember(self.directory, self._view)
        elif self._changed:
            modified = unique_past_mtime()
            with self._noting():
                self._view.commit(modified)
            if isinstance(self._view, Index):
                self.close()
                self.directory.set_mtime(modified)

    def close(self) -> None:
        """Let go of the index. What was noted and not kept by ``finish`` leaves it invalid, as it must."""
        if isinstance(self._view, Index):
            self._view.close()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Notes for the index's sake: if it cannot take them, there is none until the next call builds one."""
        try:
            yield
        except IndexDamaged:
            self.close()
            self._view = LeaseTable({})
            with contextlib.suppress(OSError):
                os.unlink(self._beside("index"))
            self._view = self._read_now()

    def _look(self) -> Index | LeaseTable:
        """A view of what is taken: small directories read, large ones from their index if that still fits."""
        names = self.directory.names(SMALL + 1)
        if len(names) <= SMALL:
            return self._build(names)
        path = self._beside("index")
        if self._seen and os.path.exists(path):
            index = None
            with contextlib.suppress(IndexDamaged):
                index = Index(path)
                if index.fits(self.directory.identity()):
                    return index
            if index:
                index.close()
        return self._build(self.directory.names())

    def _read_now(self) -> LeaseTable:
        self.close()
        view = self._whole(self.directory.names())
        self._view = view
        return view

    def _whole(self, names: list[str]) -> LeaseTable:
        before = self.directory.identity()[2]
        taken = self._survivors(names)
        return LeaseTable(taken, before if before == self.directory.identity()[2] else 0)

    def _build(self, names: list[str]) -> Index | LeaseTable:
        """LeaseTable the files, reclaim what nobody holds, and leave an index behind where it pays."""
        if len(names) <= SMALL or not self._write:
            return self._whole(names)
        taken = self._survivors(names)
        if not self.directory.set_mtime(unique_past_mtime()):
            return LeaseTable(taken)
        index = None
        try:
            os.makedirs(self._state.index, mode=0o700, exist_ok=True)
            path = self._beside("index")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            index = Index(path)
            index.build(taken.items(), self.directory.identity())
            return index
        except (IndexDamaged, OSError):
            if index:
                index.close()
            return LeaseTable(taken)

    def _survivors(self, names: list[str]) -> dict[Address, Owner | None]:
        """Who holds what; what nobody holds any more is removed if this may write, and passed over if not."""
        taken: dict[Address, Owner | None] = {}
        for found in self.directory.scan(names):
            if not self._dead(found) or not self._reclaim(found.address):
                taken[found.address] = found.owner
        if self._write and not self._seen:
            self._seen = _leave_stamp(self._beside("seen"))
        return taken

    def _dead(self, found: LeaseFile) -> bool:
        if found.unreadable:
            return False
        if found.owner is None:
            return True
        old = not self._seen and found.modified < self._state.booted - _MARGIN
        return old and not self._state.alive(self._network, found.owner)

    def _reclaim(self, address: Address) -> bool:
        if not self._write:
            return True
        try:
            self.directory.remove(address)
        except StateDamaged:
            return False
        return True


@contextlib.contextmanager
def open_locked(path: str, network: str, state: HostState, *, timeout: float = TIMEOUT) -> Iterator[Leases]:
    """The leases of a directory that is there, its lock held meanwhile.

    Raises FileNotFoundError where there is no such directory, Busy when the lock stays taken for longer than
    ``timeout`` seconds, StateDamaged where files cannot be read or written.
    """
    with Directory(path) as directory, _locked(directory, timeout):
        leases = Leases(directory, network, state, write=True)
        try:
            yield leases
            leases.finish()
        finally:
            leases.close()


@contextlib.contextmanager
def open_readonly(path: str, network: str, state: HostState) -> Iterator[Leases]:
    """The leases of a directory, to look at: no file is made or changed, not even a lock's.

    Raises FileNotFoundError, Busy and StateDamaged as ``open_locked`` does.
    """
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(Directory(path))
        lock = os.path.join(path, LOCK)
        if os.path.isfile(lock) and not os.path.islink(lock):
            with contextlib.suppress(StateDamaged):  # a read-only disk: nobody changes anything there
                stack.enter_context(hold(lock, mode=_LOCK_MODE))
        leases = Leases(directory, network, state, write=False)
        stack.callback(leases.close)
        yield leases


@contextlib.contextmanager
def _locked(directory: Directory, timeout: float) -> Iterator[None]:
    path = os.path.join(directory.path, LOCK)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(path, timeout=timeout, mode=_LOCK_MODE))
        except StateDamaged:
            if not _cleared(directory):
                raise
            stack.enter_context(hold(path, timeout=timeout, mode=_LOCK_MODE))
        yield


def _cleared(directory: Directory) -> bool:
    """Remove what can be no lock but has its name: a link that leads nowhere, an empty directory.

    Under a lock on the directory itself, so that of two that do this at once none removes the other's new lock.
    """
    try:
        fcntl.flock(directory.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another does this now
        time.sleep(0.01)
        return True
    try:
        about = os.stat(LOCK, dir_fd=directory.descriptor, follow_symlinks=False)
        if stat.S_ISDIR(about.st_mode):
            os.rmdir(LOCK, dir_fd=directory.descriptor)
            return True
        if stat.S_ISLNK(about.st_mode) and not os.path.exists(os.path.join(directory.path, LOCK)):
            os.unlink(LOCK, dir_fd=directory.descriptor)
            return True
        return stat.S_ISREG(about.st_mode)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    finally:
        fcntl.flock(directory.descriptor, fcntl.LOCK_UN)


def _leave_stamp(path: str) -> bool:
    """Note that a directory was looked at in this boot; False where that cannot be noted."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError:
        return False
    return True


def make_directory(path: str) -> None:
    """A network's lease directory, 0755 as host-local's. Raises StateDamaged."""
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
    except OSError as error:
        raise StateDamaged(
            f"cannot make the lease directory {path}: {error.strerror}", hint="see to the disk, or set ipam.dataDir"
        ) from error


def release(path: str, network: str, owner: Owner, state: HostState) -> tuple[Address, ...]:
    """Free all that an owner holds in a directory; says which. Nothing there, or no directory, is success.

    Raises Busy, and StateDamaged where an address of the owner's could not be freed: a directory that is damaged
    or read-only but holds nothing of the owner's is nothing to fail for.
    """
    try:
        with open_locked(path, network, state) as leases:
            return leases.release(owner)
    except FileNotFoundError:
        return ()
    except StateDamaged:
        mine = {owner, Owner(owner.container, "")}
        if any(each in mine for _, each, _ in owners(path)):
            raise
        return ()


def owners(path: str) -> Iterator[tuple[Address, Owner, float]]:
    """Every lease of a directory: address, owner, and when it was made (wall-clock seconds). Takes no lock.

    Raises StateDamaged where the directory cannot be read; a missing one has none.
    """
    try:
        directory = Directory(path)
    except FileNotFoundError:
        return
    with directory:
        for found in directory.scan():
            if found.unreadable:
                raise StateDamaged(
                    f"cannot read {os.path.join(path, str(found.address))}",
                    hint="see to the disk and the rights of the file",
                )
            if found.owner is not None:
                yield found.address, found.owner, found.modified


def release_address(path: str, address: Address, owner: Owner, state: HostState) -> bool:
    """Free one address if it is that owner's at the moment it is freed; False where it is not (any more).

    For GC, whose list of leases may be out of date. Raises Busy and StateDamaged.
    """
    try:
        with open_locked(path, os.path.basename(path), state) as leases:
            return leases.free(address, owner)
    except FileNotFoundError:
        return False
