"""Measures an agent with many health checks: when deaths are noticed, and what DNS takes meanwhile.

Run by ``benchmarks/checks`` in private namespaces; all traffic is on loopback. Of N services each has
two TTL checks, reported every TTL / 2, and a TCP check, nine of ten at a target that accepts and one at a
target that never answers. Some targets are closed, others become silent, and some TTL checks are no
longer reported: the time until each is critical in the HTTP API is compared with interval + timeout,
or the TTL. Wall-clock times; on a busy machine run it by ``chrt -r 1``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp

from lab import commands
from lab.dns import question

ROOT = Path(__file__).resolve().parents[1]
API = "http://127.0.0.1:8500"
CONNECTIONS = 16
TICKS = os.sysconf("SC_CLK_TCK")
TARGET_PORT, SILENT_PORT = 7000, 7001


@dataclass
class Options:
    """The command line."""

    services: int
    seconds: float
    deaths: int
    interval: float
    timeout: float
    ttl: float
    queries: float


@dataclass
class Watch:
    """Deaths: when each happened, and when it was noticed."""

    died: dict[str, float] = field(default_factory=dict)
    noticed: dict[str, float] = field(default_factory=dict)

    def delays(self, kind: str) -> list[float]:
        return [
            self.noticed[name] - at for name, at in self.died.items() if name.startswith(kind) and name in self.noticed
        ]


class Targets:
    """Listening sockets of loopback addresses, all in this process."""

    def __init__(self, deaths: int) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._loop = asyncio.get_running_loop()
        self.common = self._accepting(("0.0.0.0", TARGET_PORT))
        self.silent = _listen(("0.0.0.0", SILENT_PORT), backlog=0)
        self._filling: list[socket.socket] = []
        self._fill(SILENT_PORT)
        self.own = [self._accepting(("127.0.0.1", 0)) for _ in range(2 * deaths)]

    def _accepting(self, address: tuple[str, int]) -> socket.socket:
        sock = _listen(address, backlog=0 if address[1] == 0 else 4096)
        self._loop.add_reader(sock, self._accept, sock)
        return sock

    def _accept(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.accept()[0].close()

    def close(self, number: int) -> None:
        """Connections are refused from now on."""
        self._loop.remove_reader(self.own[number])
        self.own[number].shutdown(socket.SHUT_RDWR)  # other processes may have a copy of it
        self.own[number].close()

    def silence(self, number: int) -> None:
        """Connections get no answer from now on: the queue of the socket is full."""
        self._loop.remove_reader(self.own[number])
        self._fill(self.own[number].getsockname()[1])

    def _fill(self, port: int) -> None:
        for _ in range(4):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.connect_ex(("127.0.0.1", port))
            self._filling.append(sock)


def _listen(address: tuple[str, int], *, backlog: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setblocking(False)
    sock.bind(address)
    sock.listen(backlog)
    return sock


def definition(number: int, options: Options, targets: Targets) -> dict[str, object]:
    """The registration of a service; the first ones have targets of their own."""
    silent = number % 10 == 9
    host = f"127.1.{number // 250}.{1 + number % 250}"
    place = f"{host}:{SILENT_PORT if silent else TARGET_PORT}"
    if number < len(targets.own):
        place = f"127.0.0.1:{targets.own[number].getsockname()[1]}"
    tcp = {"TCP": place, "Interval": f"{options.interval}s", "Timeout": f"{options.timeout}s", "Status": "passing"}
    ttl = {"TTL": f"{options.ttl}s", "Status": "passing"}
    return {"Name": f"s{number}", "Address": host, "Port": 80, "Checks": [ttl, ttl, tcp]}


async def register(session: aiohttp.ClientSession, options: Options, targets: Targets) -> float:
    """Register all services; returns the seconds taken."""
    begun = time.perf_counter()
    left = iter(range(options.services))

    async def worker() -> None:
        for number in left:
            body = json.dumps(definition(number, options, targets))
            async with session.put(f"{API}/v1/agent/service/register", data=body) as reply:
                reply.raise_for_status()

    await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))
    return time.perf_counter() - begun


def report(services: int, ttl: float, control: Connection) -> None:
    """Report all TTL checks every half TTL, evenly, in a process of its own.

    What comes from ``control`` is no longer reported; for None it answers when each last was, and ends.
    """
    names = [f"service:s{number}:{check}" for number in range(services) for check in (1, 2)]
    last: dict[str, float] = {}
    stopped: set[str] = set()
    client = http.client.HTTPConnection("127.0.0.1", 8500)
    while True:
        begun = time.perf_counter()
        for place, name in enumerate(names):
            time.sleep(max(begun + place * ttl / 2 / len(names) - time.perf_counter(), 0))
            while control.poll():
                if (end := control.recv()) is None:
                    control.send(last)
                    return
                stopped.add(end)
            if name not in stopped:
                last[name] = time.perf_counter()
                client.request("PUT", f"/v1/agent/check/pass/{name}")
                client.getresponse().read()


async def watch(session: aiohttp.ClientSession, name: str, service: str, seen: Watch) -> None:
    """Note when a service is no longer passing, by a blocking query on it."""
    index = 0
    while True:
        async with session.get(f"{API}/v1/health/service/{service}?passing&index={index}&wait=5m") as reply:
            index = int(reply.headers["X-Consul-Index"])
            if not await reply.json():
                seen.noticed[name] = time.perf_counter()
                return


async def die(options: Options, targets: Targets, expiring: list[int], reporter: Connection, seen: Watch) -> None:
    """Spread the deaths over the time that leaves enough to notice the last ones."""
    span = options.seconds - max(options.interval + options.timeout, options.ttl) - 5
    for number in range(2 * options.deaths):
        (targets.close if number % 2 else targets.silence)(number)
        seen.died[_name(number)] = time.perf_counter()
        if number % 2 and number // 2 < len(expiring):
            reporter.send(f"service:s{expiring[number // 2]}:1")
        await asyncio.sleep(span / (2 * options.deaths))


def _name(number: int) -> str:
    return f"{'closed' if number % 2 else 'silent'} {number}"


def ask(names: int, queries: float, results: multiprocessing.Queue[list[float]], until: float) -> None:
    """Query random services by DNS until then; puts the seconds that each took, in a process of its own."""
    found: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", 8600))
        client.settimeout(5)
        while time.time() < until:
            message = question(f"s{random.randrange(names)}.service.consul")
            begun = time.perf_counter()
            with contextlib.suppress(OSError):
                client.send(message)
                client.recv(4096)
            found.append(time.perf_counter() - begun)
            time.sleep(random.expovariate(queries))
    results.put(found)


@dataclass(frozen=True)
class Usage:
    """Of the agent: processor seconds, and memory in MiB, now and at most."""

    processor: float
    memory: float
    most: float


def usage(process: int) -> Usage:
    stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    )
    memory, most = (int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return Usage((int(stat[11]) + int(stat[12])) / TICKS, memory, most)


async def measure(options: Options, process: int) -> None:
    targets = Targets(options.deaths)
    connector = aiohttp.TCPConnector(limit=0)
    seen = Watch()
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as session:
        await ready(session)
        empty = usage(process)
        reporter, control = multiprocessing.Pipe()
        reporting = multiprocessing.Process(target=report, args=(options.services, options.ttl, control), daemon=True)
        reporting.start()
        took = await register(session, options, targets)
        print(f"registered {options.services} services in {took:.0f} s", flush=True)
        await asyncio.sleep(max(options.interval + options.timeout, options.ttl / 2) + 5)  # each check has run
        own = range(2 * options.deaths)
        accepting = [number for number in range(len(own), options.services) if number % 10 != 9]
        expiring = random.sample(accepting, options.deaths)
        watched = {_name(number): number for number in own} | {f"ttl {number}": number for number in expiring}
        tasks = [asyncio.create_task(watch(session, name, f"s{number}", seen)) for name, number in watched.items()]
        results: multiprocessing.Queue[list[float]] = multiprocessing.Queue()
        arguments = (options.services, options.queries, results, time.time() + options.seconds)
        client = multiprocessing.Process(target=ask, args=arguments, daemon=True)
        client.start()
        before, begun = usage(process), time.perf_counter()
        await die(options, targets, expiring, reporter, seen)
        await asyncio.sleep(begun + options.seconds - time.perf_counter())
        after, elapsed = usage(process), time.perf_counter() - begun
        latencies = sorted(await asyncio.to_thread(results.get))
        client.join()
        reporter.send(None)
        last = await asyncio.to_thread(reporter.recv)
        seen.died |= {f"ttl {number}": last[f"service:s{number}:1"] for number in expiring}
        reporting.join()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    show(options, seen, latencies)
    busy = (after.processor - before.processor) / elapsed
    print(f"load of the machine {os.getloadavg()[0]:.0f}")
    print(
        f"agent: {busy:.0%} of a processor, {after.memory:.0f} MiB (at most {after.most:.0f}, empty {empty.memory:.0f})"
    )


async def ready(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{API}/v1/status/leader"):
                    return
            await asyncio.sleep(0.1)


def show(options: Options, seen: Watch, latencies: list[float]) -> None:
    probed = options.interval + options.timeout
    for kind, limit in (("closed", probed), ("silent", probed), ("ttl", options.ttl)):
        total = sum(name.startswith(kind) for name in seen.died)
        found = seen.delays(kind) or [float("inf")]
        late = sum(delay > limit + 1 for delay in found) + total - len(found)
        median, most = statistics.median(found), max(found)
        print(f"{kind:8} {total} deaths: median {median:.1f} s, most {most:.1f} s, {late} later than {limit:g} s + 1 s")

    def at(part: float) -> float:
        return 1000 * latencies[int(len(latencies) * part)]

    print(
        f"DNS      {len(latencies):5} queries: median {at(0.5):.2f} ms, p99 {at(0.99):.2f} ms, p99.9 {at(0.999):.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/checks", description=__doc__)
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--deaths", type=int, default=100, help="of each kind")
    parser.add_argument("--interval", type=float, default=30.0)
    parser.add_argument("--timeout", type=float, default=10.0)
    parser.add_argument("--ttl", type=float, default=120.0)
    parser.add_argument("--queries", type=float, default=200.0, help="DNS queries a second")
    options = Options(**vars(parser.parse_args()))
    commands.run("ip", "link", "set", "lo", "up")
    agent = subprocess.Popen([str(ROOT / "bin" / "weft"), "agent"], stderr=subprocess.DEVNULL)
    try:
        asyncio.run(measure(options, agent.pid))
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(60)
