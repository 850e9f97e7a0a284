"""The uplink: the link by which this host reaches what only a default route leads to.

It is asked of the kernel by one look-up, not by a list of all routes: rules of policy routing count, and
a host with a full table of the internet's routes answers as fast.
"""

from __future__ import annotations

from ipaddress import ip_address

from weft.errors import WeftError
from weft.kernel.interface import Namespace
from weft.kernel.route_lookup import FoundRoute, RouteQuestion, RouteType
from weft.types import Address

_OUTSIDE = (ip_address("198.41.0.4"), ip_address("2001:503:ba3e::2:30"))
"""a.root-servers.net. Nothing is sent there; documentation prefixes may be routed to nowhere."""
LEAST_MTU = 1280
"""Bytes; below it a link has no IPv6 (RFC 8200, section 5)."""


def mtu(host: Namespace) -> int:
    """The MTU of the host's uplink in bytes, 0 without one; the smaller one where IPv4 and IPv6 have
    different uplinks, and never below LEAST_MTU.
    """
    names = {found.link for found in _routes(host)}
    found = [link.mtu for name in names if (link := host.link(name)) is not None]
    return max(min(found), LEAST_MTU) if found else 0


def address(host: Namespace) -> Address | None:
    """The address from which the host sends over its uplink, IPv4 before IPv6; None without one."""
    sources = (found.source for found in _routes(host))
    return next((one for one in sources if one is not None and not one.is_link_local), None)


def _routes(host: Namespace) -> list[FoundRoute]:
    """The default routes. *Equivalent to:* ``ip route get 198.41.0.4``."""
    found = []
    for there in _OUTSIDE:
        try:
            route = host.find_route(RouteQuestion(there))
        except WeftError:  # a kernel without IPv6
            continue
        if route.type is RouteType.UNICAST and route.link not in ("", "lo"):
            found.append(route)
    return found
