"""Elements of weft's sets and maps as netlink messages, for transactions that read nothing first.

The same bytes as nftables writes, so that it lists them as its own: parts in network order, of a concatenation each
padded to four bytes, the mark as a comment. Source: ``linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.kernel.interface import Element
from weft.kernel.nft.lookup import comment, keys, packed
from weft.kernel.nft.socket import Change, attribute, nested, text
from weft.kernel.schema import Shape

_NEW, _DELETE = 12, 14
_CREATE, _EXCLUSIVE = 0x400, 0x200
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_ITEM = 1
_DATA, _COMMENT = 2, 6
_VALUE = 1
_MOST = 200  # elements in one message: an attribute's length has 16 bits, an element takes up to 300 bytes


def writable(shape: Shape) -> bool:
    """Whether elements can be written here: a set of plain intervals holds beginnings and ends instead of keys."""
    return "interval" not in shape.flags or len(shape.key) > 1


def creations(elements: Iterable[tuple[Shape, Element]]) -> list[Change]:
    """What adds the elements and refuses one that is there. Their types have been checked (``rendered``)."""
    return _changes(_NEW, _CREATE | _EXCLUSIVE, ((shape, _whole(shape, element)) for shape, element in elements))


def deletions(sought: Iterable[tuple[Shape, bytes]]) -> list[Change]:
    """What deletes the elements under the keys (as ``nft_lookup.keys`` gives them) and refuses one that is missing."""
    return _changes(_DELETE, 0, sought)


def _changes(kind: int, flags: int, items: Iterable[tuple[Shape, bytes]]) -> list[Change]:
    """A message for each set, or several where it takes many elements."""
    grouped: dict[str, tuple[Shape, list[bytes]]] = {}
    for shape, item in items:
        grouped.setdefault(shape.name, (shape, []))[1].append(nested(_ITEM, item))
    changes: list[Change] = []
    for shape, found in grouped.values():
        family, table = shape.table.split()
        place = text(_TABLE, table), text(_SET, shape.name)
        for first in range(0, len(found), _MOST):
            changes.append((kind, flags, family, (*place, nested(_ELEMENTS, *found[first : first + _MOST]))))
    return changes


def _whole(shape: Shape, element: Element) -> bytes:
    found = keys(shape, element.key) + attribute(_COMMENT, comment(element.mark))
    return found + nested(_DATA, attribute(_VALUE, packed(element.data, shape.data))) if shape.data else found
