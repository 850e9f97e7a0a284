"""The nodes of a cluster: their keys in the store, and the record of one.

- ``/weft/nodes/NAME``: the record (``Node``), which outlives the node. Bound to no lease.
- ``/weft/nodes/NAME/alive``: the id of the node's run of its agent, bound to a lease of
  ``ALIVE_SECONDS`` that the agent keeps alive: the key is gone some time after the agent or its host is.
- ``/weft/nodes/NAME/…``: whatever else only that node writes.
- ``/weft/cluster/config``: what the members have agreed on (``Config``).
- ``/weft/cluster/member/NAME``: that the node may be a member of etcd (``cluster.grants``).
- ``/weft/cluster/token/DIGEST``: a join token (``cluster.tokens``), by the SHA-256 of its secret.

A node's certificate may write what is at and below ``/weft/nodes/NAME/`` and its own record, but not another
node's, and not below ``/weft/cluster/``: only members of etcd may, by the certificate of root
(docs/security.md). Parts of a key are percent-encoded, so that a name cannot contain "/".
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from urllib.parse import quote, unquote

from store.interface import Entry
from weft.section import Section
from weft.types import Address

ROOT = "/weft/nodes/"
CLUSTER = "/weft/cluster/"
CONFIG = CLUSTER + "config"
TOKENS = CLUSTER + "token/"
ALIVE_SECONDS = 30
"""Seconds without a sign of life of its agent after which a node is down."""


class State(StrEnum):
    """``drained``: takes part, but is to get no new work. ``removed``: no longer of the cluster."""

    READY = "ready"
    DRAINED = "drained"
    REMOVED = "removed"


class Role(StrEnum):
    """What a node is to etcd: a member that votes, one that only follows, or none."""

    VOTER = "voter"
    LEARNER = "learner"
    CLIENT = "client"


class DecodeError(ValueError):
    """The value of a key is no valid record."""


@dataclass(frozen=True, slots=True)
class Node:
    """The record of a node.

    ``id`` is new for each installation, so that a host that was reinstalled under its name is another node.
    ``addresses`` are of the underlay, the first one the usual. ``joined``, ``expires`` (of its certificate) and
    ``removed`` are Unix time in seconds; ``powered_off`` says that a removed node certainly no longer runs, so
    that nothing of it must be kept for a grace period. ``role`` is what it shall be, ``key`` the SHA-256 of the
    public key of its certificate ("" once a removed node has no access any more).
    """

    name: str
    id: str
    addresses: tuple[Address, ...]
    version: str
    joined: float
    role: Role
    state: State = State.READY
    expires: float = 0.0
    removed: float = 0.0
    powered_off: bool = False
    key: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """``voters`` is how many members of etcd vote, once there are as many nodes; ``created`` is Unix time."""

    id: str
    voters: int
    created: float


def record_key(name: str) -> str:
    """The key of a node's record."""
    return ROOT + quote(name, safe="")


def own_prefix(name: str) -> str:
    """The prefix of what a node alone writes, beside its record."""
    return f"{record_key(name)}/"


def alive_key(name: str) -> str:
    """The key that is there while the node's agent runs."""
    return f"{own_prefix(name)}alive"


def encode(node: Node) -> bytes:
    """The record as it is stored."""
    value: dict[str, object] = {
        "name": node.name,
        "id": node.id,
        "addresses": [str(one) for one in node.addresses],
        "version": node.version,
        "joined": node.joined,
        "role": node.role,
        "state": node.state,
        "expires": node.expires,
        "key": node.key,
    }
    if node.state is State.REMOVED:
        value |= {"removed": node.removed, "powered_off": node.powered_off}
    return json.dumps(value).encode()


def decode(entry: Entry) -> Node:
    """The node of a record, whose key must be that of its name. Raises DecodeError."""
    section = _section(entry)
    found = Node(
        name=section.text("name"),
        id=section.text("id"),
        addresses=_addresses(section),
        version=section.text("version"),
        joined=_number(section, "joined"),
        role=Role(section.text("role", Role.CLIENT, choices=tuple(Role))),
        state=State(section.text("state", State.READY, choices=tuple(State))),
        expires=_number(section, "expires"),
        removed=_number(section, "removed"),
        powered_off=section.flag("powered_off"),
        key=section.text("key"),
    )
    if not section.problems.found and record_key(found.name) != entry.key:
        section.problem("name", f"is not the {unquote(entry.key.removeprefix(ROOT))} of its key")
    _refuse(section, entry)
    return found


def encode_config(config: Config) -> bytes:
    """The cluster's configuration as it is stored."""
    return json.dumps({"id": config.id, "voters": config.voters, "created": config.created}).encode()


def decode_config(entry: Entry) -> Config:
    """The cluster's configuration. Raises DecodeError."""
    section = _section(entry)
    voters = section.integer("voters", least=1, most=5) or 0
    if voters not in (1, 3, 5):
        section.problem("voters", "must be 1, 3 or 5")
    found = Config(section.text("id"), voters, _number(section, "created"))
    _refuse(section, entry)
    return found


def split(entries: Iterable[Entry]) -> tuple[dict[str, Node], frozenset[str], tuple[str, ...]]:
    """Of the keys below ``ROOT``: the nodes by their names, the names of those alive, and what is wrong with
    the records that are left out.
    """
    nodes: dict[str, Node] = {}
    alive: set[str] = set()
    problems: list[str] = []
    for entry in entries:
        name, slash, rest = entry.key.removeprefix(ROOT).partition("/")
        if slash:
            if rest == "alive":
                alive.add(unquote(name))
            continue
        try:
            node = decode(entry)
        except DecodeError as error:
            problems.append(str(error))
        else:
            nodes[node.name] = node
    return nodes, frozenset(alive), tuple(problems)


def _section(entry: Entry) -> Section:
    try:
        return Section(json.loads(entry.value))
    except ValueError:
        raise DecodeError(f"{entry.key} is not valid JSON") from None


def _refuse(section: Section, entry: Entry) -> None:
    if section.problems.found:
        raise DecodeError(f"{entry.key}: {'; '.join(section.problems.found)}")


def _addresses(section: Section) -> tuple[Address, ...]:
    found = []
    for text in section.texts("addresses"):
        try:
            found.append(ip_address(text))
        except ValueError:
            section.problem("addresses", f"holds {text!r}, which is no address")
    return tuple(found)


def _number(section: Section, key: str) -> float:
    value = section.raw(key)
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        section.problem(key, "must be a time in seconds")
        return 0.0
    return float(value)
