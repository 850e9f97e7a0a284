"""Route netlink: the socket, and requests made of fields and attributes by name.

Source: ``rtnetlink(7)``.
"""

from __future__ import annotations

from struct import error as StructError
from typing import Any

from weft.errors import KernelRefused
from weft.kernel.netlink import codec
from weft.kernel.netlink.constants import NETLINK_ROUTE
from weft.kernel.netlink.transport import NetlinkSocket, Request
from weft.kernel.values import Link

_RECEIVE_BUFFER = 1 << 20


class RouteSocket(NetlinkSocket):
    """A route netlink socket, with what is remembered of the links in its namespace."""

    def __init__(self, *, groups: int = 0) -> None:
        super().__init__(NETLINK_ROUTE, groups=groups, receive_buffer=_RECEIVE_BUFFER)
        self.link_indexes: dict[str, int] = {}
        """Indexes of links by name, as last read: valid where the index still has that name."""
        self.link_cache: dict[str, tuple[float, Link]] = {}
        """Links by name, and when they were read: valid as far as ``links.cached`` verifies."""


def request(
    kind: int,
    flags: int,
    action: str,
    fields: dict[str, Any] | None = None,
    attributes: codec.Attributes | bytes = (),
    *,
    needs: str = "",
    single: bool = False,
) -> Request:
    """A request of type ``kind``: the fixed part's fields by name, the attributes as ``encoder``
    takes them, or packed.

    Raises KernelRefused where a value does not fit.
    """
    try:
        body = codec.encode(kind, fields or {}, attributes)
    except (StructError, ValueError, TypeError, OSError) as error:
        raise KernelRefused(f"cannot {action}: a value does not fit in the request: {error}") from error
    return Request(kind, flags, action, body, needs, single)
