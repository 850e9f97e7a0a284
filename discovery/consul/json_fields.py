"""JSON from clients, with field names matched as Consul does: ``ServiceID``, ``serviceid``,
``service_id``.

Every error names the field, its value and what is expected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import NoReturn

from discovery.consul.durations import parse_duration

MAX_SHOWN = 60
"""Characters of an invalid value that an error shows."""
MAX_TEXT = 4096
"""Default limit of a string, in characters."""
MAX_DEPTH = 64
"""Objects and lists within each other. What is kept as it was written is later encoded within others,
and must not then be too deep for the encoder.
"""


class BadField(ValueError):
    """The JSON or one of its fields is invalid."""


def decode_json(body: bytes) -> object:
    """Parse a JSON body; None if it is empty. Raises BadField."""
    if not body.strip():
        return None
    try:
        found = json.loads(
            body.decode(), parse_constant=_reject_constant, parse_int=_integer, parse_float=_finite_number
        )
        _check_depth(found)
        # An escaped lone surrogate parses, but cannot be encoded again.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadField(f"invalid JSON: {str(error)[:200]}") from None
    return found


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _integer(text: str) -> int:
    """An integer that clients can decode, too."""
    number = int(text)
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"{text[:MAX_SHOWN]} is out of range")
    return number


def _finite_number(text: str) -> float:
    """A number that can be written as JSON again: 1e999 is read as infinity."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:MAX_SHOWN]} is out of range")
    return number


def _check_depth(found: object) -> None:
    """Raise ValueError if more than MAX_DEPTH objects and lists are within each other."""
    level = [found]
    for _ in range(MAX_DEPTH + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [part for each in inner for part in each]
        if not inner:
            return
    raise ValueError(f"more than {MAX_DEPTH} objects and lists within each other")


class Fields:
    """A JSON object, its fields looked up by Consul's names.

    ``path`` is prepended to field names in errors (``Checks[1].``).
    """

    def __init__(self, found: object, path: str = "") -> None:
        if not isinstance(found, dict):
            raise BadField(f"{path.rstrip('.') or 'body'}: {format_value(found)} is not an object")
        self._values: dict[str, object] = {_normalize(name): value for name, value in found.items()}
        self._path = path

    def has(self, *names: str) -> bool:
        """Whether one of these is present and not null."""
        return any(self._values.get(_normalize(name)) is not None for name in names)

    def get(self, *names: str) -> object:
        """The first of these that is not null; None if none is."""
        return next((value for name in names if (value := self._values.get(_normalize(name))) is not None), None)

    def invalid(self, name: str, value: object, wanted: str) -> NoReturn:
        """Raise BadField for an invalid value."""
        raise BadField(f"{self._path}{name}: {format_value(value)} {wanted}")

    def text(self, *names: str, longest: int = MAX_TEXT) -> str:
        """A string; default ""."""
        value = self.get(*names)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.invalid(names[0], value, "is not a string")
        if len(value) > longest:
            self.invalid(names[0], value, f"is {len(value)} characters long, the limit is {longest}")
        return value

    def name(self, *names: str) -> str:
        """A printable string of at most 255 characters; default ""."""
        value = self.text(*names, longest=255)
        if not value.isprintable():
            self.invalid(names[0], value, "contains non-printable characters")
        return value

    def number(self, *names: str, low: int = 0, high: int = 2**31 - 1, default: int = 0) -> int:
        """An integer within bounds."""
        value = self.get(*names)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.invalid(names[0], value, "is not an integer")
        if not low <= value <= high:
            self.invalid(names[0], value, f"is out of range, must be {low} to {high}")
        return value

    def boolean(self, *names: str) -> bool:
        """A boolean; default false."""
        value = self.get(*names)
        if value is not None and not isinstance(value, bool):
            self.invalid(names[0], value, "is not a boolean")
        return bool(value)

    def duration(self, *names: str) -> float:
        """Seconds, from a string like 10s or nanoseconds as a number; default 0."""
        value = self.get(*names)
        if value is None or value == "":
            return 0.0
        if isinstance(value, str):
            try:
                return parse_duration(value)
            except ValueError as error:
                self.invalid(names[0], value, f"is not a duration: {error}")
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 2**63:
            self.invalid(names[0], value, "is not a duration, expected e.g. 10s, 1m30s or 100ms")
        return value / 1e9

    def string_list(self, *names: str) -> tuple[str, ...]:
        """A list of strings; default ()."""
        value = self.get(*names)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            self.invalid(names[0], value, "is not a list of strings")
        return tuple(value)

    def string_map(self, *names: str) -> dict[str, str]:
        """A map of strings; default {}."""
        value = self.get(*names)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(part, str) for part in value.values()):
            self.invalid(names[0], value, "is not a map of strings")
        return dict(value)

    def object_(self, *names: str) -> Fields | None:
        """A nested object; None if absent."""
        value = self.get(*names)
        return None if value is None else Fields(value, f"{self._path}{names[0]}.")

    def objects(self, *names: str) -> Iterator[Fields]:
        """The objects of a list; none if absent."""
        value = self.get(*names)
        if value is None:
            return
        if not isinstance(value, list):
            self.invalid(names[0], value, "is not a list")
        for number, part in enumerate(value):
            yield Fields(part, f"{self._path}{names[0]}[{number}].")


def format_value(value: object) -> str:
    """A value as JSON, shortened for errors."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _normalize(name: str) -> str:
    return name.replace("_", "").lower()
