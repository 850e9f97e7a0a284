"""Forwarding databases of bridges and VXLAN links: which MAC address is behind which port or host.

Sources: ``bridge(8)``, ``linux/neighbour.h``, ``drivers/net/vxlan/vxlan_core.c``,
``net/bridge/br_fdb.c``.
"""

from __future__ import annotations

from ipaddress import ip_address

from weft.errors import KernelRefused, Missing
from weft.kernel.netlink import links
from weft.kernel.netlink.attributes import attribute, get_int, integer, mac_address
from weft.kernel.netlink.constants import (
    AF_BRIDGE,
    NDA_DST,
    NDA_LLADDR,
    NDA_MASTER,
    NDA_NH_ID,
    NDA_PORT,
    NDA_VLAN,
    NDA_VNI,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NTF_MASTER,
    NTF_SELF,
    NTF_STICKY,
    NUD_NOARP,
    NUD_PERMANENT,
    NUD_REACHABLE,
    RTM_DELNEIGH,
    RTM_NEWNEIGH,
)
from weft.kernel.netlink.ioctls import LinkNames
from weft.kernel.netlink.neighbours import NDMSG, Row, list_rows
from weft.kernel.netlink.rtnetlink import RouteSocket
from weft.kernel.netlink.transport import Request, parses_answer
from weft.kernel.values import FdbEntry

_STATES = {"permanent": NUD_PERMANENT, "static": NUD_NOARP, "dynamic": NUD_REACHABLE}
_VXLAN_STATES = {"permanent": NUD_PERMANENT, "static": NUD_NOARP | NUD_PERMANENT, "dynamic": NUD_REACHABLE}


@parses_answer
def list_fdb(socket: RouteSocket, name: str) -> tuple[FdbEntry, ...]:
    """The rows of a VXLAN link's own table, and those of a bridge that lead to this port."""
    action = f"list the forwarding database of {name}"
    link = links.get(socket, name)
    if link is None:
        raise Missing(f"cannot {action}: the link {name} does not exist")
    rows = list_rows(socket, AF_BRIDGE, action, link.index)
    # Other links list the addresses that they receive, which is no forwarding.
    return tuple(_entry(row) for row in rows if link.kind == "vxlan" or NDA_MASTER in row.attributes)


@parses_answer
def list_ports(socket: RouteSocket) -> tuple[tuple[str, FdbEntry], ...]:
    """The rows of all bridges that lead to their ports, each with its port's name."""
    names = LinkNames(socket.fileno())
    rows = list_rows(socket, AF_BRIDGE, "list the forwarding databases of bridges")
    return tuple((names[row.link], _entry(row)) for row in rows if NDA_MASTER in row.attributes)


def _entry(row: Row) -> FdbEntry:
    found = row.attributes
    destination = found.get(NDA_DST, b"")
    return FdbEntry(
        mac=found.get(NDA_LLADDR, b"").hex(":"),
        destination=ip_address(destination) if destination else None,
        vni=get_int(found, NDA_VNI),
        port=int.from_bytes(found.get(NDA_PORT, b""), "big"),
        vlan=get_int(found, NDA_VLAN),
        nexthop=get_int(found, NDA_NH_ID),
        master=NDA_MASTER in found,
        state=_state(row.state),
        sticky=bool(row.flags & NTF_STICKY),
    )


def _state(state: int) -> str:
    if state & NUD_NOARP:
        return "static"
    return "permanent" if state & NUD_PERMANENT else "dynamic"


def add(socket: RouteSocket, name: str, entry: FdbEntry, *, append: bool, replace: bool) -> None:
    """Add a row; raises ``Exists``."""
    action = f"{'append' if append else 'replace' if replace else 'add'} the FDB entry {_describe(name, entry)}"
    flags = NLM_F_CREATE | (NLM_F_APPEND if append else NLM_F_REPLACE if replace else NLM_F_EXCL)
    socket.request(_request(socket, RTM_NEWNEIGH, flags, action, name, entry))


def any_row(name: str, index: int, entry: FdbEntry, *, deleted: bool, action: str = "") -> Request:
    """The request that adds or replaces, or deletes, a row of a VXLAN link's own table, or of its bridge."""
    action = action or f"{'delete' if deleted else 'replace'} the FDB entry {_describe(name, entry)}"
    if entry.state not in _VXLAN_STATES:
        raise KernelRefused(f"cannot {action}: {entry.state!r} is none of {', '.join(_STATES)}")
    kind, flags = (RTM_DELNEIGH, 0) if deleted else (RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)
    body = NDMSG.pack(AF_BRIDGE, index, _state_of(entry), _flags(entry), 0)
    return Request(kind, flags, action, body + _attributes(entry), needs="FDB rows of this kind of link")


def delete(socket: RouteSocket, name: str, entry: FdbEntry) -> None:
    """Delete a row; raises ``Missing``."""
    socket.request(_request(socket, RTM_DELNEIGH, 0, f"delete the FDB entry {_describe(name, entry)}", name, entry))


def _request(socket: RouteSocket, kind: int, flags: int, action: str, name: str, entry: FdbEntry) -> Request:
    link = links.get(socket, name)
    if link is None:
        raise Missing(f"cannot {action}: the link {name} does not exist")
    if entry.state not in _STATES:
        raise KernelRefused(f"cannot {action}: {entry.state!r} is none of {', '.join(_STATES)}")
    if entry.master and not link.master:
        raise KernelRefused(f"cannot {action}: {name} is no bridge port")
    if not entry.master and link.kind != "vxlan":
        raise KernelRefused(f"cannot {action}: {name} is no VXLAN link, and has no forwarding database of its own")
    body = NDMSG.pack(AF_BRIDGE, link.index, _state_of(entry), _flags(entry), 0)
    return Request(kind, flags, action, body + _attributes(entry), needs="FDB rows of this kind of link")


def _state_of(entry: FdbEntry) -> int:
    return (_STATES if entry.master else _VXLAN_STATES)[entry.state]


def _flags(entry: FdbEntry) -> int:
    return (NTF_MASTER if entry.master else NTF_SELF) | (NTF_STICKY if entry.sticky else 0)


def _attributes(entry: FdbEntry) -> bytes:
    packed = mac_address(NDA_LLADDR, entry.mac)
    if entry.destination is not None:
        packed += attribute(NDA_DST, entry.destination.packed)
    if entry.vni:
        packed += integer(NDA_VNI, entry.vni)
    if entry.port:
        packed += attribute(NDA_PORT, entry.port.to_bytes(2, "big"))
    if entry.vlan:
        packed += integer(NDA_VLAN, entry.vlan, 2)
    return packed + (integer(NDA_NH_ID, entry.nexthop) if entry.nexthop else b"")


def _describe(name: str, entry: FdbEntry) -> str:
    destination = f" dst {entry.destination}" if entry.destination is not None else ""
    return f"{entry.mac} dev {name}{destination} {'master' if entry.master else 'self'}"
