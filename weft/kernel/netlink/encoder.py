"""Netlink attributes encoded by attribute tables, the reverse of ``decoder``.

pyroute2's own encoder takes a quarter of a millisecond for the smallest message. A value is a
number, a string, an address as a string, or a dict: fields by name, with the nested attributes
under ``attrs``.
"""

from __future__ import annotations

import struct
from _socket import inet_pton
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from weft.errors import KernelRefused
from weft.kernel.netlink.constants import AF_INET, AF_INET6
from weft.kernel.netlink.decoder import CHOICES, Row, table

_HEAD = struct.Struct("=HH").pack
Encode = Callable[[Any], bytes]
Known = tuple[int, int, Row, "Encode | None"]
"""An attribute's number and flags, its row in the table, and what encodes its value."""
Given = tuple[Any, ...] | list[Any]
"""Name, value, and perhaps the flag NLA_F_NESTED."""


class Siblings:
    """The fields and attributes beside one to be encoded, which may determine its layout."""

    def __init__(self, fields: dict[str, Any], given: Sequence[Any]) -> None:
        self.fields = fields
        self._given = {one[0]: one[1] for one in given}

    def get_attr(self, name: str) -> Any:
        return self._given.get(name)


def encode_attributes(layout: Any, fields: dict[str, Any], given: Sequence[Any]) -> bytes:
    """The attributes of a message or of a nested one, one after the other, as bytes."""
    known = _named(layout)
    out = bytearray()
    for one in given:
        if one[0] not in known:
            raise KernelRefused(f"cannot encode the netlink attribute {one[0]}: unknown name")
        number, flags, row, encode = known[one[0]]
        if len(one) > 2:
            flags = one[2]
        payload = encode(one[1]) if encode is not None else _chosen(layout, Siblings(fields, given), row, one[1])
        out += _HEAD(len(payload) + 4, number | flags) + payload + b"\0" * (-len(payload) % 4)
    return bytes(out)


def _named(layout: Any) -> dict[str, Known]:
    """A pyroute2 class's attributes by name."""
    if layout not in _names:
        rows = table(layout).items()
        _names[layout] = {row[0]: (number, getattr(row[2], "nla_flags", 0), row, _encoder(row)) for number, row in rows}
    return _names[layout]


_names: dict[Any, dict[str, Known]] = {}


def _encoder(row: Row) -> Encode | None:
    """What encodes an attribute's value, None where its siblings determine that."""
    name, kind, inner, plain = row
    if name == "RTA_VIA":
        return _via
    if kind in _ENCODERS:
        return _ENCODERS[kind]
    if name in CHOICES or not isinstance(inner, type):
        return None
    if plain is not None:
        return struct.Struct(cast(Any, inner).fields[0][1]).pack
    return partial(_structured, inner)


def _chosen(layout: Any, siblings: Siblings, row: Row, value: Any) -> bytes:
    inner = CHOICES[row[0]](siblings, layout) if row[0] in CHOICES else None
    if not isinstance(inner, type):
        raise KernelRefused(f"cannot encode the netlink attribute {row[0]}: unknown layout")
    return _structured(inner, value)


def _text(value: Any) -> bytes:
    return str(value).encode("utf-8", "surrogateescape") + b"\0"


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _address(text: str) -> bytes:
    return inet_pton(AF_INET6 if ":" in text else AF_INET, text)


def _via(value: dict[str, Any]) -> bytes:
    return struct.pack("=H", value["family"]) + _address(value["addr"])


_ENCODERS: dict[str, Encode] = {
    **dict.fromkeys(("asciiz", "string"), _text),
    **dict.fromkeys(("ip4addr", "ip6addr", "ipaddr", "target"), _address),
    "l2addr": _mac,
    "flag": lambda _: b"",
}


def _structured(layout: Any, value: Any) -> bytes:
    known: Any = layout
    if not isinstance(value, dict):
        numbers = {text: number for number, text in known.value_map.items()}
        return struct.pack(known.fields[0][1], numbers.get(value, value))
    fixed = b""
    for name, form in () if known.fields and known.fields[0][0] == "value" else known.fields:
        fixed += struct.pack(form) if form == "x" else struct.pack(form, value.get(name, 0))
    return fixed + (encode_attributes(known, value, value["attrs"]) if "attrs" in value else b"")
