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
from ipaddress import ip_address, ip_interface, ip_network
from json.encoder import encode_basestring_ascii
from typing import cast

from cni_plugin import ops
from cni_plugin.dataplane.tables import TABLES
from ipam import host_local, leases, ranges
from weft import types
from weft.kernel import interface

KIND = "kind"
_VALUE = "="
_MOST_PARSED = 1024

Writer = Callable[[object], str]


Kinds = Mapping[str, Callable[..., object]]
"""The classes that a file may name, and how each is made."""


class _Kinds(dict[str, Callable[..., object]]):
    """Classes by name. The module of an operation that few configurations need is imported when a
    record has one.
    """

    def __missing__(self, name: str) -> Callable[..., object]:
        return ops.rare(name)


def kinds(*classes: type) -> Kinds:
    """Every class that a file may name, ``classes`` among them: no other is ever instantiated from a
    file.
    """
    parsers: dict[str, Callable[..., object]] = {
        "address": ip_address,
        "interface": ip_interface,
        "network": ip_network,
        "Side": types.Side,
    }
    # Parsing an address takes 10 us, and the records of a network repeat its own.
    found = _Kinds({name: lru_cache(_MOST_PARSED)(parse) for name, parse in parsers.items()})
    found |= {each.__name__: each for each in (*classes, *ops.COMMON)}
    for module in (types, interface, leases, ranges, host_local):
        for name, value in vars(module).items():
            if isinstance(value, type) and is_dataclass(value):
                found[name] = value
    found["Element"] = _element
    return found


def _element(collection: str, **parts: object) -> interface.Element:
    """An element; records of earlier releases have former names of sets."""
    return interface.Element(TABLES.renamed.get(collection, collection), **parts)  # type: ignore[arg-type]


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


def decode(value: object, kinds: Kinds) -> object:
    """The value that ``encode`` was given; raises ValueError, KeyError or TypeError for anything else."""
    if isinstance(value, list):
        return tuple([decode(item, kinds) for item in value])
    if not isinstance(value, dict):
        return value
    make = kinds[value[KIND]]
    if _VALUE in value:
        return make(value[_VALUE])
    return make(**{name: decode(item, kinds) for name, item in value.items() if name != KIND})
