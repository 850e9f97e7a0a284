"""Memory shared by the processes of one engine, each region with a lock, and the two caches kept there.

Created before the helpers are forked. The locks are flock(2)'s, which the kernel releases when a
process is killed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from _thread import allocate_lock
from contextlib import AbstractContextManager
from struct import Struct

from weft.kernel.nft.generation import Found, VerifiedGeneration

_WRITTEN = Struct("=Q")
_LENGTH = Struct("=I")
_FOUND = Struct("=16sIB")
_RING_BYTES = 1 << 18  # a call writes some 150


class SharedRegion:
    """An anonymous shared mapping with a lock across threads and processes: ``with region:``."""

    def __init__(self, size: int) -> None:
        """Raises OSError."""
        self.memory = mmap.mmap(-1, size)
        self._file = os.memfd_create("weft-engine", os.MFD_CLOEXEC)
        self._thread_lock = allocate_lock()
        self._lock_process, self._lock = 0, -1

    def __enter__(self) -> None:
        self._thread_lock.acquire()
        try:
            if self._lock_process != os.getpid():  # flock(2): an inherited descriptor would share the parent's lock
                self._lock = os.open(f"/proc/self/fd/{self._file}", os.O_RDWR | os.O_CLOEXEC)
                self._lock_process = os.getpid()
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except BaseException:
            self._thread_lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        self._thread_lock.release()


class SharedVerifiedGeneration(VerifiedGeneration):
    """The ruleset digest and nf_tables generation that any of the processes verified last."""

    def __init__(self) -> None:
        super().__init__()
        self._region = SharedRegion(mmap.PAGESIZE)

    @property
    def lock(self) -> AbstractContextManager[object]:
        return self._region

    @property
    def found(self) -> Found | None:
        digest, generation, is_set = _FOUND.unpack_from(self._region.memory)
        return (digest.decode(), generation) if is_set else None

    @found.setter
    def found(self, found: Found | None) -> None:
        digest, generation = found or ("", 0)
        _FOUND.pack_into(self._region.memory, 0, digest.encode(), generation, found is not None)


class LeaseChangeRing:
    """Lease changes (``ipam.cache``) in a shared ring buffer; a lagging reader gets None and rescans.

    The mapping holds a count of all bytes ever written, then the ring. An entry is its length (4 bytes)
    and the change; it may wrap around the end of the ring.
    """

    def __init__(self, size: int = _RING_BYTES) -> None:
        self._region = SharedRegion(_WRITTEN.size + size)
        self._size = size
        self._read = 0

    def publish(self, news: bytes) -> None:
        """Append one entry; one longer than the ring is dropped, and readers rescan that directory by
        its mtime.
        """
        data = _LENGTH.pack(len(news)) + news
        if len(data) > self._size:
            return
        with self._region:
            written = self._written()
            offset = written % self._size
            first = data[: self._size - offset]
            self._put(offset, first)
            self._put(0, data[len(first) :])
            _WRITTEN.pack_into(self._region.memory, 0, written + len(data))

    def poll(self) -> list[bytes] | None:
        """The entries since the last read, our own among them; None where some have been overwritten."""
        if self._written() == self._read:
            return []
        with self._region:
            written = self._written()
            unread = written - self._read
            data = b"" if unread > self._size else self._get(self._read % self._size, unread)
        self._read = written
        if unread > self._size:
            return None
        entries = []
        while data:
            (length,) = _LENGTH.unpack_from(data)
            entries.append(data[_LENGTH.size : _LENGTH.size + length])
            data = data[_LENGTH.size + length :]
        return entries

    def _written(self) -> int:
        (count,) = _WRITTEN.unpack_from(self._region.memory)
        return int(count)

    def _put(self, offset: int, data: bytes) -> None:
        start = _WRITTEN.size + offset
        self._region.memory[start : start + len(data)] = data

    def _get(self, offset: int, length: int) -> bytes:
        start = _WRITTEN.size + offset
        first = self._region.memory[start : min(start + length, len(self._region.memory))]
        return first + self._region.memory[_WRITTEN.size : _WRITTEN.size + length - len(first)]
