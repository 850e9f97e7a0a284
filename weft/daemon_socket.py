"""Where a daemon is found: a socket for root alone, and the lock that makes it the only one of its namespace."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time

_BACKLOG = 128
_PATIENCE = 2.0  # seconds for another keeper to finish leaving
_CREDENTIALS = struct.Struct("=iII")


class AlreadyRunning(Exception):
    """Another one is there."""


class DaemonSocket:
    """The socket and the lock, ``NAME.sock`` and ``NAME.lock`` in a folder; the lock holds the process number."""

    def __init__(self, folder: str, name: str) -> None:
        """Raises AlreadyRunning, and OSError where the folder cannot be used."""
        self.path = os.path.join(folder, f"{name}.sock")
        self._lock = os.open(
            os.path.join(folder, f"{name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline or os.path.exists(self.path):
                    os.close(self._lock)
                    raise AlreadyRunning from None
            time.sleep(0.02)
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)
        self.listen()

    def listen(self) -> None:
        """Be found."""
        self.listener = bind(self.path, _BACKLOG)
        self._own = file_id(self.path)

    @property
    def is_reachable(self) -> bool:
        """Whether callers still find this daemon."""
        return self._own is not None and file_id(self.path) == self._own

    def close(self) -> None:
        """Be found no more."""
        if self.is_reachable:
            os.unlink(self.path)
        self._own = None
        self.listener.close()

    def accept(self) -> socket.socket | None:
        """Who asks, None if it is neither root nor our own user. What they are told is ``daemons.REFRESHED``."""
        with contextlib.suppress(OSError):
            connection, _ = self.listener.accept()
            given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(given)[1] in (0, os.geteuid()):
                return connection
            connection.close()
        return None


def bind(path: str, backlog: int) -> socket.socket:
    """A socket that only root may connect to, under its name once it is ready and not before. Raises OSError.

    Its caller holds a lock: until then it has one name, and what one that was killed left under it is removed.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    temporary = f"{path}.new"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        before = os.umask(0o177)
        try:
            listener.bind(temporary)
        finally:
            os.umask(before)
        listener.listen(backlog)
        listener.setblocking(False)
        os.rename(temporary, path)
    except BaseException:
        listener.close()
        raise
    return listener


def file_id(path: str) -> tuple[int, int] | None:
    """The device and the inode of what a path leads to, None where it leads to nothing."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_dev, about.st_ino
