"""The control socket of a daemon, and the lock that allows one instance in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time

from weft.peer_credentials import is_trusted

_BACKLOG = 128
_LOCK_TIMEOUT = 2.0  # seconds for an instance that is shutting down


class AlreadyRunning(Exception):
    """Another instance holds the lock."""


class DaemonSocket:
    """A Unix socket ``NAME.sock``, mode 0600, and the lock ``NAME.lock``, which holds the pid.

    The lock is held until the process ends; the socket is replaced by ``listen`` and unlinked by
    ``close``.
    """

    def __init__(self, folder: str, name: str) -> None:
        """Lock, then bind and listen.

        Raises AlreadyRunning, and OSError where the folder is not usable.
        """
        self.path = os.path.join(folder, f"{name}.sock")
        self._lock = os.open(
            os.path.join(folder, f"{name}.lock"), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline or os.path.exists(self.path):
                    os.close(self._lock)
                    raise AlreadyRunning from None
            time.sleep(0.02)
        self.predecessor = predecessor(self._lock)
        """The process that had the place before and was killed, 0 for none."""
        self.listen()

    def listen(self) -> None:
        """Bind and listen, also after ``close``. Raises OSError."""
        note_start(self._lock)
        self.listener = bind(self.path, _BACKLOG)
        self._own = file_id(self.path)

    @property
    def is_reachable(self) -> bool:
        """Whether the path still leads to this daemon's socket."""
        return self._own is not None and file_id(self.path) == self._own

    def close(self) -> None:
        """Unlink the socket, unless it was replaced, and stop listening. Keeps the lock."""
        if self.is_reachable:
            os.unlink(self.path)
        note_end(self._lock)
        self._own = None
        self.listener.close()

    def accept(self) -> socket.socket | None:
        """The next connection, None if there is none or its peer is not trusted."""
        with contextlib.suppress(OSError):
            connection, _ = self.listener.accept()
            if is_trusted(connection):
                return connection
            connection.close()
        return None


def predecessor(lock: int) -> int:
    """The process that is noted in a lock file, which has not ended by itself; 0 for none."""
    before = os.pread(lock, 16, 0).strip()
    return int(before) if before.isdigit() else 0


def note_start(lock: int) -> None:
    """Note this process in the lock file that it holds."""
    _write(lock, b"%d\n" % os.getpid())


def note_end(lock: int) -> None:
    """Note in the lock file that the process which holds it ends by itself."""
    _write(lock, b"")


def _write(lock: int, content: bytes) -> None:
    """Replace what is in a lock file. It is not kept open for writing: then its disk could not be made read-only.
    On one that is already, or full, nothing is noted.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(f"/proc/self/fd/{lock}", os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)


def bind(path: str, backlog: int) -> socket.socket:
    """A listening socket of mode 0600, renamed to its path once it accepts connections.

    Raises OSError.

    The caller holds the lock: the temporary name is the same each time, and one that a killed
    process left there is replaced.
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
    """The device and inode of a path, None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
