"""Regular expressions from clients, matched in time linear in the text.

Python's own ``re`` can be made to run for hours by twenty characters; whoever may ask a question with a filter could
stop the agent. So the language of Go's regexp package (which is what Consul's filters speak) is compiled to states of
which all that apply are followed at once, and steps already taken are remembered. Not offered: word boundaries, Unicode
classes (``\\pL``) and multi-line mode; back references and look-around are not in Go's language either.
Source: https://github.com/google/re2/wiki/Syntax; K. Thompson, Regular Expression Search Algorithm, CACM 11(6), 1968.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

MAX_LENGTH = 1000
"""Characters of a pattern; also the most that a repetition may count to."""
_MAX_INSTRUCTIONS = 2000
_MAX_DEPTH = 50
_MAX_STEPS = 200_000
"""States that one pattern may visit before it is given up; those of a step already taken cost nothing."""
_MAX_CACHED_STEPS = 5000

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
    """The pattern is no regular expression, or one that is not offered."""


@dataclass(frozen=True, slots=True)
class _CharClass:
    """Any character in these ranges; ``fold``: whatever its case."""

    ranges: Ranges
    fold: bool = False

    def has(self, character: str) -> bool:
        return self._has(character) or (self.fold and (self._has(character.lower()) or self._has(character.upper())))

    def _has(self, character: str) -> bool:
        return any(low <= character <= high for low, high in self.ranges)


@dataclass(frozen=True, slots=True)
class _Anchor:
    """The beginning or the end of the text."""

    end: bool


@dataclass(frozen=True, slots=True)
class _Concat:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Alternate:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: _Node
    minimum: int
    maximum: int | None


_Node = _CharClass | _Anchor | _Concat | _Alternate | _Repeat


@dataclass(frozen=True, slots=True)
class _Split:
    """Go on at all of these places."""

    targets: tuple[int, ...]


_Instruction = _CharClass | _Anchor | _Split | None
"""None is the end: it matched."""


class Regex:
    """One expression, ready to match. Raises BadPattern when made."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise BadRegex(f"the expression is {len(text)} characters long; {MAX_LENGTH} is the most")
        self._program: list[_Instruction] = []
        self._nodes_compiled = 0
        self._compile(RegexParser(text).read())
        self._program.append(None)
        self._steps_left = _MAX_STEPS
        self._transitions: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._start_states = self._epsilon_closure([0], begin=False, end=False)

    def search(self, text: str) -> bool:
        """Whether any part of the text matches. Raises BadPattern if finding out costs too much."""
        last = len(self._program) - 1
        states = self._epsilon_closure([0], begin=True, end=False)
        for character in text:
            if last in states:
                return True
            states = self._step(states, character)
        return last in self._epsilon_closure(list(states), begin=not text, end=True)

    def _step(self, states: frozenset[int], character: str) -> frozenset[int]:
        known = self._transitions.get((states, character))
        if known is not None:
            return known
        after = []
        for place in states:
            instruction = self._program[place]
            if isinstance(instruction, _CharClass) and instruction.has(character):
                after.append(place + 1)
        self._charge(len(states))
        if len(self._transitions) >= _MAX_CACHED_STEPS:
            self._transitions.clear()
        found = self._epsilon_closure(after, begin=False, end=False) | self._start_states
        self._transitions[states, character] = found
        return found

    def _epsilon_closure(self, targets: list[int], *, begin: bool, end: bool) -> frozenset[int]:
        """All places that are reached from these without reading a character."""
        found: set[int] = set()
        while targets:
            place = targets.pop()
            if place in found:
                continue
            found.add(place)
            instruction = self._program[place]
            if isinstance(instruction, _Split):
                targets += instruction.targets
            elif isinstance(instruction, _Anchor) and (end if instruction.end else begin):
                targets.append(place + 1)
        self._charge(len(found))
        return frozenset(found)

    def _charge(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise BadRegex("the expression takes too long to match; make it simpler")

    def _emit(self, instruction: _Instruction) -> int:
        if len(self._program) >= _MAX_INSTRUCTIONS:
            raise BadRegex("the expression is too large; repeat less")
        self._program.append(instruction)
        return len(self._program) - 1

    def _compile(self, tree: _Node) -> None:
        self._nodes_compiled += 1  # what repeats nothing emits nothing, and must end too
        if self._nodes_compiled > 5 * _MAX_INSTRUCTIONS:
            raise BadRegex("the expression is too large; repeat less")
        match tree:
            case _Concat():
                for part in tree.parts:
                    self._compile(part)
            case _Alternate():
                fork = self._emit(None)
                starts, ends = [], []
                for part in tree.parts:
                    starts.append(len(self._program))
                    self._compile(part)
                    ends.append(self._emit(None))
                self._program[fork] = _Split(tuple(starts))
                for place in ends:
                    self._program[place] = _Split((len(self._program),))
            case _Repeat():
                self._compile_repeat(tree)
            case _:
                self._emit(tree)

    def _compile_repeat(self, tree: _Repeat) -> None:
        for _ in range(tree.minimum):
            self._compile(tree.part)
        if tree.maximum is None:
            fork = self._emit(None)
            self._compile(tree.part)
            self._emit(_Split((fork,)))
            self._program[fork] = _Split((fork + 1, len(self._program)))
            return
        forks = []
        for _ in range(tree.maximum - tree.minimum):
            forks.append(self._emit(None))
            self._compile(tree.part)
        for fork in forks:
            self._program[fork] = _Split((fork + 1, len(self._program)))


class RegexParser:
    """From characters to a tree."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._fold = self._dot_all = False
        self._depth = 0

    def read(self) -> _Node:
        tree = self._alternatives()
        if self._position < len(self._text):
            raise BadRegex("unexpected ) in the expression")
        return tree

    def _peek(self, count: int = 1) -> str:
        return self._text[self._position : self._position + count]

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise BadRegex("the expression ends too early")
        self._position += 1
        return character

    def _skip(self, text: str) -> bool:
        found = self._text.startswith(text, self._position)
        self._position += len(text) if found else 0
        return found

    def _alternatives(self) -> _Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise BadRegex("the expression is nested too deeply")
        parts = [self._sequence()]
        while self._skip("|"):
            parts.append(self._sequence())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else _Alternate(tuple(parts))

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while (character := self._peek()) and character not in "|)":
            parts.append(self._repeated(self._atom()))
        return _Concat(tuple(parts))

    def _repeated(self, part: _Node) -> _Node:
        bounds = self._bounds()
        if bounds is None:
            return part
        self._skip("?")  # lazy or not makes no difference to whether it matches
        if self._peek() and self._peek() in "*+?":
            raise BadRegex(f"invalid nested repetition operator {self._peek()} in the expression")
        return _Repeat(part, *bounds)

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
                f"invalid repeat count {{{minimum}{comma}{maximum}}} in the expression; {MAX_LENGTH} is the most"
            )
        return low, high

    def _atom(self) -> _Node:
        character = self._take()
        match character:
            case "(":
                return self._group()
            case "[":
                return self._bracket()
            case ".":
                return _CharClass((("\0", _MAX_RUNE),) if self._dot_all else (("\0", "\t"), ("\x0b", _MAX_RUNE)))
            case "^":
                return _Anchor(end=False)
            case "$":
                return _Anchor(end=True)
            case "*" | "+" | "?":
                raise BadRegex(f"missing argument to repetition operator {character} in the expression")
            case "\\":
                return self._escape()
        return _CharClass(((character, character),), self._fold)

    def _group(self) -> _Node:
        outside = self._fold, self._dot_all
        if self._skip("?"):
            if self._skip("P<") or (self._peek() == "<" and self._peek(2) not in ("<=", "<!") and self._skip("<")):
                while self._take() != ">":
                    pass
            elif not self._flags():
                return _Concat(())
        tree = self._alternatives()
        if not self._skip(")"):
            raise BadRegex("missing closing ) in the expression")
        self._fold, self._dot_all = outside
        return tree

    def _flags(self) -> bool:
        """Read ``i``, ``s``, ``U`` up to ``:`` or ``)``; whether a group follows."""
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
                    raise BadRegex(f"(?{flag} in the expression is not offered")
        return flag == ":"

    def _escape(self) -> _Node:
        if self._peek() and self._peek() in "Az":
            return _Anchor(end=self._take() == "z")
        return _CharClass(self._escaped(), self._fold)

    def _escaped(self) -> Ranges:
        """What an escape stands for; the backslash is read already."""
        character = self._take()
        if character in _CLASSES:
            return _CLASSES[character]
        if character.lower() in _CLASSES:
            return _inverted(_CLASSES[character.lower()])
        if character == "x":
            character = self._hexadecimal()
        elif character.isalnum() and character.isascii():
            if character not in _ESCAPES:
                raise BadRegex(f"\\{character} in the expression is not offered")
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

    def _bracket(self) -> _Node:
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
        one = _CharClass(tuple(ranges), self._fold)
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


def _folded(one: _CharClass) -> Ranges:
    """The ranges with both cases of ASCII letters, where case does not matter: what is then inverted."""
    if not one.fold:
        return one.ranges
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return (*one.ranges, *((letter, letter) for letter in letters if one.has(letter)))


def _inverted(ranges: Ranges) -> Ranges:
    """All characters outside of these."""
    edges = sorted((ord(low), ord(high)) for low, high in ranges)
    merged = [(-1, -1)]
    for low, high in edges:
        if low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    merged.append((ord(_MAX_RUNE) + 1, ord(_MAX_RUNE) + 1))
    return tuple((chr(left[1] + 1), chr(right[0] - 1)) for left, right in pairwise(merged) if left[1] + 1 < right[0])
