"""IPv4 packets to and from a link that has no address yet, past the kernel's own IP: what a DHCP client needs.

Source: ``packet(7)``, ``linux/filter.h``; the filter lets nothing through but unfragmented UDP to port 68.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from array import array
from ipaddress import IPv4Address
from struct import pack

from weft.errors import KernelRefused, Missing, NamespaceProblem
from weft.kernel import netns
from weft.types import NamespaceId

_IP, _ARP = 0x0800, 0x0806
_OUTGOING = 4
_ATTACH_FILTER = 26
_LARGEST = 65535
_BROADCAST = b"\xff" * 6
_ETHERNET = 1

# What tcpdump -dd prints for "udp dst port 68" and no fragment, from the IP header on.
_FILTER = (
    (0x30, 0, 0, 9),  # the protocol
    (0x15, 0, 6, 17),  # is UDP
    (0x28, 0, 0, 6),  # the fragment's offset
    (0x45, 4, 0, 0x1FFF),  # is none
    (0xB1, 0, 0, 0),  # past the header
    (0x48, 0, 0, 2),  # the destination port
    (0x15, 0, 1, 68),
    (0x06, 0, 0, _LARGEST),
    (0x06, 0, 0, 0),
)


class PacketSocket:
    """A link of a namespace, open for packets; ``mac`` is its MAC address. Close it when done.

    While it is open the namespace lives, whoever has left it.
    """

    def __init__(self, namespace: NamespaceId, link: str) -> None:
        """Raises NamespaceProblem where the path leads elsewhere by now, Missing for no such link, KernelRefused."""
        descriptor, there = netns.open_namespace(namespace.path)
        try:
            if not there.same(namespace):
                raise NamespaceProblem(f"{namespace.path} is another network namespace by now")
            with netns.inside(descriptor):
                self._socket = _open(link)
        finally:
            os.close(descriptor)
        self._link = link
        self.mac = self._socket.getsockname()[4][:6].hex(":")

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> PacketSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, packet: bytes, mac: str) -> None:
        """Send an IPv4 packet to a neighbour; raises KernelRefused."""
        self._send(packet, _IP, bytes.fromhex(mac.replace(":", "")))

    def send_gratuitous_arp(self, address: IPv4Address) -> None:
        """Tell the neighbours whose address it is now, so that they forget who had it before (RFC 5227, section 3)."""
        own = bytes.fromhex(self.mac.replace(":", ""))
        sender = own + address.packed
        self._send(pack("!HHBBH", _ETHERNET, _IP, 6, 4, 1) + sender + bytes(6) + address.packed, _ARP, _BROADCAST)

    def _send(self, data: bytes, protocol: int, mac: bytes) -> None:
        try:
            self._socket.sendto(data, (self._link, protocol, 0, 0, mac))
        except OSError as error:
            raise KernelRefused(f"cannot send on {self._link}: {error.strerror}") from error

    def receive(self, seconds: float) -> tuple[bytes, str] | None:
        """The next packet to a DHCP client and its sender's MAC address, None if none comes; raises KernelRefused."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        try:
            if not poll.poll(max(0.0, seconds) * 1000):
                return None
            data, (_, _, kind, _, mac) = self._socket.recvfrom(_LARGEST)
        except OSError as error:
            raise KernelRefused(f"cannot read from {self._link}: {error.strerror}") from error
        return (data if kind != _OUTGOING else b""), mac[:6].hex(":")


def _open(link: str) -> socket.socket:
    """A socket of the thread's namespace; it takes nothing before it is bound, and so never a stranger's packet."""
    try:
        found = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    except OSError as error:
        raise KernelRefused(f"cannot open a packet socket: {error.strerror}") from error
    with contextlib.ExitStack() as undo:
        undo.callback(found.close)
        try:
            code = array("B", b"".join(pack("=HBBI", *line) for line in _FILTER))
            found.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, pack("HP", len(_FILTER), code.buffer_info()[0]))
            found.bind((link, _IP))
        except OSError as error:
            raise Missing(f"cannot listen on {link}: {error.strerror}") from error
        if found.getsockname()[3] != _ETHERNET:
            raise KernelRefused(f"{link} is no Ethernet link, and DHCP needs one")
        undo.pop_all()
    return found
