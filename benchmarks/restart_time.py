"""Measures how soon an agent with many services answers again after SIGKILL.

Run by ``benchmarks/restart`` in private namespaces. N services, each with a TTL and a TCP check, are
persisted as an agent that was given them persists them; every tenth is critical. The agent is killed
and started at once; then one client asks DNS and another HTTP, each about a service that passes and one
that does not, until both answers are as before the kill. Processor time is that of the agent and its
workers until the later of the two: the measure on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cni_plugin.agent import catalog_file
from cni_plugin.agent import settings as configuration
from discovery import layout
from discovery.structs import CheckDefinition, Instance, Status
from lab import commands
from lab.dns import ask, question, read
from store import Operation, Put
from store.embedded import open_embedded

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
TARGET_PORT = 7000
NODE = socket.gethostname()
PAUSE = 0.01
PATIENCE = 0.05
"""Seconds after which a question is asked again: the first ones are lost, or refused."""
MOST_SECONDS = 300.0


@dataclass(frozen=True)
class Round:
    """Seconds from the start until both answer, and processor seconds until then."""

    dns: float
    http: float
    processor: float


def start() -> subprocess.Popen[bytes]:
    return subprocess.Popen([str(ROOT / "bin" / "weft"), "agent"], stderr=subprocess.DEVNULL)


def instance(number: int) -> tuple[Instance, tuple[CheckDefinition, CheckDefinition]]:
    host = f"127.1.{number // 250}.{1 + number % 250}"
    name = f"s{number}"
    status = Status.CRITICAL if number % 10 == 9 else Status.PASSING
    ttl = CheckDefinition(f"service:{name}:1", name, "ttl", name, ttl=3600.0, initial=status)
    target = f"{host}:{TARGET_PORT}"
    tcp = CheckDefinition(
        f"service:{name}:2", name, "tcp", name, target=target, interval=600.0, timeout=5.0, initial=Status.PASSING
    )
    return Instance(NODE, name, name, address=host, port=80), (ttl, tcp)


async def register(services: int) -> None:
    """Persist registrations as an agent does, in transactions of a hundred writes."""
    store = await open_embedded(catalog_file.path(configuration.read()))
    writes: list[Operation] = []
    for number in range(services):
        one, checks = instance(number)
        writes.append(Put(layout.local_key(NODE, "service", one.id), layout.encode(one)))
        for check in checks:
            writes.append(Put(layout.local_key(NODE, "check", check.id), layout.encode_check_definition(check)))
    for start in range(0, len(writes), 100):
        await store.transact((), writes[start : start + 100])
    await store.close()


@contextlib.contextmanager
def target() -> Iterator[None]:
    """Accepts the connections of the TCP checks."""
    with socket.create_server(("0.0.0.0", TARGET_PORT), backlog=4096) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        threading.Thread(target=accept, daemon=True).start()
        yield


def until(answers: Callable[[], bool]) -> float:
    """The time of the first right answer."""
    end = time.monotonic() + MOST_SECONDS
    while not answers():
        if time.monotonic() > end:
            raise TimeoutError("the agent does not answer")
        time.sleep(PAUSE)
    return time.monotonic()


def dns_answers(passing: int, critical: int) -> bool:
    for number, expected in ((passing, 1), (critical, 0)):
        reply = ask("127.0.0.1", 8600, question(f"s{number}.service.consul"), timeout=PATIENCE)
        if reply is None or len(read(reply).answer) != expected:
            return False
    return True


def http_answers(passing: int, critical: int) -> bool:
    with (
        contextlib.suppress(OSError, http.client.HTTPException),
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", 8500, timeout=MOST_SECONDS)) as client,
    ):
        for number, expected in ((passing, 1), (critical, 0)):
            client.request("GET", f"/v1/health/service/s{number}?passing")
            reply = client.getresponse()
            if reply.status != 200 or len(json.loads(reply.read())) != expected:
                return False
        return True
    return False


def processor(process: int) -> float:
    """Processor seconds of a process and of those that it has started and that live."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
        return (int(fields[11]) + int(fields[12])) / TICKS + sum(processor(int(child)) for child in children)
    return 0.0


def measure(passing: int, critical: int) -> tuple[Round, subprocess.Popen[bytes]]:
    begun = time.monotonic()
    agent = start()
    try:
        with ThreadPoolExecutor(2) as pool:
            asked = (dns_answers, http_answers)
            waiting = [pool.submit(until, partial(one, passing, critical)) for one in asked]
            dns, http_ = (each.result() - begun for each in waiting)
        return Round(dns, http_, processor(agent.pid)), agent
    except BaseException:
        agent.kill()
        raise


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/restart", description=__doc__)
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--settle", type=float, default=20.0, help="seconds of life before each kill")
    parser.add_argument("--target", type=float, default=0.0, help="fail above these seconds (median)")
    options = parser.parse_args()
    commands.run("ip", "link", "set", "lo", "up")
    asyncio.run(register(options.services))
    passing, critical = options.services - 2, options.services - 1
    rounds = []
    with target():
        one, agent = measure(passing, critical)
        try:
            print(f"first start: {shown(one)}", flush=True)
            for number in range(options.rounds):
                time.sleep(options.settle)
                agent.send_signal(signal.SIGKILL)
                agent.wait()
                one, agent = measure(passing, critical)
                rounds.append(one)
                print(f"round {number}: {shown(one)}", flush=True)
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(60)
    for name in ("dns", "http", "processor"):
        found = sorted(getattr(one, name) for one in rounds)
        print(f"{name:9} median {statistics.median(found):.2f} s, {found[0]:.2f} to {found[-1]:.2f}")
    later = statistics.median(max(one.dns, one.http) for one in rounds)
    if options.target and later > options.target:
        sys.exit(f"back after {later:.2f} s, more than {options.target:g} s")


def shown(one: Round) -> str:
    load = os.getloadavg()[0]
    return f"DNS {one.dns:.2f} s, HTTP {one.http:.2f} s, processor {one.processor:.2f} s, load {load:.1f}"


if __name__ == "__main__":
    main()
