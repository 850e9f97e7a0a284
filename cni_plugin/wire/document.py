"""Decodes standard input: one JSON object in UTF-8, without anything that JSON parsers disagree on."""

from __future__ import annotations

import json

from cni_plugin.wire import versions
from cni_plugin.wire.channel import HINT, check_length
from weft.errors import DecodeProblem, WeftError

DEEPEST = 64
"""The deepest nesting of lists and objects."""

_MOST_DIGITS = 400  # of one number; Python's own limit is 4300, and a float holds up to 309


def decode(stdin: bytes) -> tuple[dict[str, object] | None, tuple[str, ...]]:
    """The object on standard input, None for ``null``, and the keys that some object in it gives twice.

    Of a key given twice the last value is kept, as Go does; whether that is a problem is the caller's
    to say. Raises DecodeProblem for whatever is not one JSON object.
    """
    check_length(stdin)
    text = _text(stdin)
    twice: list[str] = []

    def build(pairs: list[tuple[str, object]]) -> dict[str, object]:
        built = dict(pairs)
        if len(built) != len(pairs):
            twice.extend(_repeated(pairs))
        return built

    try:
        value = json.loads(
            text, object_pairs_hook=build, parse_int=_integer, parse_float=_float, parse_constant=_constant
        )
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise DecodeProblem(f"standard input is not JSON: {error}", hint=HINT) from None
    if stdin.count(b"{") + stdin.count(b"[") > DEEPEST or b"\\u" in stdin:
        _examine(value)
    if value is not None and not isinstance(value, dict):
        raise DecodeProblem(f"the configuration must be a JSON object, not {_kind(value)}", hint=HINT)
    return value, tuple(twice)


def _repeated(pairs: list[tuple[str, object]]) -> list[str]:
    seen: set[str] = set()
    repeated: dict[str, None] = {}
    for name, _ in pairs:
        if name in seen:
            repeated[name] = None
        seen.add(name)
    return list(repeated)


def version(stdin: bytes) -> str:
    """The cniVersion that standard input names, "" where it cannot be read; raises nothing."""
    try:
        value, _ = decode(stdin)
    except WeftError:
        return ""
    if value is None:
        return versions.WHEN_ABSENT
    found = next((item for key, item in value.items() if key.casefold() == "cniversion"), None)
    if found is None or found == "":
        return versions.WHEN_ABSENT
    return found if isinstance(found, str) else ""


def _text(stdin: bytes) -> str:
    if stdin.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise DecodeProblem("standard input starts with a byte order mark", hint="write it as UTF-8 without one")
    try:
        text = stdin.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DecodeProblem(f"standard input is not UTF-8 (byte {error.start})", hint=HINT) from None
    if not text.strip():
        raise DecodeProblem("standard input is empty", hint=HINT)
    return text


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text) if len(text) <= _MOST_DIGITS else float("inf")
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large or too long")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON value")


def _examine(value: object) -> None:
    """Raises DecodeProblem for what is nested too deep or holds half a surrogate pair.

    Walks without recursion; ``decode`` calls it only where the bytes show that there may be something
    to find.
    """
    level: list[object] = [value]
    for _ in range(DEEPEST):
        inner: list[object] = []
        for item in level:
            if isinstance(item, str):
                _check_characters(item)
            elif isinstance(item, dict):
                inner.extend(item)
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return
        level = inner
    if any(isinstance(item, dict | list) for item in level):
        raise _too_deep()
    for item in level:
        if isinstance(item, str):
            _check_characters(item)


def _check_characters(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = ascii(text[max(0, error.start - 10) : error.end + 10])
        raise DecodeProblem(f"the text {shown} holds half of a surrogate pair", hint=HINT) from None


def _too_deep() -> DecodeProblem:
    return DecodeProblem(f"the configuration is nested deeper than {DEEPEST} levels", hint=HINT)


def _kind(value: object) -> str:
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return "a string"
    return "true or false" if isinstance(value, bool) else "a number"
