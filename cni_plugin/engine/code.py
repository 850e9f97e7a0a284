"""Whether the code on disk is still the code that runs: an engine must not outlive an upgrade."""

from __future__ import annotations

import os
import time

import weft

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(weft.__file__)))
VERSION = weft.__version__

_EVERY = 1.0  # seconds between two looks
_PACKAGES = ("weft", "cni_plugin", "ipam")


class Code:
    """The files this process was started from."""

    def __init__(self) -> None:
        self._folders, self._then = _state()
        self._looked = time.monotonic()
        self.fresh = True

    def look(self) -> bool:
        """False once a file is another than at the start, which takes a millisecond to see."""
        if self.fresh:
            self._folders, now = _state()
            self.fresh = now == self._then
        return self.fresh

    def glance(self) -> bool:
        """False once a file has come, gone or been replaced, as by every upgrade; looks at most once a second."""
        now = time.monotonic()
        if self.fresh and now - self._looked >= _EVERY:
            self._looked = now
            if any(_modified(folder) != then for folder, then in self._folders.items()):
                return self.look()
        return self.fresh


def _modified(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _state() -> tuple[dict[str, int], frozenset[tuple[str, int, int]]]:
    """The folders with their mtimes, and every source file with its inode and mtime."""
    found: set[tuple[str, int, int]] = set()
    folders: dict[str, int] = {}
    waiting = [os.path.join(ROOT, name) for name in _PACKAGES]
    while waiting:
        folder = waiting.pop()
        folders[folder] = _modified(folder)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".py"):
                        about = entry.stat()
                        found.add((entry.path, about.st_ino, about.st_mtime_ns))
                    elif entry.name != "__pycache__" and entry.is_dir():
                        waiting.append(entry.path)
        except OSError:
            continue
    return folders, frozenset(found)
