"""Cost of the balancer, with few and with many services: changes, connections and throughput.

Run by ``benchmarks/balancer`` in private namespaces. Connections to a virtual address alternate with
direct ones, so that other load on the machine does not affect their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import os
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from discovery import layout
from discovery.balancer.balancer import Balancer
from discovery.catalog import Catalog
from discovery.catalog_sync import CatalogSync
from discovery.metrics import Metrics
from discovery.structs import CatalogEntry, Instance, VirtualAddress
from lab.host import Host
from lab.namespaces import inside
from lab.services import NODE, Book, Wire, config, instance, wire
from store import Put
from store.embedded import open_embedded

Row = dict[str, Any]
VIP = "10.79.255.1"
INSTANCES = 3
STREAM, STREAMS = 32 << 20, 100
PORT = 80


def fill(book: Book, count: int, addresses: Sequence[str]) -> None:
    """Put ``count`` services of three instances each into the catalog, as one revision."""
    values: list[Instance | VirtualAddress] = []
    for number in range(count):
        name = f"s{number}"
        values += [instance(name, f"10.91.{number % 250}.{each + 1}", 8000 + each) for each in range(INSTANCES)]
        values.append(VirtualAddress(name, f"10.79.{number // 250}.{number % 250 + 1}"))
    values += [instance("measured", one, ports={"sink": PORT + 1}) for one in addresses]
    values.append(VirtualAddress("measured", VIP))
    book.put(*values)


async def measured(net: Wire, count: int, rounds: int) -> Row:
    """All measurements with ``count`` services."""
    book = Book()
    fill(book, count, net.servers[4][:3])
    balancer = Balancer(book.catalog, config(interval=3600.0), Metrics())
    row: Row = {"services": count, "load": os.getloadavg()[0]}
    with timed(row, "start"):
        await balancer.start()
        await balancer.wait_synced()
    gc.freeze()
    row |= await changes(balancer, book, net, rounds)
    await balancer.stop()
    again = Balancer(book.catalog, config(interval=3600.0), Metrics())
    with timed(row, "restart"):
        await again.start()
    row |= connections(net, rounds)
    row |= throughput(net)
    row["elements"] = len(again._proxier._program.elements())
    row["resident MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    await again.stop()
    return row


@contextlib.contextmanager
def timed(row: Row, name: str) -> Iterator[None]:
    """Wall-clock and CPU seconds of the block."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    row[f"{name} s"] = time.perf_counter() - clock
    row[f"{name} cpu s"] = time.process_time() - processor


async def changes(balancer: Balancer, book: Book, net: Wire, rounds: int) -> Row:
    """Milliseconds from a change of one instance in the catalog to the change in the kernel."""
    times = []
    processor = time.process_time()
    for turn in range(rounds):
        one = instance("measured", net.servers[4][2], ports={"sink": PORT + 1})
        began = time.perf_counter()
        (book.put if turn % 2 else book.drop)(one)
        await balancer.wait_synced()
        times.append(time.perf_counter() - began)
    each = (time.process_time() - processor) / rounds
    return {
        "change ms": statistics.median(times) * 1000,
        "change best ms": min(times) * 1000,
        "change cpu ms": each * 1000,
    }


def connections(net: Wire, rounds: int) -> Row:
    """Median microseconds of connect(2), direct and to the virtual address, alternating."""
    times: dict[str, list[float]] = {"direct": [], "virtual": []}
    with inside(net.client):
        for _ in range(rounds * 5):
            for name, address in (("direct", net.servers[4][0]), ("virtual", VIP)):
                one = socket.socket()
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                began = time.perf_counter()
                one.connect((address, PORT))
                times[name].append(time.perf_counter() - began)
                one.close()
    direct, virtual = (statistics.median(times[name]) * 1e6 for name in ("direct", "virtual"))
    return {"direct us": direct, "virtual us": virtual, "connect ratio": virtual / direct}


def _sink(namespace: str, ready: Event) -> None:
    with inside(namespace):
        listener = socket.create_server(("", PORT + 1), backlog=64)
    ready.set()
    buffer = bytearray(1 << 20)
    while True:
        one, _ = listener.accept()
        with one:
            while one.recv_into(buffer):
                pass
            one.sendall(b"!")


def throughput(net: Wire) -> Row:
    """Gbit/s of one stream, direct and to the virtual address, alternating."""
    data = b"\0" * (1 << 20)
    rates: dict[str, list[float]] = {"direct": [], "virtual": []}
    for turn in range(STREAMS):
        ways = [("direct", net.servers[4][0]), ("virtual", VIP)]
        for name, address in ways[:: -1 if turn % 2 else 1]:
            with inside(net.client):
                one = socket.create_connection((address, PORT + 1))
            with one:
                began = time.perf_counter()
                for _ in range(STREAM // len(data)):
                    one.sendall(data)
                one.shutdown(socket.SHUT_WR)
                one.recv(1)
                rates[name].append(STREAM * 8 / (time.perf_counter() - began) / 1e9)
    direct, virtual = (statistics.median(rates[name]) for name in ("direct", "virtual"))
    ratio = statistics.median(one / other for one, other in zip(rates["virtual"], rates["direct"], strict=True))
    return {"direct Gbit/s": direct, "virtual Gbit/s": virtual, "throughput ratio": ratio}


async def from_store(net: Wire, rounds: int) -> Row:
    """Median milliseconds from a transaction in the store until the kernel balances accordingly."""
    with tempfile.TemporaryDirectory() as folder:
        store = await open_embedded(Path(folder) / "store" / "data")
        catalog = Catalog()
        feed = CatalogSync(catalog, store)
        values: list[CatalogEntry] = [NODE, VirtualAddress("measured", VIP), instance("measured", net.servers[4][0])]
        await store.transact([], [Put(layout.store_key(one), layout.encode(one)) for one in values])
        await feed.start()
        balancer = Balancer(catalog, config(interval=3600.0), Metrics())
        await balancer.start()
        times = []
        for turn in range(rounds):
            address = net.servers[4][1 + turn % 2]
            one = instance("measured", net.servers[4][0]), instance("measured", address)
            before = catalog.index
            began = time.perf_counter()
            await store.transact([], [Put(layout.store_key(each), layout.encode(each)) for each in one])
            while catalog.index == before:
                await asyncio.sleep(0)
            await balancer.wait_synced()
            times.append(time.perf_counter() - began)
        await balancer.stop()
        await feed.stop()
        await store.close()
    ordered = sorted(times)
    return {
        "register ms": ordered[len(ordered) // 2] * 1000,
        "register p99 ms": ordered[int(len(ordered) * 0.99)] * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", default="10,100,1000,10000")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: list[Row] = []
    for count in map(int, given.services.split(",")):
        host = Host()
        net = wire(host, 10)
        ready = multiprocessing.get_context("fork").Event()
        sink = multiprocessing.get_context("fork").Process(
            target=_sink, args=("/run/netns/servers", ready), daemon=True
        )
        sink.start()
        ready.wait(10)
        try:
            if not rows:
                print(_line(asyncio.run(from_store(net, given.rounds))), flush=True)
            rows.append(asyncio.run(measured(net, count, given.rounds)))
            print(_line(rows[-1]), flush=True)
        finally:
            sink.kill()
            sink.join()
            net.close()
            host.close()
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


def _line(row: Row) -> str:
    return "  ".join(
        f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
    )
