"""Who waits for packets to a port: the sockets of the calling thread's namespace, and their processes.

Sources: ``sock_diag(7)``, ``linux/inet_diag.h``, ``proc(5)`` for the names.
"""

from __future__ import annotations

import _socket  # without the ``socket`` module's enumerations, which take milliseconds
import contextlib
import os
from ipaddress import IPv4Address, IPv6Address
from struct import Struct, unpack_from

from weft.errors import KernelRefused
from weft.types import Address

_NETLINK_SOCK_DIAG = 4
_BY_FAMILY = 20
_REQUEST, _DUMP = 1, 0x300
_ERROR, _DONE = 2, 3
_PROTOCOLS = {"tcp": 6, "udp": 17}
# A UDP socket that is connected to nobody is in the state that TCP calls closed.
_WAITING = {"tcp": 1 << 10, "udp": 1 << 7}
_FAMILIES = (2, 10)
_ONLY_V6 = 11
_SECONDS = 10
_BUFFER = 1 << 17
_MESSAGE = Struct("=IHHII")
_QUESTION = Struct("=BBBxI2s46x")
_SOCKET = Struct("=BBBB")
_ANSWER = 72


def listeners(protocol: str, port: int) -> tuple[tuple[Address, str], ...]:
    """Addresses and processes ("nginx (4711)"); protocols other than tcp and udp are not looked at."""
    if protocol not in _PROTOCOLS:
        return ()
    found: list[tuple[Address, str]] = []
    with contextlib.closing(_open()) as socket:
        for family in _FAMILIES:
            for address, inode, only in _sockets(socket, family, protocol, port):
                who = _process(inode)
                found.append((address, who))
                if isinstance(address, IPv6Address) and not int(address) and not only:
                    found.append((IPv4Address(0), who))
    return tuple(dict.fromkeys(found))


def _open() -> _socket.socket:
    try:
        socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    except OSError as error:
        raise KernelRefused(f"cannot ask who listens: {error.strerror}") from error
    socket.settimeout(_SECONDS)
    return socket


def _sockets(socket: _socket.socket, family: int, protocol: str, port: int) -> list[tuple[Address, int, bool]]:
    """Address, inode, and whether it takes IPv6 only, of the sockets that wait at the port."""
    question = _QUESTION.pack(family, _PROTOCOLS[protocol], 0, _WAITING[protocol], port.to_bytes(2, "big"))
    found: list[tuple[Address, int, bool]] = []
    try:
        socket.send(_MESSAGE.pack(_MESSAGE.size + len(question), _BY_FAMILY, _REQUEST | _DUMP, 1, 0) + question)
        while True:
            data = memoryview(socket.recv(_BUFFER))
            while data:
                length, kind = _MESSAGE.unpack_from(data)[:2]
                if kind in (_ERROR, _DONE):
                    return found  # an error: this kernel has no such module loaded, and so no way to tell
                one = data[_MESSAGE.size : length]
                if unpack_from("!H", one, 4)[0] == port:
                    address = IPv4Address(bytes(one[8:12])) if family == 2 else IPv6Address(bytes(one[8:24]))
                    found.append((address, unpack_from("=I", one, 68)[0], _only_v6(one[_ANSWER:])))
                data = data[(length + 3) & ~3 :]
    except OSError as error:
        raise KernelRefused(f"cannot ask who listens: {error.strerror or error}") from error


def _only_v6(data: memoryview) -> bool:
    while len(data) >= 4:
        length, kind = unpack_from("=HH", data)
        if length < 4:
            break
        if kind == _ONLY_V6:
            return bool(data[4])
        data = data[(length + 3) & ~3 :]
    return False


def _process(inode: int) -> str:
    """The process that has the socket open, "the kernel" for one that is nobody's."""
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
