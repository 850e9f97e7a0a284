"""Netlink attributes as bytes, packed and parsed by their numbers.

Source: ``netlink(7)``, ``lib/nlattr.c``.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from sys import byteorder

from weft.errors import KernelRefused
from weft.kernel.netlink.constants import NLA_F_NESTED, NLA_TYPE_MASK

Attributes = dict[int, bytes]
"""The payload of each attribute by its number."""

NLATTR = Struct("=HH")
"""A ``struct nlattr``: length, itself included, and number."""

_pack, _unpack = NLATTR.pack, NLATTR.unpack_from


def attribute(number: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return _pack(len(payload) + 4, number) + payload + b"\0" * (-len(payload) % 4)


def nested(number: int, *attributes: bytes) -> bytes:
    """An attribute that holds others, marked as such (``NLA_F_NESTED``)."""
    return attribute(number | NLA_F_NESTED, b"".join(attributes))


def string(number: int, text: str) -> bytes:
    """An ASCII string with its terminating zero."""
    return attribute(number, text.encode("ascii") + b"\0")


def integer(number: int, value: int, size: int = 4) -> bytes:
    """An integer in the machine's byte order. Raises KernelRefused where it does not fit."""
    try:
        return attribute(number, value.to_bytes(size, byteorder))
    except OverflowError as error:
        raise KernelRefused(f"cannot pack {value} into {size} bytes of a netlink attribute") from error


def mac_address(number: int, mac: str) -> bytes:
    """A MAC address. Raises KernelRefused where it is none."""
    try:
        return attribute(number, bytes.fromhex(mac.replace(":", "")))
    except ValueError as error:
        raise KernelRefused(f"{mac!r} is no MAC address") from error


def parse(data: bytes, offset: int = 0) -> Attributes:
    """The attributes from an offset on; of duplicates the last, as ``nla_parse`` does."""
    found: Attributes = {}
    end = len(data)
    while offset + 4 <= end:
        length, number = _unpack(data, offset)
        if length < 4 or offset + length > end:
            break
        found[number & NLA_TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def parse_list(data: bytes) -> Iterator[bytes]:
    """The payloads of attributes that stand one after the other, whatever their numbers."""
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length = _unpack(data, offset)[0]
        if length < 4 or offset + length > end:
            return
        yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def get_int(found: Attributes, number: int) -> int:
    """An integer in the machine's byte order (the first four bytes), 0 where it is missing."""
    return int.from_bytes(found.get(number, b"")[:4], byteorder)


def get_string(found: Attributes, number: int) -> str:
    """A string, "" where it is missing."""
    return found.get(number, b"").split(b"\0", 1)[0].decode("utf-8", "replace")
