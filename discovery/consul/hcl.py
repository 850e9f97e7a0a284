"""HCL as far as service definitions need it: attributes, labeled blocks, heredocs, lists, maps.

No expressions and variables: ``${…}`` is literal text.

Source: https://github.com/hashicorp/hcl/blob/hcl1/README.md and its JSON data model, which Consul
reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

HclValue = str | int | float | bool | None | list["HclValue"] | dict[str, "HclValue"]

MAX_DEPTH = 32
"""Nesting depth of blocks, lists and maps."""
_SPACE = re.compile(r"(?:[ \t\r\n]+|(?:#|//)[^\n]*|/\*.*?\*/)+", re.DOTALL)
_NAME = re.compile(r"[^\W\d][\w.-]*")
_NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]{1,16}|\d{1,40}(?:\.\d{1,40})?(?:[eE][+-]?\d{1,3})?)(?![\w.])", re.ASCII)
_TEXT = re.compile(r'[^"\\\n]+')
_HEREDOC = re.compile(r"<<(-?)([^\W\d]\w*)[ \t\r]*\n")
_CODE = re.compile(r"u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_WORDS: dict[str, HclValue] = {"true": True, "false": False, "null": None}


class BadHcl(ValueError):
    """A syntax error; the message begins with line and column."""


def parse(text: str) -> dict[str, HclValue]:
    """Parse a text. A block is a map, repeated blocks a list of maps, a label a map around its
    block.

    ``service { name = "web" }`` is ``{"service": {"name": "web"}}``. Raises BadHcl.
    """
    return _HclParser(text.removeprefix("\ufeff")).body()


class _HclParser:
    """Recursive descent parser."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0

    def body(self, end: str = "") -> dict[str, HclValue]:
        """Attributes and blocks up to and including ``end``; "" is the end of the text."""
        found: dict[str, HclValue] = {}
        blocks: set[str] = set()
        while (next_ := self._peek()) != end:
            if not next_:
                self._error(f"{end!r} is missing: the text ends within what it would close")
            start = self._position
            key = self._key()
            next_character = self._peek()
            if next_character in ("=", ":"):
                self._position += 1
                if key in found:
                    self._error(f"{key} is given a second time; one of the two must go", start)
                found[key] = self._value()
            else:
                self._add_block(found, blocks, key, self._block(key), start)
            if self._peek() == ",":
                self._position += 1
        self._position += len(end)
        return found

    def _add_block(self, found: dict[str, HclValue], blocks: set[str], key: str, block: HclValue, start: int) -> None:
        """Add a block; a second one of the name makes it a list."""
        if key not in found:
            found[key] = block
            blocks.add(key)
            return
        before = found[key]
        if key not in blocks:
            self._error(f"{key} is both an attribute and a block; make it one of them", start)
        if isinstance(before, list):
            before.append(block)
        else:
            found[key] = [before, block]

    def _block(self, key: str) -> HclValue:
        """A block's labels and body."""
        labels = []
        while self._peek() == '"' or _NAME.match(self._text, self._position):
            labels.append(self._key())
            if len(labels) > MAX_DEPTH:
                self._error(f"{key} has more than {MAX_DEPTH} labels")
        if self._peek() != "{":
            self._error(f"behind {key} there must be '=' or '{{'")
        block: HclValue = self._nested("{", lambda: self.body("}"))
        for label in reversed(labels):
            block = {label: block}
        return block

    def _key(self) -> str:
        if self._peek() == '"':
            return self._string()
        match = _NAME.match(self._text, self._position)
        if match is None:
            self._error(f"{self._describe_next()} is no name of an attribute or a block")
        self._position = match.end()
        return match[0]

    def _value(self) -> HclValue:
        """The value of an attribute."""
        next_character = self._peek()
        if next_character == '"':
            return self._string()
        if next_character == "{":
            return self._nested("{", lambda: self.body("}"))
        if next_character == "[":
            return self._nested("[", self._list)
        if next_character == "<":
            return self._heredoc()
        if match := _NUMBER.match(self._text, self._position):
            self._position = match.end()
            return _number(match[0])
        match = _NAME.match(self._text, self._position)
        if match is None or match[0] not in _WORDS:
            shown = match[0][:40] if match else self._describe_next()
            self._error(f"{shown} is no value; a text stands in quotes")
        self._position = match.end()
        return _WORDS[match[0]]

    def _nested(self, next_character: str, read: Callable[[], HclValue]) -> HclValue:
        if self._depth >= MAX_DEPTH:
            self._error(f"more than {MAX_DEPTH} blocks, lists and maps within each other")
        self._position += len(next_character)
        self._depth += 1
        found = read()
        self._depth -= 1
        return found

    def _list(self) -> HclValue:
        found: list[HclValue] = []
        while self._peek() != "]":
            found.append(self._value())
            next_character = self._peek()
            if next_character == ",":
                self._position += 1
            elif next_character != "]":
                self._error("in a list, ',' or ']' must stand here")
        self._position += 1
        return found

    def _string(self) -> str:
        start = self._position
        self._position += 1
        parts = []
        while True:
            if match := _TEXT.match(self._text, self._position):
                parts.append(match[0])
                self._position = match.end()
            next_character = self._text[self._position : self._position + 1]
            if next_character == '"':
                self._position += 1
                return "".join(parts)
            if next_character != "\\":
                self._error("the text that begins here has no '\"' at the end of its line", start)
            parts.append(self._escape())

    def _escape(self) -> str:
        """An escape sequence."""
        sign = self._text[self._position + 1 : self._position + 2]
        if sign in _ESCAPES:
            self._position += 2
            return _ESCAPES[sign]
        match = _CODE.match(self._text, self._position + 1)
        code = int(match[1] or match[2], 16) if match else -1
        if match is None or code > 0x10FFFF or 0xD800 <= code < 0xE000:
            self._error(f"\\{sign} means nothing in a text; a backslash itself is written \\\\")
        self._position = match.end()
        return chr(code)

    def _heredoc(self) -> str:
        """A heredoc; ``<<-`` removes the common indentation."""
        match = _HEREDOC.match(self._text, self._position)
        if match is None:
            self._error("a text of several lines begins with <<NAME and a new line")
        end = re.compile(rf"^[ \t]*{match[2]}[ \t\r]*$", re.MULTILINE).search(self._text, match.end())
        if end is None:
            self._error(f"the text that begins here does not end: no line holds {match[2]} alone")
        self._position = end.end()
        lines = self._text[match.end() : end.start()].replace("\r\n", "\n").splitlines(keepends=True)
        if match[1]:
            cut = min((len(line) - len(line.lstrip(" \t")) for line in lines if line.strip()), default=0)
            lines = [line[cut:] if line.strip() else "\n" for line in lines]
        return "".join(lines)

    def _peek(self) -> str:
        """Skip whitespace and comments; peek at the next character, "" at the end."""
        if match := _SPACE.match(self._text, self._position):
            self._position = match.end()
        if self._text.startswith("/*", self._position):
            self._error("the comment that begins here does not end: */ is missing")
        return self._text[self._position : self._position + 1]

    def _describe_next(self) -> str:
        return (
            repr(self._text[self._position : self._position + 1])
            if self._position < len(self._text)
            else "the end of the text"
        )

    def _error(self, sentence: str, at: int = -1) -> NoReturn:
        place = self._position if at < 0 else at
        line = self._text.count("\n", 0, place) + 1
        column = place - (self._text.rfind("\n", 0, place) + 1) + 1
        raise BadHcl(f"line {line}, column {column}: {sentence}")


def _number(text: str) -> int | float:
    if text.lstrip("-")[:2] in ("0x", "0X"):
        return int(text, 16)
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
