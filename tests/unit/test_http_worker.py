"""HTTP spoken by a process without privileges: what it is told, what it may say, and that nothing is lost between."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from unit.test_workers import FakeSpawner, framed, wait

from cni_plugin.agent.api_front import ApiFront
from discovery.api.callers import Caller
from discovery.api.exchange import BrokenBody, Connection, HttpMessage
from discovery.api.router import HttpResponse
from discovery.api.settings import HttpSettings, TlsSettings
from discovery.metrics import Metrics
from lab.waiting import PATIENTLY
from lab.workers import ThreadSpawner

ROOT_USER = Connection(Caller(0, owner=True), "unix", is_local=True)
BODY = bytes(range(256)) * 1000


class Echo:
    """Answers with the body that it got, in the ways that an endpoint can."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.seen: list[tuple[Connection, HttpMessage]] = []

    async def answer(self, connection: Connection, message: HttpMessage) -> HttpResponse:
        self.seen.append((connection, message))
        if message.path == "/wait":
            try:
                await asyncio.sleep(PATIENTLY)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if message.path in ("/stream", "/endless"):
            return HttpResponse(status=201, stream=self._parts(1000 if message.path == "/stream" else 1 << 60))
        if message.path == "/unread":
            return HttpResponse(b"no", 413, close=True)
        body = bytearray()
        try:
            while chunk := await message.next_chunk():
                body += chunk
        except BrokenBody:
            return HttpResponse(b"broken", 400, close=True)
        return HttpResponse(bytes(body), 200, "text/plain", {"X-Name": message.headers.get("x-name", "")})

    async def _parts(self, most: int) -> AsyncIterator[bytes]:
        try:
            for number in range(most):
                yield b"%d\n" % number
        finally:
            self.cancelled.set()


class Served:
    """An API behind the worker, whose connections are one end of a socketpair or of TLS."""

    def __init__(self, settings: HttpSettings | None = None) -> None:
        self.echo = Echo()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.front = self.call(self._make(settings or HttpSettings()))

    async def _make(self, settings: HttpSettings) -> ApiFront:
        front = ApiFront(ThreadSpawner(), settings, Metrics())
        await front.start(self.echo.answer)
        return front

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENTLY)

    def connect(
        self, connection: Connection = ROOT_USER, tls: ssl.SSLContext | None = None
    ) -> http.client.HTTPConnection:
        own, other = socket.socketpair()
        self.loop.call_soon_threadsafe(self.front.open, other, connection)
        client = http.client.HTTPConnection("localhost", timeout=PATIENTLY)
        client.sock = tls.wrap_socket(own, server_hostname="localhost") if tls else own
        return client

    def close(self) -> None:
        self.call(self.front.stop(1.0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENTLY)
        self.loop.close()


@pytest.fixture
def served():
    made = Served()
    yield made
    made.close()


def test_requests_and_answers_pass_unchanged(served: Served) -> None:
    client = served.connect()
    for _ in range(2):  # a connection is used again
        client.request("PUT", "/a%2Fb?x=1&y=%20", BODY, {"X-Name": "one", "Authorization": "Bearer x"})
        answer = client.getresponse()
        assert (answer.status, answer.headers["X-Name"], answer.read()) == (200, "one", BODY)
    connection, message = served.echo.seen[0]
    assert connection == ROOT_USER
    assert (message.method, message.target, message.length) == ("PUT", "/a%2Fb?x=1&y=%20", len(BODY))
    assert message.headers["authorization"] == "Bearer x"


def test_chunked_bodies_and_continue(served: Served) -> None:
    client = served.connect()
    client.request("POST", "/", iter([b"a" * 70_000, b"b"]), {"Expect": "100-continue"}, encode_chunked=True)
    assert client.getresponse().read() == b"a" * 70_000 + b"b"


def test_an_unread_body_ends_the_connection(served: Served) -> None:
    client, body = served.connect(), b"GET /smuggled HTTP/1.1\r\n\r\n"
    # At once: the connection may have ended before a body that is sent by itself.
    client.sock.sendall(b"PUT /unread HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    answer = http.client.HTTPResponse(client.sock, method="PUT")
    answer.begin()
    assert (answer.status, answer.read()) == (413, b"no")
    assert answer.will_close or client.sock.recv(1) == b""
    assert [message.path for _, message in served.echo.seen] == ["/unread"]


def test_a_broken_body_is_told(served: Served) -> None:
    client = served.connect()
    client.sock.sendall(b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert b" 400 " in client.sock.recv(1000)


def test_streams_are_sent_as_they_come_and_end_with_their_client(served: Served) -> None:
    client = served.connect()
    client.request("GET", "/stream")
    answer = client.getresponse()
    assert answer.status == 201
    assert answer.read().splitlines() == [b"%d" % number for number in range(1000)]
    served.echo.cancelled.clear()
    client = served.connect()
    client.request("GET", "/endless")
    answer = client.getresponse()
    assert answer.read(4) == b"0\n1\n"
    answer.close()
    client.close()
    assert served.echo.cancelled.wait(PATIENTLY)


def test_a_request_whose_client_has_gone_is_cancelled(served: Served) -> None:
    client = served.connect()
    client.request("GET", "/wait")
    while not served.echo.seen:
        pass
    client.close()
    assert served.echo.cancelled.wait(PATIENTLY)


def test_tls_is_the_workers(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*new.split(), *names], check=True, capture_output=True)
    one = Served(HttpSettings(tls=TlsSettings(str(certificate), str(key))))
    try:
        trusting = ssl.create_default_context(cafile=str(certificate))
        client = one.connect(Connection(Caller(), "192.0.2.1", has_tls=True), trusting)
        client.request("GET", "/")
        assert client.getresponse().status == 200
    finally:
        one.close()


# What a worker may say


@pytest.mark.parametrize(
    "message",
    [
        ["request", 1, 7, "GET", "/", [], 0], ["request", 1, 1, "GET", "/", [["a"]], 0],
        ["request", 1, 1, "GET", "/", [], -1], ["request", 1, 1, "GET", 3, [], 0],
        ["request", "1", 1, "GET", "/", [], 0], ["request", 1, 1, "GET", "/", [["a", "b"]] * 300, 0],
        ["closed", "1"], ["other"], ["pong", 1], ["pong", 1, [["slow", -1]]], ["pong", 1, [["fast", 1]]],
        ["pong", 1, [["slow", 1], ["idle", 1], ["too many", 1], ["slow", 1]]],
    ],
    ids=str,
)  # fmt: skip
def test_a_worker_that_says_anything_else_is_replaced(message: list[object]) -> None:
    answered: list[HttpMessage] = []

    async def test(spawner: FakeSpawner, front: ApiFront) -> None:
        spawner.workers[0].send(framed(json.dumps(message).encode()))
        await wait(lambda: len(spawner.workers) == 2)
        assert spawner.killed and not answered

    played(test, answered)


def test_a_request_can_name_open_connections_only() -> None:
    answered: list[HttpMessage] = []

    async def test(spawner: FakeSpawner, front: ApiFront) -> None:
        worker = spawner.workers[0]
        own, other = socket.socketpair()
        front.open(other, ROOT_USER)
        worker.send(framed(b'["request",1,1,"GET","/",[],0]'))
        await wait(lambda: answered)
        worker.send(framed(b'["closed",1]') + framed(b'["request",2,1,"GET","/",[],0]'))
        await wait(lambda: len(spawner.workers) == 2)
        assert len(answered) == 1
        own.close()

    played(test, answered)


def test_connections_wait_for_a_worker_that_is_replaced() -> None:
    async def test(spawner: FakeSpawner, front: ApiFront) -> None:
        spawner.workers[0].close()
        await wait(lambda: not front._worker.is_running)
        own, other = socket.socketpair()
        assert front.open(other, ROOT_USER)
        await wait(lambda: len(spawner.workers) == 2)
        await wait(lambda: front._connections)
        messages, (descriptor,), _, _ = await asyncio.to_thread(_receive, spawner.workers[1])
        assert b'"open"' in messages
        os.close(descriptor)
        own.close()

    played(test, [])


def _receive(worker: socket.socket):
    worker.setblocking(True)
    return socket.recv_fds(worker, 1 << 16, 4)


def played(test: Callable[[FakeSpawner, ApiFront], Awaitable[None]], answered: list[HttpMessage]) -> None:
    """A front whose worker the test plays."""

    async def answer(connection: Connection, message: HttpMessage) -> HttpResponse:
        answered.append(message)
        return HttpResponse(b"{}")

    async def run() -> None:
        spawner = FakeSpawner()
        front = ApiFront(spawner, HttpSettings(), Metrics())
        await front.start(answer)
        try:
            await test(spawner, front)
        finally:
            await front.stop(0.0)

    asyncio.run(run())
