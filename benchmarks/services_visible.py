"""Measures the time from a registration over HTTP until the service is visible in DNS, HTTP and at its
virtual IP.

Run by ``benchmarks/services`` in private namespaces. Wall-clock milliseconds, from before the
registration is sent and from its response; other load on the machine affects them.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab import commands, namespaces
from lab.dns import question, read

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 60.0
BACKEND = "10.90.0.2"


@contextlib.contextmanager
def agent() -> Iterator[None]:
    """Run a real agent during the block."""
    process = subprocess.Popen([str(ROOT / "bin" / "weft"), "agent"], stderr=subprocess.DEVNULL)
    try:
        poll(lambda: try_request("GET", "/v1/status/leader") is not None)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(TIMEOUT)


def poll(condition: Callable[[], bool]) -> float:
    """Poll without a pause until the condition holds; returns the time."""
    end = time.perf_counter() + TIMEOUT
    while not condition():
        if time.perf_counter() > end:
            sys.exit("benchmarks/services: the registered service did not appear")
    return time.perf_counter()


class Client:
    """Persistent connections, so that only the agent is measured."""

    def __init__(self) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", 8500, timeout=TIMEOUT)
        self._http.connect()
        self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._dns.connect(("127.0.0.1", 8600))
        self._dns.settimeout(TIMEOUT)

    def call(self, method: str, path: str, body: object = None) -> bytes:
        self._http.request(method, path, None if body is None else json.dumps(body))
        reply = self._http.getresponse()
        text = reply.read()
        if reply.status != 200:
            sys.exit(f"benchmarks/services: {path} returned {reply.status}: {text.decode()}")
        return text

    def in_dns(self, message: bytes) -> bool:
        self._dns.send(message)
        return bool(read(self._dns.recv(4096)).answer)

    def in_http(self, name: str) -> bool:
        return self.call("GET", f"/v1/health/service/{name}?passing") != b"[]"


def accepts_connection(address: str) -> bool:
    """Whether a connection to the virtual address is accepted.

    Tried a few thousand times per second: without the pause, refused connections would keep a processor
    busy.
    """
    time.sleep(0.0002)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.settimeout(TIMEOUT)
        return client.connect_ex((address, 80)) == 0


def try_request(method: str, path: str) -> bytes | None:
    with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", 8500)) as once:
        once.request(method, path)
        return once.getresponse().read()
    time.sleep(0.05)
    return None


def backend() -> socket.socket:
    """A listening socket in its own network namespace, connected to the host."""
    path = namespaces.make("backend")
    near = f"link add near type veth peer name eth0 netns {path}\naddress add 10.90.0.1/24 dev near\nlink set near up\n"
    far = f"link set lo up\naddress add {BACKEND}/24 dev eth0\nlink set eth0 up\nroute add default via 10.90.0.1\n"
    commands.run("ip", "-batch", "-", stdin=near)
    commands.run("nsenter", f"--net={path}", "ip", "-batch", "-", stdin=far)
    with namespaces.inside(path):
        return socket.create_server((BACKEND, 80), backlog=4096)


def measured(rounds: int, others: int) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds from the request and from its response, by what was waited for."""
    client = Client()
    found: dict[str, list[tuple[float, float]]] = {"DNS": [], "HTTP": [], "virtual IP": []}
    for number in range(others):
        client.call("PUT", "/v1/agent/service/register", service(f"other{number}", ""))
    for number in range(rounds):
        for place, (what, times) in enumerate(found.items()):
            name, address = f"s{number}-{place}", f"10.79.{1 + number // 200}.{1 + number % 200}"
            message = question(f"{name}.service.weft")
            waited: dict[str, Callable[[], bool]] = {
                "DNS": lambda message=message: client.in_dns(message),  # type: ignore[misc]
                "HTTP": lambda name=name: client.in_http(name),  # type: ignore[misc]
                "virtual IP": lambda address=address: accepts_connection(address),  # type: ignore[misc]
            }
            begun = time.perf_counter()
            client.call("PUT", "/v1/agent/service/register", service(name, address if what == "virtual IP" else ""))
            registered = time.perf_counter()
            visible = poll(waited[what])
            times.append((1000 * (visible - begun), 1000 * (visible - registered)))
            client.call("PUT", f"/v1/agent/service/deregister/{name}")
            time.sleep(0.3)  # until the deregistration is complete
    return found


def service(name: str, virtual: str) -> dict[str, object]:
    made: dict[str, object] = {"Name": name, "Address": BACKEND, "Port": 80}
    if virtual:
        made["TaggedAddresses"] = {"virtual": {"Address": virtual, "Port": 80}}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/services", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--others", type=int, default=100, help="services registered beforehand")
    options = parser.parse_args()
    listener = backend()
    with listener, agent():
        found = measured(options.rounds, options.others)
    print(f"{options.rounds} rounds, {options.others} other services, load {os.getloadavg()[0]:.0f}; milliseconds")
    print(f"{'visible in':12} {'from the request':>24} {'from its response':>24}")
    for what, times in found.items():
        columns = [format_times([pair[side] for pair in times]) for side in (0, 1)]
        print(f"{what:12} {columns[0]:>24} {columns[1]:>24}")


def format_times(times: list[float]) -> str:
    """``1.2 (0.8, 9.1)``: median, minimum and 95th percentile."""
    return f"{statistics.median(times):.2f} ({min(times):.2f}, {sorted(times)[int(len(times) * 0.95)]:.2f})"
