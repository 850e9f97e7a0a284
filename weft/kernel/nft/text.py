"""nftables' language, as little of it as weft needs: the types of sets, and their elements.

A part of a packet that nftables has no word for (``@th,64,128``) is a number of so many bits to it, and to us.

The same reader serves the base rules and what ``nft list`` prints. Text and not JSON: libnftables may be
built without JSON, and its ``get element`` prints text even when asked for JSON (1.0.6). Source: nft(8).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from weft.errors import Conflict, KernelRefused
from weft.identity import link_name_problem
from weft.kernel.interface import Element, Scalar

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_PROTOCOL_NAMES = {str(number): name for name, number in PROTOCOLS.items()}
_FAMILIES: dict[str, tuple[type, type]] = {
    "ipv4_addr": (IPv4Address, IPv4Network),
    "ipv6_addr": (IPv6Address, IPv6Network),
}
_NUMBERS = {"inet_service": 0xFFFF, "mark": 0xFFFFFFFF}
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_BITS = re.compile(r"@[a-z]+,[0-9]+,([0-9]+)")
_TABLE = re.compile(r"^table (\S+ weft) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_COLLECTION = re.compile(r"[a-z][a-z0-9_]{0,30}")
_MARK = re.compile(r"weft:[0-9a-f]{16}(?::[A-Za-z0-9_./ -]{0,90})?")
_DECLARATION = re.compile(r"^\s*(?:set|map)\s+(\S+)\s*\{([^{}]*)\}", re.MULTILINE)
# Compiled where used: an ADD reads no elements, and each would cost it half a millisecond.
_ELEMENTS = r'\belements = \{((?:[^}"]+|"[^"]*")*)\}'
_TOKEN = r'"[^"]*"|,|[^\s,"]+'


@dataclass(frozen=True, slots=True)
class Shape:
    """What a set or map holds: the types of its key's parts, and of its data's (none: it is a set).

    ``bits64`` is a type of weft's own: a number of 64 bits. ``table`` is the family and the name of its table.
    """

    name: str
    key: tuple[str, ...]
    data: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    table: str = "inet weft"

    @property
    def kind(self) -> str:
        return "map" if self.data else "set"


def checked(element: Element) -> Element:
    """The element, if no part of it could be anything but one value; raises KernelRefused otherwise.

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
    """A key or data as nft reads it: ``6 . 8080``. Raises KernelRefused where a part is not of its type."""
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
    """``VERB element inet weft NAME { KEY comment "MARK" : DATA, … }`` for each collection; "create" or "delete"."""
    grouped: dict[str, tuple[Shape, list[str]]] = {}
    for shape, element in elements:
        text = rendered(element.key, shape.key, shape)
        if verb == "create":
            text += f' comment "{element.mark}"'
            text += f" : {rendered(element.data, shape.data, shape)}" if shape.data else ""
        grouped.setdefault(shape.name, (shape, []))[1].append(text)
    return "".join(
        f"{verb} element {shape.table} {shape.name} {{ {', '.join(texts)} }}\n" for shape, texts in grouped.values()
    )


def normal(parts: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    """The parts as a listing gives them back: a network of one address is that address."""
    return tuple(
        part.network_address
        if isinstance(part, (IPv4Network, IPv6Network)) and part.prefixlen == part.max_prefixlen
        else part
        for part in parts
    )


def conflict(element: Element, there: Element) -> Conflict:
    """What to raise where an element's key is another's already, or lies within another's interval."""
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


def elements_in(listing: str, shape: Shape) -> tuple[Element, ...]:
    """The elements that ``nft list set`` printed; ``mark`` is "" where it is none of weft's."""
    found = re.search(_ELEMENTS, listing)
    return tuple(_element(tokens, shape) for tokens in _split(found.group(1), ",")) if found else ()


def _element(tokens: list[str], shape: Shape) -> Element:
    """One element: key, attributes such as ``comment "…"``, and for a map a lone colon and the data."""
    parts = list(_split_list(tokens, ":")) if shape.data else [tokens]
    length = 2 * len(shape.key) - 1
    comment = parts[0].index("comment") if "comment" in parts[0] else -1
    mark = parts[0][comment + 1].strip('"') if comment >= 0 else ""
    return Element(
        shape.name,
        _values(parts[0][:length:2], shape.key),
        _values(parts[1][::2], shape.data) if shape.data else (),
        own_mark(mark),
    )


def _values(tokens: list[str], types: tuple[str, ...]) -> tuple[Scalar, ...]:
    return tuple(_value(token.strip('"'), name) for token, name in zip(tokens, types, strict=True))


def _value(text: str, name: str) -> Scalar:
    if name in _FAMILIES:
        try:
            return ip_network(text) if "/" in text else ip_address(text)
        except ValueError:
            return text  # a range: somebody else's, since weft writes none
    if name == "inet_proto":
        return _PROTOCOL_NAMES.get(text, text)
    if name in _NUMBERS or name.startswith("bits"):
        return int(text, 0) if re.fullmatch(r"0x[0-9a-f]+|\d+", text) else text
    return text


def _split(text: str, separator: str) -> Iterator[list[str]]:
    return _split_list(re.findall(_TOKEN, text), separator)


def _split_list(tokens: list[str], separator: str) -> Iterator[list[str]]:
    part: list[str] = []
    for token in tokens:
        if token == separator:
            yield part
            part = []
        else:
            part.append(token)
    if part:
        yield part


def shapes(text: str) -> dict[str, Shape]:
    """The sets and maps that a base or a terse listing declares in weft's tables, by name."""
    return dict(_shapes(text))


@lru_cache(4)
def _shapes(text: str) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for table, content in _TABLE.findall(text):
        for name, body in _DECLARATION.findall(content):
            statements = [part.strip() for part in re.split("[;\n]", body)]
            declared = next((part.partition(" ")[2] for part in statements if part.startswith("type")), "")
            flags = next((part[6:] for part in statements if part.startswith("flags ")), "")
            key, _, data = declared.partition(" : ")
            found[name] = Shape(
                name,
                tuple(_type(part.strip()) for part in key.split(" . ")),
                tuple(_type(part.strip()) for part in data.split(" . ") if part.strip()),
                tuple(sorted(part.strip() for part in flags.split(",") if part.strip())),
                table,
            )
    return found


def _type(word: str) -> str:
    """A type's name, also where a set declares it by an expression (``typeof iifname . @th,64,128``)."""
    bits = _BITS.fullmatch(word)
    return f"bits{bits.group(1)}" if bits else "ifname" if word == "iifname" else word
