"""Elements of weft's sets and maps, looked up by their keys in some microseconds each, or listed.

``nft get element`` fetches every element of the table first (80 ms for 10,000) and answers for none
where one is missing. Here each key is a request of its own, and many leave in one datagram.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from weft.kernel.netlink.attributes import Attributes, attribute, nested, parse, parse_list, string
from weft.kernel.netlink.constants import (
    NF_ACCEPT,
    NF_DROP,
    NFT_GOTO,
    NFT_JUMP,
    NFT_MSG_GETSETELEM,
    NFT_RETURN,
    NFT_SET_ELEM_INTERVAL_END,
    NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT,
    NFTA_LIST_ELEM,
    NFTA_SET_ELEM_DATA,
    NFTA_SET_ELEM_FLAGS,
    NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_KEY_END,
    NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE,
    NFTA_SET_ELEM_USERDATA,
    NFTA_VERDICT_CHAIN,
    NFTA_VERDICT_CODE,
    NFTNL_UDATA_SET_ELEM_COMMENT,
)
from weft.kernel.nft.limits import of_element
from weft.kernel.nft.socket import NftSocket
from weft.kernel.nft.text import PROTOCOLS, Entry, own_mark
from weft.kernel.schema import Shape
from weft.kernel.values import Element, Scalar

_VERDICTS = {NF_DROP: "drop", NF_ACCEPT: "accept", NFT_JUMP: "jump", NFT_GOTO: "goto", NFT_RETURN: "return"}
LENGTHS = {
    "ipv4_addr": 4,
    "ipv6_addr": 16,
    "inet_proto": 1,
    "inet_service": 2,
    "mark": 4,
    "classid": 4,
    "integer": 4,
    "ifname": 16,
    "ether_addr": 6,
}
_HOST_ORDER = ("mark", "classid", "integer")
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


def look_up(nft_socket: NftSocket, sought: list[tuple[Shape, tuple[Scalar, ...]]]) -> list[Element | None]:
    """The element under each key (in a set of intervals: over it), None where there is none.

    The keys must have been rendered before, which checks their types. A set of plain intervals has
    no such keys.
    """
    found = nft_socket.get(NFT_MSG_GETSETELEM, [_request(shape, keys(shape, key)) for shape, key in sought])
    return [None if one is None else _element(one, shape) for one, (shape, _) in zip(found, sought, strict=True)]


def same(
    nft_socket: NftSocket, sought: list[tuple[Shape, Element]], equal: Callable[[Element, Element], bool]
) -> list[bool]:
    """Whether each element is there; ``equal`` compares those that have more than a key and a mark.

    Of the others the kernel's bytes are compared: decoded, each takes three times as long.
    """
    packed_keys = [keys(shape, one.key) for shape, one in sought]
    requests = [_request(shape, key) for (shape, _), key in zip(sought, packed_keys, strict=True)]
    found = nft_socket.get(NFT_MSG_GETSETELEM, requests)

    def is_same(answer: Attributes, shape: Shape, one: Element, key: bytes) -> bool:
        if shape.data or shape.limit:
            return equal(one, _element(answer, shape))
        return _bears(answer, shape, key, one.mark)

    return [
        answer is not None and is_same(answer, *each, key)
        for answer, each, key in zip(found, sought, packed_keys, strict=True)
    ]


def is_plain(shape: Shape) -> bool:
    """Whether it is a set of plain intervals, which has beginnings and ends and no keys."""
    return "interval" in shape.flags and len(shape.key) == 1


def keys(shape: Shape, key: tuple[Scalar, ...]) -> bytes:
    """A key as attributes; in a set of intervals its first and its last value."""
    if "interval" in shape.flags:
        return _interval(packed(key, shape.key), packed(key, shape.key, -1))
    return nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, packed(key, shape.key)))


def _interval(first: bytes, last: bytes) -> bytes:
    end = nested(NFTA_SET_ELEM_KEY_END, attribute(NFTA_DATA_VALUE, last))
    return nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, first)) + end


def comment(mark: str) -> bytes:
    """A mark as nftables keeps comments: kind 0, length, text with its zero (libnftnl's
    ``udata.h``).
    """
    data = mark.encode("ascii") + b"\0"
    return bytes((NFTNL_UDATA_SET_ELEM_COMMENT, len(data))) + data


def owned(nft_socket: NftSocket, sought: list[tuple[Shape, bytes, str]]) -> list[bool]:
    """For each key (as ``keys`` packs it), whether its element has exactly that key and the mark."""
    found = nft_socket.get(NFT_MSG_GETSETELEM, [_request(shape, key) for shape, key, _ in sought])
    return [
        one is not None and _bears(one, shape, key, mark) for one, (shape, key, mark) in zip(found, sought, strict=True)
    ]


def _bears(answer: Attributes, shape: Shape, key: bytes, mark: str) -> bool:
    found = parse(parse(answer[NFTA_SET_ELEM_LIST_ELEMENTS])[NFTA_LIST_ELEM])
    if found.get(NFTA_SET_ELEM_USERDATA) != comment(mark):
        return False
    if "interval" not in shape.flags:
        return True
    first = found[NFTA_SET_ELEM_KEY]
    last = found.get(NFTA_SET_ELEM_KEY_END, first)
    return key == _interval(parse(first)[NFTA_DATA_VALUE], parse(last)[NFTA_DATA_VALUE])


def _request(shape: Shape, key: bytes) -> tuple[str, tuple[bytes, ...]]:
    family, table = shape.table.split()
    return family, (
        string(NFTA_SET_ELEM_LIST_TABLE, table),
        string(NFTA_SET_ELEM_LIST_SET, shape.name),
        nested(NFTA_SET_ELEM_LIST_ELEMENTS, nested(NFTA_LIST_ELEM, key)),
    )


def packed(parts: tuple[Scalar, ...], types: tuple[str, ...], end: int = 0) -> bytes:
    """A key in the kernel's format: parts in network order; in a concatenation, padded to words."""
    values = [_part(part, name, end) for part, name in zip(parts, types, strict=True)]
    return values[0] if len(values) == 1 else b"".join(value + b"\0" * (-len(value) % 4) for value in values)


def _part(part: Scalar, name: str, end: int) -> bytes:
    if isinstance(part, (IPv4Network, IPv6Network)):
        return part[end].packed
    if isinstance(part, str):
        if name == "ether_addr":
            return bytes.fromhex(part.replace(":", ""))
        return bytes([PROTOCOLS[part]]) if name == "inet_proto" else part.encode("ascii").ljust(LENGTHS[name], b"\0")
    if isinstance(part, int):
        return part.to_bytes(_length(name), sys.byteorder if name in _HOST_ORDER else "big")
    return part.packed


def dump(nft_socket: NftSocket, shape: Shape) -> list[Entry]:
    """All elements of a set or map.

    Raises Missing, and Busy where the rules change during every attempt.

    The kernel says where its answer ends, so an empty list means an empty set. *Equivalent to:*
    ``nft list set``.
    """
    return entries(raw_lists(nft_socket, shape), shape)


def raw_lists(nft_socket: NftSocket, shape: Shape) -> list[bytes]:
    """All elements of a set or map as the kernel lists them, some thousands in each of the lists (``parse_list``)."""
    family, request = _list_request(shape)
    return [answer[NFTA_SET_ELEM_LIST_ELEMENTS] for answer in nft_socket.get_all(NFT_MSG_GETSETELEM, family, *request)]


def mark_digests(raw: Iterable[bytes]) -> frozenset[str]:
    """The digests of the marks in the comments of elements (``raw_lists``)."""
    return frozenset(digest.decode("ascii") for each in raw for digest in _MARK.findall(each))


_MARK = re.compile(rb"weft:([0-9a-f]{16})")
"""A mark (``identity.mark``), which is longer than the name of a link can be, the other text of elements."""


def _list_request(shape: Shape) -> tuple[str, tuple[bytes, ...]]:
    """What asks for all elements of a set: its family, and attributes."""
    family, table = shape.table.split()
    return family, (string(NFTA_SET_ELEM_LIST_TABLE, table), string(NFTA_SET_ELEM_LIST_SET, shape.name))


def entries(raw: Iterable[bytes], shape: Shape) -> list[Entry]:
    """The elements of ``raw_lists``."""
    found = [parse(item) for each in raw for item in parse_list(each)]
    if is_plain(shape):
        return list(_intervals(found, shape))
    return [_entry(one, shape) for one in found]


def readable(shape: Shape) -> bool:
    """Whether the types of all parts are known; not of numbers that the kernel has computed."""
    parts = [name for name in (*shape.key, *shape.data) if name != "verdict"]
    return "dynamic" not in shape.flags and all(name in LENGTHS or name.startswith("bits") for name in parts)


def element(entry: Entry, shape: Shape) -> Element:
    """With its mark, "" where the comment is none of weft's."""
    return Element(shape.name, entry.key, entry.data, own_mark(entry.comment), entry.limit)


def _element(answer: Attributes, shape: Shape) -> Element:
    return element(_entry(parse(parse(answer[NFTA_SET_ELEM_LIST_ELEMENTS])[NFTA_LIST_ELEM]), shape), shape)


def _entry(found: Attributes, shape: Shape) -> Entry:
    first = parse(found[NFTA_SET_ELEM_KEY])[NFTA_DATA_VALUE]
    last = parse(found[NFTA_SET_ELEM_KEY_END])[NFTA_DATA_VALUE] if NFTA_SET_ELEM_KEY_END in found else first
    data = parse(found[NFTA_SET_ELEM_DATA]) if shape.data else {}
    if shape.data == ("verdict",):
        return Entry(_values(first, last, shape.key), (_verdict(data),), _comment(found))
    limit, exceeded = of_element(found) if shape.limit else ((), 0)
    return Entry(
        _values(first, last, shape.key),
        _values(data.get(NFTA_DATA_VALUE, b""), data.get(NFTA_DATA_VALUE, b""), shape.data),
        _comment(found),
        limit,
        exceeded,
    )


def _verdict(data: Attributes) -> str:
    found = parse(data[NFTA_DATA_VERDICT])
    code = int.from_bytes(found[NFTA_VERDICT_CODE], "big", signed=True)
    chain = found.get(NFTA_VERDICT_CHAIN, b"").rstrip(b"\0").decode("utf-8", "replace")
    return f"{_VERDICTS.get(code, code)} {chain}".rstrip()


def _comment(found: Attributes) -> str:
    data = found.get(NFTA_SET_ELEM_USERDATA, b"\0\0")
    return (
        data[2 : 2 + data[1]].rstrip(b"\0").decode("utf-8", "replace")
        if data[0] == NFTNL_UDATA_SET_ELEM_COMMENT
        else ""
    )


def _intervals(found: list[Attributes], shape: Shape) -> Iterator[Entry]:
    """A set of plain intervals holds where each begins and, flagged, the first value behind it, if
    there is one.
    """
    (name,) = shape.key
    size = _length(name)
    bounds = []
    for number, one in enumerate(found):
        bound = int.from_bytes(parse(one[NFTA_SET_ELEM_KEY])[NFTA_DATA_VALUE], "big")
        ends_there = one.get(NFTA_SET_ELEM_FLAGS, b"\0")[-1] & NFT_SET_ELEM_INTERVAL_END
        bounds.append((bound, not ends_there, number))
    bounds.sort()
    for place, (first, begins, number) in enumerate(bounds):
        if begins:
            behind = bounds[place + 1][0] if place + 1 < len(bounds) else 1 << 8 * size
            ends = first.to_bytes(size, "big"), (behind - 1).to_bytes(size, "big")
            yield Entry((_value(*ends, name),), (), _comment(found[number]))


def _values(first: bytes, last: bytes, types: tuple[str, ...]) -> tuple[Scalar, ...]:
    values: list[Scalar] = []
    place = 0
    for name in types:
        here = slice(place, place + _length(name))
        values.append(_value(first[here], last[here], name))
        place += (_length(name) + 3) & ~3
    return tuple(values)


def _length(name: str) -> int:
    """The bytes that a value of the type has."""
    return int(name[4:]) // 8 if name.startswith("bits") else LENGTHS[name]


def _value(first: bytes, last: bytes, name: str) -> Scalar:
    if name in ("ipv4_addr", "ipv6_addr"):
        if first == last:
            return ip_address(first)
        low, high = ip_address(first), ip_address(last)
        bits = (int(low) ^ int(high)).bit_length()
        subnet = ip_network((first, len(first) * 8 - bits), strict=False)
        return subnet if (subnet[0], subnet[-1]) == (low, high) else f"{low}-{high}"
    if name == "inet_proto":
        return _PROTOCOL_NAMES.get(first[0], str(first[0]))
    if name == "ifname":
        return first.rstrip(b"\0").decode("utf-8", "replace")
    if name == "ether_addr":
        return first.hex(":")
    return int.from_bytes(first, sys.byteorder if name in _HOST_ORDER else "big")
