"""Unicast routes.

Source: ``ip-route(8)``, ``rtnetlink(7)``, ``net/ipv4/fib_*.c``, ``net/ipv6/route.c``.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from weft.errors import Missing
from weft.kernel.canonical import (
    IPV6_PRIORITY,
    LOCAL_TABLE,
    MAIN_TABLE,
    PROTOCOL_BOOT,
    canonical,
    default_scope,
    describe,
)
from weft.kernel.interface import KernelRoute
from weft.kernel.netlink.codec import attribute, decode
from weft.kernel.netlink.constants import (
    AF_INET,
    AF_INET6,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RT_TABLE_COMPAT,
    RTM_DELROUTE,
    RTM_F_CLONED,
    RTM_GETROUTE,
    RTM_NEWROUTE,
    RTN_UNICAST,
    RTN_UNREACHABLE,
    RTNH_F_ONLINK,
)
from weft.kernel.netlink.ioctls import link_name
from weft.kernel.netlink.rtnetlink import RouteSocket, request
from weft.kernel.netlink.transport import Request, parses_answer
from weft.types import Address, Route

_FAMILIES = {4: AF_INET, 6: AF_INET6}


@parses_answer
def list_routes(socket: RouteSocket, *, index: int = 0, family: int = 0, table: int = 0) -> tuple[KernelRoute, ...]:
    """Unicast routes, of one link, family or table where given; each next hop of a multipath route
    by itself.
    """
    known: dict[int, str] = {}
    found: list[KernelRoute] = []
    for version in (family,) if family else (4, 6):
        for message in _messages(socket, version, index, table):
            found += _routes(socket, message, index, known)
    return tuple(found)


@parses_answer
def list_unreachable(socket: RouteSocket) -> tuple[KernelRoute, ...]:
    """The unreachable routes of the main table."""
    found = (message for version in (4, 6) for message in _messages(socket, version, 0, MAIN_TABLE, RTN_UNREACHABLE))
    routes = (replace(_route(message, None, "", onlink=False), unreachable=True) for message in found)
    return tuple(map(canonical, routes))


def _messages(socket: RouteSocket, version: int, index: int, table: int, kind: int = RTN_UNICAST) -> list[Any]:
    attributes: list[Any] = []
    if table:
        attributes.append(["RTA_TABLE", table])
    if index and version == 4:  # IPv6 compares the first next hop only, and would hide the others' routes
        attributes.append(["RTA_OIF", index])
    fields = {"family": _FAMILIES[version], "type": kind}
    try:
        answers = socket.dump(request(RTM_GETROUTE, 0, "list the routes", fields, attributes))
    except Missing:  # the table does not exist yet
        return []
    return [message for message in map(decode, answers) if _selected(message, table, kind)]


def _selected(message: Any, table: int, kind: int) -> bool:
    here = _table(message)
    if message["type"] != kind or message["flags"] & RTM_F_CLONED:
        return False
    return here == table if table else here != LOCAL_TABLE


def _table(message: Any) -> int:
    return int(attribute(message, "RTA_TABLE") or message["table"])


def _routes(socket: RouteSocket, message: Any, index: int, known: dict[int, str]) -> list[KernelRoute]:
    hops = attribute(message, "RTA_MULTIPATH")
    if not hops:
        hops = [message]
    nexthop = attribute(message, "RTA_NH_ID")
    if nexthop:  # the kernel lists its gateways and links too
        links = {hop["oif"] if hop is not message else attribute(message, "RTA_OIF") for hop in hops}
        return [_route(message, None, "", onlink=False, nexthop=nexthop)] if not index or index in links else []
    routes = []
    for hop in hops:
        out = int(hop["oif"] if hop is not message else attribute(message, "RTA_OIF") or 0)
        if index and out != index:
            continue
        if out not in known:
            known[out] = link_name(socket.fileno(), out) if out else ""
        onlink = bool((hop["flags"] | (message["flags"] if hop is message else 0)) & RTNH_F_ONLINK)
        routes.append(_route(message, hop, known[out], onlink))
    return routes


def _route(message: Any, hop: Any, link: str, onlink: bool, nexthop: int = 0) -> KernelRoute:
    metrics = attribute(message, "RTA_METRICS")
    source = attribute(message, "RTA_PREFSRC")
    route = Route(
        destination=_destination(message),
        gateway=_gateway(hop) if hop is not None else None,
        mtu=attribute(metrics, "RTAX_MTU"),
        advmss=attribute(metrics, "RTAX_ADVMSS"),
        priority=attribute(message, "RTA_PRIORITY"),
        table=_table(message),
        scope=int(message["scope"]),
    )
    return canonical(
        KernelRoute(
            route=route,
            link=link,
            source=ip_address(source) if source else None,
            protocol=int(message["proto"]),
            onlink=onlink,
            nexthop=nexthop,
        )
    )


def _destination(message: Any) -> IPv4Network | IPv6Network:
    nowhere = "0.0.0.0" if message["family"] == AF_INET else "::"
    return ip_network(f"{attribute(message, 'RTA_DST') or nowhere}/{message['dst_len']}")


def _gateway(hop: Any) -> Address | None:
    text = attribute(hop, "RTA_GATEWAY")
    if text is None:
        via = attribute(hop, "RTA_VIA")  # an IPv4 route through an IPv6 gateway
        text = via["addr"] if via else None
    return ip_address(text) if text else None


def add(socket: RouteSocket, route: KernelRoute, index: int, *, replace: bool) -> None:
    """Add a route beside those to its destination (``replace``: instead of one); raises ``Exists``
    for a duplicate.
    """
    socket.request(adding(route, index, replace=replace))


def adding(route: KernelRoute, index: int, *, replace: bool, action: str = "") -> Request:
    """The request of ``add``."""
    action = action or f"{'replace' if replace else 'add'} the route {describe(route)}"
    fields, attributes = _message(route, index)
    fields["proto"] = route.protocol or PROTOCOL_BOOT
    metrics: list[Any] = []
    if route.route.mtu:
        metrics.append(["RTAX_MTU", route.route.mtu])
    if route.route.advmss:
        metrics.append(["RTAX_ADVMSS", route.route.advmss])
    if metrics:
        attributes.append(["RTA_METRICS", {"attrs": metrics}])
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_APPEND)
    return request(RTM_NEWROUTE, flags, action, fields, attributes, needs=_needs(route))


def delete(socket: RouteSocket, route: KernelRoute, index: int) -> None:
    """Delete a route; what it leaves out (protocol, IPv4 metric, mtu) matches any.

    Raises ``Missing``.
    """
    socket.request(deleting(route, index))


def deleting(route: KernelRoute, index: int) -> Request:
    """The request of ``delete``."""
    fields, attributes = _message(route, index)
    fields["proto"] = route.protocol
    action = f"delete the route {describe(route)}"
    return request(RTM_DELROUTE, 0, action, fields, attributes, needs=_needs(route))


def _message(route: KernelRoute, index: int) -> tuple[dict[str, Any], list[Any]]:
    wanted = route.route
    version = wanted.destination.version
    table = wanted.table or MAIN_TABLE
    fields: dict[str, Any] = {
        "family": _FAMILIES[version],
        "dst_len": wanted.destination.prefixlen,
        "table": table if table < 256 else RT_TABLE_COMPAT,
        "scope": default_scope(route) if wanted.scope is None else wanted.scope,
        "type": RTN_UNREACHABLE if route.unreachable else RTN_UNICAST,
        "flags": RTNH_F_ONLINK if route.onlink else 0,
    }
    attributes: list[Any] = [["RTA_TABLE", table]]
    if wanted.destination.prefixlen:
        attributes.append(["RTA_DST", str(wanted.destination.network_address)])
    if wanted.gateway is not None and wanted.gateway.version == version:
        attributes.append(["RTA_GATEWAY", str(wanted.gateway)])
    elif wanted.gateway is not None:
        via = {"family": _FAMILIES[wanted.gateway.version], "addr": str(wanted.gateway)}
        attributes.append(["RTA_VIA", via])
    if index:
        attributes.append(["RTA_OIF", index])
    if route.nexthop:
        attributes.append(["RTA_NH_ID", route.nexthop])
    if route.source is not None:
        attributes.append(["RTA_PREFSRC", str(route.source)])
    priority = wanted.priority or (IPV6_PRIORITY if version == 6 else 0)
    if priority:
        attributes.append(["RTA_PRIORITY", priority])
    return fields, attributes


def _needs(route: KernelRoute) -> str:
    return f"IPv{route.route.destination.version}"
