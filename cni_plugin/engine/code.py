"""Whether the code on disk is still the code that runs: an engine must not outlive an upgrade."""

from __future__ import annotations

import os
import time

import cni_plugin

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(cni_plugin.__file__)))
VERSION = cni_plugin.__version__

_EVERY = 1.0  # seconds between two looks
_PACKAGES = ("cni_plugin", "ipam")


class Code:
    """The files this process was started from."""

    def __init__(self) -> None:
        self._then = _state()
        self._looked = time.monotonic()
        self.fresh = True

    def look(self) -> bool:
        """False once a file is another than at the start; looks at most once a second."""
        now = time.monotonic()
        if self.fresh and now - self._looked >= _EVERY:
            self._looked = now
            self.fresh = _state() == self._then
        return self.fresh


def _state() -> frozenset[tuple[str, int, int]]:
    """Every source file with its inode and mtime."""
    found: set[tuple[str, int, int]] = set()
    folders = [os.path.join(ROOT, name) for name in _PACKAGES]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.name.endswith(".py"):
                        about = entry.stat()
                        found.add((entry.path, about.st_ino, about.st_mtime_ns))
                    elif entry.name != "__pycache__" and entry.is_dir():
                        folders.append(entry.path)
        except OSError:
            continue
    return frozenset(found)


def newer(version: str) -> bool:
    """Whether a client's version is newer than this engine's."""
    return _numbers(version) > _numbers(VERSION)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split("+")[0].split("."))
