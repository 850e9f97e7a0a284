"""Listening sockets, which can be bound before their address exists.

Sources: ip(7) for IP_FREEBIND and IP_PKTINFO, ipv6(7), socket(7), include/uapi/linux/in.h, in6.h.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

IP_FREEBIND = 15
IPV6_FREEBIND = 78
IP_PKTINFO = 8
IP_MTU = 14
IPV6_MTU = 24
MAX_UDP_PAYLOAD = 65507
"""Bytes of a UDP datagram over IPv4."""
LOOPBACK_PAYLOAD = MAX_UDP_PAYLOAD - 20
"""Only the loopback link, whose MTU is 65536, carries so many."""
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER = 1 << 20
"""Socket receive buffer in bytes; about a thousand queries."""
BACKLOG = 128


def udp_socket(address: str, port: int) -> socket.socket:
    """A bound UDP socket. Raises OSError, ValueError for an invalid address."""
    sock = _bind(address, port, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        # Limited to net.core.rmem_max without CAP_NET_ADMIN.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    if is_wildcard(address):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    return sock


def tcp_socket(address: str, port: int) -> socket.socket:
    """A bound TCP socket, not listening yet. Raises OSError, ValueError."""
    return _bind(address, port, socket.SOCK_STREAM)


def unfragmented_size(address: str) -> int:
    """The largest UDP payload that is not fragmented on the way to an address of this host or of a
    directly connected network, in bytes. Raises OSError.

    *Equivalent to:* ``ip route get ADDRESS``, its mtu less the IP and UDP headers. Source: ip(7),
    ipv6(7).
    """
    v6 = ":" in address
    with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 53))  # sends nothing
        mtu = sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU) if v6 else sock.getsockopt(socket.IPPROTO_IP, IP_MTU)
    return min(mtu - (48 if v6 else 28), MAX_UDP_PAYLOAD)


def is_wildcard(address: str) -> bool:
    """Whether it is the wildcard address."""
    return address in ("0.0.0.0", "::")


def reply_pktinfo(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """The PKTINFO for a reply, of the query's: its source is the query's destination address."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO) and len(data) >= 12:
            # struct in_pktinfo: interface index, local address (source to use), destination
            # address.
            return [(level, kind, bytes(4) + data[4:8] + bytes(4))]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(data) >= 20:
            return [(level, kind, data[:20])]
    return []


def _bind(address: str, port: int, kind: int) -> socket.socket:
    # Addresses only: resolving a name would need a name server.
    family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if kind == socket.SOCK_STREAM:
            # Connections of a previous process may be in TIME_WAIT.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock
