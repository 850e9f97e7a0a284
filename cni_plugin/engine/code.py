"""Detects an upgrade: an engine stops when the source files differ from those it was started from."""

from __future__ import annotations

import os
import time
from functools import cache

import weft

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(weft.__file__)))
VERSION = weft.__version__

_CHECK_SECONDS = 1.0
_PACKAGES = ("weft", "cni_plugin", "ipam")


class Code:
    """The source files that this process was started from: inode and mtime of each."""

    def __init__(self) -> None:
        self._folders, self._files = _scan()
        self._checked = time.monotonic()
        self.unchanged = True

    def verify(self) -> bool:
        """Scan all files (1 ms); False once any differs from the start."""
        if self.unchanged:
            self._folders, files = _scan()
            self.unchanged = files == self._files
        return self.unchanged

    def verify_folders(self) -> bool:
        """Compare the folders' mtimes only, at most once a second; False once a file was added, removed
        or replaced.

        Every package manager replaces files by rename, so an upgrade changes the folders.
        """
        now = time.monotonic()
        if self.unchanged and now - self._checked >= _CHECK_SECONDS:
            self._checked = now
            if any(_mtime_ns(folder) != mtime for folder, mtime in self._folders.items()):
                return self.verify()
        return self.unchanged


@cache
def changed_ns() -> int:
    """When a source file was written or replaced last: the latest ctime, in nanoseconds. For commands, which do not
    run for long: looked at once.
    """
    paths = (path for path, *_ in _scan((*_PACKAGES, "discovery", "store", "cluster"))[1])
    return max((os.stat(path).st_ctime_ns for path in paths), default=0)


def _mtime_ns(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _scan(packages: tuple[str, ...] = _PACKAGES) -> tuple[dict[str, int], frozenset[tuple[str, int, int]]]:
    """The folders with their mtimes, and every source file with its inode and mtime."""
    found: set[tuple[str, int, int]] = set()
    folders: dict[str, int] = {}
    waiting = [os.path.join(ROOT, name) for name in packages]
    while waiting:
        folder = waiting.pop()
        folders[folder] = _mtime_ns(folder)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".py"):
                        status = entry.stat()
                        found.add((entry.path, status.st_ino, status.st_mtime_ns))
                    elif entry.name != "__pycache__" and entry.is_dir():
                        waiting.append(entry.path)
        except OSError:
            continue
    return folders, frozenset(found)
