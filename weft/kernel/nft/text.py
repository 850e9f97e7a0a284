"""Elements of sets and maps in the syntax of nft, which weft writes and never parses.

A part of a packet that nftables has no word for (``@th,64,128``) is a number of so many bits to it,
and to us. Source: nft(8).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from weft.errors import Conflict, KernelRefused
from weft.identity import link_name_problem
from weft.kernel.canonical import normal
from weft.kernel.schema import Shape, limit_text
from weft.kernel.values import Element, Scalar

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_FAMILIES: dict[str, tuple[type, type]] = {
    "ipv4_addr": (IPv4Address, IPv4Network),
    "ipv6_addr": (IPv6Address, IPv6Network),
}
_NUMBERS = {"inet_service": 0xFFFF, "mark": 0xFFFFFFFF, "classid": 0xFFFFFFFF, "integer": 0xFFFFFFFF}
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_COLLECTION = re.compile(r"[a-z][a-z0-9_]{0,30}")
_PLAIN = re.compile(r"[0-9a-f.:/-]+")
_MARK = re.compile(r"weft:[0-9a-f]{16}(?::[A-Za-z0-9_./ -]{0,90})?")


@dataclass(frozen=True, slots=True)
class Entry:
    """An element read from the kernel. An interval that is no subnet is text: "10.0.0.1-10.0.0.9"."""

    key: tuple[Scalar, ...]
    data: tuple[Scalar, ...] = ()
    comment: str = ""
    limit: tuple[int, ...] = ()
    exceeded: int = 0


def checked(element: Element) -> Element:
    """The element, if no part of it could be anything but one value; raises KernelRefused
    otherwise.

    Needs no knowledge of the collection, so it comes before anything is run.
    """
    if not isinstance(element.collection, str) or not _COLLECTION.fullmatch(element.collection):
        raise KernelRefused(f"{element.collection!r} is no name of a set or map")
    if not isinstance(element.mark, str) or not _MARK.fullmatch(element.mark):
        raise KernelRefused(f"{element.mark!r} is no mark of weft's, so {element.collection} cannot hold it")
    for part in (*element.key, *element.data):
        if type(part) not in (IPv4Address, IPv6Address, IPv4Network, IPv6Network, int, str):
            raise KernelRefused(f"{part!r} cannot be part of an element of {element.collection}")
        if isinstance(part, (IPv6Address, IPv6Network)) and "%" in str(part):
            raise KernelRefused(f"{part} has a scope, which {element.collection} cannot hold")
        if isinstance(part, str) and link_name_problem(part) and not _MAC.fullmatch(part):
            raise KernelRefused(f"{part!r} {link_name_problem(part)}, so {element.collection} cannot hold it")
    return element


def rendered(parts: tuple[Scalar, ...], types: tuple[str, ...], shape: Shape) -> str:
    """A key or data as nft reads it: ``6 . 8080``. Raises KernelRefused where a part is not of its
    type.
    """
    if len(parts) != len(types):
        raise KernelRefused(f"{shape.name} takes {len(types)} parts ({' . '.join(types)}), not {len(parts)}")
    return " . ".join(_part(part, name, shape) for part, name in zip(parts, types, strict=True))


def _part(part: Scalar, name: str, shape: Shape) -> str:
    if name in _FAMILIES:
        address, network = _FAMILIES[name]
        if isinstance(part, address):
            return str(part)
        if isinstance(part, (IPv4Network, IPv6Network)) and isinstance(part, network) and "interval" in shape.flags:
            return str(part.network_address) if part.prefixlen == part.max_prefixlen else str(part)
    elif name == "inet_proto" and isinstance(part, str) and part in PROTOCOLS:
        return str(PROTOCOLS[part])
    elif name in _NUMBERS and type(part) is int and 0 <= part <= _NUMBERS[name]:
        return str(part)
    elif name == "ether_addr" and isinstance(part, str) and _MAC.fullmatch(part):
        return part
    elif name.startswith("bits") and type(part) is int and 0 <= part < 1 << int(name[4:]):
        return hex(part)
    elif name == "ifname" and isinstance(part, str) and not link_name_problem(part):
        return f'"{part}"'
    raise KernelRefused(f"{part!r} cannot be in {shape.name}, which takes {name} there")


def commands(verb: str, elements: Iterable[tuple[Shape, Element]]) -> str:
    """``VERB element inet weft NAME { KEY comment "MARK" : DATA, … }`` for each collection;
    "create" or "delete".
    """
    grouped: dict[str, tuple[Shape, list[str]]] = {}
    for shape, element in elements:
        text = rendered(element.key, shape.key, shape)
        if verb == "create":
            text += f" {limit_text(shape.limit, element.limit)}" if shape.limit and element.limit else ""
            text += f' comment "{element.mark}"'
            text += f" : {rendered(element.data, shape.data, shape)}" if shape.data else ""
        grouped.setdefault(shape.name, (shape, []))[1].append(text)
    return "".join(
        f"{verb} element {shape.table} {shape.name} {{ {', '.join(texts)} }}\n" for shape, texts in grouped.values()
    )


def copies(shape: Shape, entries: Iterable[Entry]) -> list[str]:
    """``add element …`` for elements read from a set, also those of other programs; what nft cannot
    parse is left out.
    """
    texts: list[str] = []
    for entry in entries:
        with suppress(KernelRefused):
            text = " . ".join(_copied(part, name, shape) for part, name in zip(entry.key, shape.key, strict=True))
            text += f" {limit_text(shape.limit, entry.limit)}" if shape.limit and entry.limit else ""
            if entry.comment and entry.comment.isprintable() and '"' not in entry.comment:
                text += f' comment "{entry.comment}"'
            if shape.data:
                data = zip(entry.data, shape.data, strict=True)
                text += f" : {' . '.join(_copied(part, name, shape) for part, name in data)}"
            texts.append(text)
    return [f"add element {shape.table} {shape.name} {{ {', '.join(texts)} }}\n"] if texts else []


def _copied(part: Scalar, name: str, shape: Shape) -> str:
    """A part as nft reads it: also what weft itself never writes, a range or a protocol's number."""
    if isinstance(part, str) and (name == "verdict" or _PLAIN.fullmatch(part)) and name not in ("ifname", "ether_addr"):
        return part
    return _part(part, name, shape)


def conflict(element: Element, there: Element) -> Conflict:
    """The error for a key that has another owner, or lies within the interval of one."""
    mine, key, data = (" . ".join(map(str, parts)) for parts in (element.key, there.key, there.data))
    over = "" if normal(there.key) == normal(element.key) else f" lies within {key}, which"
    owner = there.mark or "somebody without a mark"
    return Conflict(
        f"{mine} in {element.collection}{over} belongs to {owner}, not to {element.mark}",
        hint=f"it leads to {data} already" if data else "",
    )


def own_mark(comment: str) -> str:
    """The comment if it is a mark of weft's, else ""."""
    return comment if _MARK.fullmatch(comment) else ""
