"""One look-up in the routing tables, by the kernel itself.

Source: ``ip-route(8)``, ``rtnetlink(7)``, ``net/ipv4/route.c`` (inet_rtm_getroute), ``net/ipv6/route.c``.
"""

from __future__ import annotations

import errno
from ipaddress import ip_address
from typing import Any

from weft.kernel.netlink.codec import attribute, decode
from weft.kernel.netlink.constants import AF_INET, AF_INET6, RTM_GETROUTE
from weft.kernel.netlink.ioctls import link_name
from weft.kernel.netlink.rtnetlink import RouteSocket, request
from weft.kernel.netlink.transport import parses_answer
from weft.kernel.route_lookup import FoundRoute, RouteQuestion, RouteType
from weft.kernel.values import Link

_RTM_F_LOOKUP_TABLE = 0x1000  # which IPv6 refuses, as it answers so anyway
_TYPES = {
    1: RouteType.UNICAST, 2: RouteType.LOCAL, 3: RouteType.BROADCAST, 4: RouteType.ANYCAST, 5: RouteType.MULTICAST,
    6: RouteType.BLACKHOLE, 7: RouteType.UNREACHABLE, 8: RouteType.PROHIBIT,
}  # fmt: skip
_REFUSED = {
    errno.ENETUNREACH: RouteType.NONE,
    errno.EHOSTUNREACH: RouteType.UNREACHABLE,
    errno.EACCES: RouteType.PROHIBIT,
    errno.EXDEV: RouteType.INVALID,
    errno.EINVAL: RouteType.BLACKHOLE,
}
"""Routes without a way are errors of the look-up; EXDEV is that of reverse path filtering."""


@parses_answer
def find(socket: RouteSocket, question: RouteQuestion, link: Link | None) -> FoundRoute:
    """What the kernel would do with the packet. *Equivalent to:* ``ip route get DESTINATION from SOURCE iif LINK``."""
    family = AF_INET if question.destination.version == 4 else AF_INET6
    length = question.destination.max_prefixlen
    attributes: list[Any] = [["RTA_DST", str(question.destination)]]
    if question.source is not None:
        attributes.append(["RTA_SRC", str(question.source)])
    if link is not None:
        attributes.append(["RTA_IIF", link.index])
    if question.mark:
        attributes.append(["RTA_MARK", question.mark])
    fields = {
        "family": family,
        "dst_len": length,
        "src_len": length if question.source is not None else 0,
        "flags": _RTM_F_LOOKUP_TABLE if family == AF_INET else 0,
    }
    action = f"look up the route to {question.destination}"
    (outcome,) = socket.attempt(request(RTM_GETROUTE, 0, action, fields, attributes, single=True))
    if outcome.errno in _REFUSED:
        return FoundRoute(_REFUSED[outcome.errno])
    if outcome.errno:
        raise socket.to_error(outcome)
    message: Any = decode(outcome.messages[0])
    out = int(attribute(message, "RTA_OIF") or 0)
    gateway = attribute(message, "RTA_GATEWAY")
    if gateway is None and (via := attribute(message, "RTA_VIA")):
        gateway = via["addr"]
    source = attribute(message, "RTA_PREFSRC")
    return FoundRoute(
        _TYPES.get(int(message["type"]), RouteType.NONE),
        link_name(socket.fileno(), out) if out else "",
        ip_address(gateway) if gateway else None,
        ip_address(source) if source else None,
        int(attribute(message, "RTA_TABLE") or message["table"]),
        int(attribute(attribute(message, "RTA_METRICS"), "RTAX_MTU") or 0),
    )
