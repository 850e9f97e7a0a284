"""Route netlink messages, decoded by attribute tables; each attribute on first use.

pyroute2's own decoder makes an object of every attribute: 1.5 ms for a link, which has fifty. Its
tables say all that is needed to decode one: number, name and layout. Source: ``netlink(7)``,
``linux/netlink.h``.
"""

from __future__ import annotations

import struct
from _socket import inet_ntop
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from weft.kernel.netlink.constants import AF_BRIDGE, AF_INET, AF_INET6, NLA_TYPE_MASK

_STRINGS = ("asciiz", "string")
_ADDRESSES = ("ip4addr", "ip6addr", "ipaddr", "target")

Row = tuple[str, str, Any, Any]
"""An attribute's name, its layout's name and class, and what unpacks it if it is a number."""

_tables: dict[Any, dict[int, Row]] = {}


def table(layout: Any) -> dict[int, Row]:
    """A pyroute2 class's attributes by number."""
    if layout not in _tables:
        rows: dict[int, Row] = {}
        for offset, row in enumerate(layout.nla_map):
            number, name, kind = row if isinstance(row[0], int) else (offset, row[0], row[1])
            inner = getattr(layout, kind.lstrip("*"), None)
            rows.setdefault(number, (name, kind, inner, _number(inner)))
        _tables[layout] = rows
    return _tables[layout]


_HEAD = struct.Struct("=HH").unpack_from
_EMPTY = memoryview(b"")


@cache
def plain_rows(layout: Any) -> dict[str, tuple[int, Row]]:
    """A class's attributes by name in lower case without ``IFLA_``, each with its number."""
    return {row[0].removeprefix("IFLA_").lower(): (number, row) for number, row in table(layout).items()}


def plain_value(layout: Any, name: str, found: Mapping[int, bytes]) -> int | str | None:
    """A number or string of attributes by number; None without one of that name."""
    known = plain_rows(layout).get(name)
    if known is None or known[0] not in found:
        return None
    value = Decoder(layout, _EMPTY, 0, {})._value(known[1], memoryview(found[known[0]]))
    return value if isinstance(value, int | str) else None


def _number(layout: Any) -> Any:
    """What unpacks an attribute that is one number, None for others."""
    if not isinstance(layout, type) or getattr(layout, "nla_map", None) or getattr(layout, "value_map", None):
        return None
    fields: Any = getattr(layout, "fields", ())
    if len(fields) != 1 or fields[0][0] != "value" or "s" in fields[0][1]:
        return None
    return struct.Struct(fields[0][1]).unpack_from


class Decoder:
    """A message or a nested attribute: ``[name]`` is a field, ``get_attr(name)`` an attribute."""

    __slots__ = ("_data", "_found", "_layout", "_start", "fields")

    def __init__(self, layout: Any, data: memoryview, start: int, fields: dict[str, int]) -> None:
        self.fields = fields
        self._layout = layout
        self._data = data
        self._start = start
        self._found: dict[str, list[tuple[Row, memoryview]]] | None = None

    def __getitem__(self, name: str) -> int:
        return self.fields[name]

    def get_attr(self, name: str) -> Any:
        """The attribute's value, a Decoder for nested ones, None where it is missing."""
        rows = self._attributes().get(name)
        return self._value(*rows[0]) if rows else None

    def get_attrs(self, name: str) -> list[Any]:
        """The values of an attribute that may occur several times."""
        return [self._value(*row) for row in self._attributes().get(name, ())]

    def _attributes(self) -> dict[str, list[tuple[Row, memoryview]]]:
        if self._found is None:
            self._found = {}
            known, data, offset = table(self._layout), self._data, self._start
            while offset + 4 <= len(data):
                length, number = _HEAD(data, offset)
                if length < 4 or offset + length > len(data):
                    break
                row = known.get(number & NLA_TYPE_MASK)
                if row is not None:
                    self._found.setdefault(row[0], []).append((row, data[offset + 4 : offset + length]))
                offset += (length + 3) & ~3
        return self._found

    def _value(self, row: Row, data: memoryview) -> Any:
        name, kind, layout, number = row
        if number is not None and kind not in _ADDRESSES:
            try:
                return number(data)[0]
            except struct.error:
                return None
        if kind in _STRINGS:
            return bytes(data).split(b"\0", 1)[0].decode("utf-8", "replace")
        if kind == "l2addr":
            return ":".join(f"{octet:02x}" for octet in data)
        if kind in _ADDRESSES:
            family = {4: AF_INET, 16: AF_INET6}.get(len(data))
            return inet_ntop(family, bytes(data)) if family else None
        if kind == "flag":
            return 1
        if name == "RTA_MULTIPATH":
            return self._hops(data)
        if name == "RTA_VIA":
            family = struct.unpack_from("=H", data)[0]
            return {"family": family, "addr": inet_ntop(family, bytes(data[2:]))}
        choose = CHOICES.get(name)
        if choose is not None:
            layout = choose(self, self._layout)
        if layout is None or not isinstance(layout, type):
            return None
        return self._structured(layout, data)

    def _structured(self, layout: Any, data: memoryview) -> Any:
        if layout.nla_map:
            return Decoder(layout, data, 0, {})
        values = {}
        offset = 0
        for name, form in layout.fields:
            if form == "s" or offset + struct.calcsize(form) > len(data):
                return None
            values[name] = struct.unpack_from(form, data, offset)[0]
            offset += struct.calcsize(form)
        if list(values) == ["value"]:
            only = values["value"]
            return layout.value_map.get(only, only) if isinstance(only, int) else None
        return values or None

    def _hops(self, data: memoryview) -> list[Decoder]:
        """The next hops of a multipath route (``struct rtnexthop``)."""
        hops, offset = [], 0
        while offset + 8 <= len(data):
            length, flags, weight, out = struct.unpack_from("=HBBi", data, offset)
            if length < 8:
                break
            fields = {"flags": flags, "hops": weight, "oif": out}
            hops.append(Decoder(self._layout, data[offset : offset + length], 8, fields))
            offset += (length + 3) & ~3
        return hops


def _info_data(reader: Any, layout: Any) -> Any:
    return layout.data_map.get(reader.get_attr("IFLA_INFO_KIND"))


def _slave_data(reader: Any, layout: Any) -> Any:
    return layout.data_map.get(f"{reader.get_attr('IFLA_INFO_SLAVE_KIND')}_slave")


def _family_data(reader: Any, layout: Any) -> Any:
    return layout.af_spec_bridge if reader.fields.get("family") == AF_BRIDGE else None


def _port_data(reader: Any, layout: Any) -> Any:
    return layout.ifinfo.data_map["bridge_slave"] if reader.fields.get("family") == AF_BRIDGE else None


CHOICES: dict[str, Callable[[Any, Any], Any]] = {
    "IFLA_INFO_DATA": _info_data,
    "IFLA_INFO_SLAVE_DATA": _slave_data,
    "IFLA_AF_SPEC": _family_data,
    "IFLA_PROTINFO": _port_data,
    "TCA_OPTIONS": lambda reader, layout: layout.kinds.get(reader.get_attr("TCA_KIND")),
    "TCA_ACT_OPTIONS": lambda reader, layout: layout.kinds.get(reader.get_attr("TCA_ACT_KIND")),
    "VETH_INFO_PEER": lambda _, layout: layout.info_peer(None),
}
"""Attributes whose layout depends on other attributes or fields of the message."""
