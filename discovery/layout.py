"""Keys and JSON encoding of the catalog in the store; everything decoded is validated.

``/weft/v1/node/NODE``, ``/weft/v1/service/NAME/NODE/ID``, ``/weft/v1/check/NODE/ID``,
``/weft/v1/virtual/ADDRESS``; all but the last are bound to the lease of their node. What a node's
agent persists for itself, to survive restarts, is under ``/weft/v1/own/NODE/`` and bound to no
lease.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from discovery.structs import (
    CatalogEntry,
    Check,
    CheckDefinition,
    Instance,
    Node,
    ServiceAddress,
    Status,
    VirtualAddress,
    Weights,
)
from store import Entry

ROOT = "/weft/v1/"
NODES = ROOT + "node/"
SERVICES = ROOT + "service/"
CHECKS = ROOT + "check/"
VIRTUALS = ROOT + "virtual/"
LOCAL = ROOT + "own/"

Kind = TypeVar("Kind", Node, Instance, Check)


_SAFE = ":@+ ,=~"
_PLAIN = re.compile(r"[A-Za-z0-9_.:@+ ,=~-]*", re.ASCII)  # unchanged by quote(), and ten times as fast


class DecodeError(ValueError):
    """The value of this key cannot be decoded."""


def store_key(value: CatalogEntry) -> str:
    """The store key of a catalog entry. Parts are percent-encoded, so that a name cannot contain
    "/".
    """
    match value:
        case Node():
            return NODES + _part(value.name)
        case Instance():
            return f"{SERVICES}{_part(value.name)}/{_part(value.node)}/{_part(value.id)}"
        case Check():
            return f"{CHECKS}{_part(value.node)}/{_part(value.id)}"
        case VirtualAddress():
            return VIRTUALS + _part(value.address)


def local_key(node: str, kind: str, name: str = "") -> str:
    """The key of something that a node's agent persists: ``("n1", "service", "web-1")``."""
    return f"{LOCAL}{_part(node)}/{_part(kind)}/{_part(name)}"


def encode(value: CatalogEntry) -> bytes:
    """JSON of a catalog entry, without empty fields and indexes (those are the store's
    revisions).
    """
    found = asdict(value)
    return json.dumps(
        {name: part for name, part in found.items() if part not in ("", (), {}, []) and not name.endswith("_index")},
        separators=(",", ":"),
        ensure_ascii=False,
        sort_keys=True,
    ).encode()


def decode(entry: Entry) -> CatalogEntry:
    """Decode an entry, with the store's revisions as its indexes. Raises DecodeError."""
    for prefix, build in _BUILDERS.items():
        if entry.key.startswith(prefix):
            try:
                found = json.loads(entry.value.decode())
                value = build(found, entry)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise DecodeError(f"{entry.key}: {error}") from error
            if store_key(value) != entry.key:
                raise DecodeError(f"{entry.key}: the value belongs to {store_key(value)}")
            return value
    raise DecodeError(f"{entry.key}: unknown key prefix")


def decode_local(entry: Entry) -> Instance:
    """Decode an instance persisted by its node's agent; its indexes are 0. Raises DecodeError."""
    try:
        return replace(_instance(json.loads(entry.value), entry), create_index=0, modify_index=0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DecodeError(f"{entry.key}: {error}") from error


def encode_check_definition(definition: CheckDefinition) -> bytes:
    """JSON of a check definition, as its node's agent persists it."""
    return json.dumps(asdict(definition), separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()


def decode_check_definition(value: bytes) -> CheckDefinition:
    """Decode a persisted check definition. Raises DecodeError."""
    try:
        found = json.loads(value)
        known = {part.name for part in fields(CheckDefinition)}
        parts = {name: part for name, part in found.items() if name in known}
        parts["initial"] = Status(parts["initial"])
        parts["headers"] = {name: tuple(values) for name, values in parts["headers"].items()}
        parts["arguments"] = tuple(parts["arguments"])
        return CheckDefinition(**parts)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DecodeError(f"invalid check definition: {error}") from error


def key_parts(key: str) -> tuple[str, ...]:
    """The decoded parts of a key behind its prefix: ``("web", "n1", "web-1")`` for a service's."""
    parts = key.removeprefix(ROOT).split("/")[1:]
    return tuple(unquote(part) for part in parts) if "%" in key else tuple(parts)


def _part(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else quote(name, safe=_SAFE)


def _node(found: dict[str, Any], entry: Entry) -> Node:
    return _built(Node, _NODE, found, entry)


def _instance(found: dict[str, Any], entry: Entry) -> Instance:
    return _built(Instance, _INSTANCE, found, entry)


def _check(found: dict[str, Any], entry: Entry) -> Check:
    return _built(Check, _CHECK, found, entry)


def _virtual(found: dict[str, Any], entry: Entry) -> VirtualAddress:
    return VirtualAddress(str(found["service"]), str(found["address"]), entry.create_revision)


def _built(kind: type[Kind], readers: dict[str, Callable[[Any], Any]], found: dict[str, Any], entry: Entry) -> Kind:
    """Build an entry from decoded fields; unknown fields, of a newer weft, are ignored."""
    parts = {name: readers[name](value) for name, value in found.items() if name in readers}
    return kind(**parts, create_index=entry.create_revision, modify_index=entry.mod_revision)


def _readers(kind: type, **special: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    """The decoder of each field of a class: a string, unless ``special`` names another."""
    names = {part.name for part in fields(kind)} - {"create_index", "modify_index"}
    return {name: special.get(name, _text) for name in names}


def _strings(value: Any) -> dict[str, str]:
    return {_text(key): _text(part) for key, part in value.items()}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return tuple(_text(word) for word in value)


def _port(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError(f"{value!r} is not a port")
    return value


_NODE = _readers(Node, meta=_strings, tagged_addresses=_strings)
_INSTANCE = _readers(
    Instance,
    ports=lambda value: {_text(name): _port(port) for name, port in value.items()},
    port=_port,
    tags=_words,
    meta=_strings,
    weights=lambda value: Weights(int(value["passing"]), int(value["warning"])),
    tagged_addresses=lambda value: {
        _text(name): ServiceAddress(_text(place["address"]), _port(place.get("port", 0)))
        for name, place in value.items()
    },
    enable_tag_override=bool,
)
_CHECK = _readers(Check, status=Status, service_tags=_words, definition=dict)
_BUILDERS: dict[str, Callable[[dict[str, Any], Entry], CatalogEntry]] = {
    NODES: _node,
    SERVICES: _instance,
    CHECKS: _check,
    VIRTUALS: _virtual,
}
