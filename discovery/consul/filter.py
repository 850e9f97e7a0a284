"""Filter expressions (go-bexpr): ``"v1" in Tags and Meta.version matches "^2[.]"``.

A filter is compiled against the JSON schema of the items, so that a selector that matches no field
is an error.

Source: the grammar of github.com/hashicorp/go-bexpr;
https://developer.hashicorp.com/consul/api-docs/features/filtering.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from discovery.consul.regex import Regex, Steps
from discovery.consul.regex_parser import BadRegex
from discovery.json_schema import Schema

MAX_LENGTH = 4096
_MAX_DEPTH = 50
_MAX_TOKENS = 1000

Predicate = Callable[[object], bool]

_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:(?P<text>"[^"]*"|`[^`]*`)|(?P<number>-?(?:0|[1-9]\d*)(?:\.\d+)?)(?=[ \t\r\n)\]]|$)"""
    r"""|(?P<name>[a-zA-Z][a-zA-Z0-9_/]*)|(?P<sign>==|!=|[()\[\].]))|(?P<index>\d+)""",
    re.ASCII,
)
_OPERATORS = ("==", "!=", "contains", "matches")


class BadFilter(ValueError):
    """The filter expression is invalid."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str


def compile_filter(text: str, schema: Schema) -> Predicate:
    """Compile a filter to a predicate on items. Both raise BadFilter.

    ``schema`` is the JSON schema of an item: objects with ``properties`` or, for maps,
    ``additionalProperties``; arrays, strings, integers and booleans.
    """
    if len(text) > MAX_LENGTH:
        raise BadFilter(f"filter is {len(text)} characters long, the limit is {MAX_LENGTH}")
    return _Parser(_tokens(text), schema).read()


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    place = 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise BadFilter(f"no match found, at {text[place : place + 20]!r}")
        found.append(_Token(match.lastgroup, match[match.lastgroup]))
        place = match.end()
        if len(found) > _MAX_TOKENS:
            raise BadFilter(f"filter has more than {_MAX_TOKENS} tokens")
    return found


class _Parser:
    """Recursive descent parser; precedence from low to high: ``or``, ``and``, ``not``."""

    def __init__(self, tokens: Sequence[_Token], schema: Schema) -> None:
        self._tokens = tokens
        self._position = 0
        self._schema = schema
        self._depth = 0
        self._steps = Steps()

    def read(self) -> Predicate:
        if not self._tokens:
            return lambda item: True
        test = self._parse_or()
        if self._position < len(self._tokens):
            raise BadFilter(f"unexpected {self._tokens[self._position].text!r}")
        return test

    def _next_is(self, *words: str, at: int = 0) -> bool:
        ahead = self._tokens[self._position + at : self._position + at + len(words)]
        return len(ahead) == len(words) and all(
            token.kind in ("name", "sign") and token.text == word for token, word in zip(ahead, words, strict=True)
        )

    def _accept(self, *words: str) -> bool:
        found = self._next_is(*words)
        self._position += len(words) if found else 0
        return found

    def _next(self) -> _Token:
        if self._position >= len(self._tokens):
            raise BadFilter("unexpected end of filter")
        self._position += 1
        return self._tokens[self._position - 1]

    def _parse_or(self) -> Predicate:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise BadFilter("filter is nested too deeply")
        tests = [self._parse_and()]
        while self._accept("or"):
            tests.append(self._parse_and())
        self._depth -= 1
        return tests[0] if len(tests) == 1 else lambda item: any(test(item) for test in tests)

    def _parse_and(self) -> Predicate:
        tests = [self._parse_not()]
        while self._accept("and"):
            tests.append(self._parse_not())
        return tests[0] if len(tests) == 1 else lambda item: all(test(item) for test in tests)

    def _parse_not(self) -> Predicate:
        negated = False
        while self._next_is("not") and not self._next_is("in", at=1):
            self._position += 1
            negated = not negated
        test = self._parse_primary()
        return (lambda item: not test(item)) if negated else test

    def _parse_primary(self) -> Predicate:
        if self._accept("("):
            test = self._parse_or()
            if not self._accept(")"):
                raise BadFilter("unmatched parentheses")
            return test
        return self._parse_match()

    def _parse_match(self) -> Predicate:
        start = self._position
        token = self._next()
        if token.kind == "number" or (token.kind == "text" and not self._is_pointer(token)):
            return self._parse_in(_unquote(token))
        path = self._parse_selector(token)
        if self._next_is("in") or self._next_is("not", "in"):
            return self._parse_in(_unquoted_value(path, self._tokens[start : self._position]))
        return self._parse_comparison(path)

    def _is_pointer(self, token: _Token) -> bool:
        return token.text.startswith('"/') and not self._next_is("in") and not self._next_is("not", "in")

    def _parse_in(self, value: str) -> Predicate:
        negated = self._accept("not")
        if not self._accept("in"):
            raise BadFilter(f"expected in or not in after the value {value[:40]!r}")
        return self._compiled(self._parse_selector(self._next()), "in", value, negated)

    def _parse_comparison(self, path: tuple[str, ...]) -> Predicate:
        if self._accept("is"):
            negated = self._accept("not")
            if not self._accept("empty"):
                raise BadFilter(f"expected empty or not empty after {'.'.join(path)} is")
            return self._compiled(path, "empty", "", negated)
        negated = self._accept("not")
        operator = next((word for word in _OPERATORS if self._accept(word)), None)
        if operator is None or (negated and operator in ("==", "!=")):
            raise BadFilter(f"expected an operator after the selector {'.'.join(path)[:80]}")
        token = self._next()
        if token.kind == "name":
            start = self._position - 1
            value = _unquoted_value(self._parse_selector(token), self._tokens[start : self._position])
        elif token.kind in ("text", "number"):
            value = _unquote(token)
        else:
            raise BadFilter(f"expected a value after {'.'.join(path)} {operator}")
        if operator == "!=":
            operator, negated = "==", True
        return self._compiled(path, "in" if operator == "contains" else operator, value, negated)

    def _compiled(self, path: tuple[str, ...], operator: str, value: str, negated: bool) -> Predicate:
        return _compile_selector(self._schema, path, operator, value, negated, self._steps)

    def _parse_selector(self, first: _Token) -> tuple[str, ...]:
        if first.kind == "text" and first.text.startswith('"/'):
            return tuple(part.replace("~1", "/").replace("~0", "~") for part in _unquote(first)[1:].split("/"))
        if first.kind != "name":
            raise BadFilter(f"invalid selector {first.text[:40]!r}")
        path = [first.text]
        while self._next_is(".") or self._next_is("["):
            bracket = self._next().text == "["
            token = self._next()
            if bracket:
                if token.kind != "text" or not self._accept("]"):
                    raise BadFilter(f"unclosed or invalid index after {'.'.join(path)[:80]}")
                path.append(_unquote(token))
            elif token.kind in ("name", "number", "index"):
                path.append(token.text)
            else:
                raise BadFilter(f"invalid selector after {'.'.join(path)[:80]}")
        return tuple(path)


def _unquote(token: _Token) -> str:
    if token.kind != "text":
        return token.text
    inside = token.text[1:-1]
    if token.text[0] == "`" or "\\" not in inside:
        return inside
    return re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t", "r": "\r"}.get(found[1], found[1]), inside)


def _unquoted_value(path: tuple[str, ...], tokens: Sequence[_Token]) -> str:
    """An unquoted value: parsed like a selector, it stands for its own text."""
    return ".".join(path) if all(token.kind != "text" for token in tokens) else "".join(token.text for token in tokens)


# Matching by schema type


def _compile_selector(
    schema: Schema, path: tuple[str, ...], operator: str, value: str, negated: bool, steps: Steps
) -> Predicate:
    """Compile a match: resolve the selector in the schema; only keys of maps may be missing."""
    if not path:
        return _compile_matcher(schema, operator, value, negated, steps)
    name, rest = path[0], path[1:]
    if schema["type"] == "array":
        inner = _compile_selector(schema["items"], path, operator, value, negated, steps)
        return lambda item: any(inner(part) for part in (item if isinstance(item, list) else ()))
    if name in schema.get("properties", {}):
        inner = _compile_selector(schema["properties"][name], rest, operator, value, negated, steps)
        return lambda item: inner(item.get(name) if isinstance(item, dict) else None)
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        inner = _compile_selector(values, rest, operator, value, negated, steps)
        missing = negated != (operator == "empty")
        return lambda item: inner(item[name]) if isinstance(item, dict) and name in item else missing
    raise BadFilter(f'Selector "{name[:80]}" is not valid')


def _compile_matcher(schema: Schema, operator: str, value: str, negated: bool, steps: Steps) -> Predicate:
    kind = schema["type"]
    test = _MATCHERS.get((kind, operator)) if isinstance(kind, str) else None
    if test is None or (kind == "object" and "additionalProperties" not in schema):
        raise BadFilter(f'invalid operator "{operator}" for a selector of type {kind}')
    made = test(schema, value, steps)
    return (lambda item: not made(item)) if negated else made


def _equal_text(schema: Schema, value: str, steps: Steps) -> Predicate:
    return lambda item: (item or "") == value


def _equal_number(schema: Schema, value: str, steps: Steps) -> Predicate:
    try:
        number = float(value) if schema["type"] == "number" else int(value)
    except ValueError:
        raise BadFilter(f"{value[:40]!r} is not a number") from None
    return lambda item: (item or 0) == number


def _equal_flag(schema: Schema, value: str, steps: Steps) -> Predicate:
    flags = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
    if value.lower() not in flags:
        raise BadFilter(f"{value[:40]!r} is not a boolean")
    return lambda item: bool(item) is flags[value.lower()]


def _matching(schema: Schema, value: str, steps: Steps) -> Predicate:
    try:
        pattern = Regex(value, steps)
    except BadRegex as error:
        raise BadFilter(str(error)) from None

    def test(item: object) -> bool:
        try:
            return pattern.search(item if isinstance(item, str) else "")
        except BadRegex as error:
            raise BadFilter(str(error)) from None

    return test


def _part_of_text(schema: Schema, value: str, steps: Steps) -> Predicate:
    return lambda item: value in (item if isinstance(item, str) else "")


def _in_list(schema: Schema, value: str, steps: Steps) -> Predicate:
    equal = _compile_matcher(schema["items"], "==", value, False, steps)
    return lambda item: any(equal(part) for part in (item if isinstance(item, list) else ()))


def _key_of(schema: Schema, value: str, steps: Steps) -> Predicate:
    return lambda item: isinstance(item, dict) and value in item


def _empty(schema: Schema, value: str, steps: Steps) -> Predicate:
    return lambda item: not item


_MATCHERS: dict[tuple[str, str], Callable[[Schema, str, Steps], Predicate]] = {
    ("string", "=="): _equal_text,
    ("string", "matches"): _matching,
    ("string", "in"): _part_of_text,
    ("string", "empty"): _empty,
    ("integer", "=="): _equal_number,
    ("number", "=="): _equal_number,
    ("boolean", "=="): _equal_flag,
    ("array", "in"): _in_list,
    ("array", "empty"): _empty,
    ("object", "in"): _key_of,
    ("object", "empty"): _empty,
}
