"""What the processes of one engine have in common: pieces of memory, each with a lock, and what is kept in them.

Made before the processes part by ``fork(2)``. The locks are flock(2)'s: whoever is killed holds none any more.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from _thread import allocate_lock
from contextlib import AbstractContextManager
from struct import Struct

from weft.kernel.nft.generation import Found, Sound

_COUNT = Struct("=Q")
_LENGTH = Struct("=I")
_FOUND = Struct("=16sIB")
_NEWS = 1 << 18  # bytes; a call's are some 150


class Region:
    """Memory that processes share, and the lock on it, which a ``with`` statement takes."""

    def __init__(self, size: int) -> None:
        """Raises OSError."""
        self.memory = mmap.mmap(-1, size)
        self._file = os.memfd_create("weft-engine", os.MFD_CLOEXEC)
        self._turn = allocate_lock()
        self._own = (0, -1)

    def __enter__(self) -> None:
        self._turn.acquire()
        try:
            if self._own[0] != os.getpid():  # an inherited descriptor's lock would be both processes' at once
                self._own = os.getpid(), os.open(f"/proc/self/fd/{self._file}", os.O_RDWR | os.O_CLOEXEC)
            fcntl.flock(self._own[1], fcntl.LOCK_EX)
        except BaseException:
            self._turn.release()
            raise

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._own[1], fcntl.LOCK_UN)
        self._turn.release()


class SharedSound(Sound):
    """What all the processes know of the rules together."""

    def __init__(self) -> None:
        super().__init__()
        self._region = Region(mmap.PAGESIZE)

    @property
    def turn(self) -> AbstractContextManager[object]:
        return self._region

    @property
    def found(self) -> Found | None:
        digest, generation, there = _FOUND.unpack_from(self._region.memory)
        return (digest.decode(), generation) if there else None

    @found.setter
    def found(self, found: Found | None) -> None:
        digest, generation = found or ("", 0)
        _FOUND.pack_into(self._region.memory, 0, digest.encode(), generation, found is not None)


class Board:
    """News (``ipam.cache``) in a ring: who does not listen for long misses some, and is told so."""

    def __init__(self, size: int = _NEWS) -> None:
        self._region = Region(_COUNT.size + size)
        self._size = size
        self._heard = 0

    def publish(self, news: bytes) -> None:
        data = _LENGTH.pack(len(news)) + news
        if len(data) > self._size:
            return  # nobody can follow then, and nobody believes he could
        with self._region:
            written = self._written()
            place = written % self._size
            first = data[: self._size - place]
            self._put(place, first)
            self._put(0, data[len(first) :])
            _COUNT.pack_into(self._region.memory, 0, written + len(data))

    def poll(self) -> list[bytes] | None:
        if self._written() == self._heard:
            return []
        with self._region:
            written = self._written()
            missed = written - self._heard
            data = b"" if missed > self._size else self._get(self._heard % self._size, missed)
        self._heard = written
        if missed > self._size:
            return None
        found = []
        while data:
            (length,) = _LENGTH.unpack_from(data)
            found.append(data[_LENGTH.size : _LENGTH.size + length])
            data = data[_LENGTH.size + length :]
        return found

    def _written(self) -> int:
        (count,) = _COUNT.unpack_from(self._region.memory)
        return int(count)

    def _put(self, place: int, data: bytes) -> None:
        start = _COUNT.size + place
        self._region.memory[start : start + len(data)] = data

    def _get(self, place: int, length: int) -> bytes:
        start = _COUNT.size + place
        first = self._region.memory[start : min(start + length, len(self._region.memory))]
        return first + self._region.memory[_COUNT.size : _COUNT.size + length - len(first)]
