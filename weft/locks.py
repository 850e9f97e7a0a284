"""Files that one process (or thread) holds at a time, with a bound on how long anybody waits.

``flock(2)`` and not ``fcntl`` locks: host-local takes the first, the two do not see each other, and flock is
released by the kernel when its holder dies, whoever it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from _thread import allocate_lock
from collections.abc import Iterable, Iterator

from weft.errors import Busy, StateDamaged

TIMEOUT = 30.0
"""Seconds to wait for a lock before giving up with CNI error 11 (try again later)."""

_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.02


@contextlib.contextmanager
def hold(path: str, *, shared: bool = False, timeout: float = TIMEOUT, mode: int = 0o600) -> Iterator[int]:
    """Hold the lock file while the block runs; yields its descriptor.

    The file is made where missing; its directory must be there. The holder may unlink it: a waiter notices
    that its file is no longer the one of that name and starts over.
    Raises Busy when somebody else holds it for longer than ``timeout`` seconds, StateDamaged when the path
    cannot be a lock.
    """
    deadline = time.monotonic() + timeout
    with contextlib.nullcontext() if shared else _turn(path, timeout):
        while True:
            descriptor = _open(path, mode)
            try:
                _acquire(descriptor, path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, deadline)
                if _current(descriptor, path):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)


class _Queue:
    """The threads of this process that want one file; they need not ask the kernel again and again."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.users = 0


_queues: dict[str, _Queue] = {}
_guard = allocate_lock()


@contextlib.contextmanager
def _turn(path: str, timeout: float) -> Iterator[None]:
    """Be the thread of this process that asks for the file, or have waited long enough to ask all the same."""
    with _guard:
        queue = _queues.setdefault(path, _Queue())
        queue.users += 1
    mine = queue.lock.acquire(timeout > 0, timeout if timeout > 0 else -1)
    try:
        yield
    finally:
        if mine:
            queue.lock.release()
        with _guard:
            queue.users -= 1
            if not queue.users:
                _queues.pop(path, None)


def _open(path: str, mode: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags, mode)
    except OSError as error:
        raise StateDamaged(
            f"cannot open the lock {path}: {error.strerror}", hint="remove what is in the way and try again"
        ) from error


def _acquire(descriptor: int, path: str, kind: int, deadline: float) -> None:
    pause = _FIRST_PAUSE
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Busy(
                    f"{path} has been locked for too long by {_holder(descriptor)}",
                    hint="see what that process waits for, then try again",
                ) from None
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _current(descriptor: int, path: str) -> bool:
    """Whether the name still leads to the file that is open: its last holder may have unlinked it."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def holder(path: str) -> int:
    """The process that holds a file with flock(2), 0 if none does or the file is missing. Source: ``proc_locks(5)``."""
    try:
        about = os.stat(path)
        # Inodes of every tmpfs are numbered from 1: without the device it might be a stranger's file.
        file = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
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
    """Who holds the file: "process 4711 (weft)"."""
    process = holder(f"/proc/self/fd/{descriptor}")
    if not process:
        return "another process"
    with contextlib.suppress(OSError), open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as comm:
        return f"process {process} ({comm.read().strip()})"
    return f"process {process}"
