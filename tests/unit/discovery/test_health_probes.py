"""Probes over real sockets, and what one check must not do to another."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from discovery.consul.check_definitions import parse_check
from discovery.consul.json_fields import Fields
from discovery.health import namespaces, probes
from discovery.health.probes import Prober
from discovery.health.resolver import MAX_LOOKUPS, Address, Resolver
from discovery.structs import CheckDefinition, Status

Respond = Callable[[str], bytes]
"""The whole response to a request line."""

V4 = (int(socket.AF_INET), "127.0.0.1")
V6 = (int(socket.AF_INET6), "::1")


def check(**fields: object) -> CheckDefinition:
    return parse_check(Fields({"Interval": "1s", "Timeout": "20s", **fields}), scripts=True)


def result(definition: CheckDefinition, resolver: Resolver | None = None) -> tuple[Status, str]:
    async def run() -> tuple[Status, str]:
        return await Prober(64, resolver).probe(definition)

    return asyncio.run(run())


@asynccontextmanager
async def http(respond: Respond, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[str]]]:
    """A server on 127.0.0.1; its port, and the requests that it has had."""
    requests: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(respond(requests[-1].split()[1]))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, limit=2**16)
    async with server:
        yield server.sockets[0].getsockname()[1], requests


def probe_http(respond: Respond, target: str, **fields: object) -> tuple[Status, str, list[str]]:
    async def run() -> tuple[Status, str, list[str]]:
        async with http(respond) as (port, requests):
            status, text = await Prober(64).probe(check(HTTP=target.format(port=port), **fields))
            return status, text, requests

    return asyncio.run(run())


def ok(_: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://[127.0.0.1]:{port}/health", "/health"),
        ("http://:{port}/", "/"),
        ("http://localhost:{port}/a b", "/a%20b"),
    ],
)
def test_urls_that_go_accepts(target: str, path: str) -> None:
    """Fabio registers itself with the first."""
    status, text, requests = probe_http(ok, target)
    assert (status, requests[0].split()[1]) == (Status.PASSING, path), text
    assert "User-Agent: Consul Health Check\r\n" in requests[0]


def test_redirects_are_followed_unless_disabled() -> None:
    def respond(path: str) -> bytes:
        return ok(path) if path == "/new" else b"HTTP/1.1 302 Found\r\nLocation: /new\r\nContent-Length: 0\r\n\r\n"

    assert probe_http(respond, "http://127.0.0.1:{port}/")[0] is Status.PASSING
    status, text, requests = probe_http(respond, "http://127.0.0.1:{port}/", DisableRedirects=True)
    assert (status, len(requests)) == (Status.CRITICAL, 1) and "302 Found" in text


def test_large_headers_are_no_failure() -> None:
    """Go's client accepts 10 MiB of them; weft one line of 1 MiB, and 10,000 lines."""
    one = b"HTTP/1.1 200 OK\r\nX-Large: " + b"x" * 500_000 + b"\r\nContent-Length: 0\r\n\r\n"
    many = b"HTTP/1.1 200 OK\r\n" + b"X-Many: x\r\n" * 2000 + b"Content-Length: 0\r\n\r\n"
    for answer in (one, many):
        assert probe_http(lambda _, answer=answer: answer, "http://127.0.0.1:{port}/")[0] is Status.PASSING
    endless = b"HTTP/1.1 200 OK\r\nX-Large: " + b"x" * 3_000_000 + b"\r\n\r\n"
    assert probe_http(lambda _: endless, "http://127.0.0.1:{port}/")[0] is Status.CRITICAL


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """The TLS context of a server whose certificate nobody trusts."""
    key, pem = tmp_path / "key", tmp_path / "pem"
    command = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    subprocess.run(
        [*command, "-keyout", key, "-out", pem, "-days", "2", "-subj", "/CN=web.example"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return context


def test_tls(certificate: ssl.SSLContext) -> None:
    """Without TCPUseTLS a TCP check of a server whose certificate is broken would pass."""
    names: list[str | None] = []
    certificate.sni_callback = lambda _, name, __: names.append(name)  # type: ignore[assignment]

    async def run() -> None:
        prober = Prober(64)
        async with http(ok, certificate) as (port, _):
            place = f"127.0.0.1:{port}"
            assert (await prober.probe(check(TCP=place)))[0] is Status.PASSING
            status, text = await prober.probe(check(TCP=place, TCPUseTLS=True))
            assert status is Status.CRITICAL and "certificate" in text
            skip = {"TLSSkipVerify": True, "TLSServerName": "web.example"}
            assert (await prober.probe(check(TCP=place, TCPUseTLS=True, **skip)))[0] is Status.PASSING
            status, text = await prober.probe(check(HTTP=f"https://{place}/"))
            assert status is Status.CRITICAL and "certificate" in text.lower()
            assert (await prober.probe(check(HTTP=f"https://{place}/", **skip)))[0] is Status.PASSING

    asyncio.run(run())
    assert names[-1] == "web.example"


def listening(kind: socket.SocketKind) -> socket.socket:
    found = socket.socket(socket.AF_INET, kind)
    found.bind(("127.0.0.1", 0))
    if kind is socket.SOCK_STREAM:
        found.listen()
    return found


@pytest.mark.parametrize(("key", "kind"), [("TCP", socket.SOCK_STREAM), ("UDP", socket.SOCK_DGRAM)])
def test_all_addresses_of_a_host_are_tried(key: str, kind: socket.SocketKind) -> None:
    """``localhost`` is ::1 first, where nothing listens."""
    with listening(kind) as sock:
        place = sock.getsockname()[1]
        for host in ("two.example", "localhost", ""):
            status, text = result(check(**{key: f"{host}:{place}"}), Resolver(lambda _: [V6, V4]))
            assert status is Status.PASSING, text
    for host in ("two.example", "127.0.0.1"):
        status, text = result(check(**{key: f"{host}:{place}"}), Resolver(lambda _: [V6, V4]))
        assert status is Status.CRITICAL and "refused" in text.lower()


class Dead:
    """A name server that does not answer until ``answer`` is set, except for ``quick.example``."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str) -> Sequence[Address]:
        self.asked.append(host)
        if host != "quick.example":
            self.answer.wait(60)
        return [V4]


@pytest.fixture
def dead() -> Iterator[Dead]:
    found = Dead()
    yield found
    found.answer.set()


def test_a_dead_resolver_delays_no_address(dead: Dead) -> None:
    async def run() -> None:
        prober = Prober(64, Resolver(dead))
        with listening(socket.SOCK_STREAM) as sock:
            port = sock.getsockname()[1]
            names = [check(TCP=f"n{number}.example:{port}", Timeout="40s") for number in range(MAX_LOOKUPS + 20)]
            waiting = [asyncio.create_task(prober.probe(one)) for one in names]
            await until(lambda: len(dead.asked) == MAX_LOOKUPS)
            for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", ""):
                assert (await prober.probe(check(TCP=f"{host}:{port}")))[0] is Status.PASSING
            assert not any(task.done() for task in waiting)
            dead.answer.set()
            assert {status for status, _ in await asyncio.gather(*waiting)} == {Status.PASSING}

    asyncio.run(run())


def test_waiting_for_a_lookup_thread_is_not_the_targets_silence(dead: Dead) -> None:
    async def run() -> None:
        prober = Prober(64, Resolver(dead))
        with listening(socket.SOCK_STREAM) as sock:
            port = sock.getsockname()[1]
            names = [check(TCP=f"n{number}.example:{port}", Timeout="300ms") for number in range(MAX_LOOKUPS + 5)]
            waiting = [asyncio.create_task(prober.probe(one)) for one in names]
            await until(lambda: sum(task.done() for task in waiting) == MAX_LOOKUPS)
            await asyncio.sleep(0.4)  # longer than the timeout of the five that have no thread
            done = [task for task in waiting if task.done()]
            pending = [task for task in waiting if not task.done()]
            assert (len(done), len(pending)) == (MAX_LOOKUPS, 5)
            assert {task.result()[0] for task in done} == {Status.CRITICAL}
            dead.answer.set()
            assert {status for status, _ in await asyncio.gather(*pending)} == {Status.PASSING}

    asyncio.run(asyncio.wait_for(run(), 60))


def test_one_lookup_for_all_checks_of_a_name_and_slow_names_by_themselves(dead: Dead) -> None:
    async def run() -> None:
        resolver = Resolver(dead)
        same = [await resolver.start("slow.example") for _ in range(100)]
        assert len(set(map(id, same))) == 1
        others = [await resolver.start(f"n{number}.example") for number in range(MAX_LOOKUPS - 1)]
        blocked = asyncio.create_task(resolver.start("quick.example"))
        await asyncio.sleep(1.1)  # longer than SLOW_SECONDS
        assert not blocked.done()
        dead.answer.set()
        await asyncio.gather(*others, same[0], await blocked)
        dead.answer.clear()
        again = [asyncio.create_task(resolver.start(f"n{number}.example")) for number in range(MAX_LOOKUPS - 1)]
        await asyncio.gather(*again)
        assert list(await (await resolver.start("quick.example"))) == [V4]
        dead.answer.set()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_silent_targets_delay_nobody() -> None:
    """Of 200 targets that never accept, each delays itself alone."""

    async def run() -> None:
        prober = Prober(4096)
        with socket.socket() as silent, listening(socket.SOCK_STREAM) as sock, contextlib.ExitStack() as held:
            silent.bind(("127.0.0.1", 0))
            silent.listen(0)
            while fill(silent.getsockname(), held):  # its queue is full: the next SYN gets no answer
                pass
            place = f"127.0.0.1:{silent.getsockname()[1]}"
            waiting = [asyncio.create_task(prober.probe(check(TCP=place, Timeout="60s"))) for _ in range(200)]
            await asyncio.sleep(0)
            status, _ = await asyncio.wait_for(prober.probe(check(TCP=f"127.0.0.1:{sock.getsockname()[1]}")), 20)
            assert status is Status.PASSING and not any(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())


def fill(address: tuple[str, int], held: contextlib.ExitStack) -> bool:
    sock = held.enter_context(socket.socket())
    sock.settimeout(0.3)
    try:
        sock.connect(address)
    except TimeoutError:
        return False
    return True


def test_a_timeout_while_the_agent_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after SIGSTOP, or a suspended virtual machine: the target had no time to answer."""
    attempts: list[float] = []

    async def stalled(definition: CheckDefinition, found: Sequence[Address], sockets: object) -> tuple[Status, str]:
        attempts.append(time.monotonic())
        await asyncio.sleep(0)
        if len(attempts) == 1:
            time.sleep(definition.timeout + 2 * probes.STALL_SECONDS)
            await asyncio.sleep(0.1)
        return Status.PASSING, "fine"

    monkeypatch.setattr(probes, "_tcp", stalled)
    assert result(check(TCP="127.0.0.1:1", Timeout="100ms")) == (Status.PASSING, "fine")
    assert len(attempts) == 2


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


ELSEWHERE = "refused to be redirected to 127.0.0.1 port"
OTHER_HOST = "refused to connect to 127.0.0.1: a container's check reaches the container alone, 127.0.0.2"


@pytest.fixture
def of_container(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CheckDefinition]:
    """A check of a container at 127.0.0.2, "in" the test's own namespace, which no rights are needed
    to enter.
    """
    path = "/proc/self/ns/net"
    monkeypatch.setattr(namespaces.netns, "inside", lambda _: contextlib.nullcontext())

    def build(*reachable: str, **fields: object) -> CheckDefinition:
        return replace(check(**fields), netns=path, reachable=reachable or ("127.0.0.2",))

    return build


def test_a_containers_check_is_not_redirected_elsewhere(of_container: Callable[..., CheckDefinition]) -> None:
    """Nor to another port of the container, nor to another name of it (aardvark's and Consul's do)."""

    async def run(location: str, moved: str) -> tuple[Status, str, list[str]]:
        def redirect(path: str) -> bytes:
            if path == "/here":
                return ok(path)
            place = location.format(host=host, own=own)
            return f"HTTP/1.1 {moved} Moved\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()

        async with http(ok) as (host, seen), http(redirect) as (own, _):
            definition = of_container("127.0.0.1", HTTP=f"http://127.0.0.1:{own}/")
            status, text = await Prober(64).probe(definition)
            return status, text, seen

    for moved in ("301", "302", "303", "307", "308"):
        assert asyncio.run(run("/here", moved))[0] is Status.PASSING
        status, text, seen = asyncio.run(run("http://127.0.0.1:{host}/v1/agent/leave", moved))
        assert (status, seen) == (Status.CRITICAL, []) and ELSEWHERE in text, text
    status, text, seen = asyncio.run(run("http://127.0.0.2:{own}/here", "302"))
    assert (status, seen) == (Status.CRITICAL, []) and "refused to connect to 127.0.0.2" in text
    status, text, seen = asyncio.run(run("http://localhost:{host}/", "302"))
    assert (status, seen) == (Status.CRITICAL, []) and ("refused to" in text), text


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]", "elsewhere.example"])
def test_a_containers_check_reaches_the_container_alone(
    of_container: Callable[..., CheckDefinition], host: str
) -> None:
    """By address or by a name that resolves elsewhere, by each protocol."""
    resolver = Resolver(lambda _: (V4,))

    async def run() -> None:
        async with http(ok) as (port, requests):
            for fields in (
                {"HTTP": f"http://{host}:{port}/"},
                {"TCP": f"{host}:{port}"},
                {"UDP": f"{host}:{port}"},
            ):
                status, text = await Prober(64, resolver).probe(of_container(**fields))
                assert status is Status.CRITICAL and "reaches the container alone" in text, text
                assert host.startswith("[") or OTHER_HOST in text, text
            assert requests == []

    asyncio.run(run())


def test_a_containers_check_ends_with_its_namespace(of_container: Callable[..., CheckDefinition]) -> None:
    """A process id in its path may have become another process's, in the host's namespace."""
    definition = replace(of_container("127.0.0.1", TCP="127.0.0.1:1"), netns_inode=1)
    status, text = result(definition)
    assert status is Status.CRITICAL and "is not the container's network namespace any more" in text


def test_what_a_service_answers_can_be_stored() -> None:
    """Its reason may be no UTF-8, and its body is cut to bytes, not characters."""
    strange = b"HTTP/1.1 500 \xff\xfe\r\nContent-Length: 9000\r\n\r\n" + "ü".encode() * 4500
    status, text, _ = probe_http(lambda _: strange, "http://127.0.0.1:{port}/")
    assert status is Status.CRITICAL and "Output: ü" in text
    assert 4000 < len(text.encode()) <= 4096
