"""Elements of weft's sets and maps as netlink messages, for transactions that read nothing first.

The same bytes as nftables writes, so that it lists them as its own: parts in network order, of a
concatenation each padded to four bytes, the mark as a comment. Source:
``linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.kernel.netlink.attributes import attribute, nested, string
from weft.kernel.netlink.constants import (
    NFT_MSG_DELSETELEM,
    NFT_MSG_NEWSETELEM,
    NFTA_DATA_VALUE,
    NFTA_LIST_ELEM,
    NFTA_SET_ELEM_DATA,
    NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE,
    NFTA_SET_ELEM_USERDATA,
    NLM_F_CREATE,
    NLM_F_EXCL,
)
from weft.kernel.nft.limits import expressions
from weft.kernel.nft.lookup import comment, keys, packed
from weft.kernel.nft.socket import Change
from weft.kernel.schema import Shape
from weft.kernel.values import Element

_MAX_ELEMENTS = 200  # elements in one message: an attribute's length has 16 bits, an element takes up to 300 bytes


def writable(shape: Shape) -> bool:
    """Whether elements can be written here: a set of plain intervals holds beginnings and ends
    instead of keys.
    """
    return "interval" not in shape.flags or len(shape.key) > 1


def creations(elements: Iterable[tuple[Shape, Element]]) -> list[Change]:
    """What adds the elements and refuses one that is there.

    Their types have been checked (``rendered``).
    """
    given = ((shape, _pack(shape, element)) for shape, element in elements)
    return _changes(NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, given)


def deletions(sought: Iterable[tuple[Shape, bytes]]) -> list[Change]:
    """What deletes the elements under the keys (as ``lookup.keys`` gives them) and refuses one that
    is missing.
    """
    return _changes(NFT_MSG_DELSETELEM, 0, sought)


def _changes(kind: int, flags: int, items: Iterable[tuple[Shape, bytes]]) -> list[Change]:
    """A message for each set, or several where it takes many elements."""
    grouped: dict[str, tuple[Shape, list[bytes]]] = {}
    for shape, item in items:
        grouped.setdefault(shape.name, (shape, []))[1].append(nested(NFTA_LIST_ELEM, item))
    changes: list[Change] = []
    for shape, found in grouped.values():
        family, table = shape.table.split()
        place = string(NFTA_SET_ELEM_LIST_TABLE, table), string(NFTA_SET_ELEM_LIST_SET, shape.name)
        for first in range(0, len(found), _MAX_ELEMENTS):
            listed = nested(NFTA_SET_ELEM_LIST_ELEMENTS, *found[first : first + _MAX_ELEMENTS])
            changes.append((kind, flags, family, (*place, listed)))
    return changes


def _pack(shape: Shape, element: Element) -> bytes:
    found = keys(shape, element.key) + attribute(NFTA_SET_ELEM_USERDATA, comment(element.mark))
    if shape.limit:
        found += expressions(shape.limit, element.limit)
    if not shape.data:
        return found
    return found + nested(NFTA_SET_ELEM_DATA, attribute(NFTA_DATA_VALUE, packed(element.data, shape.data)))
