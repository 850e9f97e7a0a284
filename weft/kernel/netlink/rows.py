"""Many neighbours, FDB rows, nexthops and routes at once, as an overlay network's peers need them.

The requests go out a window at a time, so that the cost of a row is that of its message.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.errors import Missing
from weft.kernel.netlink import fdb, links, neighbours, nexthops, packed_rows, routes
from weft.kernel.netlink.constants import NLM_F_CREATE, NLM_F_REPLACE
from weft.kernel.netlink.rtnetlink import RouteSocket
from weft.kernel.netlink.transport import Body, Request
from weft.kernel.values import FdbEntry, KernelRoute, Neighbour, Nexthop, Row

_REPLACE = NLM_F_CREATE | NLM_F_REPLACE
_QUIET = "change rows"
"""What a request is called until it is refused: to describe each takes as long as the request."""


def add(socket: RouteSocket, link: str, rows: Iterable[Row]) -> None:
    """Add or replace the rows, in this order; raises the first refusal once all were tried."""
    index, listed = _Indexes(socket), list(rows)
    for place, outcome in socket.attempt_many((_added(link, row, index) for row in listed), _QUIET):
        outcome.request = _adding(link, listed[place], index)  # which says what was refused
        raise socket.to_error(outcome)


def delete(socket: RouteSocket, link: str, rows: Iterable[Row]) -> None:
    """Delete the rows, in this order; raises the first refusal once all were tried, but none for a
    missing row.
    """
    index, listed = _Indexes(socket), list(rows)
    for place, outcome in socket.attempt_many((_body(_deleting(link, row, index)) for row in listed), _QUIET):
        outcome.request = _deleting(link, listed[place], index)
        error = outcome.error
        if error is not None and not isinstance(error, Missing) and not _lost_nexthop(socket, listed[place]):
            raise error


def _added(link: str, row: Row, index: _Indexes) -> Body:
    packed = packed_rows.pack(row, index[link if isinstance(row, FdbEntry) else row.link])
    return (packed[0], _REPLACE, packed[1]) if packed is not None else _body(_adding(link, row, index, _QUIET))


def _body(request: Request) -> Body:
    return request.type, request.flags, request.body


def _lost_nexthop(socket: RouteSocket, row: Row) -> bool:
    """Whether the row is a route whose nexthop has gone, and the route with it: that is EINVAL."""
    if not isinstance(row, KernelRoute) or not row.nexthop:
        return False
    return all(one.id != row.nexthop for one in nexthops.list_nexthops(socket))


class _Indexes(dict[str, int]):
    """The indexes of links, each looked up once; raises ``Missing``."""

    def __init__(self, socket: RouteSocket) -> None:
        super().__init__({"": 0})
        self._socket = socket

    def __missing__(self, name: str) -> int:
        found = self[name] = links.index(self._socket, name, f"change what is on {name}")
        return found


def _adding(link: str, row: Row, index: _Indexes, action: str = "") -> Request:
    if isinstance(row, FdbEntry):
        return fdb.any_row(link, index[link], row, deleted=False, action=action)
    if isinstance(row, Neighbour):
        return neighbours.adding(row, index[row.link], replace=True, action=action)
    if isinstance(row, Nexthop):
        return nexthops.adding(row, index[row.link], replace=True, action=action)
    return routes.adding(row, index[row.link], replace=True, action=action)


def _deleting(link: str, row: Row, index: _Indexes) -> Request:
    if isinstance(row, FdbEntry):
        return fdb.any_row(link, index[link], row, deleted=True)
    if isinstance(row, Neighbour):
        return neighbours.deleting(row.address, index[row.link], row.link)
    if isinstance(row, Nexthop):
        return nexthops.deleting(row.id)
    return routes.deleting(row, index[row.link])
