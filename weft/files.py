"""Atomic file replacement: write a temporary file in the same directory, then rename(2) it.

Each file has one temporary name, so that a file left by a killed writer is overwritten by the next
writer or removed with the file. Callers hold a lock while they write or remove.
"""

from __future__ import annotations

import contextlib
import os

from weft.errors import StateDamaged

TEMPORARY_SUFFIX = ".tmp"
"""Suffix of the temporary file; it replaces the file's own extension."""


def make_directory(path: str, what: str) -> None:
    """Create a directory, mode 0700, for ``what``. Raises StateDamaged."""
    if os.path.isdir(path):
        return
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateDamaged(
            f"cannot create the directory {path}: {error.strerror}", hint=f"weft keeps {what} there"
        ) from error


def write(path: str, content: bytes, what: str) -> None:
    """Replace a file atomically, mode 0600.

    Raises StateDamaged, naming ``what``; the old file remains.
    """
    temporary = _temporary(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            while content:
                content = content[os.write(descriptor, content) :]
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise StateDamaged(
            f"cannot write {what} {path}: {error.strerror}",
            hint="check the free space of /run, and that it is mounted read-write",
        ) from error


def remove(path: str, what: str) -> None:
    """Unlink a file and its temporary file, if they exist. Raises StateDamaged."""
    for each in (path, _temporary(path)):
        try:
            os.unlink(each)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateDamaged(f"cannot remove {what} {each}: {error.strerror}") from error


def _temporary(path: str) -> str:
    return os.path.splitext(path)[0] + TEMPORARY_SUFFIX
