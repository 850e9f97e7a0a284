"""Listening sockets of the calling thread's namespace, and their processes.

Sources: ``sock_diag(7)``, ``linux/inet_diag.h``, ``proc(5)`` for the names.
"""

from __future__ import annotations

import contextlib
import os
from ipaddress import IPv4Address, IPv6Address
from struct import Struct, unpack_from

from weft.errors import KernelRefused
from weft.kernel.netlink.attributes import parse
from weft.kernel.netlink.constants import (
    AF_INET,
    AF_INET6,
    INET_DIAG_SKV6ONLY,
    IPPROTO_TCP,
    IPPROTO_UDP,
    NETLINK_SOCK_DIAG,
    SOCK_DIAG_BY_FAMILY,
    TCPF_CLOSE,
    TCPF_LISTEN,
)
from weft.kernel.netlink.transport import HEADER_SIZE, NetlinkSocket, NoAnswer, Request
from weft.types import Address

# Protocol number, and the states of a socket that listens: an unconnected UDP socket is in
# TCP_CLOSE.
_PROTOCOLS = {"tcp": (IPPROTO_TCP, TCPF_LISTEN), "udp": (IPPROTO_UDP, TCPF_CLOSE)}
_SECONDS = 10
_INET_DIAG_REQ_V2 = Struct("=BBBxI2s46x")  # family, protocol, extensions, states, source port of the socket's id
_INET_DIAG_MSG_SIZE = 72
# Offsets in an inet_diag_msg: of its id the source port and address, and the socket's inode.
_SPORT, _SRC, _INODE = 4, 8, 68


def listeners(protocol: str, port: int) -> tuple[tuple[Address, str], ...]:
    """Addresses and processes ("nginx (4711)") of listening sockets; () for protocols other than
    tcp and udp.

    *Equivalent to:* ``ss -lnp sport = PORT``.
    """
    if protocol not in _PROTOCOLS:
        return ()
    found: list[tuple[Address, str]] = []
    with contextlib.closing(NetlinkSocket(NETLINK_SOCK_DIAG, seconds=_SECONDS)) as socket:
        for family in (AF_INET, AF_INET6):
            for address, inode, v6only in _sockets(socket, family, protocol, port):
                process = _process(inode)
                found.append((address, process))
                if isinstance(address, IPv6Address) and not int(address) and not v6only:
                    found.append((IPv4Address(0), process))
    return tuple(dict.fromkeys(found))


def _sockets(socket: NetlinkSocket, family: int, protocol: str, port: int) -> list[tuple[Address, int, bool]]:
    """Address, inode, and whether it is for IPv6 only, of the sockets that listen at the port."""
    number, states = _PROTOCOLS[protocol]
    body = _INET_DIAG_REQ_V2.pack(family, number, 0, states, port.to_bytes(2, "big"))
    try:
        messages = socket.dump(Request(SOCK_DIAG_BY_FAMILY, 0, "list the listening sockets", body))
    except NoAnswer:
        raise
    except KernelRefused:  # this kernel has no such module loaded, and so no way to tell
        return []
    found: list[tuple[Address, int, bool]] = []
    for message in (message[HEADER_SIZE:] for message in messages):
        if unpack_from("!H", message, _SPORT)[0] == port:
            source = message[_SRC : _SRC + 4] if family == AF_INET else message[_SRC : _SRC + 16]
            address = IPv4Address(source) if family == AF_INET else IPv6Address(source)
            v6only = parse(message, _INET_DIAG_MSG_SIZE).get(INET_DIAG_SKV6ONLY, b"\0")
            found.append((address, unpack_from("=I", message, _INODE)[0], bool(v6only[0])))
    return found


def _process(inode: int) -> str:
    """The process that has the socket open, "the kernel" where none has."""
    if not inode:
        return "the kernel"
    link = f"socket:[{inode}]"
    for process in filter(str.isdigit, os.listdir("/proc")):
        folder = f"/proc/{process}/fd"
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(folder):
                if os.readlink(f"{folder}/{descriptor}") == link:
                    with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as name:
                        return f"{name.read().strip()} ({process})"
    return "a process that cannot be seen from here"
