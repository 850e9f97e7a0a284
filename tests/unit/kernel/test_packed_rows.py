"""Rows of overlay peers packed at once: equal to what packs any row, byte by byte, or left to it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from weft.identity import link_local
from weft.kernel.netlink import fdb, neighbours, nexthops, packed_rows, routes
from weft.kernel.values import FdbEntry, KernelRoute, Neighbour, Nexthop, Row
from weft.types import Route

INDEX, MAC = 7, "02:77:00:00:00:02"
FOUR, SIX, GATEWAY = ip_address("192.0.2.2"), ip_address("2001:db8::2"), link_local(MAC)
BLOCK4, BLOCK6 = ip_network("10.60.2.0/24"), ip_network("fd00:60:0:2::/64")


@pytest.mark.parametrize(
    "row",
    [
        Neighbour(GATEWAY, MAC, "vx0"),
        FdbEntry(MAC, FOUR),
        FdbEntry(MAC, SIX),
        Nexthop(0x77000001, GATEWAY, "vx0", protocol=119),
        KernelRoute(Route(BLOCK4), protocol=119, nexthop=5),
        KernelRoute(Route(BLOCK4, mtu=1400), source=FOUR, protocol=119, nexthop=5),
        KernelRoute(Route(BLOCK6, mtu=1400), source=SIX, nexthop=5),
    ],
    ids=str,
)
def test_a_packed_row_is_equal_to_its_request(row: Row) -> None:
    if isinstance(row, FdbEntry):
        request = fdb.any_row("vx0", INDEX, row, deleted=False)
    elif isinstance(row, Neighbour):
        request = neighbours.adding(row, INDEX, replace=True)
    elif isinstance(row, Nexthop):
        request = nexthops.adding(row, INDEX, replace=True)
    else:
        request = routes.adding(row, 0, replace=True)
    kind, body = packed_rows.pack(row, INDEX) or (0, b"")
    assert kind == request.type
    # The order of attributes means nothing.
    assert len(body) == len(request.body) and sorted(_words(body)) == sorted(_words(request.body))


def _words(body: bytes) -> list[bytes]:
    return [body[start : start + 4] for start in range(0, len(body), 4)]


@pytest.mark.parametrize(
    "row",
    [
        Neighbour(FOUR, MAC, "vx0"),
        Neighbour(GATEWAY, "", "vx0"),
        FdbEntry(MAC),
        FdbEntry(MAC, FOUR, vni=9),
        FdbEntry(MAC, FOUR, state="static"),
        FdbEntry(MAC, nexthop=9),
        Nexthop(0, GATEWAY, "vx0"),
        Nexthop(1, FOUR, "vx0"),
        Nexthop(1, group=((2, 1),)),
        KernelRoute(Route(BLOCK4), "vx0"),
        KernelRoute(Route(BLOCK4), unreachable=True),
        KernelRoute(Route(BLOCK4, priority=3), nexthop=5),
        KernelRoute(Route(ip_network("0.0.0.0/0")), nexthop=5),
    ],
    ids=str,
)
def test_other_shapes_are_left_to_their_requests(row: Row) -> None:
    assert packed_rows.pack(row, INDEX) is None
