"""Malicious and broken clients: other clients are still served."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from discovery.api import listening
from discovery.api.csrf import rejection_reason
from discovery.api.settings import HttpSettings
from discovery.structs import Node
from lab.agent import LabAgent, Waiting, until


def dial(agent: LabAgent, sent: bytes = b"") -> socket.socket:
    opened = socket.create_connection((agent.host, agent.port), timeout=30)
    opened.sendall(sent)
    return opened


def rest(opened: socket.socket) -> bytes:
    """Read until the server closes the connection."""
    found = b""
    try:
        while part := opened.recv(65536):
            found += part
    except ConnectionError:
        pass
    opened.close()
    return found


def test_idle_connections_do_not_delay_requests(agent: LabAgent) -> None:
    idle = [dial(agent) for _ in range(1000)]
    try:
        until(lambda: agent.connections() >= 1000)
        for _ in range(20):
            assert agent.get("/v1/catalog/nodes").status == 200
    finally:
        for opened in idle:
            opened.close()
    until(lambda: agent.connections() == 0)


def test_incomplete_requests_time_out(tmp_path: Path) -> None:
    settings = HttpSettings(listen=("127.0.0.1:0",), header_time=0.5, body_time=0.5)
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), settings)
    try:
        body = dial(agent, b"PUT /v1/kv/slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        head = dial(agent, b"GET /v1/catalog/nodes HTTP/1.1\r\nHost: localhost\r\n")
        found = rest(body)
        assert found.startswith(b"HTTP/1.1 408 ")
        assert b"did not come within" in found
        until(lambda: is_over(head))
        assert agent.call(agent.store.range("/weft/v2/kv/")).entries == ()
    finally:
        agent.stop()


def is_over(opened: socket.socket) -> bool:
    """Send another header line; whether the server has closed the connection."""
    opened.settimeout(0.2)
    try:
        opened.sendall(b"X: y\r\n")
        return opened.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_large_content_length_is_refused_before_the_body_is_read(agent: LabAgent) -> None:
    head = b"PUT /v1/kv/big HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n"
    found = rest(dial(agent, head + b"\r\n"))
    assert found.startswith(b"HTTP/1.1 413 ")
    assert b"Request body(104857600 bytes) too large, max size: 524288 bytes." in found
    assert b"100 Continue" not in rest(dial(agent, head + b"Expect: 100-continue\r\n\r\n"))
    small = b"PUT /v1/kv/small HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nExpect: 100-continue\r\n"
    opened = dial(agent, small + b"Connection: close\r\n\r\n")
    assert opened.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    opened.sendall(b"x")
    assert rest(opened).startswith(b"HTTP/1.1 200 ")


def test_large_chunked_bodies_are_aborted(agent: LabAgent) -> None:
    opened = dial(agent, b"PUT /v1/kv/big HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    sent = 0
    try:
        while sent < 100 * 2**20:
            opened.sendall(piece)
            sent += len(piece)
    except ConnectionError:
        pass
    assert sent < 20 * 2**20
    assert agent.get("/v1/kv/big").status == 404
    opened.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET " + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v1/catalog/nodes HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /v1/catalog/nodes HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"GET /v1/catalog/nodes HTTP/9.9\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nxx",
        b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET http://else.where/v1/catalog/nodes HTTP/1.1\r\nHost: else.where\r\n\r\n",
        b"CONNECT else.where:443 HTTP/1.1\r\nHost: else.where\r\n\r\n",
        os.urandom(4096),
    ],
)
def test_invalid_http_gets_a_4xx_reply_or_a_closed_connection(agent: LabAgent, sent: bytes) -> None:
    opened = socket.create_connection((agent.host, agent.port), timeout=30)
    try:
        opened.sendall(sent)
        opened.shutdown(socket.SHUT_WR)
    except ConnectionError:
        pass
    found = rest(opened)
    assert found == b"" or found.split(b" ")[1][:1] == b"4", found[:200]
    assert agent.get("/v1/kv/a").status == 404


def test_a_write_is_completed_if_the_client_disconnects(agent: LabAgent) -> None:
    for number in range(20):
        body = b'{"Name":"gone","ID":"g%d","Checks":[{"TTL":"1h"},{"TTL":"1h"}]}' % number
        head = b"PUT /v1/agent/service/register HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        opened = dial(agent, head + body)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        opened.close()
    until(lambda: not agent.api._pending_writes)
    known = agent.get("/v1/agent/services").json
    for service_id in known:
        assert len([one for one in agent.get("/v1/agent/checks").json.values() if one["ServiceID"] == service_id]) == 2
        agent.put(f"/v1/agent/service/deregister/{service_id}")


def test_cross_site_requests_are_refused(agent: LabAgent) -> None:
    agent.put("/v1/agent/check/register", {"Name": "page", "TTL": "1h"})
    paths = (
        *(("PUT", "/v1/kv/page", b"x"), ("GET", "/v1/agent/check/pass/page", None)),
        *(("GET", "/v1/kv/?recurse", None), ("GET", "/v1/catalog/nodes", None)),
    )
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example:8500"},
        {"Sec-Fetch-Site": "cross-site"},
    ):
        for method, path, body in paths:
            assert agent.request(method, path, body, headers).status == 403, path
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert agent.get("/v1/catalog/nodes", **link).status == 200
    assert agent.get("/v1/catalog/nodes", **(link | {"Sec-Fetch-Dest": "iframe"})).status == 403
    assert agent.get("/v1/agent/check/pass/page", **link).status == 403
    own = {"Host": "localhost:8500", "Origin": "http://localhost:8500", "Sec-Fetch-Site": "same-origin"}
    assert agent.get("/v1/catalog/nodes", **own).status == 200  # as for a module script of the page
    assert agent.get("/v1/agent/check/pass/page", **own).status == 403
    assert agent.get("/v1/catalog/nodes", **(own | {"Origin": "http://localhost:80"})).status == 403
    assert agent.get("/v1/catalog/nodes", Host="evil.example", Origin="http://evil.example").status == 403
    assert agent.get("/v1/kv/page").status == 404
    assert agent.get("/v1/agent/checks").json["page"]["Status"] == "critical"
    for host in ("localhost:8500", "127.0.0.1", "[::1]:8500", "N1:8500"):
        assert agent.request("PUT", "/v1/kv/page", b"x", {"Host": host}).status == 200
    agent.put("/v1/agent/check/deregister/page")
    agent.request("DELETE", "/v1/kv/page")


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("", True),
        ("localhost", True),
        ("consul.localhost:1", True),
        ("10.0.0.5:8500", True),
        ("[fd00::1]", True),
        ("n1.", True),
        ("localhost.evil.example", False),
        ("n1.evil.example:8500", False),
        ("10.0.0.5.evil.example", False),
        ("::1:8500x", False),
    ],
)
def test_host_headers_that_are_accepted(host: str, own: bool) -> None:
    assert (rejection_reason({"Host": host}, {"n1"}) == "") is own


def test_a_new_connection_replaces_the_oldest_idle_one(tmp_path: Path) -> None:
    settings = HttpSettings(listen=("127.0.0.1:0",), connections_of_peer=5)
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), settings)
    try:
        idle = [dial(agent) for _ in range(5)]
        until(lambda: agent.connections() == 5)
        assert agent.get("/v1/catalog/nodes").status == 200
        assert idle[0].recv(1) == b""
        index = agent.get("/v1/catalog/nodes").index
        head = b"GET /v1/catalog/nodes?index=%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % index
        waiting = [dial(agent, head) for _ in range(5)]
        until(lambda: agent.parked() == 5)
        assert rest(dial(agent, b"GET /v1/catalog/nodes HTTP/1.1\r\n\r\n")) == b"", (
            "connections with blocking queries are kept"
        )
        assert agent.parked() == 5
        for opened in (*idle, *waiting):
            opened.close()
    finally:
        agent.stop()


def test_the_unix_socket_has_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    path.parent.mkdir()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))  # as a killed agent leaves it
    left.close()
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), HttpSettings(listen=("127.0.0.1:0", str(path))))
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"PUT /v1/kv/u HTTP/1.1\r\nHost: agent\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert agent.get("/v1/kv/u?raw").text == "x"
    finally:
        agent.stop()
    assert not path.exists()


def test_a_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), HttpSettings(listen=("127.0.0.1:0",), write_time=1.0))
    try:
        for number in range(30):
            agent.put(f"/v1/kv/big/{number}", bytes(500_000))
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.connect((agent.host, agent.port))
        opened.sendall(b"GET /v1/kv/big/?recurse HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: agent.connections() == 1)
        until(lambda: agent.connections() == 0)
        opened.close()
    finally:
        agent.stop()


def test_the_server_can_be_stopped_and_restarted(tmp_path: Path) -> None:
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), HttpSettings(listen=("127.0.0.1:0",)))
    try:
        agent.put("/v1/kv/a", b"x")
        for _ in range(2):
            agent.call(agent.api.stop())
        agent.call(agent.api.start())
        agent.port = int(agent.api.addresses[0].rpartition(":")[2])
        waiting = Waiting(agent, f"/v1/kv/a?index={agent.get('/v1/kv/a').index}&wait=60s")
        agent.put("/v1/kv/a", b"y")
        assert waiting.reply().json[0]["Value"] == "eQ=="
    finally:
        agent.stop()


def test_an_address_in_use_is_named_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "RETRY_SECONDS", 0.05)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, path = f"127.0.0.1:{other.getsockname()[1]}", str(tmp_path / "api.sock")
        agent = LabAgent(tmp_path, Node("n2", "127.0.0.1"), HttpSettings(listen=("127.0.0.1:0", taken, path)))
        try:
            assert agent.get("/v1/status/leader").status == 200
            assert agent.api.addresses[1:] == (path,)
            assert [one.partition("; ")[0] for one in agent.api.problems] == [
                f"the HTTP API cannot listen on {taken}: Address already in use"
            ]
            other.close()
            until(lambda: not agent.api.problems)
            assert agent.api.addresses[1:] == (taken, path)
        finally:
            agent.stop()
        assert not (tmp_path / "api.sock").exists()
