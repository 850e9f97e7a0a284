"""The network's sysctls, as files under /proc/sys of the calling thread's namespace. Source: ``sysctl(8)``.

The folders stay open, for the way to them is the longer the more namespaces there are (``proc``).
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache

from weft.errors import KernelRefused, Missing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from weft.kernel.proc import OwnProc

_ROOT = "/proc/sys/"
_FOLDERS = ("net/ipv4/", "net/ipv6/")
_LONGEST = 1 << 16

_own_proc: OwnProc | None = None


def use_own_proc() -> None:
    """From now on look through a /proc of this process's own, where it may have one."""
    import contextlib

    from weft.kernel.proc import OwnProc

    global _own_proc
    with contextlib.suppress(OSError):
        _own_proc = OwnProc()


class Sysctls:
    """The sysctls of one namespace, which the thread must be in whenever it calls."""

    __slots__ = ("_folders",)

    def __init__(self) -> None:
        self._folders: dict[str, int] = {}

    def close(self) -> None:
        """Close the folders; a second time does nothing."""
        while self._folders:
            os.close(self._folders.popitem()[1])

    def read(self, key: str) -> str | None:
        """The value without its line end, None if there is no such key; tabs between several values are kept.

        Raises KernelRefused for a key outside ``net/`` and for one that cannot be read.
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
        """Set a value. Raises Missing for no such key, KernelRefused otherwise, naming key and value.

        *Equivalent to:* ``sysctl -w KEY=VALUE``.
        """
        setting = f"cannot set the sysctl {key} to {value!r}"
        try:
            descriptor = self._open(key, os.O_WRONLY)
            try:
                os.write(descriptor, value.encode("utf-8", "surrogateescape"))
            finally:
                os.close(descriptor)
        except FileNotFoundError as error:
            raise Missing(f"{setting}: there is no such sysctl in this namespace") from error
        except OSError as error:
            hint = {
                errno.EROFS: "/proc/sys is mounted read-only",
                errno.EACCES: "it is read-only",
                errno.EPERM: "this needs CAP_NET_ADMIN",
            }.get(error.errno or 0, "")
            raise KernelRefused(f"{setting}: the kernel says {error.strerror}", hint=hint) from error

    def _open(self, key: str, flags: int) -> int:
        folder, rest = _place(key)
        if not folder:
            return os.open(_ROOT + key, flags | os.O_CLOEXEC)
        if folder not in self._folders:
            self._folders[folder] = _open_folder(folder)
        return os.open(rest, flags | os.O_CLOEXEC, dir_fd=self._folders[folder])


@lru_cache(512)
def _place(key: str) -> tuple[str, str]:
    """The folder that is kept open and the way from there, ("", key) elsewhere. Raises KernelRefused for no key."""
    wrong = problem(key)
    if wrong:
        raise KernelRefused(f"cannot use the sysctl {key!r}: it {wrong}")
    folder = next((folder for folder in _FOLDERS if key.startswith(folder)), "")
    return folder, key.removeprefix(folder)


def problem(key: str) -> str:
    """What is wrong with a key, "" if nothing is: it must lie under net/ and nowhere else."""
    parts = key.split("/")
    if parts[0] != "net" or len(parts) < 2:
        return "must begin with net/"
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        return "must be a plain path, with slashes, without '.' and '..'"
    return ""


def _open_folder(folder: str) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(_ROOT + folder, flags) if _own_proc is None else _own_proc.open("sys/" + folder, flags)
