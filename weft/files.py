"""State files: directories with explicit modes, reading that never blocks, and atomic replacement.

A file is replaced by a temporary file in the same directory and rename(2). Each file has one
temporary name, so that a file left by a killed writer is replaced by the next writer or removed
with the file. Callers hold a lock while they write or remove.

Whoever could once write to a directory of weft's (umask 0, an older release) may have left a FIFO,
symlink, hard link or directory under the name of a file: nothing is read or written through these.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time

from weft import stderr
from weft.errors import StateDamaged

ROOT = "/run/weft"
"""All state of weft that does not survive a boot. What it contains is accessible to root only."""
DAMAGED_SUFFIX = ".damaged"
"""Suffix of what was renamed because it is no file that weft can use; it replaces the extension."""

TEMPORARY_SUFFIX = ".tmp"
"""Suffix of the temporary file; it replaces the file's own extension."""


def make_directory(path: str, what: str, mode: int = 0o700) -> None:
    """Create a directory and its parents for ``what``, with a mode whatever the umask is.

    One of weft's own that others than its owner can write to, or a parent below ``/run/weft``, gets
    a safe mode. Raises StateDamaged, also if it belongs to another user.
    """
    try:
        if path.startswith(f"{ROOT}/"):
            parent = os.path.dirname(path)
            make_directory(parent, what, 0o755 if parent == ROOT else mode)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            _make(path, mode)
            return
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        own = path == ROOT or path.startswith(f"{ROOT}/")
        if own and status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"it belongs to uid {status.st_uid}")
        open_to_others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX
        if open_to_others and status.st_uid == os.geteuid():
            os.chmod(path, stat.S_IMODE(status.st_mode) & mode)
            stderr.write(f"weft: others could write to {path}: mode {stat.S_IMODE(status.st_mode):o} changed\n")
    except OSError as error:
        raise StateDamaged(
            f"cannot create the directory {path}: {error.strerror}", hint=f"weft keeps {what} there"
        ) from error


def _make(path: str, mode: int) -> None:
    """mkdir(2) with missing parents; the umask restricts no mode and a race is no error."""
    parent = os.path.dirname(path)
    if parent and not os.path.isdir(parent):
        _make(parent, mode)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode & 0o700)
        os.chmod(path, mode)


def read(path: str, most: int = 1 << 30, *, own: bool = True) -> bytes:
    """The content of a regular file, at most so many bytes. Raises OSError, also for another kind.

    One that is not weft's ``own``, but an administrator's, may be anybody's, and behind a symlink.
    Source: ``open(2)``, O_NONBLOCK: a FIFO without a writer would block.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW * own | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if own and status.st_uid not in (0, os.geteuid()):
            raise OSError(errno.EPERM, f"belongs to uid {status.st_uid}")
        content = b""
        while piece := os.read(descriptor, min(1 << 20, most - len(content))):
            content += piece
        return content
    finally:
        os.close(descriptor)


def set_aside(path: str) -> str:
    """Rename what is at a path and no file that weft can use; its new path. Raises OSError."""
    stem = os.path.splitext(path)[0]
    aside = f"{stem}{DAMAGED_SUFFIX}"
    if os.path.lexists(aside):
        aside = f"{stem}-{time.time_ns()}{DAMAGED_SUFFIX}"
    os.rename(path, aside)
    stderr.write(f"weft: {path} is damaged, renamed to {aside}\n")
    return aside


def write(path: str, content: bytes, what: str, *, durable: bool = False) -> None:
    """Replace a file atomically, mode 0600; a ``durable`` one is on the disk when this returns.

    Raises StateDamaged, naming ``what``; the old file remains.
    """
    temporary = _temporary(path)
    try:
        descriptor = _create(temporary)
        try:
            while content:
                content = content[os.write(descriptor, content) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        if durable:
            _sync_directory(os.path.dirname(path))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise StateDamaged(
            f"cannot write {what} {path}: {error.strerror}",
            hint="check the free space of /run, and that it is mounted read-write",
        ) from error


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: str) -> int:
    """Create and open a temporary file, in place of one that exists. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        try:
            os.unlink(path)  # not truncated: it may be a hard link
        except IsADirectoryError:
            set_aside(path)
        return os.open(path, flags, 0o600)


def remove(path: str, what: str) -> None:
    """Unlink a file and its temporary file, if they exist; what is a directory is set aside.

    Raises StateDamaged.
    """
    for each in (path, _temporary(path)):
        try:
            os.unlink(each)
        except FileNotFoundError:
            continue
        except IsADirectoryError:
            with contextlib.suppress(OSError):
                set_aside(each)
        except OSError as error:
            raise StateDamaged(f"cannot remove {what} {each}: {error.strerror}") from error


def remove_unfinished(folder: str) -> None:
    """Unlink the temporary files of writers that were killed. Nobody may write to the folder meanwhile."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.endswith(TEMPORARY_SUFFIX):
                os.unlink(os.path.join(folder, name))


def _temporary(path: str) -> str:
    return os.path.splitext(path)[0] + TEMPORARY_SUFFIX
