"""What the scheduling of an uplink costs that is not busy: two networks of one host, one with the key ``uplink``.

Run as ``tests/private .venv/bin/python benchmarks/uplink.py [ROUNDS]``. In each round both networks do each
measurement, in alternating order, so that both see the same load. Shown are the medians, the median of the rounds'
ratios and its 95 % interval. The uplink's rate is far above what the machine sends, so that nothing waits for it.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from guards import interval  # noqa: E402

from lab.calls import Weft  # noqa: E402
from lab.confs import DEFAULT4, bridge, pool  # noqa: E402
from lab.host import Host  # noqa: E402
from lab.namespaces import inside  # noqa: E402

_SECONDS = 0.35
_TAKES, _GIVES, _ECHOES, _DROPS = 5001, 5002, 5003, 5004
_BLOCK = bytes(1 << 20)
_DATAGRAM = bytes(64)
_ECHOED = 1000


def _serve(path: str, port: int, work: Callable[[socket.socket], object]) -> int:
    """In a child process: ``work`` with one connection at a time until its end."""
    with inside(path):
        listener = socket.create_server(("0.0.0.0", port))
    child = os.fork()
    if child:
        listener.close()
        return child
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                while work(connection):
                    pass
            except OSError:
                pass


class Container:
    """A container on a network of its own."""

    def __init__(self, host: Host, name: str, number: int, outside: str, **keys: object) -> None:
        conf = bridge(
            pool(f"10.8{number}.0.0/24", routes=[DEFAULT4]),
            name=name, bridge=f"br-{name}", type="weft", driver="bridge", isGateway=True, ipMasq=True, **keys,
        )  # fmt: skip
        self._path, self._outside = host.container(name), outside
        Weft().add(conf, self._path, name)

    def _connect(self, port: int) -> socket.socket:
        with inside(self._path):
            return socket.create_connection((self._outside, port), timeout=10)

    def up(self) -> float:
        """Gbit/s of a TCP connection."""
        with self._connect(_TAKES) as one:
            sent, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < _SECONDS:
                sent += one.send(_BLOCK)
        return sent * 8 / elapsed / 1e9

    def down(self) -> float:
        """Gbit/s of a TCP connection."""
        buffer = bytearray(1 << 20)
        with self._connect(_GIVES) as one:
            taken, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < _SECONDS:
                taken += one.recv_into(buffer)
        return taken * 8 / elapsed / 1e9

    def datagrams(self) -> float:
        """thousands a second of datagrams with 64 bytes, upwards."""
        with inside(self._path):
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with one:
            one.connect((self._outside, _DROPS))
            count, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < _SECONDS:
                for _ in range(200):
                    one.send(_DATAGRAM)
                count += 200
        return count / elapsed / 1000

    def echoes(self) -> float:
        """thousands a second of round trips of a byte, through both directions."""
        with self._connect(_ECHOES) as one:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            started = time.perf_counter()
            for _ in range(_ECHOED):
                one.send(b"x")
                one.recv(1)
            return _ECHOED / (time.perf_counter() - started) / 1000


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    host = Host()
    children: list[int] = []
    try:
        lan = host.lan()
        host.configure('[uplink]\nup = "1000gbit"\ndown = "1000gbit"\n')
        path, buffer = f"/run/netns/{lan.name}", bytearray(1 << 20)
        children += (
            _serve(path, _TAKES, lambda one: one.recv_into(buffer)),
            _serve(path, _GIVES, lambda one: one.send(_BLOCK)),
            _serve(path, _ECHOES, lambda one: one.send(one.recv(1))),
        )
        with inside(path):
            drops = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        drops.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        drops.bind(("0.0.0.0", _DROPS))
        sides = (Container(host, "with", 1, lan.outside, uplink={}), Container(host, "plain", 2, lan.outside))
        print(f"{'':34}{'with':>8}{'without':>9}   ratio [95 %], {rounds} rounds")
        for what in ("up", "down", "datagrams", "echoes"):
            found: list[tuple[float, float]] = []
            for turn in range(rounds + 1):
                order = sides if turn % 2 else sides[::-1]
                seen = {id(side): getattr(side, what)() for side in order}
                found.append((seen[id(sides[0])], seen[id(sides[1])]))
            measured = found[1:]
            ratios = [mine / other for mine, other in measured]
            low, high = interval(ratios)
            mine, other = (statistics.median(each) for each in zip(*measured, strict=True))
            unit = str(getattr(Container, what).__doc__).partition(" of ")[0]
            shown = f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]"
            print(f"{what + ', ' + unit:34}{mine:8.2f}{other:9.2f}   {shown}")
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        host.close()


if __name__ == "__main__":
    main()
