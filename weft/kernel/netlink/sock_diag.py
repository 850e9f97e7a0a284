"""Listening sockets of the calling thread's namespace with their processes, and the owner of a
connection's other end.

Sources: ``sock_diag(7)``, ``linux/inet_diag.h``, ``proc(5)`` for the processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from errno import ENOENT, ESTALE
from ipaddress import IPv4Address, IPv6Address, ip_address
from struct import Struct, unpack_from
from typing import NamedTuple

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
from weft.kernel.netlink.transport import HEADER_SIZE, NetlinkSocket, NoAnswer, Request, parses_answer
from weft.kernel.values import Listener
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
_SPORT, _SRC, _UID, _INODE = 4, 8, 64, 68
_INET_DIAG_REQ_EXACT = Struct("=BBBxI2s2s16s16sI8s")  # the same, with the socket's id complete
_NO_COOKIE = b"\xff" * 8
_TCP_ESTABLISHED = 1


def listeners(protocol: str, ports: Collection[int], caller: int = 0) -> tuple[Listener, ...]:
    """The listening sockets; () for protocols other than tcp and udp. ``caller`` is the process of a
    runtime's call.

    The processes are looked up together: podman binds each of a container's ports itself.
    *Equivalent to:* ``ss -lnp sport = PORT``.
    """
    if protocol not in _PROTOCOLS or not ports:
        return ()
    with contextlib.closing(NetlinkSocket(NETLINK_SOCK_DIAG, seconds=_SECONDS)) as socket:
        sockets = [one for family in (AF_INET, AF_INET6) for one in _sockets(socket, family, protocol, ports)]
    holders = _holders({one.inode for one in sockets})
    callers = frozenset(_ancestors(caller)) if holders else frozenset()
    found: list[Listener] = []
    for one in sockets:
        process, reserved = _holder(one.inode, holders, callers)
        found.append(Listener(one.address, one.port, process, reserved))
        if isinstance(one.address, IPv6Address) and not int(one.address) and not one.v6only:
            found.append(Listener(IPv4Address(0), one.port, process, reserved))
    return tuple(dict.fromkeys(found))


class SocketOwners:
    """Whose sockets are at the other end of TCP connections within this network namespace.

    One netlink socket, opened in the calling thread's namespace. It needs no privilege. Raises
    KernelRefused.
    """

    def __init__(self) -> None:
        self._socket = NetlinkSocket(NETLINK_SOCK_DIAG, seconds=1)

    def close(self) -> None:
        """Close the netlink socket."""
        self._socket.close()

    def owner(self, peer: tuple[str, int], own: tuple[str, int]) -> int | None:
        """The user id of the socket that is connected from ``peer`` to ``own``; None if there is none.

        Only an established socket that a process has open counts: the kernel reports uid 0 for one
        that is closed, and finds a listener on the peer's port where there is no connection. The
        id is the socket's creator's. Raises KernelRefused. *Equivalent to:* ``ss -tne src PEER dst OWN``.
        """
        (source, sport), (destination, dport) = peer, own
        here, there = ip_address(source.partition("%")[0]), ip_address(destination.partition("%")[0])
        body = _INET_DIAG_REQ_EXACT.pack(
            AF_INET if here.version == 4 else AF_INET6, IPPROTO_TCP, 0, 1 << _TCP_ESTABLISHED,
            sport.to_bytes(2, "big"), dport.to_bytes(2, "big"), here.packed, there.packed, 0, _NO_COOKIE,
        )  # fmt: skip
        request = Request(SOCK_DIAG_BY_FAMILY, 0, "find the owner of a connection", body, single=True)
        (outcome,) = self._socket.attempt(request)
        if outcome.errno in (ENOENT, ESTALE):
            return None
        if outcome.errno:
            raise self._socket.to_error(outcome)
        found = outcome.messages[0][HEADER_SIZE:]
        inode, ports = unpack_from("=I", found, _INODE)[0], unpack_from("!HH", found, _SPORT)
        if found[1] != _TCP_ESTABLISHED or not inode or ports != (sport, dport):
            return None
        return int(unpack_from("=I", found, _UID)[0])


class _Socket(NamedTuple):
    address: Address
    port: int
    inode: int
    v6only: bool


@parses_answer
def _sockets(socket: NetlinkSocket, family: int, protocol: str, ports: Collection[int]) -> list[_Socket]:
    """The sockets that listen at the ports."""
    number, states = _PROTOCOLS[protocol]
    only = next(iter(ports)) if len(ports) == 1 else 0  # 0: those of all ports
    body = _INET_DIAG_REQ_V2.pack(family, number, 0, states, only.to_bytes(2, "big"))
    try:
        messages = socket.dump(Request(SOCK_DIAG_BY_FAMILY, 0, "list the listening sockets", body))
    except NoAnswer:
        raise
    except KernelRefused:  # this kernel has no such module loaded, and so no way to tell
        return []
    found: list[_Socket] = []
    for message in (message[HEADER_SIZE:] for message in messages):
        if (port := unpack_from("!H", message, _SPORT)[0]) in ports:
            source = message[_SRC : _SRC + 4] if family == AF_INET else message[_SRC : _SRC + 16]
            address = IPv4Address(source) if family == AF_INET else IPv6Address(source)
            v6only = parse(message, _INET_DIAG_MSG_SIZE).get(INET_DIAG_SKV6ONLY, b"\0")
            found.append(_Socket(address, port, unpack_from("=I", message, _INODE)[0], bool(v6only[0])))
    return found


def _holder(inode: int, found: Mapping[int, list[int]], callers: Collection[int]) -> tuple[str, bool]:
    """A process that has the socket open, and whether all that have it open only reserve the port.

    ``found`` are the processes by inode, ``callers`` the call's process and its ancestors.
    """
    if not inode:
        return "the kernel", False
    holders = [(pid, _stat(pid)[0]) for pid in found.get(inode, ())]
    if not holders:
        return "a process that cannot be seen from here", False
    serving = [
        (pid, name)
        for pid, name in holders
        if name not in _RESERVING and not (name.startswith(_RESERVING_CALLER) and pid in callers)
    ]
    pid, name = (serving or holders)[0]
    return f"{name} ({pid})", not serving


def _holders(inodes: Collection[int]) -> dict[int, list[int]]:
    """The processes that have each of the sockets open, by inode. Reads the descriptors of all processes."""
    links = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, list[int]] = {}
    for process in filter(str.isdigit, os.listdir("/proc")) if links else ():
        for link in links.keys() & set(_opened(f"/proc/{process}/fd")):
            found.setdefault(links[link], []).append(int(process))
    return found


def _opened(folder: str) -> Iterator[str]:
    """What the descriptors in a directory refer to; one that is closed meanwhile is left out."""
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(folder):
            with contextlib.suppress(OSError):
                yield os.readlink(f"{folder}/{descriptor}")


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
