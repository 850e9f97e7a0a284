"""A packet socket for DHCP: IPv4 packets on a link that has no address yet.

Its BPF filter accepts only unfragmented UDP to port 68. Source: ``packet(7)``, ``linux/filter.h``.
"""

from __future__ import annotations

import contextlib
import select
import socket
from array import array
from ipaddress import IPv4Address
from struct import pack

from weft.errors import KernelRefused, Missing
from weft.kernel import netns
from weft.types import NamespaceId

ETH_P_IP, ETH_P_ARP = 0x0800, 0x0806
PACKET_OUTGOING = 4
SO_ATTACH_FILTER = 26
_MAX_PACKET = 65535
_BROADCAST = b"\xff" * 6
ARPHRD_ETHER = 1

# tcpdump -dd "udp dst port 68", without fragments, relative to the IP header.
_FILTER = (
    (0x30, 0, 0, 9),  # ldb [9]: the protocol
    (0x15, 0, 6, 17),  # jeq UDP
    (0x28, 0, 0, 6),  # ldh [6]: the fragment offset
    (0x45, 4, 0, 0x1FFF),  # jset: a fragment
    (0xB1, 0, 0, 0),  # ldxb 4*([0]&0xf): the header length
    (0x48, 0, 0, 2),  # ldh [x + 2]: the destination port
    (0x15, 0, 1, 68),  # jeq 68
    (0x06, 0, 0, _MAX_PACKET),
    (0x06, 0, 0, 0),
)


class PacketSocket:
    """A packet socket on a link; ``mac`` is the link's MAC address. Close it when done.

    It keeps the network namespace alive while it is open.
    """

    def __init__(self, namespace: NamespaceId, link: str) -> None:
        """Raises NamespaceProblem if the path is another namespace now, Missing, KernelRefused."""
        with netns.entered(namespace):
            self._socket = _open(link)
        self._link = link
        self.mac = self._socket.getsockname()[4][:6].hex(":")

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> PacketSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, packet: bytes, mac: str) -> None:
        """Send an IPv4 packet to a MAC address. Raises KernelRefused."""
        self._send(packet, ETH_P_IP, bytes.fromhex(mac.replace(":", "")))

    def send_gratuitous_arp(self, address: IPv4Address) -> None:
        """Send an ARP announcement, which updates the neighbours' caches.

        Source: RFC 5227, section 3.
        """
        own = bytes.fromhex(self.mac.replace(":", ""))
        sender = own + address.packed
        self._send(
            pack("!HHBBH", ARPHRD_ETHER, ETH_P_IP, 6, 4, 1) + sender + bytes(6) + address.packed, ETH_P_ARP, _BROADCAST
        )

    def _send(self, data: bytes, protocol: int, mac: bytes) -> None:
        try:
            self._socket.sendto(data, (self._link, protocol, 0, 0, mac))
        except OSError as error:
            raise KernelRefused(f"cannot send on {self._link}: {error.strerror}") from error

    def receive(self, seconds: float) -> tuple[bytes, str] | None:
        """The next DHCP packet and its sender's MAC address, None after a timeout.

        Raises KernelRefused.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        try:
            if not poll.poll(max(0.0, seconds) * 1000):
                return None
            data, (_, _, kind, _, mac) = self._socket.recvfrom(_MAX_PACKET)
        except OSError as error:
            raise KernelRefused(f"cannot read from {self._link}: {error.strerror}") from error
        return (data if kind != PACKET_OUTGOING else b""), mac[:6].hex(":")


def _open(link: str) -> socket.socket:
    """A packet socket in the thread's namespace. Protocol 0 receives nothing before bind(2)."""
    try:
        found = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    except OSError as error:
        raise KernelRefused(f"cannot open a packet socket: {error.strerror}") from error
    with contextlib.ExitStack() as undo:
        undo.callback(found.close)
        try:
            code = array("B", b"".join(pack("=HBBI", *line) for line in _FILTER))
            found.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pack("HP", len(_FILTER), code.buffer_info()[0]))
            found.bind((link, ETH_P_IP))
        except OSError as error:
            raise Missing(f"cannot listen on {link}: {error.strerror}") from error
        if found.getsockname()[3] != ARPHRD_ETHER:
            raise KernelRefused(f"{link} is not an Ethernet link, which DHCP requires")
        undo.pop_all()
    return found
