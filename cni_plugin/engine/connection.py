"""One client connection: credentials, request, liveness, reply."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import time
from _thread import allocate_lock

from cni_plugin.wire import frame
from weft import processes
from weft.peer_credentials import is_trusted, peer_credentials

IO_TIMEOUT = 5.0
"""Seconds for the client to send its request, and to read the reply."""


class ClientGone(Exception):
    """The client has disconnected, is too slow, or is not permitted."""


class ClientConnection:
    """A connected client. ``namespace`` is the descriptor passed with the request, or -1."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + IO_TIMEOUT
        self.namespace = -1
        self._wants_progress = False
        self._writing = allocate_lock()
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)

    def close(self) -> None:
        self._connection.close()
        self.release()

    def release(self) -> None:
        """Close the passed namespace, and wait until no process that is being started has a copy of it or
        of others that the call has opened: each keeps a mount busy that the client may now unmount.
        """
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1
        processes.settle()

    def receive(self) -> frame.RequestFrame:
        """Read the request. Raises ClientGone, and FrameProblem for a malformed one."""
        self._check_credentials()
        head = self._receive_some(frame.HEAD.size, with_descriptor=True)
        while len(head) < frame.HEAD.size:
            head += self._receive_some(frame.HEAD.size - len(head))
        length, wants_progress = frame.read_head(head)
        pieces, left = [], length
        while left:
            pieces.append(self._receive_some(min(left, 1 << 18)))
            left -= len(pieces[-1])
        request = frame.parse(b"".join(pieces))
        self._wants_progress = wants_progress
        return request

    def show_progress(self) -> None:
        """Tell a client that waits for its reply that this process is alive; from any thread."""
        with self._writing, contextlib.suppress(OSError):
            if self._wants_progress:
                self._connection.send(frame.WORKING, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _check_credentials(self) -> None:
        if not is_trusted(self._connection):
            _, uid, _ = peer_credentials(self._connection)
            raise ClientGone(f"permission denied for uid {uid}")

    def _receive_some(self, size: int, *, with_descriptor: bool = False) -> bytes:
        """Receive between one byte and ``size`` before the deadline."""
        while True:
            try:
                if with_descriptor:
                    data, ancillary, _, _ = self._connection.recvmsg(
                        size, 64, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                    )
                    self._take_descriptor(ancillary)
                else:
                    data = self._connection.recv(size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            except OSError as error:
                raise ClientGone(str(error)) from error
            if not data:
                raise ClientGone("connection closed before the end of the request")
            return data

    def _take_descriptor(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array.array("i", data[: len(data) - len(data) % 4])
                for descriptor in descriptors:
                    if self.namespace < 0:
                        self.namespace = descriptor
                    else:
                        os.close(descriptor)

    def _wait(self, events: int) -> None:
        poll = select.poll()
        poll.register(self._connection, events)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            raise ClientGone("i/o timeout")

    @property
    def pid(self) -> int:
        """The client's process, 0 in another PID namespace."""
        return peer_credentials(self._connection)[0]

    @property
    def is_connected(self) -> bool:
        """Whether the client still waits for the reply."""
        if not self._readable.poll(0):
            return True  # called before every operation, and an exception costs more than a poll
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def send(self, reply: bytes) -> None:
        """Send the reply, having released all that is the client's.

        Raises ClientGone for a client that does not read it in time.
        """
        self.release()
        with self._writing:
            self._wants_progress = False
        self._deadline = time.monotonic() + IO_TIMEOUT
        rest = memoryview(reply)
        while rest:
            try:
                rest = rest[self._connection.send(rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)
            except OSError as error:
                raise ClientGone(str(error)) from error
