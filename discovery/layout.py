"""Keys and JSON encoding of the catalog in the store; everything decoded is validated.

Everything that a node writes about itself is under ``/weft/v2/host/NODE/``, so that its access can
be confined to that prefix: ``node``, ``service/NAME/ID`` and ``check/ID``, bound to the node's
lease; ``session/ID`` (discovery.consul.sessions); and ``own/``, what its agent persists to survive
restarts, bound to no lease. ``/weft/v2/virtual/ADDRESS``, ``/weft/v2/query/ID`` and the keys of
``discovery.kv`` and ``discovery.consul.events`` belong to no node, and ``offer/SERVICE/NETWORK/NODE``
to a node's lease (``discovery.claims``). Parts of a key are
percent-encoded, so that a name cannot contain "/".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import TypeVar
from urllib.parse import quote, unquote

from discovery.structs import (
    MAX_TTL,
    CatalogEntry,
    Check,
    CheckDefinition,
    Instance,
    Node,
    PreparedQuery,
    ServiceAddress,
    Status,
    VirtualAddress,
    Weights,
)
from store import Entry

ROOT = "/weft/v2/"
HOSTS = ROOT + "host/"
VIRTUALS = ROOT + "virtual/"
QUERIES = ROOT + "query/"
OFFERS = ROOT + "offer/"
SESSIONS = ROOT + "session/"
"""What a watcher of all nodes' sessions subscribes to (``watched_name``)."""

Kind = TypeVar("Kind", Node, Instance, Check, PreparedQuery)
Reader = Callable[[object], object]
"""Validates the JSON of one field. Raises TypeError or ValueError."""

_SAFE = ":@+ ,=~"
_EMPTY: tuple[object, ...] = ("", (), {}, [])
_PLAIN = re.compile(r"[A-Za-z0-9_.:@+ ,=~-]*", re.ASCII)  # unchanged by quote(), and ten times as fast


class DecodeError(ValueError):
    """The value of this key cannot be decoded."""


def store_key(value: CatalogEntry) -> str:
    """The store key of a catalog entry."""
    match value:
        case Node():
            return host_prefix(value.name) + "node"
        case Instance():
            return f"{host_prefix(value.node)}service/{encode_name(value.name)}/{encode_name(value.id)}"
        case Check():
            return f"{host_prefix(value.node)}check/{encode_name(value.id)}"
        case VirtualAddress():
            return VIRTUALS + encode_name(value.address)
        case PreparedQuery():
            return QUERIES + encode_name(value.id)


def host_prefix(node: str) -> str:
    """The prefix of all keys of a node."""
    return f"{HOSTS}{encode_name(node)}/"


def local_key(node: str, kind: str, name: str = "") -> str:
    """The key of something that a node's agent persists: ``("n1", "service", "web-1")``."""
    return f"{local_prefix(node)}{encode_name(kind)}/{encode_name(name)}"


def local_prefix(node: str) -> str:
    """The prefix of all keys that a node's agent persists."""
    return f"{host_prefix(node)}own/"


def offer_key(service: str, network: str = "", node: str = "") -> str:
    """The key of a network's claim to a service on a node; without them, the prefix of all claims to
    it, which is the key that every claim changes.
    """
    prefix = f"{OFFERS}{encode_name(service.lower())}/"
    return f"{prefix}{encode_name(network)}/{encode_name(node)}" if node else prefix


def session_key(node: str, session_id: str = "") -> str:
    """The key of a session of a node; without an id the prefix of all of them."""
    return f"{host_prefix(node)}session/{encode_name(session_id)}"


def watched_name(key: str) -> str:
    """The name by which a key is waited for: SESSIONS for any node's session, "" for other keys of
    nodes, which the catalog has, else the key itself.
    """
    if not key.startswith(HOSTS):
        return key
    return SESSIONS if split_key(key)[0] == "session" else ""


def encode(value: CatalogEntry) -> bytes:
    """JSON of a catalog entry, without empty fields and indexes (those are the store's
    revisions).
    """
    parts = ((name, getattr(value, name)) for name in _names(type(value)) if not name.endswith("_index"))
    return _json({name: part for name, part in parts if part not in _EMPTY})


def decode(entry: Entry, kind: str = "") -> CatalogEntry:
    """Decode an entry, with the store's revisions as its indexes; ``kind`` is that of its key, where the
    caller knows it. Raises DecodeError.
    """
    build = _BUILDERS.get(kind or split_key(entry.key)[0])
    if build is None:
        raise DecodeError(f"{entry.key}: unknown key prefix")
    try:
        value = build(_loaded(entry.value), entry)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DecodeError(f"{entry.key}: {error}") from error
    if store_key(value) != entry.key:
        raise DecodeError(f"{entry.key}: the value belongs to {store_key(value)}")
    return value


def _loaded(value: bytes) -> object:
    """``json.loads``, a fifth faster where there are no spaces around it, as ``encode`` writes it. Raises
    ValueError.
    """
    text = value.decode()
    found, end = _RAW_DECODE(text)
    return found if end == len(text) else json.loads(text)


def decode_local(entry: Entry) -> Instance:
    """Decode an instance persisted by its node's agent; its indexes are 0. Raises DecodeError."""
    try:
        return _instance(_loaded(entry.value), replace(entry, create_revision=0, mod_revision=0))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DecodeError(f"{entry.key}: {error}") from error


def encode_check_definition(definition: CheckDefinition) -> bytes:
    """JSON of a check definition, as its node's agent persists it."""
    return _json(_parts(definition))


def decode_check_definition(value: bytes) -> CheckDefinition:
    """Decode a persisted check definition. Raises DecodeError."""
    try:
        found = json.loads(value.decode())
        parts = {name: part for name, part in found.items() if name in _names(CheckDefinition)}
        parts["initial"] = Status(parts["initial"])
        parts["headers"] = {name: tuple(values) for name, values in parts["headers"].items()}
        parts["arguments"] = tuple(parts["arguments"])
        parts["reachable"] = tuple(parts.get("reachable", ()))
        return CheckDefinition(**parts)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DecodeError(f"invalid check definition: {error}") from error


def split_key(key: str) -> tuple[str, tuple[str, ...]]:
    """The kind of a key and its decoded names: ``("service", ("n1", "web", "web-1"))``.

    A key that has not the parts of its kind is of kind "".
    """
    kind, *names = key.removeprefix(ROOT).split("/")
    if kind == "host" and len(names) > 1:
        node, kind, *names = names
        names.insert(0, node)
    if kind in _NAMES and len(names) != _NAMES[kind]:
        return "", ()
    return kind, tuple(unquote(name) for name in names) if "%" in key else tuple(names)


def _json(found: dict[str, object]) -> bytes:
    return _ENCODER.encode(found).encode()


def _parts(value: CatalogEntry | CheckDefinition | Weights | ServiceAddress) -> dict[str, object]:
    """The fields of a value. dataclasses.asdict copies all that is in them, ten times as slow."""
    return {name: getattr(value, name) for name in _names(type(value))}


def _names(kind: type) -> tuple[str, ...]:
    found = _FIELDS.get(kind)
    if found is None:
        found = _FIELDS[kind] = tuple(part.name for part in fields(kind))
    return found


_RAW_DECODE = json.JSONDecoder().raw_decode
_FIELDS: dict[type, tuple[str, ...]] = {}
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, sort_keys=True, default=_parts)


def encode_name(name: str) -> str:
    """A name as part of a key."""
    return name if _PLAIN.fullmatch(name) else quote(name, safe=_SAFE)


def _node(found: object, entry: Entry) -> Node:
    return _built(Node, _NODE, found, entry)


def _instance(found: object, entry: Entry) -> Instance:
    return _built(Instance, _INSTANCE, found, entry)


def _check(found: object, entry: Entry) -> Check:
    return _built(Check, _CHECK, found, entry)


def _query(found: object, entry: Entry) -> PreparedQuery:
    return _built(PreparedQuery, _QUERY, found, entry)


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


def _ttl(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TTL:
        raise ValueError(f"{value!r} is not a TTL")
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
_QUERY = _readers(
    PreparedQuery,
    tags=_words,
    ignore_checks=_words,
    only_passing=bool,
    remove_empty_tags=bool,
    node_meta=_strings,
    service_meta=_strings,
    failover=_object,
    ttl=_ttl,
)
_CHECK = _readers(Check, status=_status, service_tags=_words, definition=_object)
_BUILDERS: dict[str, Callable[[object, Entry], CatalogEntry]] = {
    "node": _node,
    "service": _instance,
    "check": _check,
    "virtual": _virtual,
    "query": _query,
}
CATALOG_KINDS = frozenset(_BUILDERS)
"""The kinds of keys that are entries of the catalog."""
_NAMES = {"node": 1, "service": 3, "check": 2, "virtual": 1, "query": 1, "session": 2, "own": 3}
"""The number of names in a key of each kind, the node's first."""
