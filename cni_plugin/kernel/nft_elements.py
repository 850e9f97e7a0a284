"""Elements of weft's sets and maps as netlink messages, for transactions that read nothing first.

The same bytes as nftables writes, so that it lists them as its own: parts in network order, of a concatenation each
padded to four bytes, the mark as a comment. Sources: ``linux/netfilter/nf_tables.h``, libnftnl's ``udata.h``.
"""

from __future__ import annotations

from collections.abc import Iterable

from cni_plugin.kernel import Element
from cni_plugin.kernel.nft_lookup import packed
from cni_plugin.kernel.nft_netlink import Change, attribute, nested, text
from cni_plugin.kernel.nft_text import Shape

_NEW, _DELETE = 12, 14
_CREATE, _EXCLUSIVE = 0x400, 0x200
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_ITEM = 1
_KEY, _DATA, _COMMENT, _KEY_END = 1, 2, 6, 10
_VALUE = 1
_MOST = 200  # elements in one message: an attribute's length has 16 bits, an element takes up to 300 bytes


def writable(shape: Shape) -> bool:
    """Whether elements can be written here: a set of plain intervals holds beginnings and ends instead of keys."""
    return "interval" not in shape.flags or len(shape.key) > 1


def creations(elements: Iterable[tuple[Shape, Element]]) -> list[Change]:
    """What adds the elements and refuses one that is there. Their types have been checked (``rendered``)."""
    return _changes(_NEW, _CREATE | _EXCLUSIVE, ((shape, _whole(shape, element)) for shape, element in elements))


def deletions(elements: Iterable[tuple[Shape, Element]]) -> list[Change]:
    """What deletes the elements by their keys and refuses one that is not there."""
    return _changes(_DELETE, 0, ((shape, b"".join(_keys(shape, element))) for shape, element in elements))


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


def _keys(shape: Shape, element: Element) -> list[bytes]:
    keys = [nested(_KEY, attribute(_VALUE, packed(element.key, shape.key)))]
    if "interval" in shape.flags:
        keys.append(nested(_KEY_END, attribute(_VALUE, packed(element.key, shape.key, -1))))
    return keys


def _whole(shape: Shape, element: Element) -> bytes:
    comment = element.mark.encode("ascii") + b"\0"
    parts = [*_keys(shape, element), attribute(_COMMENT, bytes((0, len(comment))) + comment)]
    if shape.data:
        parts.append(nested(_DATA, attribute(_VALUE, packed(element.data, shape.data))))
    return b"".join(parts)
