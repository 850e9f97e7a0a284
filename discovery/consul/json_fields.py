"""JSON from clients, read as Consul reads it: ``ServiceID``, ``serviceid`` and ``service_id`` are one name.

Every error names the field, the value and what is wanted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from discovery.consul.durations import parse_duration

MAX_SHOWN = 60
"""Characters of a wrong value that an error repeats."""
MAX_TEXT = 4096
"""Characters of a text, unless its reader says otherwise."""


class BadField(ValueError):
    """The JSON, or one of its fields, is not what it should be."""


def decode_json(body: bytes) -> object:
    """What a body says; an empty one is None. Raises BadField."""
    if not body.strip():
        return None
    try:
        found = json.loads(body.decode(), parse_constant=_reject_constant)
        # What a string escapes may be half a character, which nothing could store or answer.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadField(f"the body is no JSON: {str(error)[:200]}") from None
    return found


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


class Fields:
    """One JSON object; its fields are asked for by the names that Consul writes them in.

    ``path`` is what errors put in front of a field's name (``Checks[1].``).
    """

    def __init__(self, found: object, path: str = "") -> None:
        if not isinstance(found, dict):
            raise BadField(f"{path.rstrip('.') or 'the body'}: {format_value(found)} is no object; write {{…}}")
        self._values: dict[str, Any] = {_normalize(name): value for name, value in found.items()}
        self._path = path

    def has(self, *names: str) -> bool:
        """Whether one of these is there and not null."""
        return any(self._values.get(_normalize(name)) is not None for name in names)

    def get(self, *names: str) -> Any:
        """The first of these that is there, as it is; None if none is."""
        return next((value for name in names if (value := self._values.get(_normalize(name))) is not None), None)

    def invalid(self, name: str, value: object, wanted: str) -> NoReturn:
        """Raise what a wrong field raises."""
        raise BadField(f"{self._path}{name}: {format_value(value)} {wanted}")

    def text(self, *names: str, longest: int = MAX_TEXT) -> str:
        """A string, "" if it is not there."""
        value = self.get(*names)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.invalid(names[0], value, "is no string")
        if len(value) > longest:
            self.invalid(names[0], value, f"is {len(value)} characters long; {longest} is the most")
        return value

    def name(self, *names: str) -> str:
        """A string that names something: short, and nothing in it that does not print."""
        value = self.text(*names, longest=255)
        if not value.isprintable():
            self.invalid(names[0], value, "has characters that do not print")
        return value

    def number(self, *names: str, low: int = 0, high: int = 2**31 - 1, default: int = 0) -> int:
        """A whole number within bounds."""
        value = self.get(*names)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.invalid(names[0], value, "is no whole number")
        if not low <= value <= high:
            self.invalid(names[0], value, f"is not from {low} to {high}")
        return value

    def boolean(self, *names: str) -> bool:
        """true or false; false if it is not there."""
        value = self.get(*names)
        if value is not None and not isinstance(value, bool):
            self.invalid(names[0], value, "is neither true nor false")
        return bool(value)

    def duration(self, *names: str) -> float:
        """A time: a string like 10s, or a number of nanoseconds; 0 if it is not there."""
        value = self.get(*names)
        if value is None or value == "":
            return 0.0
        if isinstance(value, str):
            try:
                return parse_duration(value)
            except ValueError as error:
                self.invalid(names[0], value, f"is no time: {error}")
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 2**63:
            self.invalid(names[0], value, "is no time; write it like 10s, 1m30s or 100ms")
        return value / 1e9

    def string_list(self, *names: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.get(*names)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            self.invalid(names[0], value, "is no list of strings")
        return tuple(value)

    def string_map(self, *names: str) -> dict[str, str]:
        """An object whose keys are the user's, and whose values are strings."""
        value = self.get(*names)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(part, str) for part in value.values()):
            self.invalid(names[0], value, "is no object of strings")
        return dict(value)

    def object_(self, *names: str) -> Fields | None:
        """An object inside; None if it is not there."""
        value = self.get(*names)
        return None if value is None else Fields(value, f"{self._path}{names[0]}.")

    def objects(self, *names: str) -> Iterator[Fields]:
        """The objects of a list."""
        value = self.get(*names)
        if value is None:
            return
        if not isinstance(value, list):
            self.invalid(names[0], value, "is no list")
        for number, part in enumerate(value):
            yield Fields(part, f"{self._path}{names[0]}[{number}].")


def format_value(value: object) -> str:
    """A value as an error repeats it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _normalize(name: str) -> str:
    return name.replace("_", "").lower()
