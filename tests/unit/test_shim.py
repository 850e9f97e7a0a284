"""The client without a compiler: whole answers from an engine that is quicker than the client."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from cni_plugin.entry import shim
from cni_plugin.wire import frame

REQUEST = frame.request(frame.RequestFrame("0.1.0", "/", "1:1:1", "bridge", {"CNI_COMMAND": "DEL"}, b"{}"))


class Engine(socket.socket):
    """The client's end, as the kernel shows it where the engine has answered and gone before the next line runs.

    It takes no more than ``most`` bytes at once.
    """

    most = len(REQUEST)

    def serve(self, other: socket.socket) -> None:
        self._other = other

    def sendmsg(self, buffers: Any, *rest: Any) -> int:
        sent = super().sendmsg([buffers[0][: self.most]], *rest)
        if sent == len(REQUEST):
            assert self._other.recv(1 << 16) == REQUEST
            self._other.sendall(frame.reply(0, b"out", b"err"))
            self._other.close()
        return sent


def ends() -> tuple[Engine, socket.socket]:
    one, other = socket.socketpair()
    return Engine(fileno=one.detach()), other


def test_an_answer_that_came_before_the_client_looked_again() -> None:
    connection, other = ends()
    with contextlib.closing(connection):
        connection.serve(other)
        assert shim._exchange(connection, REQUEST) == (False, 0, b"out", b"err")


def test_a_request_that_the_socket_takes_in_pieces() -> None:
    connection, other = ends()
    with contextlib.closing(connection), contextlib.closing(other):
        connection.most = 5
        other.sendall(frame.reply(1, b"no"))
        assert shim._exchange(connection, REQUEST) == (False, 1, b"no", b"")
        assert other.recv(1 << 16) == REQUEST


def test_an_engine_that_is_gone() -> None:
    connection, other = ends()
    other.close()
    with contextlib.closing(connection):
        assert shim._exchange(connection, REQUEST) is None
