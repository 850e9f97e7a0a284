"""YAML as ``weft apply`` reads and ``weft export`` writes it: one document of YAML 1.2's core schema.

So ``no`` and ``1:30`` are text, as written. Refused are duplicate keys, tags, merge keys, numbers with
leading zeros, which YAML 1.1 and 1.2 read differently, and what aliases make larger than ``_MOST_NODES``.
Source: https://yaml.org/spec/1.2.2/, 10.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

import yaml

_MOST_NODES = 100_000  # an alias counts as what it stands for
_DEEPEST = 64
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def loads(text: str) -> object:
    """The document, {} of an empty one. Raises ValueError with the line."""
    try:
        return _Reader(text).document()
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


class _Reader:
    """Makes values of the parser's events, without its constructors, which follow YAML 1.1."""

    def __init__(self, text: str) -> None:
        self._events = yaml.parse(text, Loader=yaml.SafeLoader)
        self._anchors: dict[str, tuple[object, int]] = {}
        self._nodes = 0

    def document(self) -> object:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return {}
        found = self._value(next(self._events), 0)
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            _refuse(after, "a second document: write several files")
        return {} if found is None else found

    def _value(self, event: yaml.Event, depth: int) -> object:
        before = self._nodes
        self._count(event, 1)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                _refuse(event, f"*{event.anchor} has no anchor &{event.anchor} that ends before it")
            value, nodes = self._anchors[event.anchor]
            self._count(event, nodes)
            return value
        if depth > _DEEPEST:
            _refuse(event, f"nested more than {_DEEPEST} deep")
        if not isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            raise AssertionError(event)
        if event.tag is not None:
            _refuse(event, f"the tag {event.tag}: tags are not read, quote text instead")
        if isinstance(event, yaml.ScalarEvent):
            found: object = event.value if event.style else _plain(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            found = self._sequence(depth)
        else:
            found = self._mapping(depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = found, self._nodes - before
        return found

    def _count(self, event: yaml.Event, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > _MOST_NODES:
            _refuse(event, f"more than {_MOST_NODES} values, aliases counted as what they stand for")

    def _sequence(self, depth: int) -> list[object]:
        found = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found.append(self._value(event, depth + 1))
        return found

    def _mapping(self, depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
                _refuse(event, "a key that is not text")
            if event.value == "<<" and not event.style:
                _refuse(event, "a merge key (<<): YAML 1.2 has none, repeat the keys")
            if event.value in found:
                _refuse(event, f"the key {event.value} is given twice")
            found[event.value] = self._value(next(self._events), depth + 1)
        return found


def _plain(event: yaml.ScalarEvent) -> object:
    """What unquoted text means."""
    text = event.value
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _AMBIGUOUS.fullmatch(text):
        _refuse(event, f'{text} is another number in YAML 1.1 than in 1.2: write it without leading 0, or "{text}"')
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OTHER_BASE.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


def _refuse(event: yaml.Event, why: str) -> NoReturn:
    line = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
    raise ValueError(f"{line}{why}")


class _Dumper(yaml.SafeDumper):
    """Quotes all text that some reader could take for something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, None if plain else '"')


_Dumper.add_representer(str, _text)


def dumps(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Tables as YAML, without what is None."""
    written: str = yaml.dump(
        _given(tables), Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=1 << 16
    )
    return written


def _given(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _given(one) for key, one in value.items() if one is not None}
    return [_given(one) for one in value if one is not None] if isinstance(value, (list, tuple)) else value
