"""Compares weft's DNS with dnsmasq and aardvark-dns: dnsperf on one core, the server on another,
alternating.

Run by ``benchmarks/dns`` in private namespaces. Queries per CPU second (of all the server's threads)
are comparable on a busy machine; queries per wall-clock second are not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dns_server import NETWORK, address, services

from lab import namespaces
from lab.dns import ask, question

ROOT = Path(__file__).resolve().parents[1]
AARDVARK = "/usr/lib/podman/aardvark-dns"
SERVER_CORE, CLIENT_CORE = 0, 1
TICKS = os.sysconf("SC_CLK_TCK")
RATES = (2000, 20_000)
"""Queries per second at which latency is measured."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Contender:
    """A running server: process, address, port, and the pattern of its names."""

    name: str
    pid: int
    address: str
    port: int
    pattern: str


def processor_seconds(pid: int) -> float:
    """CPU seconds of a process, all threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int) -> float:
    """Resident memory, in MiB."""
    return next(
        int(line.split()[1]) / 1024
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    )


def answers(host: str, port: int, name: str) -> bool:
    return ask(host, port, question(name), timeout=0.5) is not None


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("benchmarks: a server did not answer")
        time.sleep(0.05)


@contextlib.contextmanager
def process(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on its own core; killed at the end of the block."""
    started = subprocess.Popen(
        ["taskset", "-c", str(SERVER_CORE), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@contextlib.contextmanager
def weft(port: int, many: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    python, script = ROOT / ".venv" / "bin" / "python", ROOT / "benchmarks" / "dns_server.py"
    path = folder / f"services-{many}"
    if not path.exists():
        path.write_bytes(services(many))
    with process(str(python), str(script), str(port), str(many), "127.0.0.1:1", str(path)) as started:
        assert started.stdout is not None
        if not started.stdout.readline():
            sys.exit("benchmarks: weft's DNS server did not start")
        yield started


@contextlib.contextmanager
def dnsmasq(port: int, many: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    hosts = folder / "hosts"
    hosts.write_text("".join(f"{address(n)} c{n}\n" for n in range(many)))
    with process(
        *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"),
        *(f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces", f"--addn-hosts={hosts}"),
        *("--cache-size=20000", f"--pid-file={folder}/pid"),
    ) as started:
        yield started


@contextlib.contextmanager
def aardvark(port: int, many: int, folder: Path) -> Iterator[int]:
    """It forks into the background and writes a pid file."""
    config = folder / "aardvark"
    config.mkdir()
    lines = [f"{n:064x} {address(n)}  c{n}" for n in range(1, many)]
    (config / "blue").write_text("127.0.6.1\n" + f"{0:064x} 127.0.0.1  self\n" + "\n".join(lines) + "\n")
    with process(AARDVARK, "--config", str(config), "--port", str(port), "run") as started:
        wait_for((config / "aardvark.pid").exists)
        wait_for(lambda: answers("127.0.6.1", port, "c1"))
        pid = int((config / "aardvark.pid").read_text())
        try:
            yield pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            started.wait(10)


def dnsperf(server: Contender, names: Path, seconds: int, *options: str) -> str:
    done = subprocess.run(
        ["taskset", "-c", str(CLIENT_CORE), "dnsperf", "-s", server.address, "-p", str(server.port), "-d", str(names),
         "-l", str(seconds), "-t", "2", *options],
        capture_output=True, text=True, check=True, timeout=seconds + 60,
    )  # fmt: skip
    return done.stdout


def questions(folder: Path, pattern: str, many: int) -> Path:
    """A file of names in cache-unfriendly order."""
    path = folder / re.sub(r"\W", "_", pattern)
    if not path.exists():
        step = 7919
        path.write_text("".join(f"{pattern.format(n * step % many)} A\n" for n in range(1, many)))
    return path


def load(server: Contender, folder: Path, many: int, seconds: int, *options: str) -> Row:
    """Maximum load: a hundred outstanding queries."""
    path = questions(folder, server.pattern, many)
    before, since = processor_seconds(server.pid), time.monotonic()
    said = dnsperf(server, path, seconds, "-q", "100", "-c", "4", *options)
    used, elapsed = processor_seconds(server.pid) - before, time.monotonic() - since
    completed = int(_found(r"Queries completed:\s+(\d+)", said))
    lost = int(_found(r"Queries lost:\s+(\d+)", said))
    codes = _found(r"Response codes:\s+(.*)", said)
    return {
        "qps": float(_found(r"Queries per second:\s+([\d.]+)", said)),
        "per_cpu_second": completed / used if used else 0.0,
        "share_of_core": used / elapsed,
        "lost": lost,
        "codes": codes,
    }


def latency(server: Contender, folder: Path, many: int, seconds: int, rate: int) -> Row:
    """Latency below every server's maximum rate, in milliseconds."""
    path = questions(folder, server.pattern, many)
    said = dnsperf(server, path, seconds, "-q", "1000", "-Q", str(rate), "-v")
    # "> NOERROR c1 A 0.000123", and "> T c1 A" for a timeout.
    times = [float(each) * 1000 for each in re.findall(r"^> [A-Z]{2,} .* (\d+\.\d+)$", said, re.MULTILINE)]
    if len(times) < 100:
        return {"lost": True}
    cut = statistics.quantiles(times, n=1000)
    return {
        "p50_ms": cut[499],
        "p99_ms": cut[989],
        "p999_ms": cut[998],
        "lost": int(_found(r"Queries lost:\s+(\d+)", said)),
    }


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        sys.exit(f"benchmarks: dnsperf said\n{text}")
    return found.group(1)


def compare(servers: Sequence[Contender], folder: Path, given: argparse.Namespace) -> Row:
    """All contenders alternating, several rounds; medians."""
    loads: dict[str, list[Row]] = {}
    latencies: dict[str, dict[int, list[Row]]] = {}
    for server in servers:
        # Every name once, to fill the server's caches.
        dnsperf(server, questions(folder, server.pattern, given.names), 60, "-q", "100", "-n", "1")
    for turn in range(given.rounds):
        for server in (*servers[turn % len(servers) :], *servers[: turn % len(servers)]):
            loads.setdefault(server.name, []).append(load(server, folder, given.names, given.seconds))
            for rate in RATES:
                measured = latency(server, folder, given.names, given.seconds, rate)
                latencies.setdefault(server.name, {}).setdefault(rate, []).append(measured)
    found: Row = {}
    for server in servers:
        rows: Row = {"load": medians(loads[server.name])}
        rows |= {f"at {rate}/s": medians(latencies[server.name][rate]) for rate in RATES}
        rows["codes"] = loads[server.name][-1]["codes"]
        rows["memory_mib"] = memory(server.pid)
        found[server.name] = rows
        print(server.name, *(f"  {key}: {value}" for key, value in rows.items()), sep="\n", flush=True)
    return found


def medians(rows: Sequence[Row]) -> Row:
    """The median of each number; the sum of lost queries."""
    numbers = {key for row in rows for key, value in row.items() if isinstance(value, float)}
    found: Row = {key: round(statistics.median(row[key] for row in rows if key in row), 3) for key in sorted(numbers)}
    return {**found, "lost": sum(int(row["lost"]) for row in rows)}


def misbehaving_client(server: Contender, folder: Path, given: argparse.Namespace) -> Row:
    """Latency of well-behaved clients at 200 queries per second, while another one misbehaves."""
    found: Row = {}
    before = memory(server.pid)

    def measured(name: str) -> None:
        found[name] = {**latency(server, folder, given.names, given.seconds, 200), "mib": memory(server.pid) - before}
        print(f"{name:36} {found[name]}", flush=True)

    measured("quiet")
    unknown = folder / "unknown"
    unknown.write_text("".join(f"nix{n}.dns.podman A\n" for n in range(100_000)))
    flood = subprocess.Popen(
        ["taskset", "-c", str(CLIENT_CORE), "dnsperf", "-s", server.address, "-p", str(server.port), "-d", str(unknown),
         "-l", str(given.seconds), "-Q", "10000", "-q", "1000"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    measured("10,000 unknown names a second")
    found["10,000 unknown names a second"]["answered"] = float(_found(r"second:\s+([\d.]+)", flood.communicate()[0]))
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_connection((server.address, server.port), 5))
        measured("1,000 idle connections")
    attack = os.fork()
    if not attack:
        _reset_connections(server, given.seconds)
        os._exit(0)
    measured("connections cut off, one after another")
    os.waitpid(attack, 0)
    time.sleep(2)
    used = processor_seconds(server.pid)
    time.sleep(2)
    found["idle afterwards"] = {"share_of_core": (processor_seconds(server.pid) - used) / 2}
    print("idle afterwards", found["idle afterwards"], flush=True)
    return found


def _reset_connections(server: Contender, seconds: int) -> None:
    """Send half a query and reset the connection, in a loop."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection((server.address, server.port), 5) as client:
            client.sendall(b"\0\x20ab")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def restart(port: int, many: int, rounds: int, folder: Path) -> Row:
    """Seconds from SIGKILL to the first response of the restarted server."""
    times = []
    for _ in range(rounds):
        with weft(port, many, folder) as started:
            started.kill()
            since = time.monotonic()
            started.wait()
            with weft(port, many, folder):
                wait_for(lambda: answers("127.0.0.1", port, "s1.service.weft"))
                times.append(time.monotonic() - since)
    found = {"median_s": statistics.median(times), "worst_s": max(times)}
    print(f"restart with {many} names", found, flush=True)
    return found


def set_nice(pid: int, nice: int) -> None:
    """Set the nice value of a process and of its session. Source: sched(7), "The autogroup feature"."""
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/dns", description=__doc__)
    parser.add_argument("--names", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=5, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nice", type=int, default=0, help="nice value of servers and clients, for a busy machine")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE as JSON")
    given = parser.parse_args()
    if problem := namespaces.isolation_problem():
        sys.exit(f"benchmarks: {problem}; use benchmarks/dns")
    if given.nice:
        with contextlib.suppress(PermissionError):
            os.setsid()
        set_nice(os.getpid(), given.nice)
    many = given.names
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        own = stack.enter_context(weft(5301, many, folder)).pid
        other = stack.enter_context(dnsmasq(5302, many, folder)).pid
        wait_for(lambda: answers("127.0.0.1", 5302, "c1"))
        third = stack.enter_context(aardvark(5303, many, folder))
        if given.nice:
            # It runs in a session of its own.
            set_nice(third, given.nice)
        servers = [
            Contender("weft, containers", own, NETWORK, 5301, "c{}"),
            Contender("weft, services", own, "127.0.0.1", 5301, "s{}.service.weft"),
            Contender("dnsmasq", other, "127.0.0.1", 5302, "c{}"),
            Contender("aardvark-dns", third, "127.0.6.1", 5303, "c{}"),
        ]
        rows: Row = {"compared": compare(servers, folder, given)}
        rows["abused"] = misbehaving_client(servers[0], folder, given)
        rows["restart"] = {str(count): restart(5304, count, given.rounds, folder) for count in (100, many)}
    if given.json:
        Path(given.json).write_text(json.dumps({"load": os.getloadavg(), "nice": given.nice, **rows}, indent=2) + "\n")
