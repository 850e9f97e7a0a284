"""The limit that each element of some sets has for itself, with a counter of what exceeded it.

A packet matches such an element only beyond its limit: ``iifname @limited drop`` drops what is too
much of each link. Source: nft(8), ``linux/netfilter/nf_tables.h``, ``net/netfilter/nft_limit.c``.
"""

from __future__ import annotations

from weft.errors import KernelRefused
from weft.kernel.netlink.attributes import Attributes, attribute, nested, parse, parse_list, string
from weft.kernel.netlink.constants import (
    NFT_CONNLIMIT_F_INV,
    NFT_LIMIT_F_INV,
    NFT_LIMIT_PKTS,
    NFTA_CONNLIMIT_COUNT,
    NFTA_CONNLIMIT_FLAGS,
    NFTA_COUNTER_BYTES,
    NFTA_COUNTER_PACKETS,
    NFTA_EXPR_DATA,
    NFTA_EXPR_NAME,
    NFTA_LIMIT_BURST,
    NFTA_LIMIT_FLAGS,
    NFTA_LIMIT_RATE,
    NFTA_LIMIT_TYPE,
    NFTA_LIMIT_UNIT,
    NFTA_LIST_ELEM,
    NFTA_SET_ELEM_EXPR,
    NFTA_SET_ELEM_EXPRESSIONS,
)

_NUMBERS = {"limit": 2, "connlimit": 1}
_LARGEST = 0xFFFFFFFF


def checked_limit(kind: str, numbers: tuple[int, ...], collection: str) -> None:
    """Raises KernelRefused where the numbers are not those of this kind of limit ("": none)."""
    fits = all(type(one) is int and 0 < one <= _LARGEST for one in numbers)
    if not fits or len(numbers) != _NUMBERS.get(kind, 0):
        raise KernelRefused(f"{numbers!r} cannot be the limit of an element of {collection}")


def expressions(kind: str, numbers: tuple[int, ...]) -> bytes:
    """The attribute of an element that holds its limit and its counter."""
    if kind == "limit":
        rate, burst = numbers
        found: tuple[bytes, ...] = (
            _number(NFTA_LIMIT_RATE, rate, 8),
            _number(NFTA_LIMIT_UNIT, 1, 8),
            _number(NFTA_LIMIT_BURST, burst),
            _number(NFTA_LIMIT_TYPE, NFT_LIMIT_PKTS),
            _number(NFTA_LIMIT_FLAGS, NFT_LIMIT_F_INV),
        )
    else:
        found = _number(NFTA_CONNLIMIT_COUNT, numbers[0]), _number(NFTA_CONNLIMIT_FLAGS, NFT_CONNLIMIT_F_INV)
    counter = _number(NFTA_COUNTER_BYTES, 0, 8), _number(NFTA_COUNTER_PACKETS, 0, 8)
    return nested(NFTA_SET_ELEM_EXPRESSIONS, _expression(kind, *found), _expression("counter", *counter))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(NFTA_LIST_ELEM, string(NFTA_EXPR_NAME, name), nested(NFTA_EXPR_DATA, *attributes))


def _number(kind: int, value: int, size: int = 4) -> bytes:
    return attribute(kind, value.to_bytes(size, "big"))


def of_element(found: Attributes) -> tuple[tuple[int, ...], int]:
    """The limit of an element as the kernel lists it, () for none, and its counter of packets."""
    limit: tuple[int, ...] = ()
    packets = 0
    listed = found.get(NFTA_SET_ELEM_EXPRESSIONS)
    items = list(parse_list(listed)) if listed is not None else [found.get(NFTA_SET_ELEM_EXPR, b"")]
    for item in items:
        expression = parse(item)
        data = parse(expression.get(NFTA_EXPR_DATA, b""))
        match expression.get(NFTA_EXPR_NAME, b"").rstrip(b"\0"):
            case b"limit":
                limit = tuple(int.from_bytes(data[kind], "big") for kind in (NFTA_LIMIT_RATE, NFTA_LIMIT_BURST))
            case b"connlimit":
                limit = (int.from_bytes(data[NFTA_CONNLIMIT_COUNT], "big"),)
            case b"counter":
                packets = int.from_bytes(data[NFTA_COUNTER_PACKETS], "big")
    return limit, packets
