"""Servers that reply with the client's address, and clients, with sockets in a chosen namespace."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field

from lab.namespaces import inside
from lab.waiting import PATIENTLY

PAUSE = 0.1
"""Interval at which a waiting server checks whether it should stop, seconds."""
_LATE = 1.0
"""Seconds within which the answer to a ping comes, on a loaded machine."""


def unanswered(ping: subprocess.Popen[bytes], interval: float) -> set[int]:
    """End ``ping -n -i INTERVAL``, a packet in so many seconds: the numbers of those without an answer.

    Raises AssertionError where few had one.
    """
    time.sleep(_LATE)
    ping.send_signal(signal.SIGINT)
    seen = {int(one) for one in re.findall(r"icmp_seq=(\d+)", ping.communicate()[0].decode())}
    assert len(seen) > 20
    # Answers may overtake each other, and the last ones may have been under way as it ended.
    return {*range(1, max(seen) - round(_LATE / interval))} - seen


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _open(address: str, protocol: str) -> socket.socket:
    kind, number = {
        "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
        "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
        "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
    }[protocol]
    return socket.socket(_family(address), kind, number)


@dataclass
class Server:
    """Replies to every client with its address and what it sent: ``10.1.0.5 hello``."""

    namespace: str
    port: int
    protocol: str = "tcp"
    address: str = "::"
    clients: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        with inside(self.namespace):
            self._socket = _open(self.address, self.protocol)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._socket.family == socket.AF_INET6:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._socket.bind((self.address, self.port))
            if self.protocol != "udp":
                self._socket.listen(64)
        self._socket.settimeout(PAUSE)
        self._ending = threading.Event()
        work = self._serve_datagrams if self.protocol == "udp" else self._serve_streams
        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join(timeout=5)
        self._socket.close()

    def _name(self, client: str) -> str:
        name = client.removeprefix("::ffff:").split("%")[0]
        self.clients.append(name)
        return name

    def _serve_streams(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(OSError):
                connection, client = self._socket.accept()
                with connection:
                    connection.settimeout(PATIENTLY)
                    data = connection.recv(4096)
                    connection.sendall(f"{self._name(client[0])} ".encode() + data)

    def _serve_datagrams(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(OSError):
                data, client = self._socket.recvfrom(4096)
                self._socket.sendto(f"{self._name(client[0])} ".encode() + data, client)


def fetch(
    namespace: str, address: str, port: int, protocol: str = "tcp", *, timeout: float = PATIENTLY, source: str = ""
) -> str | None:
    """Send ``hello`` to a server: the client address it saw, None if it cannot be reached in time.

    A refused connection ends the attempt; without a route it is retried. ``source`` is the source
    address, chosen by the kernel if empty.
    """
    deadline = time.monotonic() + timeout
    while True:
        with inside(namespace):
            client = _open(address, protocol)
        with client:
            try:
                if source:
                    client.bind((source, 0))
                client.settimeout(timeout)
                client.connect((address, port))
                answer = _ask(client, deadline).decode()
                break
            except (TimeoutError, ConnectionError):
                return None
            except OSError:
                if time.monotonic() >= deadline:
                    return None
        time.sleep(PAUSE)
    seen, _, echoed = answer.partition(" ")
    if echoed != "hello":
        raise AssertionError(f"{address}:{port} answered {answer!r}")
    return seen


def _ask(client: socket.socket, deadline: float) -> bytes:
    """Send hello, repeated each second over UDP; the reply. Raises OSError without one."""
    while True:
        client.sendall(b"hello")
        left = deadline - time.monotonic()
        again = client.type == socket.SOCK_DGRAM and left > 1
        client.settimeout(1 if again else max(left, 0.01))
        try:
            return client.recv(4096)
        except TimeoutError:
            if not again:
                raise
