"""Attributes of links that ioctl(2) reads without taking RTNL.

Source: ``netdevice(7)``, ``net/core/dev_ioctl.c``.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import NamedTuple

from weft.kernel.netlink.constants import (
    IFF_PROMISC,
    IFF_UP,
    SIOCGIFFLAGS,
    SIOCGIFHWADDR,
    SIOCGIFINDEX,
    SIOCGIFMTU,
    SIOCGIFNAME,
)


class LinkAttributes(NamedTuple):
    """What ioctl(2) tells of a link."""

    mac: str
    mtu: int
    up: bool
    promiscuous: bool


def link_name(descriptor: int, index: int) -> str:
    """The name of the link with that index in the socket's namespace, "" if there is none."""
    try:
        answer = fcntl.ioctl(descriptor, SIOCGIFNAME, struct.pack("=16si20x", b"", index))
    except OSError:
        return ""
    return os.fsdecode(answer[:16].split(b"\0", 1)[0])


class LinkNames(dict[int, str]):
    """The names of links by index, each looked up once; "" for 0 and where there is none."""

    def __init__(self, descriptor: int) -> None:
        super().__init__({0: ""})
        self._descriptor = descriptor

    def __missing__(self, index: int) -> str:
        found = self[index] = link_name(self._descriptor, index)
        return found


def link_index(descriptor: int, name: str) -> int:
    """The index of an existing link; 0 if it does not exist, but the kernel probes for a module."""
    try:
        answer = fcntl.ioctl(descriptor, SIOCGIFINDEX, struct.pack("=16si20x", name.encode(), 0))
    except OSError:
        return 0
    return int(struct.unpack_from("=i", answer, 16)[0])


def is_loopback_up(descriptor: int) -> bool:
    """Whether ``lo``, which every namespace has, is up."""
    answer = fcntl.ioctl(descriptor, SIOCGIFFLAGS, struct.pack("=16s24x", b"lo"))
    return bool(struct.unpack_from("=H", answer, 16)[0] & IFF_UP)


def link_attributes(descriptor: int, name: str, index: int) -> LinkAttributes | None:
    """The attributes of the link, None where the index no longer has that name."""
    # The name first: the kernel tries to load a module of a name that no link has.
    if link_name(descriptor, index) != name:
        return None
    request = struct.pack("=16s24x", name.encode())
    try:
        address, mtu, answer = (
            fcntl.ioctl(descriptor, number, request) for number in (SIOCGIFHWADDR, SIOCGIFMTU, SIOCGIFFLAGS)
        )
    except OSError:
        return None
    flags = struct.unpack_from("=H", answer, 16)[0]
    return LinkAttributes(
        address[18:24].hex(":"), struct.unpack_from("=i", mtu, 16)[0], bool(flags & IFF_UP), bool(flags & IFF_PROMISC)
    )
