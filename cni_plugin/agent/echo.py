"""ICMP echo requests of a given size that no router may fragment, to probe the path to a peer.

Source: RFC 792, RFC 4443; ``icmp(7)``, ``ip(7)``: IP_MTU_DISCOVER, IP_PMTUDISC_PROBE.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time

from weft.checksum import internet_checksum
from weft.types import Address

_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
"""IP_MTU_DISCOVER and IPV6_MTU_DISCOVER."""
_PROBE = 3
_REQUEST, _REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}
HEADERS = {4: 28, 6: 48}
"""Bytes of the IP and ICMP headers."""
_SOL_RAW = 255
_ICMP_FILTER = {4: (_SOL_RAW, 1), 6: (socket.IPPROTO_ICMPV6, 1)}
_MOST = 1 << 16


def open_sockets() -> dict[int, socket.socket]:
    """A socket for each IP version for which this process may have one; call it before the process gives up
    CAP_NET_RAW. Raises nothing.
    """
    found = {}
    for version, family, protocol in (
        (4, socket.AF_INET, socket.IPPROTO_ICMP),
        (6, socket.AF_INET6, socket.IPPROTO_ICMPV6),
    ):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):  # the first needs net.ipv4.ping_group_range
            with contextlib.suppress(OSError):
                found[version] = _opened(version, family, kind, protocol)
                break
    return found


def _opened(version: int, family: int, kind: int, protocol: int) -> socket.socket:
    made = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        made.setsockopt(*_DISCOVER[version], _PROBE)
        if kind == socket.SOCK_RAW:
            made.setsockopt(*_ICMP_FILTER[version], _only(_REPLY[version], version))
    except OSError:
        made.close()
        raise
    return made


def _only(type_: int, version: int) -> bytes:
    """The filter that blocks all types of messages but one: a bit for each."""
    if version == 4:
        return struct.pack("I", 0xFFFFFFFF & ~(1 << type_))
    words = [0xFFFFFFFF] * 8
    words[type_ >> 5] &= ~(1 << (type_ & 31))
    return struct.pack("8I", *words)


class Echo:
    """Sends requests on the sockets, and matches the replies."""

    def __init__(self, sockets: dict[int, socket.socket]) -> None:
        self._sockets = sockets
        self._identity = os.getpid() & 0xFFFF
        self._number = 0
        self._waiting: dict[int, tuple[bytes, asyncio.Future[float]]] = {}

    def start(self) -> None:
        for version, each in self._sockets.items():
            asyncio.get_running_loop().add_reader(each.fileno(), self._receive, version)

    def stop(self) -> None:
        for each in self._sockets.values():
            asyncio.get_running_loop().remove_reader(each.fileno())

    def can(self, version: int) -> bool:
        return version in self._sockets

    async def ask(self, address: Address, size: int, seconds: float) -> float | None:
        """The round trip in seconds of an IP packet of ``size`` bytes; None without a reply in time."""
        version = address.version
        self._number = (self._number + 1) & 0xFFFF
        number, token = self._number, os.urandom(8)
        body = token.ljust(max(size - HEADERS[version], len(token)), b"w")
        head = struct.pack("!BBHHH", _REQUEST[version], 0, 0, self._identity, number)
        if version == 4:
            head = struct.pack("!BBHHH", _REQUEST[version], 0, internet_checksum(head + body), self._identity, number)
        answered: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[number] = token, answered
        sent = time.monotonic()
        try:
            self._sockets[version].sendto(head + body, (str(address), 0))
            async with asyncio.timeout(seconds):
                return await answered - sent
        except (OSError, TimeoutError):
            return None
        finally:
            self._waiting.pop(number, None)

    def _receive(self, version: int) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                data, _ = self._sockets[version].recvfrom(_MOST)
                arrived = time.monotonic()
                if version == 4 and self._sockets[version].type == socket.SOCK_RAW:
                    data = data[(data[0] & 0xF) * 4 :] if data else b""
                if len(data) < 16 or data[0] != _REPLY[version]:
                    continue
                token, answered = self._waiting.get(struct.unpack("!H", data[6:8])[0], (b"", None))
                if answered is not None and not answered.done() and data[8:16] == token:
                    answered.set_result(arrived)
