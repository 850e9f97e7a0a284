"""Where an engine listens: one for each network namespace, in the folder of weft's records."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat

BACKLOG = 512
SOCKET = "engine.sock"
LOCK = "engine.lock"


def folder() -> str:
    """The folder of this thread's network namespace."""
    return f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}"


class Taken(Exception):
    """Another engine serves this namespace."""


class Place:
    """The socket that this engine listens on, and the lock that makes it the only one."""

    def __init__(self) -> None:
        """Raises Taken where another engine is there, OSError where the folder cannot be used."""
        self.folder = folder()
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self.path = os.path.join(self.folder, SOCKET)
        self._lock = os.open(os.path.join(self.folder, LOCK), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise Taken from None
        self.inherited = _inherited()
        self.listener = self.inherited or self._listen()
        self.listener.setblocking(False)
        self._own = _identity(self.path)

    def _listen(self) -> socket.socket:
        """A socket that only root may connect to, under its name once it is ready and not before."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        temporary = f"{self.path}.new"  # one name, which the lock makes ours: of one that was killed it is taken
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        try:
            before = os.umask(0o177)
            try:
                listener.bind(temporary)
            finally:
                os.umask(before)
            listener.listen(BACKLOG)
            os.rename(temporary, self.path)
        except BaseException:
            listener.close()
            raise
        return listener

    @property
    def stands(self) -> bool:
        """Whether callers still find this engine."""
        return self.inherited is not None or (self._own is not None and _identity(self.path) == self._own)

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
            if _identity(aside) != self._own:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            os.unlink(aside)


def _inherited() -> socket.socket | None:
    """The socket that systemd opened for us (sd_listen_fds(3)), None where it did not."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()) or os.environ.pop("LISTEN_FDS", "") != "1":
        return None
    os.set_inheritable(3, False)
    found = socket.socket(fileno=3)
    mode = stat.S_IMODE(os.stat(found.getsockname()).st_mode)
    if mode & 0o077:
        raise OSError(errno.EPERM, f"{found.getsockname()} may be used by others than root: set SocketMode=0600")
    return found


def _identity(path: str) -> tuple[int, int] | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_dev, about.st_ino
