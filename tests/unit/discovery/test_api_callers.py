"""What users of this host may do without a token: requests of real processes with other user ids."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from discovery.api.disabled_endpoint import routes as disabled_routes
from discovery.api.settings import HttpSettings
from discovery.structs import Node
from lab.agent import LabAgent, until
from weft.kernel.netlink.sock_diag import SocketOwners

NOBODY, DAEMON, READER = 65534, 1, 64999
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabAgent]:
    """An agent whose socket everybody can open, with keys and a service."""
    folder = tmp_path_factory.mktemp("guarded")
    socket_path = Path("/tmp") / f"weft-test-{os.getpid()}" / "api.sock"
    settings = HttpSettings(
        listen=("127.0.0.1:0", "[::1]:0", str(socket_path)), writers=("root", "@daemon"), readers=(str(READER),)
    )
    agent = LabAgent(folder, Node("n1", "127.0.0.1"), settings)
    socket_path.parent.chmod(0o755)
    socket_path.chmod(0o666)
    agent.put("/v1/kv/secret/a", b"x")
    agent.put("/v1/agent/service/register", {"Name": "web", "Port": 80})
    yield agent
    agent.stop()
    socket_path.parent.rmdir()


def as_user(uid: int, agent: LabAgent, *requests: str, place: int = 0, gid: int | None = None) -> list[tuple[int, str]]:
    """Send ``METHOD PATH[ BODY]`` on one connection of a process of this user; status and body of each."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(gid if gid is not None else 65534)
            os.setuid(uid)
            os.write(write, "\0".join(_exchange(agent.api.addresses[place], requests)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as answers:
        found = answers.read()
    os.waitpid(child, 0)
    assert found, "the child failed"
    return [(int(one[:3]), one[3:]) for one in found.split("\0")]


def _exchange(address: str, requests: tuple[str, ...]) -> list[str]:
    if address.startswith("/"):
        opened = socket.socket(socket.AF_UNIX)
        opened.connect(address)
    else:
        host, _, port = address.rpartition(":")
        opened = socket.create_connection((host.strip("[]"), int(port)), timeout=30)
    stream = opened.makefile("rwb")
    found = []
    for request in requests:
        method, path, *body = request.split(" ", 2)
        content = (body[0] if body else "").encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        stream.write(head.encode() + content)
        stream.flush()
        status = stream.readline().split()[1].decode()
        headers = _headers(iter(stream.readline, b"\r\n"))
        found.append(status + stream.read(int(headers.get("content-length", 0))).decode())
    return found


def _headers(lines: Iterator[bytes]) -> Mapping[str, str]:
    return {name.lower(): value.strip() for name, _, value in (line.decode().partition(":") for line in lines)}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_local_user_reads_the_catalog_but_neither_keys_nor_writes(guarded: LabAgent, place: int) -> None:
    session = guarded.put("/v1/session/create", {}).json["ID"]
    catalog, keys, listed, write, delete, leave, lock, away, sessions, txn, log = as_user(
        NOBODY,
        guarded,
        "GET /v1/health/service/web",
        "GET /v1/kv/secret/a",
        "GET /v1/kv/?recurse",
        "PUT /v1/kv/secret/a y",
        "DELETE /v1/kv/secret?recurse",
        "PUT /v1/agent/leave",
        f"PUT /v1/session/destroy/{session}",
        "PUT /v1/agent/service/deregister/web",
        "GET /v1/session/list",
        'PUT /v1/txn [{"KV": {"Verb": "get", "Key": "secret/a"}}]',
        "GET /v1/agent/monitor",
        place=place,
    )
    assert catalog[0] == 200 and '"web"' in catalog[1]
    for status, text in (keys, listed, sessions, log):
        assert status == 403 and "http.readers of weft.toml" in text and "nobody (65534)" in text
    for status, text in (write, delete, leave, lock, away, txn):
        assert status == 403 and "http.writers of weft.toml" in text
    assert guarded.get("/v1/kv/secret/a?raw").body == b"x"
    assert [one["ID"] for one in guarded.get(f"/v1/session/info/{session}").json] == [session]
    guarded.put(f"/v1/session/destroy/{session}")


@pytest.mark.parametrize("place", [0, 2])
def test_readers_and_writers_are_those_of_the_settings(guarded: LabAgent, place: int) -> None:
    read, write = as_user(READER, guarded, "GET /v1/kv/secret/a?raw", "PUT /v1/kv/secret/a y", place=place)
    assert read == (200, "x") and write[0] == 403
    assert as_user(DAEMON, guarded, "PUT /v1/kv/secret/b y", "DELETE /v1/kv/secret/b", place=place) == [
        (200, "true"),
        (200, "true"),
    ]
    # A process that merely runs with the group is no member of it.
    assert as_user(NOBODY, guarded, "GET /v1/kv/secret/a", place=place, gid=1)[0][0] == 403


def test_every_endpoint_is_guarded(guarded: LabAgent) -> None:
    """Of all routes a user without rights changes nothing, and reads what this names."""
    catalog = re.compile(
        r"/v1/(agent/(self|members|metrics|version|services?|checks|health)|catalog/|health/|internal/ui|openapi.json"
        r"|status/|coordinate/|weft/(overview|events|virtual)|query/:query/execute)|/(ui/.*)?$|/metrics$"
    )
    refused = {route.path for route in disabled_routes(acls=False)}
    routes = [route for route in guarded.api.router.routes if route.path not in refused]
    asked = [f"{route.method} {re.sub(':[a-z]+', 'web', route.path)}" for route in routes]
    answers = as_user(NOBODY, guarded, *asked)
    for route, (status, text) in zip(routes, answers, strict=True):
        if not route.writes and catalog.match(route.path):
            assert status != 403, route
        elif route.path.startswith("/v1/acl/") and not route.writes:
            assert status == 401, route
        elif "/query/:query" in route.path and not route.writes:
            assert status == 404, route
        else:
            assert status == 403 and "of weft.toml" in text, (route, status)


def test_a_closed_socket_is_nobodys(guarded: LabAgent) -> None:
    owners = SocketOwners()
    try:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            own = listener.getsockname()
            client = socket.create_connection(own)
            served, peer = listener.accept()
            assert owners.owner(peer, own) == 0
            client.shutdown(socket.SHUT_WR)
            assert owners.owner(peer, own) is None
            client.close()
            assert owners.owner(peer, own) is None
            served.close()
            # A listener at the peer's port is no connection.
            with socket.socket() as other:
                other.bind(("127.0.0.1", 0))
                other.listen()
                assert owners.owner(other.getsockname(), own) is None
    finally:
        owners.close()


def test_a_caller_that_the_kernel_does_not_know_is_refused(guarded: LabAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SocketOwners, "owner", lambda self, peer, own: None)
    reply = guarded.get("/v1/catalog/nodes")
    assert reply.status == 403 and "no open socket of this host" in reply.text


@contextlib.contextmanager
def waiting(agent: LabAgent, number: int, source: str) -> Iterator[None]:
    """Blocking queries of user nobody, from an address of loopback."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(write)
            os.setgroups([])
            os.setuid(NOBODY)
            opened = [
                socket.create_connection((agent.host, agent.port), source_address=(source, 0)) for _ in range(number)
            ]
            for one in opened:
                one.sendall(b"GET /v1/catalog/nodes?index=1000000 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            os.read(read, 1)
        finally:
            os._exit(0)
    os.close(read)
    try:
        until(lambda: agent.parked() == number)
        yield
    finally:
        os.close(write)
        os.waitpid(child, 0)


@pytest.mark.parametrize(("connections", "source"), [(8, "127.0.0.1"), (4, "127.0.0.5")])
def test_a_user_does_not_keep_others_out(tmp_path: Path, connections: int, source: str) -> None:
    settings = HttpSettings(listen=("127.0.0.1:0",), connections=connections, connections_of_peer=4)
    agent = LabAgent(tmp_path, Node("n1", "127.0.0.1"), settings)
    try:
        with waiting(agent, 4, source):
            assert agent.get("/v1/kv/?keys").status == 200
            assert agent.put("/v1/kv/a", b"x").status == 200
            until(lambda: agent.parked() == min(4, connections - 1))
    finally:
        agent.stop()
