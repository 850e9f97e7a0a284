"""Small files that others see whole or not at all, and of which a writer that was killed leaves nothing for long.

A file is written beside its place and renamed into it. What is beside it bears one name: the next writer takes it, and
whoever removes the file removes it too. So writers and removers of a file hold a lock.
"""

from __future__ import annotations

import contextlib
import os

from weft.errors import StateDamaged

TEMPORARY_SUFFIX = ".tmp"
"""How the name of a file ends that is being written, in place of what comes after the last dot."""


def make_folder(path: str, what: str) -> None:
    """Make a folder that weft keeps ``what`` in, private to root. Raises StateDamaged."""
    if os.path.isdir(path):
        return
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateDamaged(
            f"cannot make the folder {path}: {error.strerror}", hint=f"weft keeps {what} there"
        ) from error


def write(path: str, content: bytes, what: str) -> None:
    """Replace a file, private to root. Raises StateDamaged, which calls it ``what``; the old one is there then."""
    unfinished = _unfinished(path)
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while content:
                content = content[os.write(descriptor, content) :]
        finally:
            os.close(descriptor)
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise StateDamaged(
            f"cannot write {what} {path}: {error.strerror}", hint="make room in /run, or mount it writable"
        ) from error


def remove(path: str, what: str) -> None:
    """Remove a file, and what a writer that was killed left beside it; missing is fine. Raises StateDamaged."""
    for each in (path, _unfinished(path)):
        try:
            os.unlink(each)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateDamaged(f"cannot remove {what} {each}: {error.strerror}") from error


def _unfinished(path: str) -> str:
    return os.path.splitext(path)[0] + TEMPORARY_SUFFIX
