"""The engine's listening socket and lock, one pair for each network namespace, in
``/run/weft/<inode>``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat

from weft import files
from weft.daemon_socket import AlreadyRunning, bind, file_id, note_end, note_start, predecessor

BACKLOG = 512
SOCKET = "engine.sock"
LOCK = "engine.lock"
ATTEMPT = "engine.start"
"""Its mtime is the last attempt of a call to start an engine; after an "x", why that one did not serve."""


def folder() -> str:
    """The folder of this thread's network namespace under /run/weft."""
    return f"/run/weft/{os.stat('/proc/thread-self/ns/net').st_ino}"


def note_refusal(reason: str) -> None:
    """Note why an engine that a call has started does not serve; "": it does."""
    with contextlib.suppress(OSError), open(f"{folder()}/{ATTEMPT}", "w", encoding="utf-8") as file:
        file.write(f"x{reason}")


def refusal() -> str:
    """Why the engine that a call has started last did not serve; "": it did."""
    with contextlib.suppress(OSError):
        return files.read(f"{folder()}/{ATTEMPT}", 1024).decode("utf-8", "replace")[1:]
    return ""


class EngineSocket:
    """The listening socket, and the lock that allows one engine in a network namespace."""

    def __init__(self) -> None:
        """Raises AlreadyRunning where another engine holds the lock, OSError where the folder is not
        usable.
        """
        self.folder = folder()
        files.make_directory(self.folder, "its sockets")
        self.path = os.path.join(self.folder, SOCKET)
        flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._lock = os.open(os.path.join(self.folder, LOCK), flags, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise AlreadyRunning from None
        self.predecessor = predecessor(self._lock)
        """The process of an engine that was killed, 0 for none."""
        note_start(self._lock)
        self.activated = _activated()
        self.listener = self.activated or bind(self.path, BACKLOG)
        self._own = file_id(self.path)

    @property
    def is_reachable(self) -> bool:
        """Whether the path still leads to this engine's socket."""
        return self.activated is not None or (self._own is not None and file_id(self.path) == self._own)

    def drop_lock(self) -> None:
        """Close the inherited lock in a helper: only the main process holds it."""
        os.close(self._lock)
        self._lock = -1

    def close(self) -> None:
        """Unlink the socket and release the lock; connections in the backlog are still to be served.

        A helper unlinks it for a main process that was killed.
        """
        if self.activated is None and self.is_reachable:
            self._unlink()
        if self._lock >= 0:
            note_end(self._lock)
            os.close(self._lock)
            self._lock = -1

    def _unlink(self) -> None:
        """Unlink our socket only. A helper holds no lock, so a new engine may own the path already:
        rename the socket, compare, and link it back where it is the new engine's.
        """
        aside = f"{self.path}.{os.getpid()}.gone"
        with contextlib.suppress(FileNotFoundError):  # another helper has unlinked it
            os.rename(self.path, aside)
            if file_id(aside) != self._own:
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            os.unlink(aside)


def _activated() -> socket.socket | None:
    """The socket passed by systemd's socket activation (sd_listen_fds(3)), None without it."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()) or os.environ.pop("LISTEN_FDS", "") != "1":
        return None
    os.set_inheritable(3, False)
    found = socket.socket(fileno=3)
    found.setblocking(False)
    mode = stat.S_IMODE(os.stat(found.getsockname()).st_mode)
    if mode & 0o077:
        raise OSError(errno.EPERM, f"{found.getsockname()} is accessible to users other than root: set SocketMode=0600")
    return found
