"""Addresses of links.

Source: ``ip-address(8)``, ``linux/if_addr.h``, ``net/ipv4/devinet.c``, ``net/ipv6/addrconf.c``.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Interface, ip_interface
from sys import byteorder
from typing import Any

from weft.kernel.netlink import codec
from weft.kernel.netlink.codec import Attributes
from weft.kernel.netlink.reader import number, scan
from weft.kernel.netlink.socket import Request, RouteSocket
from weft.types import Cidr

_NO_DAD, _DAD_FAILED, _TENTATIVE, _NO_PREFIX_ROUTE = 0x02, 0x08, 0x40, 0x200
_FAMILY, _PREFIX, _FIXED = 16, 17, 24  # places in a message
_ADDRESS, _LOCAL, _FLAGS = 1, 2, 8
_FAMILIES = {4: codec.AF_INET, 6: codec.AF_INET6}
_SCOPE_LINK, _SCOPE_HOST = 253, 254


def of_link(socket: RouteSocket, index: int, name: str, version: int = 0) -> tuple[Cidr, ...]:
    """The link's addresses, of one IP version where given, IPv4 first, each family in the kernel's order."""
    families = [_FAMILIES[version]] if version else [codec.AF_INET, codec.AF_INET6]
    return tuple(_cidr(message) for family in families for message in _messages(socket, index, name, family))


def tentative(socket: RouteSocket, index: int, name: str) -> tuple[bool, bool]:
    """Whether duplicate address detection still runs on an IPv6 address, and whether one failed."""
    flags = [_flags(message) for message in _messages(socket, index, name, codec.AF_INET6)]
    failed = any(value & _DAD_FAILED for value in flags)
    return any(value & _TENTATIVE and not value & _DAD_FAILED for value in flags), failed


def _messages(socket: RouteSocket, index: int, name: str, family: int) -> list[bytes]:
    # Asked for one family the kernel needs no lock, asked for all it waits for that of links.
    fields = {"family": family, "index": index}
    request = Request(codec.GETADDR, 0, f"list the addresses of {name}", fields, decoded=False)
    there = socket.dump(request)
    return [one for one in there if one[_FAMILY] == family and int.from_bytes(one[20:24], byteorder) == index]


def _flags(message: bytes) -> int:
    return number(scan(message, _FIXED), _FLAGS) or message[18]


def _cidr(message: bytes) -> Cidr:
    found = scan(message, _FIXED)
    return _interface(found.get(_LOCAL) or found[_ADDRESS], message[_PREFIX])


@lru_cache(256)
def _interface(packed: bytes, prefix: int) -> Cidr:
    return ip_interface((packed, prefix))


def add(
    socket: RouteSocket, index: int, name: str, address: Cidr, *, detect: bool = True, prefix_route: bool = True
) -> None:
    """Give the link an address; without ``detect`` an IPv6 one is usable at once. Raises ``Exists``.

    Without ``prefix_route`` the kernel adds no route to the address's subnet.
    """
    doing = f"add the address {address} to {name}"
    fields, attributes = _target(index, address)
    if isinstance(address, IPv4Interface) and address.network.prefixlen < 31:
        attributes.append(["IFA_BROADCAST", str(address.network.broadcast_address)])
    flags = (0 if prefix_route else _NO_PREFIX_ROUTE) | (0 if detect else _NO_DAD)
    if flags:
        attributes.append(["IFA_FLAGS", flags])
    fields["scope"] = _SCOPE_HOST if address.ip.is_loopback else _SCOPE_LINK if address.ip.is_link_local else 0
    socket.request(Request(codec.NEWADDR, codec.CREATE | codec.EXCL, doing, fields, attributes, needs=_needs(address)))


def delete(socket: RouteSocket, index: int, name: str, address: Cidr) -> None:
    """Take an address from the link; raises ``Missing``."""
    doing = f"delete the address {address} from {name}"
    fields, attributes = _target(index, address)
    socket.request(Request(codec.DELADDR, 0, doing, fields, attributes, needs=_needs(address)))


def _target(index: int, address: Cidr) -> tuple[dict[str, Any], Attributes]:
    family = codec.AF_INET if isinstance(address, IPv4Interface) else codec.AF_INET6
    fields = {"family": family, "index": index, "prefixlen": address.network.prefixlen}
    return fields, [["IFA_LOCAL", str(address.ip)], ["IFA_ADDRESS", str(address.ip)]]


def _needs(address: Cidr) -> str:
    return f"IPv{address.version}"
