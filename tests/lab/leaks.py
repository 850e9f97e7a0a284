"""Continuous traffic across boundaries that must be closed, and the count of what gets through.

A process of its own sends TCP SYNs, UDP datagrams and ICMP echo requests over each boundary in turn,
as fast as one loop does it. At the far side packet sockets count what arrives, by a port or
identifier of its own for each boundary; on the host, where a packet socket is before the firewall,
UDP and TCP sockets do.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address

from lab.frames import ICMP, ICMP6, frame, ip, udp
from lab.namespaces import inside

_ALL = 0x0003  # ETH_P_ALL
_OUTGOING = 4  # PACKET_OUTGOING
_COUNTS = struct.Struct("=QQ")
_FIRST = 20000  # the port and identifier of the first boundary
_STEP = 1000  # between the identifiers of a boundary, a new one each second


@dataclass(frozen=True, slots=True)
class Boundary:
    """A path that must be closed (``open``: must be open, which shows that the probe works).

    ``source`` and ``target`` are namespaces; ``listen`` is where packets are looked for, by default in
    ``target`` on ``link``; "" counts with sockets. ``port``: 0 is one of its own. ``hop``: the MAC
    address to send raw frames to, for destinations that the source's kernel does not route.
    """

    name: str
    source: str
    address: str
    target: str
    protocol: str
    link: str = "eth0"
    port: int = 0
    heard: int = 0
    hop: str = ""
    open: bool = False


class Probe:
    """The running probe. ``leaked`` compares two counts."""

    def __init__(self, boundaries: list[Boundary]) -> None:
        self.boundaries = boundaries
        self._memory = mmap.mmap(-1, _COUNTS.size * len(boundaries))
        self._process = os.fork()
        if not self._process:
            status = 1
            try:
                signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
                _Loop(boundaries, self._memory).run()
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)

    def close(self) -> None:
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    @property
    def alive(self) -> bool:
        return os.waitid(os.P_PID, self._process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def counts(self) -> list[tuple[int, int]]:
        """Packets sent and heard, for each boundary."""
        return [_COUNTS.unpack_from(self._memory, index * _COUNTS.size) for index in range(len(self.boundaries))]

    def heard(self, *, allowed: bool) -> dict[str, int]:
        """The packets heard so far on the boundaries that must be open, or on those that must be closed."""
        found = zip(self.boundaries, self.counts(), strict=True)
        return {f"{one.name} {one.protocol}": heard for one, (_, heard) in found if one.open is allowed}

    def sent(self) -> int:
        return sum(sent for sent, _ in self.counts())


class _Loop:
    """The probe's process: all sockets, and the loop over them."""

    def __init__(self, boundaries: list[Boundary], memory: mmap.mmap) -> None:
        self._memory = memory
        self._counts = [[0, 0] for _ in boundaries]
        self._ears: dict[tuple[str, str], socket.socket] = {}
        self._sockets: dict[socket.socket, int] = {}
        self._index: dict[tuple[str, str, str, int, int], int] = {}
        self._senders = [self._sender(index, one) for index, one in enumerate(boundaries)]
        self._boundaries = boundaries

    def _sender(self, index: int, one: Boundary) -> socket.socket | None:
        number = one.port or _FIRST + index
        version = ip_address(one.address).version
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        if one.link:
            place = one.target, one.link
            if place not in self._ears:
                with inside(one.target):
                    self._ears[place] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
                    self._ears[place].bind((one.link, _ALL))
            self._index[(*place, one.protocol, version, one.heard or number)] = index
        else:
            kind = socket.SOCK_STREAM if one.protocol == "tcp" else socket.SOCK_DGRAM
            with inside(one.target):
                server = socket.socket(family, kind)
                server.bind((one.address, number))
            if one.protocol == "tcp":
                server.listen(64)
            server.setblocking(False)
            self._sockets[server] = index
        if one.protocol == "tcp":
            return None
        with inside(one.source):
            if one.hop:
                sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
                sender.bind(("eth0", 0))
            elif one.protocol == "udp":
                sender = socket.socket(family, socket.SOCK_DGRAM)
            else:
                protocol = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
                sender = socket.socket(family, socket.SOCK_RAW, protocol)
        sender.setblocking(False)
        return sender

    def run(self) -> None:
        while True:
            by_source: dict[str, list[int]] = {}
            for index, one in enumerate(self._boundaries):
                by_source.setdefault(one.source, []).append(index)
            for source, indexes in by_source.items():
                with inside(source):
                    for index in indexes:
                        self._send(index)
                self._receive()
            time.sleep(0.002)

    def _send(self, index: int) -> None:
        one, number = self._boundaries[index], self._boundaries[index].port or _FIRST + index
        version = ip_address(one.address).version
        sender = self._senders[index]
        with contextlib.suppress(OSError):
            if sender is None:
                client = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
                with client:
                    client.setblocking(False)
                    client.connect_ex((one.address, number))
            elif one.hop:
                packet = ip(
                    "192.0.2.2" if version == 4 else "2001:db8:99::2", one.address, 17, udp(number, number, b"")
                )
                mac, to = one.hop.split()
                sender.send(frame(mac, *packet, to=to))
            elif one.protocol == "udp":
                sender.sendto(b"leak", (one.address, number))
            else:
                # A connection that was opened while rules were missing goes on afterwards, as any other.
                number += _STEP * (int(time.monotonic()) % 40)
                head = struct.pack("!BBHHH", 8 if version == 4 else 128, 0, 0, number, 0)
                total = sum(struct.unpack("!4H", head))
                total = (total & 0xFFFF) + (total >> 16)
                sender.sendto(head[:2] + struct.pack("!H", 0xFFFF - total) + head[4:], (one.address, 0))
            self._counts[index][0] += 1
        self._write(index)

    def _write(self, index: int) -> None:
        _COUNTS.pack_into(self._memory, index * _COUNTS.size, *self._counts[index])

    def _receive(self) -> None:
        ready, _, _ = select.select([*self._ears.values(), *self._sockets], [], [], 0)
        for ear in ready:
            with contextlib.suppress(OSError):
                while ear in self._sockets:
                    if ear.type == socket.SOCK_STREAM:
                        ear.accept()[0].close()
                    else:
                        ear.recv(64)
                    self._heard(self._sockets[ear])
        for place, ear in self._ears.items():
            if ear in ready:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        data, (_, _, kind, *_rest) = ear.recvfrom(128, socket.MSG_DONTWAIT)
                        found = _of(data) if kind != _OUTGOING else None
                        if found is not None and (index := self._index.get((*place, *found))) is not None:
                            self._heard(index)

    def _heard(self, index: int) -> None:
        self._counts[index][1] += 1
        self._write(index)


def _of(data: bytes) -> tuple[str, int, int] | None:
    """Protocol, IP version, and destination port or identifier of a request of the probe."""
    if data[12:14] == b"\x08\x00" and data[14] >> 4 == 4:
        version, protocol, rest = 4, data[23], data[14 + (data[14] & 15) * 4 :]
    elif data[12:14] == b"\x86\xdd":
        version, protocol, rest = 6, data[20], data[54:]
    else:
        return None
    if protocol == socket.IPPROTO_TCP and len(rest) >= 14 and rest[13] & 0x12 == 0x02:  # a SYN
        return "tcp", version, int.from_bytes(rest[2:4], "big")
    if protocol == socket.IPPROTO_UDP:
        return "udp", version, int.from_bytes(rest[2:4], "big")
    if protocol in (ICMP, ICMP6) and rest[:1] in (b"\x08", b"\x80"):
        return "icmp", version, _FIRST + (int.from_bytes(rest[4:6], "big") - _FIRST) % _STEP
    return None
