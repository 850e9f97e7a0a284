"""The elements of weft's sets, each set listed once and compared as bytes: for a look at every attachment.

An attachment has a dozen elements: to look up each by itself, and to make a value of each that is listed,
would be most of the time of ``weft check``. Only what is not found like this is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Protocol, TypeVar, cast

from weft.kernel.interface import Ruleset
from weft.kernel.netlink.attributes import NLATTR, Attributes, attribute, nested, parse, parse_list
from weft.kernel.netlink.constants import (
    NFTA_DATA_VALUE,
    NFTA_SET_ELEM_DATA,
    NFTA_SET_ELEM_EXPRESSIONS,
    NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_KEY_END,
    NFTA_SET_ELEM_USERDATA,
    NLA_TYPE_MASK,
)
from weft.kernel.nft.elements import writable
from weft.kernel.nft.limits import of_element
from weft.kernel.nft.lookup import comment, mark_digests, packed, raw_lists
from weft.kernel.nft.socket import NftSocket
from weft.kernel.schema import Shape
from weft.kernel.values import Element

T = TypeVar("T")

Held = dict[bytes, bytes]
"""The elements of a set by the bytes of their keys, each to be parsed when it is compared."""


class Sets(Protocol):
    """What is needed of ``Nft``."""

    def shape(self, collection: str) -> Shape | None: ...

    def ask(self, work: Callable[[NftSocket], T]) -> T: ...

    def missing(self, elements: Iterable[Element]) -> tuple[Element, ...]: ...

    def mark_digests(self, collection: str) -> frozenset[str]: ...


class NftOnce:
    """``Nft`` with a ``missing`` and ``mark_digests`` that list; everything else goes to ``Nft``
    (``__getattr__``).
    """

    def __init__(self, nft: Sets) -> None:
        self._nft = nft
        self._raw: dict[str, list[bytes]] = {}
        self._sets: dict[str, tuple[Shape, Held] | None] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._nft, name)

    def missing(self, elements: Iterable[Element]) -> tuple[Element, ...]:
        absent = [one for one in elements if not self._has(one)]
        return self._nft.missing(absent) if absent else ()

    def mark_digests(self, collection: str) -> frozenset[str]:
        shape = self._nft.shape(collection)
        return self._nft.mark_digests(collection) if shape is None else mark_digests(self._lists(shape))

    def once(self) -> Ruleset:
        return cast(Ruleset, self)

    def _has(self, element: Element) -> bool:
        if element.collection not in self._sets:
            self._sets[element.collection] = self._listed(element.collection)
        known = self._sets[element.collection]
        if known is None:
            return False
        shape, held = known
        try:
            item = held.get(_key(shape, element))
            return item is not None and _is(element, parse(item), shape)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            return False  # an element that no set can hold: ``Nft`` says what is wrong with it

    def _listed(self, collection: str) -> tuple[Shape, Held] | None:
        """The set, None if there is none, or one of intervals, which holds their ends instead of keys."""
        shape = self._nft.shape(collection)
        if shape is None or not writable(shape):
            return None
        is_range = "interval" in shape.flags
        held = {_held_key(item, is_range): item for each in self._lists(shape) for item in parse_list(each)}
        return shape, held

    def _lists(self, shape: Shape) -> list[bytes]:
        if shape.name not in self._raw:
            self._raw[shape.name] = self._nft.ask(lambda nft_socket: raw_lists(nft_socket, shape))
        return self._raw[shape.name]


def _held_key(item: bytes, is_range: bool) -> bytes:
    """The key of a listed element, which the kernel puts first, with its end where it is a range."""
    length, number = NLATTR.unpack_from(item)
    if number & NLA_TYPE_MASK == NFTA_SET_ELEM_KEY and not is_range:
        return item[NLATTR.size : length]  # to parse all of it takes four times as long
    found = parse(item)
    return found[NFTA_SET_ELEM_KEY] + found.get(NFTA_SET_ELEM_KEY_END, b"")


def _key(shape: Shape, element: Element) -> bytes:
    first = attribute(NFTA_DATA_VALUE, packed(element.key, shape.key))
    if "interval" not in shape.flags:
        return first
    return first + attribute(NFTA_DATA_VALUE, packed(element.key, shape.key, -1))


def _is(element: Element, found: Attributes, shape: Shape) -> bool:
    """Whether what was found under the element's key is that element."""
    if found.get(NFTA_SET_ELEM_USERDATA) != _comment(element.mark):
        return False
    if shape.data and parse(found[NFTA_SET_ELEM_DATA])[NFTA_DATA_VALUE] != packed(element.data, shape.data):
        return False
    return not shape.limit or _limit(found) == element.limit


_comment = lru_cache(64)(comment)


def _limit(found: Attributes) -> tuple[int, ...]:
    """The limit of an element; its expression is the first, and that of thousands the same."""
    first = next(parse_list(found.get(NFTA_SET_ELEM_EXPRESSIONS, b"")), b"")
    return _parsed(first) or of_element(found)[0]


@lru_cache(64)
def _parsed(expression: bytes) -> tuple[int, ...]:
    return of_element({NFTA_SET_ELEM_EXPRESSIONS: nested(0, expression)})[0]
