"""Tokens, policies and roles, and their keys and encoding in the store.

``/weft/v2/acl/token/ACCESSOR``, ``policy/ID``, ``role/ID``. A token's secret is stored as its
SHA-256 digest, since every node reads the store: a secret is a UUID with 122 random bits, which
nobody can find by trying, so that a slow or salted digest would protect nothing more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TypeVar

from discovery.layout import ROOT, DecodeError
from store import Entry

ACLS = ROOT + "acl/"
BOOTSTRAP = ACLS + "bootstrap"
"""Exists once a first token has been made; its revision is the index that a reset names."""
ANONYMOUS = "anonymous"
"""The secret of the token that requests without one have."""
ANONYMOUS_ID = "00000000-0000-0000-0000-000000000002"
MANAGEMENT_ID = "00000000-0000-0000-0000-000000000001"
READ_ONLY_ID = "00000000-0000-0000-0000-000000000002"
_READ_ALL = "\n".join(
    (
        *('acl = "read"', 'operator = "read"', 'keyring = "read"', 'mesh = "read"', 'peering = "read"'),
        *(
            f'{resource}_prefix "" {{ policy = "read" }}'
            for resource in ("agent", "event", "key", "node", "query", "service", "session")
        ),
    )
)
Identity = tuple[str, tuple[str, ...]]
"""A service or node, and the datacenters it is meant for; () for all."""
Template = tuple[str, str]
"""A templated policy: its name, and the name that it is for, "" where it is for none."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A named set of rules (``discovery.acl.rules``)."""

    id: str
    name: str
    description: str = ""
    rules: str = ""
    datacenters: tuple[str, ...] = ()
    create_index: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class Role:
    """What tokens can be given together. ``policies`` are ids."""

    id: str
    name: str
    description: str = ""
    policies: tuple[str, ...] = ()
    services: tuple[Identity, ...] = ()
    nodes: tuple[Identity, ...] = ()
    templates: tuple[Template, ...] = ()
    create_index: int = 0
    modify_index: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """A token. ``digest`` is that of its secret, ``policies`` and ``roles`` are ids; times are in
    seconds since 1970, 0 for never.
    """

    id: str
    digest: str
    description: str = ""
    policies: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    services: tuple[Identity, ...] = ()
    nodes: tuple[Identity, ...] = ()
    templates: tuple[Template, ...] = ()
    local: bool = False
    created: float = 0.0
    expires: float = 0.0
    create_index: int = 0
    modify_index: int = 0


AclRecord = Policy | Role | Token
Kind = TypeVar("Kind", Policy, Role, Token)

BUILTIN_POLICIES = (
    Policy(MANAGEMENT_ID, "global-management", "A policy that grants unlimited access"),
    Policy(READ_ONLY_ID, "builtin/global-read-only", "A policy that grants unlimited read-only access", _READ_ALL),
)


def digest(secret: str) -> str:
    """The digest of a secret, as it is stored."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


ANONYMOUS_TOKEN = Token(ANONYMOUS_ID, digest(ANONYMOUS), "Anonymous Token")


def acl_key(record: AclRecord) -> str:
    """The store key of a record."""
    return f"{ACLS}{type(record).__name__.lower()}/{record.id.lower()}"


def encode_acl(record: AclRecord) -> bytes:
    """JSON of a record, without empty fields and indexes."""
    found = {name: part for name, part in asdict(record).items() if part and not name.endswith("_index")}
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode()


def decode_acl(entry: Entry) -> AclRecord:
    """Decode a record, with the store's revisions as its indexes. Raises DecodeError."""
    try:
        kind, _, name = entry.key.removeprefix(ACLS).partition("/")
        found = json.loads(entry.value)
        if found["id"].lower() != name:
            raise ValueError(f"the value is that of {found['id']}")
        match kind:
            case "policy":
                record: AclRecord = _built(Policy, Policy, found)
            case "role":
                record = _built(Role, Role, found)
            case "token":
                record = _built(Token, Token, found)
            case _:
                raise ValueError("unknown kind")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DecodeError(f"{entry.key}: {error}") from error
    return replace(record, create_index=entry.create_revision, modify_index=entry.mod_revision)


def _built(kind: Callable[..., Kind], names: type[Kind], found: Mapping[str, object]) -> Kind:
    """A record from decoded fields; unknown fields, of a newer weft, are ignored.

    ``kind`` and ``names`` are one class; mypy cannot match its fields with their values.
    """
    values = {part.name: _value(part.name, found[part.name]) for part in fields(names) if part.name in found}
    return kind(**values)


def _value(name: str, value: object) -> object:
    """The value of a field, checked. Raises TypeError."""
    match name:
        case "local":
            return _typed(value, bool)
        case "created" | "expires":
            return float(_typed(value, float, int))
        case "policies" | "roles" | "datacenters":
            return tuple(_typed(one, str) for one in _typed(value, list))
        case "services" | "nodes":
            return tuple(
                (_typed(one, str), tuple(_typed(place, str) for place in places)) for one, places in _typed(value, list)
            )
        case "templates":
            return tuple((_typed(one, str), _typed(other, str)) for one, other in _typed(value, list))
    return _typed(value, str)


Typed = TypeVar("Typed")


def _typed(value: object, *kinds: type[Typed]) -> Typed:
    if not isinstance(value, kinds):
        raise TypeError(f"{value!r} is not of type {kinds[0].__name__}")
    return value
