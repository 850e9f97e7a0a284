"""Neighbours: addresses and the MAC addresses they resolve to; and the ``struct ndmsg`` that
``fdb`` shares.

Sources: ``ip-neighbour(8)``, ``rtnetlink(7)``, ``linux/neighbour.h``, ``net/core/neighbour.c``.
"""

from __future__ import annotations

import _socket  # without the ``socket`` module's enumerations, which take milliseconds
import contextlib
from collections.abc import Iterable
from ipaddress import ip_address
from struct import Struct
from typing import NamedTuple

from weft.kernel.netlink.attributes import Attributes, attribute, get_int, mac_address, parse
from weft.kernel.netlink.constants import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    NDA_DST,
    NDA_LLADDR,
    NDA_MASTER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NUD_NOARP,
    NUD_PERMANENT,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
)
from weft.kernel.netlink.ioctls import LinkNames
from weft.kernel.netlink.rtnetlink import RouteSocket
from weft.kernel.netlink.transport import HEADER_SIZE, Request, parses_answer
from weft.kernel.values import Neighbour
from weft.types import Address

_FAMILIES = {4: AF_INET, 6: AF_INET6}
_DISCARD_PORT = 9  # RFC 863
NDMSG = Struct("=BxxxiHBB")
"""Family, link, state, flags, type."""


class Row(NamedTuple):
    """One neighbour or FDB row as the kernel lists it."""

    link: int
    state: int
    flags: int
    attributes: Attributes


@parses_answer
def list_rows(socket: RouteSocket, family: int, action: str, index: int = 0) -> list[Row]:
    """The rows of one address family, of one link where given."""
    request = Request(RTM_GETNEIGH, 0, action, NDMSG.pack(family, index if family == AF_BRIDGE else 0, 0, 0, 0))
    rows = []
    for message in socket.dump(request):
        _, there, state, flags, _ = NDMSG.unpack_from(message, HEADER_SIZE)
        if index in (0, there):
            rows.append(Row(there, state, flags, parse(message, HEADER_SIZE + NDMSG.size)))
    return rows


@parses_answer
def list_neighbours(socket: RouteSocket, index: int, version: int) -> tuple[Neighbour, ...]:
    """Neighbours of a link (0: of all), of one IP version (0: of both), IPv4 first; without those
    that need no ARP.
    """
    found, names = [], LinkNames(socket.fileno())
    for family in [_FAMILIES[version]] if version else [AF_INET, AF_INET6]:
        for row in list_rows(socket, family, "list the neighbours", index):
            if row.state and not row.state & NUD_NOARP and NDA_DST in row.attributes:
                mac = row.attributes.get(NDA_LLADDR, b"").hex(":")
                address = ip_address(row.attributes[NDA_DST])
                found.append(Neighbour(address, mac, names[row.link], permanent=bool(row.state & NUD_PERMANENT)))
    return tuple(found)


def add(socket: RouteSocket, neighbour: Neighbour, index: int, *, replace: bool) -> None:
    """Add a permanent neighbour (``replace``: or change it); raises ``Exists``."""
    socket.request(adding(neighbour, index, replace=replace))


def adding(neighbour: Neighbour, index: int, *, replace: bool, action: str = "") -> Request:
    """The request of ``add``."""
    action = action or f"{'replace' if replace else 'add'} the neighbour {neighbour.address} on {neighbour.link}"
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    body = _key(neighbour.address, index, NUD_PERMANENT) + mac_address(NDA_LLADDR, neighbour.mac)
    return Request(RTM_NEWNEIGH, flags, action, body, needs=f"IPv{neighbour.address.version}")


def delete(socket: RouteSocket, address: Address, index: int, link: str) -> None:
    """Delete a neighbour; raises ``Missing``."""
    socket.request(deleting(address, index, link))


def deleting(address: Address, index: int, link: str) -> Request:
    """The request of ``delete``."""
    action = f"delete the neighbour {address} on {link}"
    return Request(RTM_DELNEIGH, 0, action, _key(address, index), needs=f"IPv{address.version}")


def _key(address: Address, index: int, state: int = 0) -> bytes:
    return NDMSG.pack(_FAMILIES[address.version], index, state, 0, 0) + attribute(NDA_DST, address.packed)


def bridge_ports(addresses: Iterable[Address]) -> dict[Address, int]:
    """The index of the bridge port that each address is behind, in the calling thread's namespace;
    0 behind no bridge.

    Addresses that are not resolved yet are left out (see ``resolve``).
    *Equivalent to:* ``ip neigh show; bridge fdb show``.
    """
    wanted = set(addresses)
    with contextlib.closing(RouteSocket()) as socket:
        resolved = {
            address: (row.link, row.attributes[NDA_LLADDR])
            for family in (AF_INET, AF_INET6)
            for row in list_rows(socket, family, "list the neighbours")
            if NDA_LLADDR in row.attributes and (address := ip_address(row.attributes[NDA_DST])) in wanted
        }
        if not resolved:
            return {}
        ports = {
            (get_int(row.attributes, NDA_MASTER), row.attributes.get(NDA_LLADDR, b"")): row.link
            for row in list_rows(socket, AF_BRIDGE, "list the forwarding database")
        }
    bridges = {bridge for bridge, _ in ports}
    return {address: ports.get(key, 0) for address, key in resolved.items() if key in ports or key[0] not in bridges}


def resolve(addresses: Iterable[Address]) -> None:
    """Have the kernel resolve the addresses, by an empty datagram to the discard port of each.

    Does not wait.
    """
    for address in addresses:
        family = _socket.AF_INET if address.version == 4 else _socket.AF_INET6
        with contextlib.suppress(OSError), contextlib.closing(_socket.socket(family, _socket.SOCK_DGRAM)) as one:
            one.setblocking(False)
            one.sendto(b"", (str(address), _DISCARD_PORT))
