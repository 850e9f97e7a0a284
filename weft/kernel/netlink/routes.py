"""Unicast routes.

Source: ``ip-route(8)``, ``rtnetlink(7)``, ``net/ipv4/fib_*.c``, ``net/ipv6/route.c``.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address
from struct import Struct
from struct import error as StructError
from sys import byteorder
from typing import NamedTuple

from weft.errors import KernelRefused, Missing
from weft.kernel.canonical import (
    IPV6_PRIORITY,
    LOCAL_TABLE,
    MAIN_TABLE,
    PROTOCOL_BOOT,
    canonical,
    default_scope,
    describe,
)
from weft.kernel.netlink.attributes import Attributes, attribute, get_int, integer, parse
from weft.kernel.netlink.constants import (
    AF_INET,
    AF_INET6,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RT_TABLE_COMPAT,
    RTA_DST,
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_MULTIPATH,
    RTA_NH_ID,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTAX_ADVMSS,
    RTAX_MTU,
    RTM_DELROUTE,
    RTM_F_CLONED,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTNH_F_ONLINK,
)
from weft.kernel.netlink.ioctls import LinkNames
from weft.kernel.netlink.rtnetlink import RouteSocket
from weft.kernel.netlink.transport import HEADER_SIZE, Request, parses_answer
from weft.kernel.values import KernelRoute
from weft.types import Address, Route

_FAMILIES = {4: AF_INET, 6: AF_INET6}
_RTMSG = Struct("=BBBBBBBBI")
"""Family, prefix length of destination and source, TOS, table, protocol, scope, type, flags."""
_RTNEXTHOP = Struct("=HBBi")
"""Length, flags, weight, link."""


@parses_answer
def list_routes(
    socket: RouteSocket, *, link: str = "", index: int = 0, family: int = 0, table: int = 0
) -> tuple[KernelRoute, ...]:
    """Unicast routes, of one link (by name and index), family or table where given; each next hop of a
    multipath route by itself.
    """
    found: list[KernelRoute] = []
    names = LinkNames(socket.fileno())
    names[index] = link
    for version in (family,) if family else (4, 6):
        for message in _messages(socket, version, index, table):
            found += _routes(message, index, names)
    return tuple(found)


@parses_answer
def list_unreachable(socket: RouteSocket) -> tuple[KernelRoute, ...]:
    """The unreachable routes of the main table."""
    found = (message for version in (4, 6) for message in _messages(socket, version, 0, MAIN_TABLE, RTN_UNREACHABLE))
    return tuple(_route(message, unreachable=True) for message in found)


class _Message(NamedTuple):
    """A route as the kernel lists it: the fields of ``struct rtmsg``, and its attributes."""

    version: int
    prefix: int
    table: int
    protocol: int
    scope: int
    flags: int
    attributes: Attributes


def _messages(socket: RouteSocket, version: int, index: int, table: int, kind: int = RTN_UNICAST) -> list[_Message]:
    body = _RTMSG.pack(_FAMILIES[version], 0, 0, 0, 0, 0, 0, kind, 0)
    if table:
        body += integer(RTA_TABLE, table)
    if index and version == 4:  # IPv6 compares the first next hop only, and would hide the others' routes
        body += integer(RTA_OIF, index)
    try:
        answers = socket.dump(Request(RTM_GETROUTE, 0, "list the routes", body))
    except Missing:  # the table does not exist yet
        return []
    found = []
    for answer in answers:
        _, prefix, _, _, small, protocol, scope, there, flags = _RTMSG.unpack_from(answer, HEADER_SIZE)
        if there != kind or flags & RTM_F_CLONED:
            continue
        attributes = parse(answer, HEADER_SIZE + _RTMSG.size)
        number = get_int(attributes, RTA_TABLE) or small
        if number == table if table else number != LOCAL_TABLE:
            found.append(_Message(version, prefix, number, protocol, scope, flags, attributes))
    return found


def _routes(message: _Message, index: int, names: LinkNames) -> list[KernelRoute]:
    found = message.attributes
    hops = [(get_int(found, RTA_OIF), message.flags, found)]
    if RTA_MULTIPATH in found:
        hops = [(out, flags | message.flags, hop) for out, flags, hop in _hops(found[RTA_MULTIPATH])]
    nexthop = get_int(found, RTA_NH_ID)
    if nexthop:  # the kernel lists its gateways and links too
        here = not index or any(out == index for out, _, _ in hops)
        return [_route(message, nexthop=nexthop)] if here else []
    return [
        _route(message, gateway=_gateway(hop), link=names[out], onlink=bool(flags & RTNH_F_ONLINK))
        for out, flags, hop in hops
        if index in (0, out)
    ]


def _hops(data: bytes) -> Iterator[tuple[int, int, Attributes]]:
    """The next hops of a multipath route: link, flags and attributes of each."""
    offset = 0
    while offset + _RTNEXTHOP.size <= len(data):
        length, flags, _, out = _RTNEXTHOP.unpack_from(data, offset)
        if length < _RTNEXTHOP.size:
            return
        yield out, flags, parse(data[offset : offset + length], _RTNEXTHOP.size)
        offset += (length + 3) & ~3


def _route(
    message: _Message,
    *,
    gateway: Address | None = None,
    link: str = "",
    onlink: bool = False,
    nexthop: int = 0,
    unreachable: bool = False,
) -> KernelRoute:
    found = message.attributes
    metrics = parse(found[RTA_METRICS]) if RTA_METRICS in found else {}
    source = found.get(RTA_PREFSRC)
    destination = found.get(RTA_DST) or bytes(4 if message.version == 4 else 16)
    network = IPv4Network if message.version == 4 else IPv6Network
    route = Route(
        destination=network((destination, message.prefix)),
        gateway=gateway,
        mtu=get_int(metrics, RTAX_MTU) or None,
        advmss=get_int(metrics, RTAX_ADVMSS) or None,
        priority=get_int(found, RTA_PRIORITY) or None,
        table=message.table,
        scope=message.scope,
    )
    source_address = ip_address(source) if source else None
    return canonical(KernelRoute(route, link, source_address, message.protocol, onlink, nexthop, unreachable))


def _gateway(hop: Attributes) -> Address | None:
    packed = hop.get(RTA_GATEWAY) or hop.get(RTA_VIA, b"")[2:]  # RTA_VIA: an IPv4 route by an IPv6 gateway
    return ip_address(packed) if packed else None


def add(socket: RouteSocket, route: KernelRoute, index: int, *, replace: bool) -> None:
    """Add a route beside those to its destination (``replace``: instead of one); raises ``Exists``
    for a duplicate.
    """
    socket.request(adding(route, index, replace=replace))


def adding(route: KernelRoute, index: int, *, replace: bool, action: str = "") -> Request:
    """The request of ``add``."""
    action = action or f"{'replace' if replace else 'add'} the route {describe(route)}"
    body = _body(route, index, route.protocol or PROTOCOL_BOOT, action)
    wanted = route.route
    if wanted.mtu or wanted.advmss:
        metrics = integer(RTAX_MTU, wanted.mtu) if wanted.mtu else b""
        metrics += integer(RTAX_ADVMSS, wanted.advmss) if wanted.advmss else b""
        body += attribute(RTA_METRICS, metrics)
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_APPEND)
    return Request(RTM_NEWROUTE, flags, action, body, _needs(route))


def delete(socket: RouteSocket, route: KernelRoute, index: int) -> None:
    """Delete a route; what it leaves out (protocol, IPv4 metric, mtu) matches any.

    Raises ``Missing``.
    """
    socket.request(deleting(route, index))


def deleting(route: KernelRoute, index: int) -> Request:
    """The request of ``delete``."""
    action = f"delete the route {describe(route)}"
    return Request(RTM_DELROUTE, 0, action, _body(route, index, route.protocol, action), _needs(route))


def _body(route: KernelRoute, index: int, protocol: int, action: str) -> bytes:
    """The request without metrics. Raises KernelRefused where a value does not fit."""
    wanted = route.route
    destination, gateway = wanted.destination, wanted.gateway
    version = destination.version
    table = wanted.table or MAIN_TABLE
    try:
        body = _RTMSG.pack(
            _FAMILIES[version],
            destination.prefixlen,
            0,
            0,
            table if table < 256 else RT_TABLE_COMPAT,
            protocol,
            default_scope(route) if wanted.scope is None else wanted.scope,
            RTN_UNREACHABLE if route.unreachable else RTN_UNICAST,
            RTNH_F_ONLINK if route.onlink else 0,
        )
    except StructError as error:
        raise KernelRefused(f"cannot {action}: a value does not fit in the request: {error}") from error
    body += integer(RTA_TABLE, table)
    if destination.prefixlen:
        body += attribute(RTA_DST, destination.network_address.packed)
    if gateway is not None and gateway.version == version:
        body += attribute(RTA_GATEWAY, gateway.packed)
    elif gateway is not None:
        body += attribute(RTA_VIA, _FAMILIES[gateway.version].to_bytes(2, byteorder) + gateway.packed)
    if index:
        body += integer(RTA_OIF, index)
    if route.nexthop:
        body += integer(RTA_NH_ID, route.nexthop)
    if route.source is not None:
        body += attribute(RTA_PREFSRC, route.source.packed)
    priority = wanted.priority or (IPV6_PRIORITY if version == 6 else 0)
    return body + (integer(RTA_PRIORITY, priority) if priority else b"")


def _needs(route: KernelRoute) -> str:
    return f"IPv{route.route.destination.version}"
