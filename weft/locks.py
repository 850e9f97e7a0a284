"""Lock files across processes and threads, with a timeout.

``flock(2)`` and not fcntl locks: host-local uses flock and the two kinds do not exclude each other.
The kernel releases a flock when its holder exits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Iterable, Iterator

from weft import files
from weft.errors import Busy, StateDamaged

TIMEOUT = 30.0
"""Seconds to wait for a lock before CNI error 11 (try again later)."""

_NO_FILE = frozenset((errno.ELOOP, errno.EISDIR, errno.ENXIO))
"""Errors of open(2) for a symlink, a directory and a socket."""
_HINTS = {
    errno.EROFS: "mount the file system read-write, and try again",
    errno.ENOSPC: "free space on the file system, and try again",
}
_MIN_SLEEP = 0.0005
_MAX_SLEEP = 0.02
_PATIENCE = 1.0
"""Seconds after which a process tries more often than those that have just come."""
_LAST_SLEEP = 0.002


@contextlib.contextmanager
def hold(path: str, *, shared: bool = False, timeout: float = TIMEOUT, mode: int = 0o600) -> Iterator[int]:
    """Hold a lock file; yields its descriptor.

    It is created if missing, in an existing directory; what is there and no regular file is renamed
    first. The holder may unlink it: a waiter then finds that the path leads to another inode and
    starts over. Raises Busy after ``timeout``
    seconds, StateDamaged if the path cannot be opened.
    """
    deadline = time.monotonic() + timeout
    with contextlib.nullcontext() if shared else _thread_lock(path, timeout):
        while True:
            descriptor = _open(path, mode)
            try:
                _acquire(descriptor, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, deadline)
                if _current(descriptor, path):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)


_queues: dict[str, deque[LockType]] = {}
"""The threads of this process that wait for a lock file which another of its threads polls or holds."""
_guard = allocate_lock()


@contextlib.contextmanager
def _thread_lock(path: str, timeout: float) -> Iterator[None]:
    """Serialise the threads of this process, first come, first served; after the timeout a thread polls the
    file itself. (``threading.Lock`` lets whoever comes at the right moment pass all that wait.)
    """
    turn = allocate_lock()
    with _guard:
        is_first = path not in _queues
        if is_first:
            _queues[path] = deque()
        elif timeout > 0:
            turn.acquire()
            _queues[path].append(turn)
    try:
        if not is_first and timeout > 0:
            turn.acquire(timeout=timeout)
        yield
    finally:
        with _guard:
            if turn in _queues.get(path, ()):
                _queues[path].remove(turn)
            elif is_first or timeout > 0:  # also where its turn came after the timeout
                if _queues[path]:
                    _queues[path].popleft().release()
                else:
                    del _queues[path]


def _open(path: str, mode: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        try:
            descriptor = os.open(path, flags, mode)
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
        else:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
        _clear(path)
        return os.open(path, flags, mode)
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "remove what is at that path and try again")
        raise StateDamaged(f"cannot open the lock {path}: {error.strerror}", hint=hint) from error


def _clear(path: str) -> None:
    """Rename what is at a lock's path and no regular file.

    The directory is locked meanwhile: of two processes none renames the other's new lock.
    """
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode):
                files.set_aside(path)
    finally:
        os.close(directory)


def _acquire(descriptor: int, path: str, kind: int, deadline: float) -> None:
    sleep, patience = _MIN_SLEEP, time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            now = time.monotonic()
            if now >= deadline:
                raise Busy(
                    f"{path} has been locked for too long by {_holder(descriptor)}",
                    hint="check what that process is waiting for, then try again",
                ) from None
        time.sleep(sleep)
        sleep = min(sleep * 1.5, _MAX_SLEEP) if now < patience else _LAST_SLEEP


def _current(descriptor: int, path: str) -> bool:
    """Whether the path still leads to the open file: the previous holder may have unlinked it."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    opened = os.fstat(descriptor)
    return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)


def holder(path: str) -> int:
    """The pid that holds a flock(2) on a file, 0 if none does or it is missing.

    Source: ``proc_locks(5)``.
    """
    try:
        status = os.stat(path)
        # Every tmpfs numbers its inodes from 1, so the device is compared too.
        file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with open("/proc/locks", encoding="ascii", errors="replace") as locks:
            return _holding(locks, file)
    except OSError:
        return 0


def _holding(locks: Iterable[str], file: str) -> int:
    for line in locks:
        fields = line.split()
        if "FLOCK" in fields and "->" not in fields and file in fields:
            return int(fields[4])
    return 0


def _holder(descriptor: int) -> str:
    """The holder as messages name it: "process 4711 (weft)"."""
    process = holder(f"/proc/self/fd/{descriptor}")
    if not process:
        return "another process"
    with contextlib.suppress(OSError), open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as comm:
        return f"process {process} ({comm.read().strip()})"
    return f"process {process}"
