"""Keys and JSON encoding of the catalog in the store; everything decoded is validated.

``/weft/v1/node/NODE``, ``/weft/v1/service/NAME/NODE/ID``, ``/weft/v1/check/NODE/ID``,
``/weft/v1/virtual/ADDRESS``; all but the last are bound to the lease of their node. What a node's
agent persists for itself, to survive restarts, is under ``/weft/v1/own/NODE/`` and bound to no
lease.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import TypeVar
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
Reader = Callable[[object], object]
"""Validates the JSON of one field. Raises TypeError or ValueError."""

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


def _node(found: object, entry: Entry) -> Node:
    return _built(Node, _NODE, found, entry)


def _instance(found: object, entry: Entry) -> Instance:
    return _built(Instance, _INSTANCE, found, entry)


def _check(found: object, entry: Entry) -> Check:
    return _built(Check, _CHECK, found, entry)


def _virtual(found: object, entry: Entry) -> VirtualAddress:
    parts = _object(found)
    return VirtualAddress(str(parts["service"]), str(parts["address"]), entry.create_revision)


def _built(kind: Callable[..., Kind], readers: Mapping[str, Reader], found: object, entry: Entry) -> Kind:
    """Build an entry from decoded fields; unknown fields, of a newer weft, are ignored.

    ``kind`` is a class whose fields ``readers`` return; mypy cannot match the two.
    """
    parts = {name: readers[name](value) for name, value in _object(found).items() if name in readers}
    return kind(**parts, create_index=entry.create_revision, modify_index=entry.mod_revision)


def _readers(kind: type, **special: Reader) -> dict[str, Reader]:
    """The decoder of each field of a class: a string, unless ``special`` names another."""
    names = {part.name for part in fields(kind)} - {"create_index", "modify_index"}
    return {name: special.get(name, _text) for name in names}


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    return value


def _strings(value: object) -> dict[str, str]:
    return {_text(key): _text(part) for key, part in _object(value).items()}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return tuple(_text(word) for word in value)


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _port(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= 65535:
        raise ValueError(f"{value!r} is not a port")
    return value


def _status(value: object) -> Status:
    return Status(_text(value))


def _ports(value: object) -> dict[str, int]:
    return {_text(name): _port(port) for name, port in _object(value).items()}


def _weights(value: object) -> Weights:
    parts = _object(value)
    return Weights(_integer(parts["passing"]), _integer(parts["warning"]))


def _tagged_addresses(value: object) -> dict[str, ServiceAddress]:
    return {_text(name): _service_address(place) for name, place in _object(value).items()}


def _service_address(value: object) -> ServiceAddress:
    parts = _object(value)
    return ServiceAddress(_text(parts["address"]), _port(parts.get("port", 0)))


_NODE = _readers(Node, meta=_strings, tagged_addresses=_strings)
_INSTANCE = _readers(
    Instance,
    ports=_ports,
    port=_port,
    tags=_words,
    meta=_strings,
    weights=_weights,
    tagged_addresses=_tagged_addresses,
    enable_tag_override=bool,
)
_CHECK = _readers(Check, status=_status, service_tags=_words, definition=_object)
_BUILDERS: dict[str, Callable[[object, Entry], CatalogEntry]] = {
    NODES: _node,
    SERVICES: _instance,
    CHECKS: _check,
    VIRTUALS: _virtual,
}
