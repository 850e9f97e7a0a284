"""Raw frames: sent from a namespace with a packet socket, and captured elsewhere. packet(7)."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address

from lab.namespaces import inside
from lab.waiting import PATIENTLY

BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "ff02::1"
_ALL = 0x0003  # ETH_P_ALL
UDP, ICMP, ICMP6 = 17, 1, 58


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def link_local(mac: str) -> str:
    raw = octets(mac)
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]))


def _sum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def frame(source: str, protocol: int, content: bytes, to: str = BROADCAST) -> bytes:
    return octets(to) + octets(source) + struct.pack("!H", protocol) + content


def tagged(whole: bytes, vid: int, protocol: int = 0x8100) -> bytes:
    """The same frame with a VLAN tag: 802.1Q, or 802.1ad (0x88a8)."""
    return whole[:12] + struct.pack("!HH", protocol, vid) + whole[12:]


def snap(whole: bytes) -> bytes:
    """The same frame with a length and its EtherType in a SNAP header (RFC 1042)."""
    return whole[:12] + struct.pack("!H", len(whole) - 6) + b"\xaa\xaa\x03\0\0\0" + whole[12:]


def ip(source: str, to: str, protocol: int, content: bytes, *, before: bytes = b"") -> tuple[int, bytes]:
    """EtherType and IP packet.

    ``before``: IPv6 extension headers, of which the first is hop-by-hop.
    """
    first, second = ip_address(source), ip_address(to)
    pseudo = first.packed + second.packed
    if first.version == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), 1, 0, 64, protocol, 0) + pseudo
        return 0x0800, header[:10] + struct.pack("!H", _sum(header)) + header[12:] + content
    if protocol == ICMP6:
        over = pseudo + struct.pack("!II", len(content), protocol) + content
        content = content[:2] + struct.pack("!H", _sum(over)) + content[4:]
    header = struct.pack("!IHBB", 6 << 28, len(before) + len(content), 0 if before else protocol, 255)
    return 0x86DD, header + pseudo + before + content


def udp(source: int, to: int, content: bytes) -> bytes:
    return struct.pack("!HHHH", source, to, 8 + len(content), 0) + content


def arp(operation: int, mac: str, address: str, to_mac: str, to: str, token: bytes = b"") -> bytes:
    """An ARP packet: 1 is a request, 2 a reply. Trailing bytes are ignored by receivers."""
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return head + octets(mac) + ip_address(address).packed + octets(to_mac) + ip_address(to).packed + token


def option(kind: int, mac: str) -> bytes:
    """A link-layer address option of neighbour discovery: 1 source, 2 target."""
    return struct.pack("!BB", kind, 1) + octets(mac)


def note(token: bytes) -> bytes:
    """An unknown option, which receivers skip."""
    return struct.pack("!BB", 253, 2) + token.ljust(14, b"\0")


def advertisement(target: str, options: bytes) -> bytes:
    """A neighbour advertisement with the override flag."""
    return struct.pack("!BBHI", 136, 0, 0, 0x20000000) + ip_address(target).packed + options


def solicitation(target: str, options: bytes) -> bytes:
    return struct.pack("!BBHI", 135, 0, 0, 0) + ip_address(target).packed + options


def router(prefix: str, options: bytes = b"") -> bytes:
    """A router advertisement: a default route for half an hour, and a /64 prefix for SLAAC."""
    head = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    return head + struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 7200, 7200, 0) + ip_address(prefix).packed + options


def send(namespace: str, frames: Iterable[bytes], link: str = "eth0") -> None:
    """Send frames from a link with a packet socket, which bypasses the namespace's own filters."""
    with inside(namespace), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((link, 0))
        for one in frames:
            sender.send(one)


class Ear:
    """Captures all frames that arrive at a link from its creation on."""

    def __init__(self, namespace: str, link: str = "eth0") -> None:
        with inside(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
            self._socket.bind((link, _ALL))
        self._socket.settimeout(0.1)

    def close(self) -> None:
        self._socket.close()

    def heard(self, tokens: Iterable[bytes], last: bytes, *, within: float = PATIENTLY) -> set[bytes]:
        """The tokens that arrived before the last; raises AssertionError if that never arrives."""
        wanted, found = set(tokens), set()
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                data, (_, _, kind, *_rest) = self._socket.recvfrom(65535)
            except TimeoutError:
                continue
            if kind == 4:  # PACKET_OUTGOING: sent by this host
                continue
            found |= {token for token in wanted if token in data}
            if last in data:
                return found
        raise AssertionError(f"{last!r} did not arrive; of the others {sorted(found)} did")


class Capture:
    """Captures all frames on all links of a namespace, in both directions, from its creation on."""

    def __init__(self, namespace: str) -> None:
        with inside(namespace):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
        self._seen: list[bytes] = []

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def frames(self) -> list[bytes]:
        """What was captured so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._seen.append(self._socket.recv(65535, socket.MSG_DONTWAIT))
        return self._seen
