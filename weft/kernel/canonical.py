"""The canonical form of a route and of an nftables element, so that a requested one equals the one that the
kernel lists.

The kernel and ``ip`` fill in unset attributes and omit defaults. Pure. Source: ``ip-route(8)``,
``linux/rtnetlink.h``.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from weft.kernel.values import Element, KernelRoute, Scalar
from weft.types import Route

MAIN_TABLE, LOCAL_TABLE = 254, 255
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST = 0, 253, 254
PROTOCOL_KERNEL, PROTOCOL_BOOT = 2, 3
IPV6_PRIORITY = 1024
"""The default metric of IPv6 routes (IP6_RT_PRIO_USER)."""


def default_scope(route: KernelRoute) -> int:
    """The scope that ``ip route add`` sets: link for an IPv4 unicast route with neither gateway nor
    nexthop, else universe.
    """
    direct = route.route.gateway is None and not route.nexthop and not route.unreachable
    return SCOPE_LINK if route.route.destination.version == 4 and direct else SCOPE_UNIVERSE


def canonical(route: KernelRoute) -> KernelRoute:
    """The route as ``Namespace.routes`` returns it: defaults and 0 as None, protocol 0 as boot (3).

    An unset link, which the kernel derives from the gateway, stays unset.
    """
    wanted = route.route
    priority = wanted.priority or None
    scope = wanted.scope
    if wanted.destination.version == 6:
        scope = None  # IPv6 routes have none
        priority = None if priority == IPV6_PRIORITY else priority
    elif scope == default_scope(route):
        scope = None
    table = None if wanted.table in (0, MAIN_TABLE) else wanted.table
    # Made anew: dataclasses.replace takes three times as long, and there may be 50,000 routes.
    plain = Route(wanted.destination, wanted.gateway, wanted.mtu or None, wanted.advmss or None, priority, table, scope)
    protocol = route.protocol or PROTOCOL_BOOT
    return KernelRoute(plain, route.link, route.source, protocol, route.onlink, route.nexthop, route.unreachable)


def listed(element: Element) -> Element:
    """The element as ``Ruleset.elements`` returns it."""
    # Made anew: as with routes, there may be 50,000.
    return Element(element.collection, normal(element.key), normal(element.data), element.mark, element.limit)


def normal(parts: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    """The parts of an element's key as it is listed: a network of one address is that address."""
    return tuple(
        part.network_address
        if isinstance(part, (IPv4Network, IPv6Network)) and part.prefixlen == part.max_prefixlen
        else part
        for part in parts
    )


def describe(route: KernelRoute) -> str:
    """The route in the format of ``ip route``."""
    words = ["unreachable"] if route.unreachable else []
    words.append(str(route.route.destination))
    for word, value in (
        ("via", route.route.gateway),
        ("dev", route.link),
        ("nhid", route.nexthop),
        ("src", route.source),
        ("metric", route.route.priority),
        ("table", route.route.table),
    ):
        if value:
            words += [word, str(value)]
    return " ".join(words)
