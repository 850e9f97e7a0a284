"""The rows that each peer of an overlay network needs, packed by one call of struct each.

Fifty thousand peers are two hundred thousand rows: attribute by attribute, packing them takes longer
than the kernel's work. What has another shape is packed by ``fdb``, ``neighbours``, ``nexthops`` and
``routes``, to whose requests these are equal, byte by byte.
"""

from __future__ import annotations

from struct import Struct

from weft.kernel.canonical import IPV6_PRIORITY, MAIN_TABLE, PROTOCOL_BOOT, SCOPE_UNIVERSE
from weft.kernel.netlink.constants import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    NDA_DST,
    NDA_LLADDR,
    NHA_GATEWAY,
    NHA_ID,
    NHA_OIF,
    NTF_SELF,
    NUD_PERMANENT,
    RTA_DST,
    RTA_METRICS,
    RTA_NH_ID,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTAX_MTU,
    RTM_NEWNEIGH,
    RTM_NEWNEXTHOP,
    RTM_NEWROUTE,
    RTN_UNICAST,
)
from weft.kernel.values import FdbEntry, KernelRoute, Neighbour, Nexthop, Row
from weft.types import Route

_NEIGHBOUR6 = Struct("=BxxxiHBB HH16s HH6sxx")
_FDB4, _FDB6 = Struct("=BxxxiHBB HH6sxx HH4s"), Struct("=BxxxiHBB HH6sxx HH16s")
_NEXTHOP6 = Struct("=BBBBI HHI HH16s HHI")
_ROUTE4, _ROUTE6 = Struct("=BBBBBBBBI HHI HH4s HHI"), Struct("=BBBBBBBBI HHI HH16s HHI")
_SOURCE4, _SOURCE6 = Struct("=HH4s"), Struct("=HH16s")
_NUMBER, _METRIC = Struct("=HHI"), Struct("=HHHHI")
_PRIORITY6 = _NUMBER.pack(8, RTA_PRIORITY, IPV6_PRIORITY)


def pack(row: Row, index: int) -> tuple[int, bytes] | None:
    """The type and body of the message that adds or replaces a row; None where it is of another shape.

    ``index`` is that of the row's link, and of the VXLAN link for an FDB row.
    """
    if isinstance(row, KernelRoute):
        return _route(row)
    if isinstance(row, Nexthop):
        gateway = row.gateway
        if gateway is None or gateway.version == 4 or row.group or row.fdb or row.onlink or not 0 < row.id < 1 << 32:
            return None
        return RTM_NEWNEXTHOP, _NEXTHOP6.pack(
            AF_INET6, 0, row.protocol, 0, 0, 8, NHA_ID, row.id, 20, NHA_GATEWAY, gateway.packed, 8, NHA_OIF, index
        )
    if len(row.mac) != 17:
        return None
    mac = bytes.fromhex(row.mac.replace(":", " "))
    if isinstance(row, Neighbour):
        if row.address.version == 4:
            return None
        return RTM_NEWNEIGH, _NEIGHBOUR6.pack(
            AF_INET6, index, NUD_PERMANENT, 0, 0, 20, NDA_DST, row.address.packed, 10, NDA_LLADDR, mac
        )
    return _fdb(row, index, mac)


def _fdb(row: FdbEntry, index: int, mac: bytes) -> tuple[int, bytes] | None:
    to = row.destination
    if to is None or row.vni or row.port or row.vlan or row.nexthop or row.master or row.state != "permanent":
        return None
    form, size = (_FDB4, 8) if to.version == 4 else (_FDB6, 20)
    fixed = (AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0)
    return RTM_NEWNEIGH, form.pack(*fixed, 10, NDA_LLADDR, mac, size, NDA_DST, to.packed)


def _route(row: KernelRoute) -> tuple[int, bytes] | None:
    route, source = row.route, row.source
    destination = route.destination
    if not row.nexthop or row.link or row.onlink or row.unreachable or not destination.prefixlen or not _plain(route):
        return None
    if destination.version == 4:
        family, form, size, source_form = AF_INET, _ROUTE4, 8, _SOURCE4
    else:
        family, form, size, source_form = AF_INET6, _ROUTE6, 20, _SOURCE6
    protocol, packed = row.protocol or PROTOCOL_BOOT, destination.network_address.packed
    fixed = (family, destination.prefixlen, 0, 0, MAIN_TABLE, protocol, SCOPE_UNIVERSE, RTN_UNICAST, 0)
    body = form.pack(*fixed, 8, RTA_TABLE, MAIN_TABLE, size, RTA_DST, packed, 8, RTA_NH_ID, row.nexthop)
    if source is not None:
        body += source_form.pack(size, RTA_PREFSRC, source.packed)
    if family == AF_INET6:
        body += _PRIORITY6
    if route.mtu:
        body += _METRIC.pack(12, RTA_METRICS, 8, RTAX_MTU, route.mtu)
    return RTM_NEWROUTE, body


def _plain(route: Route) -> bool:
    """Whether the route has no values but a destination and an MTU."""
    return route.gateway is None and not route.advmss and not route.priority and not route.table and route.scope is None
