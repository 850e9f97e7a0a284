"""Sysctls below ``net/``, of the calling thread's network namespace. Source: ``sysctl(8)``.

Their directories are kept open: path look-up in /proc/sys is slow with many namespaces (``proc``).
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache

from weft.errors import KernelRefused, Missing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from weft.kernel.proc import PrivateProc

_ROOT = "/proc/sys/"
_DIRECTORIES = ("net/ipv4/", "net/ipv6/")
_LONGEST = 1 << 16

_OPEN_HINTS = {
    errno.EROFS: "/proc/sys is mounted read-only",
    errno.EACCES: "the sysctl is read-only",
    errno.EPERM: "CAP_NET_ADMIN is required",
}
_WRITE_HINTS = {
    errno.ENOENT: "this value is not available: the kernel module that provides it may be missing",
    errno.EINVAL: "the sysctl does not take this value",
    errno.ERANGE: "the value is out of range",
    errno.EBUSY: "the sysctl cannot be changed while it is in use",
    errno.EPERM: "the kernel does not permit this value here, or CAP_NET_ADMIN is missing",
    errno.EACCES: "the kernel does not permit this value here",
}
"""What an error of write(2) means, other than of open(2): the sysctl exists."""

_private_proc: PrivateProc | None = None


def use_private_proc() -> None:
    """Use a private procfs mount from now on, if one is permitted."""
    import contextlib

    from weft.kernel.proc import PrivateProc

    global _private_proc
    with contextlib.suppress(OSError):
        _private_proc = PrivateProc()


class Sysctls:
    """The sysctls of one namespace, which the calling thread must be in."""

    __slots__ = ("_directories",)

    def __init__(self) -> None:
        self._directories: dict[str, int] = {}

    def close(self) -> None:
        """Close the directories. Idempotent."""
        while self._directories:
            os.close(self._directories.popitem()[1])

    def read(self, key: str) -> str | None:
        """The value without its newline, None if the key does not exist; tabs in it are kept.

        Raises KernelRefused for a key outside ``net/``, or that cannot be read.
        *Equivalent to:* ``sysctl -n KEY``.
        """
        try:
            descriptor = self._open(key, os.O_RDONLY)
            try:
                return os.read(descriptor, _LONGEST).decode("ascii", "replace").rstrip("\n")
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KernelRefused(f"cannot read the sysctl {key}: the kernel says {error.strerror}") from error

    def write(self, key: str, value: str) -> None:
        """Set a value. Raises Missing if the key does not exist, else KernelRefused.

        *Equivalent to:* ``sysctl -w KEY=VALUE``.
        """
        setting = f"cannot set the sysctl {key} to {value!r}"
        try:
            descriptor = self._open(key, os.O_WRONLY)
        except FileNotFoundError as error:
            raise Missing(f"{setting}: no such sysctl in this network namespace") from error
        except OSError as error:
            raise _refusal(setting, error, _OPEN_HINTS) from error
        try:
            # Nothing at all would not reach the kernel, and an empty list of ports stay what it was.
            os.write(descriptor, value.encode("utf-8", "surrogateescape") or b"\n")
        except OSError as error:
            raise _refusal(setting, error, _WRITE_HINTS) from error
        finally:
            os.close(descriptor)

    def _open(self, key: str, flags: int) -> int:
        directory, rest = _split(key)
        if not directory:
            return os.open(_ROOT + key, flags | os.O_CLOEXEC)
        if directory not in self._directories:
            self._directories[directory] = _open_directory(directory)
        return os.open(rest, flags | os.O_CLOEXEC, dir_fd=self._directories[directory])


def _refusal(setting: str, error: OSError, hints: dict[int, str]) -> KernelRefused:
    return KernelRefused(f"{setting}: the kernel says {error.strerror}", hint=hints.get(error.errno or 0, ""))


@lru_cache(512)
def _split(key: str) -> tuple[str, str]:
    """A directory that is kept open ("": none) and the rest of the key. Raises KernelRefused."""
    why = problem(key)
    if why:
        raise KernelRefused(f"invalid sysctl {key!r}: it {why}")
    directory = next((directory for directory in _DIRECTORIES if key.startswith(directory)), "")
    return directory, key.removeprefix(directory)


def problem(key: str) -> str:
    """Why a key is invalid, "" if it is valid: it must be below net/."""
    parts = key.split("/")
    if parts[0] != "net" or len(parts) < 2:
        return "must begin with net/"
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        return "must be a path with slashes, without '.' and '..'"
    return ""


def _open_directory(directory: str) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(_ROOT + directory, flags) if _private_proc is None else _private_proc.open("sys/" + directory, flags)
