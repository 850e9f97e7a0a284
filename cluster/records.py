"""Overlay networks in the store: their keys, and what the values say; everything decoded is validated.

Below ``/weft/v2/overlay/``: ``network/NAME``; ``vni/NUMBER`` with the network's name;
``block/NAME/ADDRESS-LENGTH``, who has a block, kept without a lease; ``member/NODE/NAME``, how a host
takes part; ``wanted/NAME/NODE``, a host that found no free block; ``ask/NAME/ADDRESS/NODE``, a host that
wants a static address which another one has; ``networks``, which each change of the list of networks
rewrites, so that two changes at once do not overlap; and ``restored/NODE``, networks of which no block must be claimed,
on a lease.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import TypeVar

from store import Entry
from weft import identity, overlay, overlay_modes, wireguard
from weft.overlay_modes import VlanGateway
from weft.section import Section, quoted
from weft.types import Address, Subnet

ROOT = "/weft/v2/overlay/"
LIST = f"{ROOT}networks"
RESTORED = f"{ROOT}restored/"
_LONGEST = {4: 28, 6: 120}
_STEPS = {4: 8, 6: 16}
_SHORTEST = {4: 24, 6: 0}
_STATIC = 4
Json = dict[str, object]
Kind = TypeVar("Kind")


class DecodeError(ValueError):
    """The value of this key cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the cluster. ``blocks`` are the prefix lengths of blocks, by subnet; ``plugin`` is the
    CNI configuration of the plugin, ``notes`` weft's own keys of a network list, ``keys`` more keys of the
    network's file. ``revision`` is the store's.
    """

    name: str
    id: str
    vni: int
    subnets: tuple[Subnet, ...]
    blocks: tuple[int, ...]
    gateway: Address | None = None
    static: tuple[Subnet, ...] = ()
    port: int = overlay.PORT
    plugin: Mapping[str, object] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)
    keys: Mapping[str, object] = field(default_factory=dict)
    revision: int = 0

    def length(self, version: int) -> int:
        """The prefix length of blocks of an IP version."""
        return next(one for subnet, one in zip(self.subnets, self.blocks, strict=True) if subnet.version == version)

    @property
    def mode(self) -> str:
        return str(self.keys.get("mode") or overlay_modes.ROUTED)

    @property
    def vlan_gateway(self) -> VlanGateway | None:
        return overlay_modes.parse_vlan_gateway(Section(dict(self.keys)).section(overlay_modes.VLAN_GATEWAY))

    @property
    def internal(self) -> bool:
        return self.plugin.get("internal") is True

    @property
    def key(self) -> str:
        return network_key(self.name)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a network and the node that has it; ``parts`` of it are lent to others. One key has it
    all, so that no two records can disagree.
    """

    subnet: Subnet
    node: str
    parts: tuple[tuple[Subnet, str], ...] = ()
    created: int = 0
    revision: int = 0

    def of(self, node: str) -> tuple[Subnet, ...]:
        """What of the block a node has."""
        lent = [part for part, owner in self.parts if owner == node]
        return (*without(self.subnet, [part for part, _ in self.parts]), *lent) if node == self.node else tuple(lent)


@dataclass(frozen=True, slots=True)
class Member:
    """How a node takes part in a network. ``mtu`` is that of its underlay, in bytes; ``attached``: it has
    containers on it; ``problem``: why it does not take part, "" if it does. ``keys`` are what it says of its
    keys (``cluster.tunnels``).
    """

    node: str
    network: str
    underlay: str
    mac: str
    mtu: int
    attached: bool = False
    problem: str = ""
    keys: Mapping[str, object] = field(default_factory=dict)
    created: int = 0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """A node that wants a static address which another one has. ``token`` tells it from the asks before;
    ``refused`` is the other's reason.
    """

    network: str
    address: Address
    node: str
    token: str
    refused: str = ""
    revision: int = 0

    @property
    def key(self) -> str:
        return f"{asks_prefix(self.network)}{self.address}/{self.node}"


def block_length(subnet: Subnet) -> int:
    """The prefix length of a subnet's blocks, unless it was chosen: 256 blocks of a /16."""
    version = subnet.version
    return min(max(subnet.prefixlen + _STEPS[version], _SHORTEST[version]), _LONGEST[version])


def static_range(subnet: Subnet, length: int) -> Subnet | None:
    """The static range of a subnet with blocks of a length, unless one was chosen: its last sixteenth, if it
    has 32 blocks or more.
    """
    if length - subnet.prefixlen < _STATIC + 1:
        return None
    number = int(subnet.broadcast_address) + 1 - (1 << (subnet.max_prefixlen - subnet.prefixlen - _STATIC))
    return ip_network((number, subnet.prefixlen + _STATIC))


def without(subnet: Subnet, parts: Iterable[Subnet]) -> tuple[Subnet, ...]:
    """A subnet without parts of it, as few subnets as possible, in order."""
    found = [subnet]
    for part in parts:
        found = [rest for one in found for rest in _excluded(one, part)]
    return tuple(sorted(found))


def _excluded(one: Subnet, part: Subnet) -> tuple[Subnet, ...]:
    if one.version != part.version or not one.overlaps(part):
        return (one,)
    if one.prefixlen >= part.prefixlen:
        return ()
    return tuple(rest for half in one.subnets() for rest in _excluded(half, part))


def vni_key(vni: int) -> str:
    return f"{ROOT}vni/{vni}"


def is_vni_of(entry: Entry, network: str) -> bool:
    """Whether the key is that of a network's VNI."""
    return entry.key.startswith(f"{ROOT}vni/") and entry.value == network.encode()


def blocks_prefix(network: str) -> str:
    return f"{ROOT}block/{network}/"


def block_key(network: str, subnet: Subnet) -> str:
    return f"{blocks_prefix(network)}{str(subnet).replace('/', '-')}"


def network_key(network: str) -> str:
    return f"{ROOT}network/{network}"


def member_key(node: str, network: str) -> str:
    return f"{ROOT}member/{node}/{network}"


def asks_prefix(network: str) -> str:
    return f"{ROOT}ask/{network}/"


def wanted_key(network: str, node: str) -> str:
    return f"{ROOT}wanted/{network}/{node}"


def encode(value: Network | Block | Member | Ask) -> bytes:
    match value:
        case Network():
            found: Json = {
                "id": value.id,
                "vni": value.vni,
                "subnets": [str(one) for one in value.subnets],
                "blocks": list(value.blocks),
                "gateway": str(value.gateway) if value.gateway is not None else "",
                "static": [str(one) for one in value.static],
                "port": value.port,
                "plugin": dict(value.plugin),
                "notes": dict(value.notes),
                "keys": dict(value.keys),
            }
        case Ask():
            found = {"token": value.token, "refused": value.refused}
        case Block():
            found = {"node": value.node, "parts": {str(part): node for part, node in value.parts}}
        case Member():
            found = {
                "underlay": value.underlay,
                "mac": value.mac,
                "mtu": value.mtu,
                "attached": value.attached,
                "problem": value.problem,
                "keys": dict(value.keys),
            }
    return json.dumps({key: one for key, one in found.items() if one not in ("", [], {}, False)}).encode()


def decode(entry: Entry) -> Network | Block | Member | Ask | None:
    """The value of a key, None for one that has no value of its own. Raises DecodeError."""
    kind, *names = entry.key.removeprefix(ROOT).split("/")
    try:
        if kind == "network" and len(names) == 1:
            return _network(names[0], _keys(entry), entry.mod_revision)
        if kind == "block" and len(names) == 2:
            return _block(names[1], _keys(entry), entry)
        if kind == "member" and len(names) == 2:
            return _member(names[0], names[1], _keys(entry), entry)
        if kind == "ask" and len(names) == 3:
            return _ask(names[0], names[1], names[2], _keys(entry), entry.mod_revision)
    except (ValueError, TypeError, RecursionError) as error:
        raise DecodeError(f"{entry.key}: {error}") from error
    return None


def _keys(entry: Entry) -> Section:
    return Section(json.loads(entry.value.decode()))


def _network(name: str, keys: Section, revision: int) -> Network:
    if problem := identity.identifier_problem(name):
        raise ValueError(f"the name {quoted(name)} {problem}")
    subnets = tuple(map(ip_network, keys.texts("subnets")))
    lengths = tuple(one for one in keys.items("blocks") if isinstance(one, int))
    vni = keys.integer("vni", least=1, most=overlay.LAST_VNI)
    port = keys.integer("port", least=1, most=65535)
    static = tuple(map(ip_network, keys.texts("static")))
    gateway = keys.address("gateway")
    overlay_modes.parse_vlan_gateway(keys.section("keys").section(overlay_modes.VLAN_GATEWAY))
    found = Network(
        name,
        keys.text("id"),
        vni or 0,
        subnets,
        lengths,
        gateway,
        static,
        port or overlay.PORT,
        _object(keys, "plugin"),
        _object(keys, "notes"),
        _object(keys, "keys"),
        revision,
    )
    if vni is None or not subnets or len({one.version for one in subnets}) < len(subnets):
        raise ValueError("vni and one subnet of each IP version are needed")
    if len(lengths) != len(subnets) or any(
        not one.prefixlen <= length <= one.max_prefixlen for one, length in zip(subnets, lengths, strict=False)
    ):
        raise ValueError("blocks must have a prefix length for each subnet")
    _raise(keys)
    return found


def _block(name: str, keys: Section, entry: Entry) -> Block:
    subnet = ip_network(name.replace("-", "/"))
    parts = tuple((ip_network(part), str(node)) for part, node in _object(keys, "parts").items())
    if any(part.version != subnet.version or not _inside(part, subnet) for part, _ in parts):
        raise ValueError("a part is not within the block")
    node = keys.text("node")
    _raise(keys)
    if not node:
        raise ValueError("node is missing")
    return Block(subnet, node, parts, entry.create_revision, entry.mod_revision)


def _inside(part: Subnet, subnet: Subnet) -> bool:
    return part.prefixlen > subnet.prefixlen and part.network_address in subnet


def _member(node: str, network: str, keys: Section, entry: Entry) -> Member:
    underlay, problem = keys.text("underlay"), keys.text("problem")
    mac = identity.normal_mac(keys.text("mac")) if keys.text("mac") else ""
    if not problem:
        ip_address(underlay)
        if not mac:
            raise ValueError("mac is missing")
    mtu = keys.integer("mtu", least=0, most=65535) or 0
    attached = keys.flag("attached")
    said = _object(keys, "keys")
    _require_keys(keys.section("keys"))
    revisions = entry.create_revision, entry.mod_revision
    found = Member(node, network, underlay, mac, mtu, attached, problem, said, *revisions)
    _raise(keys)
    return found


def _require_keys(said: Section) -> None:
    """Record what is wrong with what a host says of its keys and containers: each host's file of peers has them."""
    try:
        wireguard.parse_keys(said.items("keys"), 0)
    except ValueError as error:
        said.problem("keys", str(error))
    try:
        overlay_modes.parse_ports(said.raw(overlay_modes.PORTS) or {}, ())
    except (ValueError, TypeError) as error:
        said.problem(overlay_modes.PORTS, str(error))
    for key in ("generation", "ready"):
        said.integer(key, least=1, most=wireguard.LAST_GENERATION)


def _ask(network: str, address: str, node: str, keys: Section, revision: int) -> Ask:
    found = Ask(network, ip_address(address), node, keys.text("token"), keys.text("refused"), revision)
    _raise(keys)
    return found


def _object(keys: Section, key: str) -> dict[str, object]:
    value = keys.raw(key)
    if value is not None and not isinstance(value, dict):
        raise TypeError(f"{key} must be an object")
    return dict(value or {})


def _raise(keys: Section) -> None:
    if keys.problems.found:
        raise ValueError("; ".join(keys.problems.found))
