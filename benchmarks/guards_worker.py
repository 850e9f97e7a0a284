"""One side of ``guards``: a host of its own whose weft is that of a given checkout. JSON lines in and out.

Started by ``guards`` through tests/private, as ``guards_worker.py CHECKOUT``. What it measures is named on standard
input, a line each; the answer is a number: larger is better for rates, smaller for times in seconds.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable

sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/tests"]

from lab import seen  # noqa: E402
from lab.calls import Weft  # noqa: E402
from lab.confs import DEFAULT4, bridge, pool  # noqa: E402
from lab.host import Host  # noqa: E402
from lab.namespaces import inside  # noqa: E402

_SECONDS = 0.35
_CONNECTIONS = 400
_ATTACHED = 8
_LINGER = struct.pack("ii", 1, 0)
_TCP, _UDP = 5001, 5002
_BLOCK = bytes(1 << 20)
_DATAGRAM = bytes(64)


def _sink(path: str) -> None:
    """In a child process: takes what comes by TCP; datagrams are dropped by the full socket."""
    if os.fork():
        return
    with inside(path):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener = socket.socket()
    datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    datagrams.bind(("0.0.0.0", _UDP))
    listener.bind(("0.0.0.0", _TCP))
    listener.listen(512)
    buffer = bytearray(1 << 20)
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                while connection.recv_into(buffer):
                    pass
            except OSError:
                pass


class Side:
    """A bridge network with two containers and a machine on the LAN."""

    def __init__(self, host: Host) -> None:
        self.host, self.weft = host, Weft()
        seen.forward(host)
        lan = host.lan()
        # What has ended must not count as connections of the next round.
        for key in ("tcp_timeout_close", "tcp_timeout_time_wait", "udp_timeout"):
            host.run("sysctl", "-q", "-w", f"net.netfilter.nf_conntrack_{key}=1", check=False)
        keys = {"type": "weft", "driver": "bridge", "isGateway": True, "ipMasq": True}
        self.conf = bridge(pool("10.80.0.0/16", routes=[DEFAULT4]), **keys)
        self.paths = {name: host.container(name) for name in ("c1", "c2", "c3")}
        results = {name: self.weft.add(self.conf, self.paths[name], name) for name in ("c1", "c2")}
        self.sibling = results["c2"]["ips"][0]["address"].split("/")[0]
        self.outside = lan.outside
        _sink(self.paths["c2"])
        _sink(host._place(lan.name))
        for address in (self.sibling, self.outside):
            self._wait(address)

    def _socket(self, kind: socket.SocketKind) -> socket.socket:
        with inside(self.paths["c1"]):
            return socket.socket(socket.AF_INET, kind)

    def _wait(self, address: str) -> None:
        deadline = time.monotonic() + 10
        while True:
            with self._socket(socket.SOCK_STREAM) as one:
                if one.connect_ex((address, _TCP)) == 0:
                    return
            if time.monotonic() > deadline:
                raise SystemExit(f"{address} cannot be reached")
            time.sleep(0.05)

    def throughput(self, address: str) -> float:
        """Gbit/s of one TCP connection."""
        with self._socket(socket.SOCK_STREAM) as one:
            one.connect((address, _TCP))
            sent, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < _SECONDS:
                sent += one.send(_BLOCK)
            return sent * 8 / elapsed / 1e9

    def datagrams(self, address: str) -> float:
        """Datagrams of 64 bytes a second."""
        with self._socket(socket.SOCK_DGRAM) as one:
            one.connect((address, _UDP))
            send, count, started = one.send, 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < _SECONDS:
                for _ in range(200):
                    send(_DATAGRAM)
                count += 200
            return count / elapsed

    def connections(self) -> float:
        """TCP connections through the host a second, each opened and reset."""
        started = time.perf_counter()
        with inside(self.paths["c1"]):
            for _ in range(_CONNECTIONS):
                with socket.socket() as one:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
                    one.connect((self.outside, _TCP))
        return _CONNECTIONS / (time.perf_counter() - started)

    def attach(self) -> tuple[float, float]:
        """Seconds of an ADD and of a DEL in this process: medians."""
        added, deleted = [], []
        for _ in range(_ATTACHED):
            started = time.perf_counter()
            self.weft.add(self.conf, self.paths["c3"], "c3")
            between = time.perf_counter()
            self.weft.delete(self.conf, self.paths["c3"], "c3")
            added.append(between - started)
            deleted.append(time.perf_counter() - between)
        return sorted(added)[_ATTACHED // 2], sorted(deleted)[_ATTACHED // 2]


def main() -> None:
    os.setpgid(0, 0)
    host = Host()
    try:
        side = Side(host)
        works: dict[str, Callable[[], object]] = {
            "ready": lambda: True,
            "TCP in the bridge": lambda: side.throughput(side.sibling),
            "TCP through the host": lambda: side.throughput(side.outside),
            "datagrams in the bridge": lambda: side.datagrams(side.sibling),
            "datagrams through the host": lambda: side.datagrams(side.outside),
            "connections through the host": side.connections,
            "attach": side.attach,
        }
        for line in sys.stdin:
            print(json.dumps(works[line.strip()]()), flush=True)
    finally:
        host.close()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)  # the sinks


if __name__ == "__main__":
    main()
