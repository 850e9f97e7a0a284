"""The files of one lease directory, laid out as host-local does.

``ADDRESS`` holds ``CONTAINER\\r\\nINTERFACE``; ``last_reserved_ip.SET`` the address leased last from that set;
``lock`` is what ``flock(2)`` is taken on. Nothing is synced to the disk: no lease outlives a boot (its container
does not), so a file that a power cut emptied is one that the next boot discards anyway.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice

from ipam.values import Owner, owner_text, parse_owner
from weft.errors import StateDamaged
from weft.types import Address

LOCK = "lock"
POINTER = "last_reserved_ip."
_LONGEST_CONTENT = 8192
_IPV4 = re.compile(r"(0|[1-9][0-9]{0,2})" + r"\.(0|[1-9][0-9]{0,2})" * 3)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OVERWRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_TMPFILE = frozenset((errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL))
_NO_FILE = frozenset((errno.ELOOP, errno.ENXIO))


@dataclass(frozen=True, slots=True)
class LeaseFile:
    """A file named like an address. ``owner`` is None where it names nobody.

    ``modified`` is its mtime in wall-clock seconds; ``unreadable`` says that what it holds could not be seen,
    so it must be left alone.
    """

    address: Address
    owner: Owner | None
    modified: float
    unreadable: bool = False


def as_address(name: str) -> Address | None:
    """The address a file is named after; None unless it is spelt as host-local spells it."""
    found = _IPV4.fullmatch(name)
    if found:  # a third of the time that ipaddress takes, for directories of thousands
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
        """Raises FileNotFoundError where there is none, StateDamaged where it cannot be opened."""
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

    def identity(self) -> tuple[int, int, int]:
        """Device, inode and mtime (nanoseconds): equal to a former one if no file came or went since."""
        now = os.fstat(self.descriptor)
        return now.st_dev, now.st_ino, now.st_mtime_ns

    def set_mtime(self, modified: int) -> bool:
        """Set the directory's mtime, in nanoseconds; False where that is not allowed."""
        try:
            os.utime(self.descriptor, ns=(modified, modified))
        except OSError:
            return False
        return self.identity()[2] == modified

    def names(self, most: int | None = None) -> list[str]:
        """The names in the directory, at most so many. Raises StateDamaged."""
        try:
            with os.scandir(self.descriptor) as entries:
                return [entry.name for entry in islice(entries, most)]
        except OSError as error:
            raise self._damaged("list", "", error) from error

    def scan(self, names: list[str] | None = None) -> Iterator[LeaseFile]:
        """Everything that is named like an address. Raises StateDamaged."""
        for name in self.names() if names is None else names:
            address = as_address(name)
            if address is not None and (found := self.read(address, name)) is not None:
                yield found

    def read(self, address: Address, name: str = "") -> LeaseFile | None:
        """The file of an address (which is its ``name``), None where there is none."""
        name = name or str(address)
        try:
            descriptor = os.open(name, _READ, dir_fd=self.descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._no_file(name, address, error)
        try:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode):
                return LeaseFile(address, None, about.st_mtime)
            content = os.read(descriptor, _LONGEST_CONTENT)
        except OSError:
            return LeaseFile(address, None, 0.0, unreadable=True)
        finally:
            os.close(descriptor)
        return LeaseFile(address, parse_owner(content), about.st_mtime)

    def _no_file(self, name: str, address: Address, error: OSError) -> LeaseFile | None:
        """What to make of a name that could not be opened: sockets and dangling links name nobody."""
        try:
            about = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return None
        nothing = error.errno in _NO_FILE
        if nothing and stat.S_ISLNK(about.st_mode):
            with contextlib.suppress(FileNotFoundError):
                os.stat(name, dir_fd=self.descriptor)
                nothing = False
        return LeaseFile(address, None, about.st_mtime, unreadable=not nothing)

    def create(self, address: Address, owner: Owner) -> bool:
        """Make an address's file, whole or not at all; False where something of that name is there.

        An unnamed file is filled and then given its name with ``link(2)``, which never replaces. Where the
        filesystem has no unnamed files, an exclusive ``open(2)``, as host-local does. Raises StateDamaged (no
        space, read-only), having left nothing.
        """
        try:
            descriptor = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in _NO_TMPFILE:
                return self._create_plainly(address, owner)
            raise self._damaged("write", str(address), error) from error
        try:
            _fill(descriptor, owner_text(owner))
            os.link(f"/proc/self/fd/{descriptor}", str(address), dst_dir_fd=self.descriptor, follow_symlinks=True)
        except FileExistsError:
            return False
        except FileNotFoundError:
            return self._create_plainly(address, owner)  # no /proc here
        except OSError as error:
            raise self._damaged("write", str(address), error) from error
        finally:
            os.close(descriptor)
        return True

    def _create_plainly(self, address: Address, owner: Owner) -> bool:
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
        """Remove what bears an address's name: a file, a link, an empty directory. Missing is success.

        Raises StateDamaged where it stays (read-only, no permission, a directory with something in it).
        """
        name = str(address)
        try:
            self._unlink(name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._damaged("remove", name, error) from error

    def pointer(self, place: int) -> Address | None:
        """The address leased last from the set of that index; None where the file is missing or makes no sense."""
        try:
            descriptor = os.open(f"{POINTER}{place}", _READ, dir_fd=self.descriptor)
        except OSError:
            return None
        try:
            return ip_address(os.read(descriptor, 64).decode().strip())
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)

    def point(self, place: int, address: Address) -> None:
        """Remember the address leased last from a set.

        Written over in one piece, then cut to length: of a process killed between the two stays a wrong address
        or no address, and both only mean that the search starts elsewhere. (A rename over the old file makes
        ext4 write to the disk at once, 2 ms.) It is a hint, so failing to write it is nobody's error. What is no
        plain file of this name alone is replaced.
        """
        name, content = f"{POINTER}{place}", str(address).encode()
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
            about = os.fstat(descriptor)
            if stat.S_ISREG(about.st_mode) and about.st_nlink == 1:
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
            f"cannot {verb} {path}: {error.strerror}", hint="see to the disk and the rights of the directory"
        )


def _fill(descriptor: int, content: bytes) -> None:
    """Write all of it; a few bytes go in one piece or not at all (ENOSPC)."""
    if os.write(descriptor, content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
