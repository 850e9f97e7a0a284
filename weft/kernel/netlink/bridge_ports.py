"""Bridge ports: their attributes, and when they forward.

Sources: ``bridge(8)``, ``linux/if_link.h`` (IFLA_BRPORT_*), ``net/bridge/br_netlink.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from weft.errors import KernelRefused
from weft.kernel.netlink import codec, links
from weft.kernel.netlink.attributes import get_int, integer, parse
from weft.kernel.netlink.constants import (
    AF_BRIDGE,
    BR_STATE_DISABLED,
    BR_STATE_FORWARDING,
    IF_OPER_UP,
    IFF_RUNNING,
    IFLA_BRPORT_STATE,
    IFLA_EXT_MASK,
    IFLA_INFO_SLAVE_DATA,
    IFLA_LINKINFO,
    IFLA_OPERSTATE,
    NLA_F_NESTED,
    RTEXT_FILTER_SKIP_STATS,
    RTM_GETLINK,
    RTM_SETLINK,
)
from weft.kernel.netlink.rtnetlink import RouteSocket, request
from weft.kernel.netlink.transport import Request, parses_answer

_ATTRIBUTES = 32  # their offset in a message
_FLAGS = 24


def change(socket: RouteSocket, name: str, attributes: Mapping[str, int]) -> None:
    """Set attributes of a bridge port (``brport_mode``, ``brport_isolated`` …)."""
    action = f"set the bridge port {name} to {', '.join(f'{key} {value}' for key, value in attributes.items())}"
    for key in attributes:
        if not codec.has_port_attribute(key):
            raise KernelRefused(f"cannot {action}: a bridge port has no attribute {key}")
    fields = {"family": AF_BRIDGE, "index": links.index(socket, name, action)}
    port = ("IFLA_PROTINFO", {"attrs": codec.named(dict(attributes))}, NLA_F_NESTED)
    socket.request(request(RTM_SETLINK, 0, action, fields, [port], needs="bridge ports"))


@parses_answer
def is_operational(socket: RouteSocket, name: str, bridge: str = "") -> bool:
    """Whether a link sends what it is given, and forwards if it is a port of ``bridge``."""
    action = f"read the state of {name}"
    names = filter(None, (name, bridge))
    # In this order: the bridge has a carrier once its port forwards.
    requests = [_get(links.index(socket, each, action), action) for each in names]
    link, *upper = (message for (message,) in socket.request(*requests))
    found = parse(link, _ATTRIBUTES)
    if get_int(found, IFLA_OPERSTATE) != IF_OPER_UP:
        return False
    if not upper:
        return True
    port = parse(parse(found[IFLA_LINKINFO]).get(IFLA_INFO_SLAVE_DATA, b""))
    state = get_int(port, IFLA_BRPORT_STATE)
    if state != BR_STATE_FORWARDING:
        return state != BR_STATE_DISABLED
    # Not its operstate, which stays unknown where it never was without a carrier.
    return bool(struct.unpack_from("=I", upper[0], _FLAGS)[0] & IFF_RUNNING)


def _get(index: int, action: str) -> Request:
    body = struct.pack("=iII", index, 0, 0) + integer(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return Request(RTM_GETLINK, 0, action, bytes(4) + body, single=True)
