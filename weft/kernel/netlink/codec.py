"""Route netlink messages, encoded and decoded by pyroute2's attribute tables and ``tables``."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weft.kernel.netlink import tables
from weft.kernel.netlink.constants import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELQDISC,
    RTM_DELROUTE,
    RTM_DELRULE,
    RTM_DELTCLASS,
    RTM_DELTFILTER,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETQDISC,
    RTM_GETROUTE,
    RTM_GETRULE,
    RTM_GETTCLASS,
    RTM_GETTFILTER,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWQDISC,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    RTM_NEWTCLASS,
    RTM_NEWTFILTER,
    RTM_SETLINK,
)
from weft.kernel.netlink.decoder import Decoder, plain_rows, plain_value
from weft.kernel.netlink.encoder import encode_attributes
from weft.kernel.netlink.message_classes import message_classes
from weft.kernel.netlink.transport import HEADER_SIZE, type_of

Attributes = Sequence[Any]
"""Attributes to be encoded: each its name, its value, and perhaps its flags."""

_ifinfmsg, _ifaddrmsg, _rtmsg = message_classes()


def _extend_link_kinds() -> None:
    """Attributes that pyroute2 0.9 lacks (``linux/if_link.h``)."""
    kinds = _ifinfmsg.ifinfo.data_map
    missing = {
        "macvlan": (
            ("IFLA_MACVLAN_BC_QUEUE_LEN", "uint32"),
            ("IFLA_MACVLAN_BC_QUEUE_LEN_USED", "uint32"),
            ("IFLA_MACVLAN_BC_CUTOFF", "int32"),
        ),
        "ipvlan": (("IFLA_IPVLAN_FLAGS", "uint16"),),
    }
    for kind, more in missing.items():
        known = {row[0] for row in kinds[kind].nla_map}
        new = tuple(row for row in more if row[0] not in known)
        kinds[kind] = type(kind, (kinds[kind],), {"nla_map": (*kinds[kind].nla_map, *new)})


_extend_link_kinds()


class Route(_rtmsg):  # type: ignore[misc, valid-type]
    """pyroute2's ``rtmsg`` with the attributes that follow RTA_EXPIRES (``linux/rtnetlink.h``)."""

    nla_map = (
        *_rtmsg.nla_map,
        ("RTA_PAD", "hex"),
        ("RTA_UID", "uint32"),
        ("RTA_TTL_PROPAGATE", "uint8"),
        ("RTA_IP_PROTO", "uint8"),
        ("RTA_SPORT", "uint16"),
        ("RTA_DPORT", "uint16"),
        ("RTA_NH_ID", "uint32"),
    )


_CLASSES = {
    RTM_NEWLINK: _ifinfmsg, RTM_DELLINK: _ifinfmsg, RTM_GETLINK: _ifinfmsg, RTM_SETLINK: _ifinfmsg,
    RTM_NEWADDR: _ifaddrmsg, RTM_DELADDR: _ifaddrmsg, RTM_GETADDR: _ifaddrmsg,
    RTM_NEWROUTE: Route, RTM_DELROUTE: Route, RTM_GETROUTE: Route,
    RTM_NEWRULE: tables.Rule, RTM_DELRULE: tables.Rule, RTM_GETRULE: tables.Rule,
    RTM_NEWQDISC: tables.TrafficControl, RTM_DELQDISC: tables.TrafficControl, RTM_GETQDISC: tables.TrafficControl,
    RTM_NEWTCLASS: tables.TrafficControl, RTM_DELTCLASS: tables.TrafficControl, RTM_GETTCLASS: tables.TrafficControl,
    RTM_NEWTFILTER: tables.TrafficControl, RTM_DELTFILTER: tables.TrafficControl,
    RTM_GETTFILTER: tables.TrafficControl,
}  # fmt: skip

Fixed = tuple[struct.Struct, tuple[str, ...]]
"""How the fixed part of a message is packed, and the names of its fields."""

_IFINFOMSG: Fixed = struct.Struct("=BxHiII"), ("family", "ifi_type", "index", "flags", "change")
_IFADDRMSG: Fixed = struct.Struct("=BBBBI"), ("family", "prefixlen", "flags", "scope", "index")
_RTMSG: Fixed = (
    struct.Struct("=BBBBBBBBI"),
    ("family", "dst_len", "src_len", "tos", "table", "proto", "scope", "type", "flags"),
)
_FIB_RULE_HDR: Fixed = struct.Struct("=BBBBBxxBI"), ("family", "dst_len", "src_len", "tos", "table", "action", "flags")
_TCMSG: Fixed = struct.Struct("=BxxxiIII"), ("family", "index", "handle", "parent", "info")


def _fixed(kind: int) -> Fixed:
    if kind < RTM_NEWADDR:
        return _IFINFOMSG
    if kind < RTM_NEWROUTE:
        return _IFADDRMSG
    if kind < RTM_NEWRULE:
        return _RTMSG
    return _FIB_RULE_HDR if kind < RTM_NEWQDISC else _TCMSG


def encode(kind: int, fields: dict[str, Any], given: Attributes | bytes) -> bytes:
    """The body of a request: the fixed part's fields under pyroute2's names, and attributes,
    perhaps packed already.
    """
    layout, names = _fixed(kind)
    packed = given if isinstance(given, bytes) else encode_attributes(_CLASSES[kind], fields, given)
    return layout.pack(*(fields.get(name, 0) for name in names)) + packed


def decode(data: bytes) -> Decoder:
    """One message, header included; an attribute is decoded when asked for (``get_attr``)."""
    kind = type_of(data)
    layout, names = _fixed(kind)
    fields = dict(zip(names, layout.unpack_from(data, HEADER_SIZE), strict=True))
    return Decoder(_CLASSES[kind], memoryview(data), HEADER_SIZE + layout.size, fields)


def attribute(message: Decoder | None, *path: str) -> Any:
    """The attribute at a path of names (``IFLA_LINKINFO``, ``IFLA_INFO_KIND``), None if missing."""
    found: Any = message
    for name in path:
        if not isinstance(found, Decoder):
            return None
        found = found.get_attr(name)
    return found


def link_option_names(kind: str) -> Iterable[str]:
    """The names of a kind's numbers and strings (``IFLA_INFO_DATA``, or of ``bridge_slave``): ``br_stp_state`` is
    ``IFLA_BR_STP_STATE``.
    """
    layout = _ifinfmsg.ifinfo.data_map.get(kind)
    return plain_rows(layout) if layout is not None else ()


def link_option(kind: str, name: str, found: Mapping[int, bytes]) -> int | str | None:
    """One of a kind's options, of attributes by number; None without one."""
    layout = _ifinfmsg.ifinfo.data_map.get(kind)
    return plain_value(layout, name, found) if layout is not None else None


def named(values: dict[str, int | str]) -> Attributes:
    """Options as attributes: ``br_stp_state`` becomes ``IFLA_BR_STP_STATE``."""
    return [[f"IFLA_{name.upper()}", value] for name, value in values.items()]


def has_option(kind: str, option: str) -> bool:
    """Whether a link kind has an option of that name (``br_vlan_filtering``)."""
    return any(row[0] == f"IFLA_{option.upper()}" for row in _nla_map(kind))


def has_port_attribute(name: str) -> bool:
    """Whether a bridge port has an attribute of that name (``brport_isolated``)."""
    return any(row[0] == f"IFLA_{name.upper()}" for row in _nla_map("bridge_slave"))


def _nla_map(kind: str) -> Any:
    known = _ifinfmsg.ifinfo.data_map.get(kind)
    return known.nla_map if known is not None else ()
