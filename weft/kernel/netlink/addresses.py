"""Addresses of links.

Source: ``ip-address(8)``, ``linux/if_addr.h``, ``net/ipv4/devinet.c``, ``net/ipv6/addrconf.c``.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Interface, ip_interface
from struct import Struct
from sys import byteorder
from typing import Any

from weft.kernel.netlink.attributes import get_int, parse
from weft.kernel.netlink.constants import (
    AF_INET,
    AF_INET6,
    IFA_ADDRESS,
    IFA_F_DADFAILED,
    IFA_F_NODAD,
    IFA_F_NOPREFIXROUTE,
    IFA_F_PERMANENT,
    IFA_F_TENTATIVE,
    IFA_FLAGS,
    IFA_LOCAL,
    NLM_F_CREATE,
    NLM_F_EXCL,
    RT_SCOPE_HOST,
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RTM_DELADDR,
    RTM_GETADDR,
    RTM_NEWADDR,
)
from weft.kernel.netlink.ioctls import link_name
from weft.kernel.netlink.rtnetlink import RouteSocket, request
from weft.kernel.netlink.transport import Request, parses_answer
from weft.types import Cidr

_IFADDRMSG = Struct("=BxxxI")
"""Family and link of a ``struct ifaddrmsg``."""
_FAMILY, _PREFIX, _INDEX, _ATTRIBUTES = 16, 17, 20, 24  # offsets in a message
_FAMILIES = {4: AF_INET, 6: AF_INET6}


@parses_answer
def of_link(
    socket: RouteSocket, index: int, name: str, version: int = 0, *, permanent: bool = False
) -> tuple[Cidr, ...]:
    """The link's addresses, of one IP version where given, IPv4 first, in the kernel's order.

    ``permanent``: only those without a lifetime, which no router advertisement has given.
    """
    families = [_FAMILIES[version]] if version else [AF_INET, AF_INET6]
    found = (message for family in families for message in _messages(socket, index, name, family))
    return tuple(_cidr(message) for message in found if not permanent or _flags(message) & IFA_F_PERMANENT)


def of_all(socket: RouteSocket, version: int = 0) -> tuple[tuple[str, Cidr], ...]:
    """The addresses of all links with the links' names, of one IP version where given, IPv4 first."""
    names: dict[int, str] = {}
    found = []
    for family in [_FAMILIES[version]] if version else [AF_INET, AF_INET6]:
        for message in socket.dump(Request(RTM_GETADDR, 0, "list the addresses", _IFADDRMSG.pack(family, 0))):
            if message[_FAMILY] != family:
                continue
            index = int.from_bytes(message[_INDEX : _INDEX + 4], byteorder)
            if index not in names:
                names[index] = link_name(socket.fileno(), index)
            found.append((names[index], _cidr(message)))
    return tuple(found)


def tentative(socket: RouteSocket, index: int, name: str) -> tuple[bool, bool]:
    """Whether duplicate address detection still runs on an IPv6 address, and whether one failed."""
    flags = [_flags(message) for message in _messages(socket, index, name, AF_INET6)]
    failed = any(value & IFA_F_DADFAILED for value in flags)
    return any(value & IFA_F_TENTATIVE and not value & IFA_F_DADFAILED for value in flags), failed


def _messages(socket: RouteSocket, index: int, name: str, family: int) -> list[bytes]:
    # A dump of one family takes no lock, one of all families takes RTNL.
    body = _IFADDRMSG.pack(family, index)
    messages = socket.dump(Request(RTM_GETADDR, 0, f"list the addresses of {name}", body))
    return [
        message
        for message in messages
        if message[_FAMILY] == family and int.from_bytes(message[_INDEX : _INDEX + 4], byteorder) == index
    ]


def _flags(message: bytes) -> int:
    return get_int(parse(message, _ATTRIBUTES), IFA_FLAGS) or message[18]


def _cidr(message: bytes) -> Cidr:
    found = parse(message, _ATTRIBUTES)
    return _interface(found.get(IFA_LOCAL) or found[IFA_ADDRESS], message[_PREFIX])


@lru_cache(256)
def _interface(packed: bytes, prefix: int) -> Cidr:
    return ip_interface((packed, prefix))


def add(
    socket: RouteSocket,
    index: int,
    name: str,
    address: Cidr,
    *,
    detect: bool = True,
    prefix_route: bool = True,
    link_scope: bool = False,
) -> None:
    """Give the link an address; without ``detect`` an IPv6 one is usable at once.

    Raises ``Exists``.

    Without ``prefix_route`` the kernel adds no route to the address's subnet; ``link_scope`` is
    scope link.
    """
    action = f"add the address {address} to {name}"
    fields, attributes = _target(index, address)
    if isinstance(address, IPv4Interface) and address.network.prefixlen < 31:
        attributes.append(["IFA_BROADCAST", str(address.network.broadcast_address)])
    flags = (0 if prefix_route else IFA_F_NOPREFIXROUTE) | (0 if detect else IFA_F_NODAD)
    if flags:
        attributes.append(["IFA_FLAGS", flags])
    fields["scope"] = RT_SCOPE_LINK if link_scope else _scope(address)
    socket.request(request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, action, fields, attributes, needs=_needs(address)))


def delete(socket: RouteSocket, index: int, name: str, address: Cidr) -> None:
    """Take an address from the link; raises ``Missing``."""
    action = f"delete the address {address} from {name}"
    fields, attributes = _target(index, address)
    socket.request(request(RTM_DELADDR, 0, action, fields, attributes, needs=_needs(address)))


def _target(index: int, address: Cidr) -> tuple[dict[str, Any], list[Any]]:
    family = AF_INET if isinstance(address, IPv4Interface) else AF_INET6
    fields = {"family": family, "index": index, "prefixlen": address.network.prefixlen}
    return fields, [["IFA_LOCAL", str(address.ip)], ["IFA_ADDRESS", str(address.ip)]]


def _scope(address: Cidr) -> int:
    if address.ip.is_loopback:
        return RT_SCOPE_HOST
    return RT_SCOPE_LINK if address.ip.is_link_local else RT_SCOPE_UNIVERSE


def _needs(address: Cidr) -> str:
    return f"IPv{address.version}"
