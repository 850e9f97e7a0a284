"""Listening sockets of the calling thread's namespace, and their processes.

Sources: ``sock_diag(7)``, ``linux/inet_diag.h``, ``proc(5)`` for the processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from struct import Struct, unpack_from

from weft.errors import KernelRefused
from weft.kernel.interface import Listener
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

_RESERVING = ("conmon", "nerdctl", "sleep")
"""Programs that podman and nerdctl have hold a published port, so that it stays reserved; they never
accept.
"""
_RESERVING_CALLER = "podman"
"""It binds a port itself, which fails if its own API service has it, and then has its plugin called.

Other ancestors of a call serve the ports that they listen on: containerd, Nomad, sshd.
"""
# Protocol number, and the states of a socket that listens: an unconnected UDP socket is in
# TCP_CLOSE.
_PROTOCOLS = {"tcp": (IPPROTO_TCP, TCPF_LISTEN), "udp": (IPPROTO_UDP, TCPF_CLOSE)}
_SECONDS = 10
_INET_DIAG_REQ_V2 = Struct("=BBBxI2s46x")  # family, protocol, extensions, states, source port of the socket's id
_INET_DIAG_MSG_SIZE = 72
# Offsets in an inet_diag_msg: of its id the source port and address, and the socket's inode.
_SPORT, _SRC, _INODE = 4, 8, 68


def listeners(protocol: str, port: int, caller: int = 0) -> tuple[Listener, ...]:
    """The listening sockets; () for protocols other than tcp and udp. ``caller`` is the process of a
    runtime's call.

    *Equivalent to:* ``ss -lnp sport = PORT``.
    """
    if protocol not in _PROTOCOLS:
        return ()
    found: list[Listener] = []
    with contextlib.closing(NetlinkSocket(NETLINK_SOCK_DIAG, seconds=_SECONDS)) as socket:
        for family in (AF_INET, AF_INET6):
            for address, inode, v6only in _sockets(socket, family, protocol, port):
                process, reserved = _holder(inode, caller)
                found.append(Listener(address, process, reserved))
                if isinstance(address, IPv6Address) and not int(address) and not v6only:
                    found.append(Listener(IPv4Address(0), process, reserved))
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


def _holder(inode: int, caller: int) -> tuple[str, bool]:
    """A process that has the socket open, and whether all that have it open only reserve the port."""
    if not inode:
        return "the kernel", False
    holders = [(pid, _stat(pid)[0]) for pid in _open_in(inode)]
    if not holders:
        return "a process that cannot be seen from here", False
    callers = frozenset(_ancestors(caller))
    serving = [
        (pid, name)
        for pid, name in holders
        if name not in _RESERVING and not (name.startswith(_RESERVING_CALLER) and pid in callers)
    ]
    pid, name = (serving or holders)[0]
    return f"{name} ({pid})", not serving


def _open_in(inode: int) -> Iterator[int]:
    link = f"socket:[{inode}]"
    for process in filter(str.isdigit, os.listdir("/proc")):
        folder = f"/proc/{process}/fd"
        with contextlib.suppress(OSError):
            if any(os.readlink(f"{folder}/{descriptor}") == link for descriptor in os.listdir(folder)):
                yield int(process)


def _ancestors(pid: int) -> Iterator[int]:
    """A process, its parent, and so on."""
    while pid:
        yield pid
        pid = _stat(pid)[1]


def _stat(pid: int) -> tuple[str, int]:
    """The name and the parent of a process; of one that has ended none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            name, _, rest = file.read().partition("(")[2].rpartition(")")
    except OSError:
        return "a process that has ended", 0
    return name, int(rest.split()[1])
