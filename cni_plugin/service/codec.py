"""Values of weft as JSON and back: the body of a record file.

A dataclass is an object with its class name as ``kind``, an enum or an address an object with ``=`` and
``kind``.

Why not ``json.dumps``, and why ``eval``, measured: an ADD writes its record three times. CPU time in ms
of one encoding, of a bridge's record (4.8 KB) and of one with 200 published ports (87 KB), Python 3.11:

=============================================  =====  ====
an expression for each class (``eval``)         0.08   1.6
a loop over the fields with the same writers    0.11   2.0
``json.dumps`` with ``default``                 0.12   2.3
=============================================  =====  ====
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from types import MemberDescriptorType
from typing import cast

from cni_plugin import ops
from cni_plugin.dataplane.tables import TABLES
from ipam import host_local, leases, ranges
from weft import addresses, types
from weft.kernel import values

KIND = "kind"
_VALUE = "="
_MOST_PARSED = 1024

Writer = Callable[[object], str]


Maker = Callable[[dict[str, object]], object]

Kinds = Mapping[str, Maker]
"""The classes that a file may name, and how each is made of its JSON object."""


class _Kinds(dict[str, Maker]):
    """Classes by name, each with its maker once a record has one. The module of an operation that few
    configurations need is imported then.
    """

    def __init__(self, classes: Mapping[str, Callable[..., object]], parsers: Mapping[str, Callable[..., object]]):
        super().__init__({name: _parser(parse) for name, parse in parsers.items()})
        self._classes = classes

    def __missing__(self, name: str) -> Maker:
        made = self._classes.get(name) or ops.rare(name)
        is_enum = isinstance(made, type) and issubclass(made, StrEnum)
        found = self[name] = _parser(made) if is_enum else _maker(made, self)
        return found


def kinds(*classes: type) -> Kinds:
    """Every class that a file may name, ``classes`` among them: no other is ever instantiated from a
    file.
    """
    parsers: dict[str, Callable[..., object]] = {
        "address": addresses.address,
        "interface": addresses.interface,
        "network": addresses.network,
        "Side": types.Side,
    }
    found: dict[str, Callable[..., object]] = {each.__name__: each for each in (*classes, *ops.COMMON)}
    for module in (types, values, leases, ranges, host_local):
        for name, value in vars(module).items():
            if isinstance(value, type) and is_dataclass(value):
                found[name] = value
    # Parsing an address takes 10 us, and the records of a network repeat its own.
    made = _Kinds(found, {name: lru_cache(_MOST_PARSED)(parse) for name, parse in parsers.items()})
    element = made["Element"]
    made["Element"] = lambda parts: element(_renamed(parts) if parts["collection"] in TABLES.renamed else parts)
    return made


def _renamed(parts: dict[str, object]) -> dict[str, object]:
    """An element of an earlier release, in the set as it is named now."""
    return {**parts, "collection": TABLES.renamed[cast(str, parts["collection"])]}


@lru_cache
def spellings(name: str) -> tuple[str, ...]:
    """The name of a class or a set, and those that it had in earlier releases."""
    renamed = (*TABLES.renamed.items(), *ops.RENAMED.items())
    return (name, *(former for former, now in renamed if now == name))


def _parser(parse: Callable[..., object]) -> Maker:
    return lambda parts: parse(parts[_VALUE])


class _Writers(dict[type, Writer]):
    """The writer of each class, made on first use."""

    def __missing__(self, kind: type) -> Writer:
        found = self[kind] = _writer(kind)
        return found


_writers = _Writers(
    {
        str: cast(Writer, encode_basestring_ascii),
        int: int.__repr__,
        float: float.__repr__,
        bool: lambda value: "true" if value else "false",
        type(None): lambda _: "null",
    }
)


def encode(value: object) -> str:
    """A value as JSON."""
    return _writers[type(value)](value)


def _writer(kind: type) -> Writer:
    name = kind.__name__
    if kind is tuple or kind is list:
        return _write_sequence
    if is_dataclass(kind):
        return _dataclass_writer(name, tuple(each.name for each in fields(kind)))
    if issubclass(kind, StrEnum):
        return lambda value: f'{{"{_VALUE}": {encode_basestring_ascii(str(value))}, "{KIND}": "{name}"}}'
    if issubclass(kind, str):
        return lambda value: encode_basestring_ascii(str(value))
    return lambda value: f'{{"{_VALUE}": "{value}", "{KIND}": "{name[4:].lower()}"}}'  # IPv4Address, IPv6Network, …


def _write_sequence(value: object) -> str:
    return f"[{', '.join([_writers[item.__class__](item) for item in cast(tuple[object, ...], value)])}]"


def _dataclass_writer(name: str, names: tuple[str, ...]) -> Writer:
    """One expression for all fields, as ``dataclasses`` generates its methods."""
    members = "".join([f""" + ', "{each}": ' + writers[(it := value.{each}).__class__](it)""" for each in names])
    expression = f"""lambda value: '{{"{KIND}": "{name}"'{members} + '}}'"""
    return cast(Writer, eval(expression, {"writers": _writers}))  # made of the names in our own classes


_PLAIN = frozenset((str, int, float, bool, type(None)))


def decode(value: object, kinds: Kinds) -> object:
    """The value that ``encode`` was given; raises ValueError, KeyError or TypeError for anything else."""
    if type(value) is dict:  # isinstance takes twice as long, and ``weft check`` may have a million values
        return kinds[value[KIND]](value)
    if type(value) is list:
        return tuple([item if item.__class__ in _PLAIN else decode(item, kinds) for item in value]) if value else ()
    return value


def _maker(kind: Callable[..., object], kinds: Kinds) -> Maker:
    """One expression for all fields, in half the time of a call with keywords, which is left for the
    records of other releases: with fewer fields, or others.
    """

    def by_keywords(parts: dict[str, object]) -> object:
        return kind(**{name: decode(item, kinds) for name, item in parts.items() if name != KIND})

    if not is_dataclass(kind):
        return by_keywords
    names = [each.name for each in fields(kind)]
    values = [f'it if (it := parts["{each}"]).__class__ in plain else decode(it, kinds)' for each in names]
    given = {"kind": kind, "kinds": kinds, "plain": _PLAIN, "decode": decode, "by_keywords": by_keywords}
    made = f"kind({', '.join(values)})"
    slots = [each for name in names if isinstance(each := getattr(kind, name, None), MemberDescriptorType)]
    if names and len(slots) == len(names) and not hasattr(kind, "__post_init__"):
        # The __init__ of a frozen class looks up the setter of each field by name, in twice the time.
        sets = ", ".join(f"set{place}(made, {value})" for place, value in enumerate(values))
        made = f"(made := new(kind), {sets}, made)[-1]"
        given |= {"new": object.__new__, **{f"set{place}": each.__set__ for place, each in enumerate(slots)}}
    return cast(Maker, eval(f"lambda parts: {made} if len(parts) == {len(names) + 1} else by_keywords(parts)", given))
