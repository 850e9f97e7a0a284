"""Certificates: what a signer sets is in them, and what a request claims is not."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from cluster import authority
from cluster.authority import Authority
from weft.errors import ConfigProblem, StateDamaged

LOOPBACK = ip_address("127.0.0.1")


def issue(folder: Path, signer: Authority, name: str) -> tuple[str, str]:
    key = authority.new_key()
    public = authority.requested_key(authority.request(key, "whatever it asks for"))
    certificate = signer.sign(public, name, [LOOPBACK])
    assert authority.belongs(certificate, key)
    for path, content in ((f"{name}.pem", certificate), (f"{name}-key.pem", key)):
        (folder / path).write_bytes(content)
    return str(folder / f"{name}.pem"), str(folder / f"{name}-key.pem")


def context(purpose: ssl.Purpose, ca: bytes, files: tuple[str, str]) -> ssl.SSLContext:
    made = ssl.create_default_context(purpose, cadata=ca.decode())
    made.load_cert_chain(*files)
    made.verify_mode = ssl.CERT_REQUIRED
    return made


async def test_a_server_and_a_client_know_each_other(tmp_path: Path) -> None:
    """The names are those that were signed, not those of the requests."""
    own = Authority.create("weft")
    names: list[object] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names.append(writer.get_extra_info("peercert")["subject"])
        writer.write(b"ok")
        writer.close()

    server_side = context(ssl.Purpose.CLIENT_AUTH, own.certificate, issue(tmp_path, own, "n1"))
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_side)
    port = server.sockets[0].getsockname()[1]
    client = context(ssl.Purpose.SERVER_AUTH, own.certificate, issue(tmp_path, own, "n2"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
    assert await reader.read() == b"ok"
    assert names == [((("commonName", "n2"),),)]
    writer.close()
    other = Authority.create("weft")
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection(
            "127.0.0.1", port, ssl=context(ssl.Purpose.SERVER_AUTH, other.certificate, issue(tmp_path, other, "n2"))
        )
    server.close()


def test_times() -> None:
    own = Authority.create("weft")
    key = authority.public_key(authority.new_key())
    made = own.sign(key, "n1", [LOOPBACK, ip_address("fd00::1"), LOOPBACK], days=2)
    assert authority.expires(made) == pytest.approx(time.time() + 2 * 86400, abs=60)
    assert authority.addresses(made) == (LOOPBACK, ip_address("fd00::1"))
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=10)
    assert authority.expires(own.sign(key, "n1", days=9, now=past)) < time.time()
    assert authority.addresses(own.sign(key, "n1")) == ()


def test_an_authority_is_read_again() -> None:
    own, other = Authority.create("weft"), Authority.create("weft")
    assert authority.fingerprint(Authority(own.certificate, own.key).certificate) == authority.fingerprint(
        own.certificate
    )
    assert authority.fingerprint(own.certificate) != authority.fingerprint(other.certificate)
    with pytest.raises(StateDamaged, match="not that of its certificate"):
        Authority(own.certificate, other.key)
    with pytest.raises(StateDamaged, match="cannot be read"):
        Authority(b"-----BEGIN", own.key)
    with pytest.raises(StateDamaged, match="cannot be read"):
        Authority(own.certificate, b"")


def test_requests_that_cannot_be_used() -> None:
    good = authority.request(authority.new_key(), "n1")
    lines = good.splitlines()
    lines[3] = lines[3][::-1]
    for bad in (b"", b"x" * 5000, b"\n".join(lines), good.replace(b"REQUEST", b"NOTHING")):
        with pytest.raises(ConfigProblem, match="signing request"):
            authority.requested_key(bad)
