"""Where members serve joins: what anybody sends is bounded, refused with a sentence, and stops no one else."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster import authority, join_client, join_server
from cluster.authority import Authority
from cluster.join_client import Again
from cluster.join_server import JoinServer, Limit
from cluster.local import Files, Local
from cluster.membership import Membership, with_loopbacks
from cluster.tokens import Refused, Token

LOCAL = Local("n1", "1" * 32, "127.0.0.1")


class Refusing:
    """A cluster without a token and without nodes."""

    async def check_token(self, secret: str) -> None:
        raise Refused("the cluster knows no such join token", hint="make one")

    async def see(self) -> object:
        return SimpleNamespace(nodes={})


def issue(own: Files, name: str) -> None:
    own.prepare()
    signer = Authority.create("weft")
    key = authority.new_key()
    own.write("ca.pem", signer.certificate)
    own.write("ca-key.pem", signer.key)
    own.write("node-key.pem", key)
    own.write("node.pem", signer.sign(authority.public_key(key), name, with_loopbacks()))


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Files, str]]:
    own = Files(str(folder / "weft" / "etcd"))
    issue(own, "n1")
    server = JoinServer(cast(Membership, Refusing()), own, LOCAL, port=0)
    await server.open()
    assert server._server is not None
    port = server._server.sockets[0].getsockname()[1]
    try:
        yield own, f"127.0.0.1:{port}"
    finally:
        await server.close()


async def send(address: str, content: bytes) -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        writer.write(content)
        writer.write_eof() if writer.can_write_eof() else None
        return json.loads(await reader.readline() or b"null")
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n", "no JSON object"),
        (b"[]\n", "no JSON object"),
        (b"[" * 10_000 + b"\n", "no JSON object"),
        (b'{"op": 1}\n', "has no op"),
        (b'{"op": "rm"}\n', "an unknown request"),
        (b'{"op": "join"}\n', "has no"),
        (
            b'{"op": "join", "secret": "x", "name": "n2", "id": "2", "address": "10.0.0.2", "version": "1"}\n',
            "no such join token",
        ),
        (
            b'{"op": "join", "secret": "x", "name": "n2", "id": "2", "address": "127.0.0.2", "version": "1"}\n',
            "cannot reach",
        ),
        (b'{"op": "member"}\n', "needs the certificate of a node"),
        (b'{"op": "renew", "request": "x"}\n', "needs the certificate of a node"),
        (b"x" * (join_server.MOST_BYTES * 2) + b"\n", "one line of at most"),
    ],
)
async def test_what_is_no_request_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    async with serving(tmp_path) as (_, address):
        answer = await send(address, content)
        assert said in answer["error"]
        assert (await send(address, b'{"op": "ca"}\n'))["ca"].startswith("-----BEGIN")


async def test_a_client_that_is_silent_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_server, "_READ_SECONDS", 0.3)
    async with serving(tmp_path) as (_, address):
        silent = asyncio.create_task(send(address, b'{"op":'))
        assert "ca" in await send(address, b'{"op": "ca"}\n')
        assert "no time" in (await silent)["error"]


async def test_a_flood_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_server, "_BURST", 3.0)
    monkeypatch.setattr(join_server, "_RATE", 0.001)
    async with serving(tmp_path) as (_, address):
        answers = [await send(address, b'{"op": "ca"}\n') for _ in range(5)]
    assert ["ca" in one for one in answers] == [True, True, True, False, False]
    assert "too many requests" in answers[4]["error"]


def test_a_limit_recovers() -> None:
    limit = Limit(1e9, 1)
    assert all(limit.take() for _ in range(5))


async def test_the_authority_is_pinned(tmp_path: Path) -> None:
    async with serving(tmp_path) as (own, address):
        ca = own.read("ca.pem")
        secret = "a" * 43
        assert await join_client.fetch_authority(Token((address,), authority.fingerprint(ca), secret)) == ca
        with pytest.raises(Refused, match="not the cluster that the join token is for"):
            await join_client.fetch_authority(Token((address,), "ab" * 32, secret))
        with pytest.raises(Again, match="no member serves joins"):
            await join_client.fetch_authority(Token(("127.0.0.1:1",), "ab" * 32, secret))


async def test_a_request_goes_to_nobody_else(tmp_path: Path) -> None:
    """The secret is not sent to a server whose certificate is of another authority."""
    other = Files(str(tmp_path / "other" / "etcd"))
    issue(other, "n2")
    async with serving(tmp_path) as (own, address):
        with pytest.raises(Again, match="certificate is refused"):
            await join_client.ask([address], other, {"op": "ca"})
        with pytest.raises(Refused, match="no such join token"):
            asked = {"op": "join", "secret": "x", "name": "n2", "id": "2", "address": "10.0.0.2", "version": "1"}
            await join_client.ask([address], own, asked)
