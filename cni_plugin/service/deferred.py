"""The long fields of records, decoded when they are first used: the operations are nine tenths of a record,
and who lists attachments, or asks whose an address is, uses none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from cni_plugin.service.codec import spellings

Decoder = Callable[[str, bytes], object]
"""Decodes the text of a field, given its name; None where it cannot be decoded."""


class Deferred:
    """A record some fields of which may be text still: a field without a value is decoded when it is used. One
    that cannot be decoded is ().
    """

    __slots__ = ("_damaged", "_decode", "_deferred")

    if not TYPE_CHECKING:  # for type checkers a class with this method has every attribute

        def __getattr__(self, name: str) -> object:
            if name in Deferred.__slots__ or name not in getattr(self, "_deferred", ()):
                raise AttributeError(f"{type(self).__name__} has no {name}")
            value = self._decode(name, self._deferred[name])
            if value is None:
                object.__setattr__(self, "_damaged", True)
            object.__setattr__(self, name, value or ())
            return value or ()

    def is_whole(self, names: Iterable[str]) -> bool:
        """Decode the fields; whether all could be."""
        for name in names:
            getattr(self, name)
        return not hasattr(self, "_damaged")

    def may_have(self, *names: str) -> bool:
        """Whether the operations have one of these classes or sets, by its name or a former one; True also where
        their text is not kept.
        """
        text = getattr(self, "_deferred", {}).get("operations")
        return text is None or any(f'"{each}"'.encode() in text for name in names for each in spellings(name))


def defer(record: Deferred, fields: dict[str, bytes], decode: Decoder) -> None:
    """Leave fields of a new record to be decoded from their texts."""
    object.__setattr__(record, "_deferred", fields)
    object.__setattr__(record, "_decode", decode)
    for name in fields:
        object.__delattr__(record, name)


def without(body: bytes, names: tuple[str, ...]) -> tuple[bytes, dict[str, bytes]]:
    """A record's body without some of its fields, lists that follow each other, and the texts of these. All
    of it where it does not have them once each, which the body of another release may not.
    """
    places = list(_places(body, names))
    end = body.rfind(b'], "result": {') + 1 or len(body.removesuffix(b"}}"))
    bounds = [*(start for start, _ in places), end]
    follow = all(body[bound - 1 : bound] == b"]" for bound in bounds[1:])
    if len(places) != len(names) or bounds != sorted(bounds) or not follow:
        return body, {}
    texts = {name: body[first:after] for name, (_, first), after in zip(names, places, bounds[1:], strict=True)}
    return body[: bounds[0]] + body[end:], texts


def _places(body: bytes, names: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Where each field begins, and its list. A quote within a string is escaped, so no string looks like one."""
    for name in names:
        sought = f', "{name}": ['.encode()
        if body.count(sought) == 1:
            start = body.index(sought)
            yield start, start + len(sought) - 1
