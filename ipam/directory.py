"""The files of a lease directory, in host-local's layout.

- ``ADDRESS`` is a lease; it has ``CONTAINER\\r\\nINTERFACE``.
- ``last_reserved_ip.SET`` has the address leased last from a set: where its round robin continues.
- ``lock`` is locked with ``flock(2)`` by whoever changes the others.

The directory's mtime is its *generation*. Whoever leaves a cache or an index of the directory
behind sets the mtime, as the last step, to a unique time in the past and stores that time in the
cache or index. Any other change of the directory (host-local, an administrator, a killed process)
sets it to the present. So a cache is current if and only if its generation equals the directory's,
whatever the resolution of timestamps, and a crash at any point invalidates it.

Nothing is synced to disk: leases do not survive a boot, since containers do not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice

from ipam.values import Owner, owner_text, parse_owner
from weft.errors import StateDamaged
from weft.types import Address

LOCK = "lock"
POINTER = "last_reserved_ip."
_MAX_CONTENT = 8192
_IPV4 = re.compile(r"(0|[1-9][0-9]{0,2})" + r"\.(0|[1-9][0-9]{0,2})" * 3)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OVERWRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NANOSECONDS_AGO = 2_000_000_000  # more than the coarsest resolution of timestamps
_NO_TMPFILE = frozenset((errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL))
_NOT_READABLE = frozenset((errno.ELOOP, errno.ENXIO))  # O_NOFOLLOW on a link, a socket


@dataclass(frozen=True, slots=True)
class LeaseFile:
    """A lease: a file whose name is an address. ``owner`` is None if its content is invalid.

    ``modified`` is its mtime in wall-clock seconds. An ``unreadable`` file must be kept.
    """

    address: Address
    owner: Owner | None
    modified: float
    unreadable: bool = False


def as_address(name: str) -> Address | None:
    """The address in a file name; None unless it is in host-local's spelling."""
    found = _IPV4.fullmatch(name)
    if found:  # three times as fast as ipaddress, for directories with thousands of leases
        a, b, c, d = map(int, found.groups())
        return IPv4Address(a << 24 | b << 16 | c << 8 | d) if max(a, b, c, d) < 256 else None
    if ":" not in name or "%" in name:
        return None
    try:
        address = IPv6Address(name)
    except ValueError:
        return None
    return address if str(address) == name else None


class Directory:
    """An open lease directory. Close it, or use it in a ``with`` statement."""

    __slots__ = ("descriptor", "path")

    def __init__(self, path: str) -> None:
        """Raises FileNotFoundError if it does not exist, StateDamaged if it cannot be opened."""
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._damaged("open", "", error) from error

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def generation(self) -> tuple[int, int, int]:
        """Device, inode and mtime (ns): unchanged while no file is added or removed."""
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino, status.st_mtime_ns

    def set_generation(self, mtime: int) -> bool:
        """Set the directory's mtime, in nanoseconds; False if that is not permitted."""
        try:
            os.utime(self.descriptor, ns=(mtime, mtime))
        except OSError:
            return False
        return self.generation()[2] == mtime

    def names(self, most: int | None = None) -> list[str]:
        """The file names in the directory, at most ``most`` of them. Raises StateDamaged."""
        try:
            with os.scandir(self.descriptor) as entries:
                return [entry.name for entry in islice(entries, most)]
        except OSError as error:
            raise self._damaged("list", "", error) from error

    def modified(self) -> Iterator[tuple[str, float]]:
        """The file names in the directory with their mtimes, in wall-clock seconds. Raises StateDamaged."""
        try:
            with os.scandir(self.descriptor) as entries:
                for entry in entries:
                    try:  # contextlib.suppress costs a third of it: a /16 has 65,533 files
                        modified = entry.stat(follow_symlinks=False).st_mtime
                    except FileNotFoundError:
                        continue
                    yield entry.name, modified
        except OSError as error:
            raise self._damaged("list", "", error) from error

    def scan(self, names: list[str] | None = None) -> Iterator[LeaseFile]:
        """All leases, or those among ``names``. Raises StateDamaged."""
        for name in self.names() if names is None else names:
            address = as_address(name)
            if address is not None and (found := self.read(address, name)) is not None:
                yield found

    def read(self, address: Address, name: str = "") -> LeaseFile | None:
        """The lease of an address, None if there is none."""
        name = name or str(address)
        try:
            descriptor = os.open(name, _READ, dir_fd=self.descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._not_opened(name, address, error)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return LeaseFile(address, None, status.st_mtime)
            content = os.read(descriptor, _MAX_CONTENT)
        except OSError:
            return LeaseFile(address, None, 0.0, unreadable=True)
        finally:
            os.close(descriptor)
        return LeaseFile(address, parse_owner(content), status.st_mtime)

    def _not_opened(self, name: str, address: Address, error: OSError) -> LeaseFile | None:
        """The lease of a file that open(2) refused: sockets and dangling symlinks have no owner."""
        try:
            status = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return None
        invalid = error.errno in _NOT_READABLE
        if invalid and stat.S_ISLNK(status.st_mode):
            with contextlib.suppress(FileNotFoundError):
                os.stat(name, dir_fd=self.descriptor)
                invalid = False
        return LeaseFile(address, None, status.st_mtime, unreadable=not invalid)

    def create(self, address: Address, owner: Owner) -> bool:
        """Create a lease atomically; False if the name exists.

        An O_TMPFILE is written and then named with ``link(2)``, which never replaces a file.
        Filesystems without O_TMPFILE get an exclusive ``open(2)``, as host-local does. Raises
        StateDamaged (no space, read-only) without leaving a file.
        """
        try:
            descriptor = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in _NO_TMPFILE:
                return self._create_exclusively(address, owner)
            raise self._damaged("write", str(address), error) from error
        try:
            _fill(descriptor, owner_text(owner))
            os.link(f"/proc/self/fd/{descriptor}", str(address), dst_dir_fd=self.descriptor, follow_symlinks=True)
        except FileExistsError:
            return False
        except FileNotFoundError:
            return self._create_exclusively(address, owner)  # no /proc
        except OSError as error:
            raise self._damaged("write", str(address), error) from error
        finally:
            os.close(descriptor)
        return True

    def _create_exclusively(self, address: Address, owner: Owner) -> bool:
        name = str(address)
        try:
            descriptor = os.open(name, _WRITE, 0o600, dir_fd=self.descriptor)
        except FileExistsError:
            return False
        except OSError as error:
            raise self._damaged("write", name, error) from error
        try:
            _fill(descriptor, owner_text(owner))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self.descriptor)
            raise self._damaged("write", name, error) from error
        finally:
            os.close(descriptor)
        return True

    def remove(self, address: Address) -> None:
        """Remove an address's file, symlink or empty directory, if it exists.

        Raises StateDamaged if it cannot be removed (read-only, no permission, a non-empty
        directory).
        """
        name = str(address)
        try:
            self._unlink(name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._damaged("remove", name, error) from error

    def last_reserved(self, index: int) -> Address | None:
        """The address leased last from a set; None if the file is missing or invalid."""
        try:
            descriptor = os.open(f"{POINTER}{index}", _READ, dir_fd=self.descriptor)
        except OSError:
            return None
        try:
            return ip_address(os.read(descriptor, 64).decode().strip())
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)

    def set_last_reserved(self, index: int, address: Address) -> None:
        """Store the address leased last from a set. Errors are ignored: it is only a hint.

        It is overwritten and truncated in place, since a rename over it makes ext4 flush to disk (2
        ms). A process killed in between leaves a wrong or invalid address: the search starts
        elsewhere. What is not a regular file with one link is replaced.
        """
        name, content = f"{POINTER}{index}", str(address).encode()
        with contextlib.suppress(OSError):
            descriptor = self._pointer_file(name)
            try:
                _fill(descriptor, content)
                if os.fstat(descriptor).st_size > len(content):
                    os.ftruncate(descriptor, len(content))
            finally:
                os.close(descriptor)

    def _pointer_file(self, name: str) -> int:
        with contextlib.suppress(OSError):
            descriptor = os.open(name, _OVERWRITE, dir_fd=self.descriptor)
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                return descriptor
            os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            self._unlink(name)
        return os.open(name, _WRITE, 0o600, dir_fd=self.descriptor)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.descriptor)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=self.descriptor)

    def _damaged(self, verb: str, name: str, error: OSError) -> StateDamaged:
        path = os.path.join(self.path, name) if name else self.path
        return StateDamaged(
            f"cannot {verb} {path}: {error.strerror}", hint="check the disk and the permissions of the directory"
        )


def new_generation() -> int:
    """A unique mtime in the past, in nanoseconds, for ``Directory.set_generation``."""
    return time.time_ns() - _NANOSECONDS_AGO - int.from_bytes(os.urandom(4), "big") % 1_000_000_000


def _fill(descriptor: int, content: bytes) -> None:
    """Write a few bytes completely or raise ENOSPC."""
    if os.write(descriptor, content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
