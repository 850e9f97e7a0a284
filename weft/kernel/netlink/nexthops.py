"""Nexthop objects, which routes and FDB rows refer to by id.

Source: ``ip-nexthop(8)``, ``net/ipv4/nexthop.c``.
"""

from __future__ import annotations

from ipaddress import ip_address
from struct import Struct

from weft.errors import KernelRefused
from weft.kernel.netlink.attributes import attribute, get_int, integer, parse
from weft.kernel.netlink.constants import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    NHA_FDB,
    NHA_GATEWAY,
    NHA_GROUP,
    NHA_ID,
    NHA_OIF,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELNEXTHOP,
    RTM_GETNEXTHOP,
    RTM_NEWNEXTHOP,
    RTNH_F_ONLINK,
)
from weft.kernel.netlink.ioctls import LinkNames
from weft.kernel.netlink.rtnetlink import RouteSocket
from weft.kernel.netlink.transport import HEADER_SIZE, Request, parses_answer
from weft.kernel.values import Nexthop

_FAMILIES = {4: AF_INET, 6: AF_INET6}
_NEEDS = "nexthop objects (Linux 5.3)"
_NHMSG = Struct("=BBBBI")  # family, scope, protocol, reserved, flags
_NEXTHOP_GRP = Struct("=IBBH")  # id, weight less one, the weight's high byte, reserved


@parses_answer
def list_nexthops(socket: RouteSocket) -> tuple[Nexthop, ...]:
    """Every nexthop and group, by id."""
    messages = socket.dump(Request(RTM_GETNEXTHOP, 0, "list the nexthops", _NHMSG.pack(0, 0, 0, 0, 0), _NEEDS))
    names = LinkNames(socket.fileno())
    return tuple(sorted((_nexthop(message, names) for message in messages), key=lambda one: one.id))


def _nexthop(message: bytes, names: LinkNames) -> Nexthop:
    _, _, protocol, _, flags = _NHMSG.unpack_from(message, HEADER_SIZE)
    found = parse(message, HEADER_SIZE + _NHMSG.size)
    gateway, index = found.get(NHA_GATEWAY), get_int(found, NHA_OIF)
    members = _NEXTHOP_GRP.iter_unpack(found.get(NHA_GROUP, b""))
    return Nexthop(
        id=get_int(found, NHA_ID),
        gateway=ip_address(gateway) if gateway else None,
        link=names[index],
        group=tuple((number, low + (high << 8) + 1) for number, low, high, _ in members),
        fdb=NHA_FDB in found,
        onlink=bool(flags & RTNH_F_ONLINK),
        protocol=protocol,
    )


def add(socket: RouteSocket, nexthop: Nexthop, index: int, *, replace: bool) -> None:
    """Add a nexthop or a group (``replace``: or change it); raises ``Exists``."""
    socket.request(adding(nexthop, index, replace=replace))


def adding(nexthop: Nexthop, index: int, *, replace: bool, action: str = "") -> Request:
    """The request of ``add``."""
    action = action or f"{'replace' if replace else 'add'} the nexthop {describe(nexthop)}"
    if nexthop.id < 1:  # the kernel would choose one
        raise KernelRefused(f"cannot {action}: the id must be 1 or more")
    family = AF_INET if nexthop.link else AF_UNSPEC  # a link alone is for IPv4
    family = _FAMILIES[nexthop.gateway.version] if nexthop.gateway is not None else family
    body = _NHMSG.pack(family, 0, nexthop.protocol, 0, RTNH_F_ONLINK if nexthop.onlink else 0)
    body += integer(NHA_ID, nexthop.id)
    if nexthop.group:
        members = (_NEXTHOP_GRP.pack(number, weight - 1, 0, 0) for number, weight in _checked(nexthop, action))
        body += attribute(NHA_GROUP, b"".join(members))
    if nexthop.gateway is not None:
        body += attribute(NHA_GATEWAY, nexthop.gateway.packed)
    if index:
        body += integer(NHA_OIF, index)
    if nexthop.fdb:
        body += attribute(NHA_FDB, b"")
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    return Request(RTM_NEWNEXTHOP, flags, action, body, _NEEDS)


def _checked(nexthop: Nexthop, action: str) -> tuple[tuple[int, int], ...]:
    for number, weight in nexthop.group:
        if not 1 <= weight <= 256:  # more needs Linux 6.12
            raise KernelRefused(f"cannot {action}: the weight of the nexthop {number} is not from 1 to 256")
    return nexthop.group


def delete(socket: RouteSocket, number: int) -> None:
    """Delete a nexthop or a group; raises ``Missing``."""
    socket.request(deleting(number))


def deleting(number: int) -> Request:
    """The request of ``delete``."""
    body = _NHMSG.pack(0, 0, 0, 0, 0) + integer(NHA_ID, number)
    return Request(RTM_DELNEXTHOP, 0, f"delete the nexthop {number}", body, _NEEDS)


def describe(nexthop: Nexthop) -> str:
    """The nexthop as ``ip nexthop`` shows it."""
    words = [f"id {nexthop.id}"]
    if nexthop.group:
        words.append("group " + "/".join(f"{number},{weight}" for number, weight in nexthop.group))
    if nexthop.gateway is not None:
        words.append(f"via {nexthop.gateway}")
    if nexthop.link:
        words.append(f"dev {nexthop.link}")
    return " ".join([*words, *(["fdb"] if nexthop.fdb else [])])
