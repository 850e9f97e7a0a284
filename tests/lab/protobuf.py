"""Protocol buffers' wire format, as far as a gRPC client of a few messages needs it.

A message is a dict, its layout another: the names of its fields, each with its number and type. Source:
"Encoding" in the documentation of protocol buffers; fields that a layout does not have are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """``kind`` is ``int``, ``str``, ``bytes`` or another message's layout; a list if ``repeated``."""

    number: int
    kind: type | Mapping[str, Field]
    repeated: bool = False


Layout = Mapping[str, Field]
MAP: Layout = {"key": Field(1, str), "value": Field(2, str)}
"""An entry of a ``map<string, string>``, which is a repeated message."""


def encode(message: Message, layout: Layout) -> bytes:
    """The message's bytes; a ``map`` is given as a dict."""
    found = b""
    for name, value in message.items():
        field = layout[name]
        if isinstance(value, dict) and field.kind is MAP:
            value = [{"key": key, "value": text} for key, text in value.items()]
        for each in value if field.repeated else [value]:
            if field.kind is int:
                found += _varint(field.number << 3) + _varint(int(each))
            else:
                body = encode(each, field.kind) if isinstance(field.kind, Mapping) else _bytes(each)
                found += _varint(field.number << 3 | 2) + _varint(len(body)) + body
    return found


def decode(content: bytes, layout: Layout) -> Message:
    """The message; absent fields have their default values."""
    found: Message = {name: [] if field.repeated else _default(field) for name, field in layout.items()}
    names = {field.number: name for name, field in layout.items()}
    for number, value in _fields(content):
        if number not in names:
            continue
        name = names[number]
        field = layout[name]
        read = _value(field, value)
        if field.repeated:
            found[name].append(read)
        else:
            found[name] = read
    return found


def _value(field: Field, value: int | bytes) -> Any:
    if not isinstance(value, bytes) or field.kind is bytes:
        return value
    return decode(value, field.kind) if isinstance(field.kind, Mapping) else value.decode()


def _default(field: Field) -> Any:
    return decode(b"", field.kind) if isinstance(field.kind, Mapping) else field.kind()


def _bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _varint(number: int) -> bytes:
    found = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        found.append(low | (0x80 if number else 0))
        if not number:
            return bytes(found)


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields' numbers and values: integers, or bytes where they are delimited by their length."""
    at = 0

    def integer() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = content[at]
            number, shift, at = number | (byte & 0x7F) << shift, shift + 7, at + 1
            if byte < 0x80:
                return number

    while at < len(content):
        key = integer()
        match key & 7:
            case 0:
                yield key >> 3, integer()
            case 2:
                size = integer()
                at += size
                yield key >> 3, content[at - size : at]
            case 1 | 5:
                at += 8 if key & 7 == 1 else 4  # fixed64 and fixed32, which no field here has
            case kind:
                raise ValueError(f"wire type {kind}")
