"""Where an engine listens: one for each network namespace, in the folder of weft's records."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat

from weft.daemon_socket import AlreadyRunning, bind, file_id

BACKLOG = 512
SOCKET = "engine.sock"
LOCK = "engine.lock"


def folder() -> str:
    """The folder of this thread's network namespace."""
    return f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}"


class Place:
    """The socket that this engine listens on, and the lock that makes it the only one."""

    def __init__(self) -> None:
        """Raises AlreadyRunning where another engine is there, OSError where the folder cannot be used."""
        self.folder = folder()
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self.path = os.path.join(self.folder, SOCKET)
        self._lock = os.open(os.path.join(self.folder, LOCK), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise AlreadyRunning from None
        self.inherited = _inherited()
        self.listener = self.inherited or bind(self.path, BACKLOG)
        self._own = file_id(self.path)

    @property
    def stands(self) -> bool:
        """Whether callers still find this engine."""
        return self.inherited is not None or (self._own is not None and file_id(self.path) == self._own)

    def part(self) -> None:
        """In a process that only helps: the place is the first one's, as long as that lives."""
        os.close(self._lock)
        self._lock = -1

    def leave(self) -> None:
        """Take the name away and let another engine come; what has connected already is still to be served.

        Of a first process that was killed, a helper does so.
        """
        if self.inherited is None and self.stands:
            self._unname()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _unname(self) -> None:
        """A helper holds no lock, so the name may be another engine's by now: then it gets it back."""
        aside = f"{self.path}.{os.getpid()}.gone"
        with contextlib.suppress(FileNotFoundError):  # another helper was here
            os.rename(self.path, aside)
            if file_id(aside) != self._own:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            os.unlink(aside)


def _inherited() -> socket.socket | None:
    """The socket that systemd opened for us (sd_listen_fds(3)), None where it did not."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()) or os.environ.pop("LISTEN_FDS", "") != "1":
        return None
    os.set_inheritable(3, False)
    found = socket.socket(fileno=3)
    found.setblocking(False)
    mode = stat.S_IMODE(os.stat(found.getsockname()).st_mode)
    if mode & 0o077:
        raise OSError(errno.EPERM, f"{found.getsockname()} may be used by others than root: set SocketMode=0600")
    return found
