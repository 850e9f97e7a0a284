"""The client in Python: complete replies, also if the engine closes before the client reads."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cni_plugin.entry import shim
from cni_plugin.wire import frame

REQUEST = frame.request(frame.RequestFrame("0.1.0", "/", "1:1:1", "bridge", {"CNI_COMMAND": "DEL"}, b"{}"))


class Engine(socket.socket):
    """The client's socket; the engine has replied and closed when ``sendmsg`` returns.

    ``sendmsg`` takes at most ``most`` bytes.
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


def test_a_reply_that_arrived_while_the_client_was_sending() -> None:
    connection, other = ends()
    with contextlib.closing(connection):
        connection.serve(other)
        assert shim._exchange(connection, REQUEST) == (False, 0, b"out", b"err")


def test_a_request_sent_in_several_pieces() -> None:
    connection, other = ends()
    with contextlib.closing(connection), contextlib.closing(other):
        connection.most = 5
        other.sendall(frame.reply(1, b"no"))
        assert shim._exchange(connection, REQUEST) == (False, 1, b"no", b"")
        assert other.recv(1 << 16) == REQUEST


def test_an_engine_that_closed_the_connection() -> None:
    connection, other = ends()
    other.close()
    with contextlib.closing(connection):
        assert shim._exchange(connection, REQUEST) is None


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection to an engine that does not reply; the client gives up after 0.2 s."""
    monkeypatch.setattr(frame, "SILENCE", 0.2)
    client, engine = socket.socketpair()
    with client, engine:
        yield client, engine


def test_an_engine_that_sends_nothing_is_hung(silent: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        shim._exchange(silent[0], b"request")


def test_an_engine_that_shows_progress_is_waited_for(silent: tuple[socket.socket, socket.socket]) -> None:
    client, engine = silent

    def work() -> None:
        for _ in range(8):
            engine.sendall(frame.WORKING)
            time.sleep(0.05)
        engine.sendall(frame.WORKING + frame.reply(0, b"out", b"err"))

    worker = threading.Thread(target=work)
    worker.start()
    assert shim._exchange(client, b"request") == (False, 0, b"out", b"err")
    worker.join()
