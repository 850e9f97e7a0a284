"""Parser of regular expressions in the syntax of Go's regexp (RE2): from text to a syntax tree.

Not supported: word boundaries, Unicode classes (``\\pL``) and multi-line mode.
Source: https://github.com/google/re2/wiki/Syntax
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

MAX_LENGTH = 1000
"""Characters of an expression; also the largest repeat count."""
_MAX_DEPTH = 50

_WORD = (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z"))
_CLASSES = {"d": (("0", "9"),), "w": _WORD, "s": (("\t", "\n"), ("\f", "\r"), (" ", " "))}
_POSIX_CLASSES = {
    "alnum": (("0", "9"), ("A", "Z"), ("a", "z")), "alpha": (("A", "Z"), ("a", "z")), "ascii": (("\0", "\x7f"),),
    "blank": (("\t", "\t"), (" ", " ")), "cntrl": (("\0", "\x1f"), ("\x7f", "\x7f")), "digit": (("0", "9"),),
    "graph": (("!", "~"),), "lower": (("a", "z"),), "print": ((" ", "~"),), "space": (("\t", "\r"), (" ", " ")),
    "punct": (("!", "/"), (":", "@"), ("[", "`"), ("{", "~")), "upper": (("A", "Z"),), "word": _WORD,
    "xdigit": (("0", "9"), ("A", "F"), ("a", "f")),
}  # fmt: skip
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
_MAX_RUNE = "\U0010ffff"


Ranges = tuple[tuple[str, str], ...]


class BadRegex(ValueError):
    """The pattern is invalid or not supported."""


@dataclass(frozen=True, slots=True)
class CharClass:
    """One character in these ranges; ``fold``: case-insensitive."""

    ranges: Ranges
    fold: bool = False

    def has(self, character: str) -> bool:
        return self._has(character) or (self.fold and (self._has(character.lower()) or self._has(character.upper())))

    def _has(self, character: str) -> bool:
        return any(low <= character <= high for low, high in self.ranges)


@dataclass(frozen=True, slots=True)
class Anchor:
    """The beginning or the end of the text."""

    end: bool


@dataclass(frozen=True, slots=True)
class Concat:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternate:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Node
    minimum: int
    maximum: int | None


Node = CharClass | Anchor | Concat | Alternate | Repeat


class RegexParser:
    """Recursive descent parser."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._fold = self._dot_all = False
        self._depth = 0

    def read(self) -> Node:
        tree = self._alternatives()
        if self._position < len(self._text):
            raise BadRegex("unexpected ) in the expression")
        return tree

    def _peek(self, count: int = 1) -> str:
        return self._text[self._position : self._position + count]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise BadRegex("unexpected end of expression")
        self._position += 1
        return character

    def _skip(self, text: str) -> bool:
        found = self._text.startswith(text, self._position)
        self._position += len(text) if found else 0
        return found

    def _alternatives(self) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise BadRegex("the expression is nested too deeply")
        parts = [self._sequence()]
        while self._skip("|"):
            parts.append(self._sequence())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else Alternate(tuple(parts))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while (character := self._peek()) and character not in "|)":
            parts.append(self._repeated(self._atom()))
        return Concat(tuple(parts))

    def _repeated(self, part: Node) -> Node:
        bounds = self._bounds()
        if bounds is None:
            return part
        self._skip("?")  # lazy or not makes no difference to whether it matches
        if self._peek() and self._peek() in "*+?":
            raise BadRegex(f"invalid nested repetition operator {self._peek()} in the expression")
        return Repeat(part, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._skip(sign):
                return bounds
        close = self._text.find("}", self._position)
        minimum, comma, maximum = self._text[self._position + 1 : close].partition(",")
        if self._peek() != "{" or close < 0 or not _is_number(minimum) or (maximum and not _is_number(maximum)):
            return None  # a brace that counts nothing is a character like others
        self._position = close + 1
        low = int(minimum)
        high = (int(maximum) if maximum else None) if comma else low
        if max(low, high or 0) > MAX_LENGTH or (high is not None and high < low):
            raise BadRegex(
                f"invalid repeat count {{{minimum}{comma}{maximum}}} in the expression, the limit is {MAX_LENGTH}"
            )
        return low, high

    def _atom(self) -> Node:
        character = self._take()
        match character:
            case "(":
                return self._group()
            case "[":
                return self._bracket()
            case ".":
                return CharClass((("\0", _MAX_RUNE),) if self._dot_all else (("\0", "\t"), ("\x0b", _MAX_RUNE)))
            case "^":
                return Anchor(end=False)
            case "$":
                return Anchor(end=True)
            case "*" | "+" | "?":
                raise BadRegex(f"missing argument to repetition operator {character} in the expression")
            case "\\":
                return self._escape()
        return CharClass(((character, character),), self._fold)

    def _group(self) -> Node:
        outside = self._fold, self._dot_all
        if self._skip("?"):
            if self._skip("P<") or (self._peek() == "<" and self._peek(2) not in ("<=", "<!") and self._skip("<")):
                while self._take() != ">":
                    pass
            elif not self._flags():
                return Concat(())
        tree = self._alternatives()
        if not self._skip(")"):
            raise BadRegex("missing closing ) in the expression")
        self._fold, self._dot_all = outside
        return tree

    def _flags(self) -> bool:
        """Parse the flags ``i``, ``s``, ``U`` up to ``:`` or ``)``; whether a group follows."""
        on = True
        while (flag := self._take()) not in ":)":
            match flag:
                case "-":
                    on = False
                case "i":
                    self._fold = on
                case "s":
                    self._dot_all = on
                case "U":
                    pass
                case _:
                    raise BadRegex(f"(?{flag} in the expression is not supported")
        return flag == ":"

    def _escape(self) -> Node:
        if self._peek() and self._peek() in "Az":
            return Anchor(end=self._take() == "z")
        return CharClass(self._escaped(), self._fold)

    def _escaped(self) -> Ranges:
        """The characters of an escape; its backslash has been read."""
        character = self._take()
        if character in _CLASSES:
            return _CLASSES[character]
        if character.lower() in _CLASSES:
            return _inverted(_CLASSES[character.lower()])
        if character == "x":
            character = self._hexadecimal()
        elif character.isalnum() and character.isascii():
            if character not in _ESCAPES:
                raise BadRegex(f"\\{character} in the expression is not supported")
            character = _ESCAPES[character]
        return ((character, character),)

    def _hexadecimal(self) -> str:
        if self._skip("{"):
            digits, _, _ = self._text[self._position :].partition("}")
            self._position += len(digits) + 1
        else:
            digits = self._take() + self._take()
        try:
            return chr(int(digits, 16)) if len(digits) <= 6 and digits.isalnum() else _invalid(digits)
        except (ValueError, OverflowError):
            return _invalid(digits)

    def _bracket(self) -> Node:
        negated = self._skip("^")
        ranges: list[tuple[str, str]] = []
        first = True
        while first or self._peek() != "]":
            first = False
            found = self._member()
            if len(found) == 1 and found[0][0] == found[0][1] and self._peek() == "-" and self._peek(2) != "-]":
                self._take()
                end = self._member()
                if len(end) != 1 or end[0][0] < found[0][0]:
                    raise BadRegex("invalid character class range in the expression")
                found = ((found[0][0], end[0][0]),)
            ranges += found
        self._take()
        one = CharClass(tuple(ranges), self._fold)
        return replace(one, ranges=_inverted(_folded(one))) if negated else one

    def _member(self) -> Ranges:
        if self._skip("[:"):
            name, _, _ = self._text[self._position :].partition(":]")
            self._position += len(name) + 2
            inverted = name.startswith("^")
            found = _POSIX_CLASSES.get(name.removeprefix("^"))
            if found is None:
                raise BadRegex(f"invalid character class [:{name[:20]}:] in the expression")
            return _inverted(found) if inverted else found
        character = self._take()
        return self._escaped() if character == "\\" else ((character, character),)


def _invalid(digits: str) -> str:
    raise BadRegex(f"invalid escape \\x{digits[:10]} in the expression")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 6


def _folded(one: CharClass) -> Ranges:
    """The ranges with both cases of ASCII letters if case-insensitive, for negation."""
    if not one.fold:
        return one.ranges
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return (*one.ranges, *((letter, letter) for letter in letters if one.has(letter)))


def _inverted(ranges: Ranges) -> Ranges:
    """The complement of these ranges."""
    edges = sorted((ord(low), ord(high)) for low, high in ranges)
    merged = [(-1, -1)]
    for low, high in edges:
        if low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    merged.append((ord(_MAX_RUNE) + 1, ord(_MAX_RUNE) + 1))
    return tuple((chr(left[1] + 1), chr(right[0] - 1)) for left, right in pairwise(merged) if left[1] + 1 < right[0])
