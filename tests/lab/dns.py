"""DNS helpers: a server with a small catalog, queries, and replies parsed by dnspython."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import TypeVar

import dns.edns
import dns.flags
import dns.message
import dns.rdatatype

from discovery import layout
from discovery.catalog import Catalog
from discovery.dns.network_zones import NetworkZone, NetworkZones
from discovery.dns.server import DnsServer
from discovery.dns.settings import DnsSettings
from discovery.structs import CatalogEntry, Check, Node, Status
from lab.waiting import PATIENTLY
from store import Batch, Entry, Event

Result = TypeVar("Result")


def free_port() -> int:
    """A port that is free for UDP and TCP, below the default range of ephemeral ports."""
    while True:
        port = random.randint(12_000, 32_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
                sock.bind(("0.0.0.0", port))
            return port


class Running:
    """A server in its own thread, in the network namespace of its creator."""

    def __init__(self, catalog: Catalog, settings: DnsSettings, *networks: NetworkZone) -> None:
        self.names = NetworkZones()
        self.names.replace(networks)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server = self._made(catalog, settings)
        self.run(self.server.start())

    def _made(self, catalog: Catalog, settings: DnsSettings) -> DnsServer:
        async def make() -> DnsServer:
            return DnsServer(catalog, self.names, settings)

        return self.run(make())

    def run(self, work: Coroutine[object, object, Result]) -> Result:
        """Run a coroutine in the thread of the server."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def call(self, work: Callable[[], Result]) -> Result:
        """Run a function in the thread of the server."""

        async def do() -> Result:
            return work()

        return self.run(do())

    def close(self) -> None:
        self.run(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextlib.contextmanager
def running(catalog: Catalog, settings: DnsSettings, *networks: NetworkZone) -> Iterator[Running]:
    """A server while the block runs."""
    made = Running(catalog, settings, *networks)
    try:
        yield made
    finally:
        made.close()


class Upstream:
    """An upstream for UDP and TCP; ``answer`` maps a query (and whether by TCP) to replies."""

    def __init__(
        self, answer: Callable[[dns.message.Message, bool], Iterable[bytes]], address: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.queries: list[dns.message.Message] = []
        self.ports: list[int] = []
        self._answer = answer
        self.port = port or free_port()
        self._datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._datagrams.bind((address, self.port))
        self.address = f"{address}:{self.port}"
        self._streams = socket.create_server((address, self.port))
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._serve, self._serve_streams)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for sock in (self._datagrams, self._streams):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._datagrams.close()
        self._streams.close()

    def _replies(self, data: bytes, port: int, stream: bool) -> Iterable[bytes]:
        query = dns.message.from_wire(data)
        self.queries.append(query)
        self.ports.append(port)
        return self._answer(query, stream)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, place = self._datagrams.recvfrom(4096)
                if not data:
                    return
                for reply in self._replies(data, place[1], False):
                    self._datagrams.sendto(reply, place)

    def _serve_streams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, place = self._streams.accept()
                with client:
                    client.settimeout(PATIENTLY)
                    data = client.recv(4096)
                    for reply in self._replies(data[2:], place[1], True):
                        client.sendall(len(reply).to_bytes(2, "big") + reply)


class MutableCatalog:
    """A catalog that a test changes, one value and one revision at a time."""

    def __init__(self, *values: CatalogEntry) -> None:
        self.catalog = Catalog()
        self._revision = 1
        self.put(Node("n1", "10.0.0.1"), *values)

    def put(self, *values: CatalogEntry) -> None:
        """Add or replace these values."""
        self._revision += 1
        now = self._revision
        events = [
            Event(layout.store_key(one), Entry(layout.store_key(one), layout.encode(one), now, now, 1), None, now)
            for one in values
        ]
        self.catalog.apply(Batch(now, tuple(events)))

    def drop(self, *values: CatalogEntry) -> None:
        """Remove these values."""
        self._revision += 1
        events = [Event(layout.store_key(one), None, None, self._revision) for one in values]
        self.catalog.apply(Batch(self._revision, tuple(events)))

    def check(self, service_id: str, status: Status, node: str = "n1") -> None:
        """Give an instance a check of this status."""
        self.put(Check(node, f"service:{service_id}", "check", status, service_id=service_id))


def question(name: str, kind: str = "A", *, edns: bool = False, size: int = 1232, flags: int = dns.flags.RD) -> bytes:
    """A query as bytes."""
    message = dns.message.make_query(name, kind, use_edns=0 if edns else False, payload=size, flags=flags)
    return message.to_wire()


def read(reply: object) -> dns.message.Message:
    """Parse a reply; trailing bytes are an error."""
    assert isinstance(reply, bytes), reply
    return dns.message.from_wire(reply)


def records(section: Iterable[object]) -> list[str]:
    """The records of a section as sorted text: ``web.weft. 0 IN A 10.0.0.1``."""
    return sorted(line for each in section for line in str(each).splitlines())


def ask(address: str, port: int, message: bytes, *, timeout: float = PATIENTLY, source: str = "") -> bytes | None:
    """The reply of a server by UDP, None if there is none in time.

    The query is repeated each second.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        if source:
            client.bind((source, 0))
        client.settimeout(min(timeout, 1.0))
        left = timeout
        while left > 0:
            left -= 1.0
            try:
                client.sendto(message, (address, port))
                reply, place = client.recvfrom(65535)
            except TimeoutError:
                continue
            except OSError:
                time.sleep(min(left + 1.0, 0.5))
                continue
            if place[0] == address and reply[:2] == message[:2]:
                return reply
    return None


def ask_stream(address: str, port: int, *messages: bytes, timeout: float = PATIENTLY) -> list[bytes]:
    """The replies of a server to pipelined queries by TCP, in the order of arrival."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            client = socket.create_connection((address, port), timeout=timeout)
            break
        except OSError:
            # There is no route yet, or no listener yet.
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)
    with client:
        client.sendall(b"".join(len(each).to_bytes(2, "big") + each for each in messages))
        stream = client.makefile("rb")
        return [stream.read(int.from_bytes(stream.read(2), "big")) for _ in messages]
