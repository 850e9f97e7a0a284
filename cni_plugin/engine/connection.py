"""One connection: who is there, what he asks, whether he still waits, and the answer."""

from __future__ import annotations

import array
import os
import select
import socket
import time

from cni_plugin.wire import frame
from weft.peer_credentials import is_trusted, peer_credentials

READING = 5.0
"""Seconds for a request to arrive, and for its answer to be taken."""


class PeerGone(Exception):
    """Nobody waits at the other end, or he may not ask."""


class Peer:
    """The other end of a connection. ``namespace`` is the descriptor that came with the request, or -1."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until = time.monotonic() + READING
        self.namespace = -1
        self._said = select.poll()
        self._said.register(connection, select.POLLIN)

    def close(self) -> None:
        self._connection.close()
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1

    def receive(self) -> frame.Sent:
        """The request. Raises PeerGone, and FrameProblem for bytes that are none."""
        self._check_credentials()
        head = self._some(frame.HEAD.size, with_descriptor=True)
        while len(head) < frame.HEAD.size:
            head += self._some(frame.HEAD.size - len(head))
        length = frame.length(head)
        pieces, left = [], length
        while left:
            pieces.append(self._some(min(left, 1 << 18)))
            left -= len(pieces[-1])
        return frame.parse(b"".join(pieces))

    def _check_credentials(self) -> None:
        if not is_trusted(self._connection):
            _, uid, _ = peer_credentials(self._connection)
            raise PeerGone(f"permission denied for uid {uid}")

    def _some(self, most: int, *, with_descriptor: bool = False) -> bytes:
        """At least one byte, in time."""
        while True:
            try:
                if with_descriptor:
                    data, ancillary, _, _ = self._connection.recvmsg(
                        most, 64, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                    )
                    self._take(ancillary)
                else:
                    data = self._connection.recv(most, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            except OSError as error:
                raise PeerGone(str(error)) from error
            if not data:
                raise PeerGone("the request has no end")
            return data

    def _take(self, ancillary: list[tuple[int, int, bytes]]) -> None:
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
        if not poll.poll(max(0.0, self._until - time.monotonic()) * 1000):
            raise PeerGone("too slow")

    @property
    def waits(self) -> bool:
        """Whether somebody is still there for the answer."""
        if not self._said.poll(0):
            return True  # before every step: an exception takes longer
        try:
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def answer(self, reply: bytes) -> None:
        """Send the reply; whoever does not take it in time does without."""
        self._until = time.monotonic() + READING
        rest = memoryview(reply)
        while rest:
            try:
                rest = rest[self._connection.send(rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)
            except OSError as error:
                raise PeerGone(str(error)) from error
