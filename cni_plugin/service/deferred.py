"""The long fields of records, decoded when they are first used: they are nineteen parts of twenty of a record,
and who compares attachments does not use their results, who lists them not their operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from cni_plugin.service.codec import spellings

Decoder = Callable[[str, bytes], object]
"""Decodes the text of a field, given its name; None where it cannot be decoded."""


class Deferred:
    """A record some fields of which may be text still: a field without a value is decoded when it is used. One
    that cannot be decoded has the value that a record without it has.
    """

    __slots__ = ("_damaged", "_decode", "_deferred")

    if not TYPE_CHECKING:  # for type checkers a class with this method has every attribute

        def __getattr__(self, name: str) -> object:
            if name in Deferred.__slots__ or name not in getattr(self, "_deferred", ()):
                raise AttributeError(f"{type(self).__name__} has no {name}")
            value = self._decode(name, self._deferred[name])
            if value is None:
                object.__setattr__(self, "_damaged", True)
                value = self.without_value(name)
            object.__setattr__(self, name, value)
            return value

    @staticmethod
    def without_value(name: str) -> object:
        """What a field is that cannot be decoded."""
        return ()

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


def without(body: bytes, openings: Mapping[str, bytes]) -> tuple[bytes, dict[str, bytes]]:
    """A record's body without its last fields, and the texts of these; each ``opening`` is what precedes a
    field's value, and the value's first byte. All of it where it does not have them once each, in this order,
    which the body of another release may not. A quote within a string is escaped, so no string looks like one.
    """
    starts, end = [], len(body.removesuffix(b"}}"))
    for opening in openings.values():
        start = body.find(opening)
        if start < 0 or body.rfind(opening) != start:  # which takes half the time of counting
            return body, {}
        starts.append(start)
    bounds = [*starts, end]
    texts = {
        name: body[start + len(opening) - 1 : after]
        for (name, opening), start, after in zip(openings.items(), starts, bounds[1:], strict=True)
    }
    if bounds != sorted(bounds) or not all(text[-1:] in (b"]", b"}") for text in texts.values()):
        return body, {}
    return body[: starts[0]] + body[end:], texts
