"""The files that say what an overlay network is on this host, and who its peers are.

The cluster's side writes them, by rename; docs/overlay.md has their format. ``NAME.json`` is read at
each ADD: this host's blocks of addresses and how its VXLAN link is made. ``NAME.peers.json`` beside
it may be long, and is read only where it has changed: the other hosts with their blocks.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network

from weft import addresses, files, wireguard
from weft import overlay_modes as modes
from weft.errors import Busy, StateDamaged
from weft.identity import OVERLAY_GATEWAY6, normal_mac
from weft.overlay_modes import L2, MODES, PORTS, ROUTED, ContainerPort, VlanGateway, parse_ports
from weft.section import Problems, Section, quoted
from weft.types import Address, Cidr, Subnet
from weft.wireguard import TunnelKey

FOLDER = "/var/lib/weft/overlay"
FORMAT = 1
ENCRYPTIONS = WIREGUARD, IPSEC = "wireguard", "ipsec"
"""What a network's ``encryption`` may be; "" is none."""
PORT = 4789
"""The UDP port of VXLAN (RFC 7348)."""

LAST_VNI, _LAST_PORT = 2**24 - 1, 2**16 - 1
_LEAST_MTU, _LEAST_MTU6, _MOST_MTU = 68, 1280, 65535


@dataclass(frozen=True)
class OverlayNetwork:
    """An overlay network as this host takes part in it; not slotted, since what is derived is kept.

    ``mac`` and ``underlay`` are of this host's VXLAN link (VTEP). ``subnets`` are at most one of each
    family, and all hosts' ``blocks`` are parts of them. From ``static`` ranges addresses are leased
    only on request. ``mtu`` is the network's, in bytes of an inner packet.

    ``encryption`` is "" or one of ``ENCRYPTIONS``: then ``keys`` are this host's public ones, and it
    sends with that of ``generation`` to peers that have one of it, too. ``mode`` is one of ``overlay_modes.MODES``.
    """

    name: str
    vni: int
    mac: str
    underlay: Address
    mtu: int
    subnets: tuple[Subnet, ...]
    blocks: tuple[Subnet, ...]
    gateway: Address | None = None
    static: tuple[Subnet, ...] = ()
    port: int = PORT
    kept: bool = False
    encryption: str = ""
    keys: tuple[TunnelKey, ...] = ()
    generation: int = 0
    mode: str = ROUTED
    vlan_gateway: VlanGateway | None = None

    @cached_property
    def vtep(self) -> Address:
        """The address of this host's VXLAN link: its underlay address, or that of its WireGuard links."""
        return wireguard.address(self.vni, self.mac) if self.encryption == WIREGUARD else self.underlay

    def vtep_of(self, peer: Peer) -> Address:
        """The same of a peer."""
        return wireguard.address(self.vni, peer.mac) if self.encryption == WIREGUARD else peer.underlay

    @cached_property
    def own(self) -> dict[int, Address]:
        """This host's own address of each IP version: the first host address of its first block, not of a
        block of one address, which may move to another host.
        """
        return first_addresses(self.blocks, self.gateway)

    @property
    def is_l2(self) -> bool:
        return self.mode == L2

    @property
    def gateways(self) -> tuple[Cidr, ...]:
        """The gateway in each subnet, with the subnet's prefix length; for IPv6 its first address stands
        for ``OVERLAY_GATEWAY6``.
        """
        found = []
        for subnet in self.subnets:
            address = self.gateway if self.gateway is not None and subnet.version == 4 else subnet[1]
            found.append(ip_interface((address, subnet.prefixlen)))
        return tuple(found)

    def is_static(self, address: Address) -> bool:
        """Whether an address is in a static range."""
        return any(one.version == address.version and address in one for one in self.static)

    def subnet_of(self, block: Subnet) -> Subnet | None:
        """The network's subnet that a block is part of, None if there is none."""
        return next((one for one in self.subnets if one.version == block.version and _contains(one, block)), None)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another host of an overlay network: the ``underlay`` address and ``mac`` of its VXLAN link, its
    blocks, the ``mtu`` of inner packets that reach it (bytes, 0: not probed), its public ``keys``, and in mode l2 its
    containers.
    """

    name: str
    underlay: Address
    mac: str
    blocks: tuple[Subnet, ...]
    mtu: int = 0
    keys: tuple[TunnelKey, ...] = ()
    ports: tuple[ContainerPort, ...] = ()


def configured_path(ipam: Section, network: str) -> str:
    """Where the network's file is: the key ``file`` of ``ipam``, or its usual place."""
    found = ipam.text("file") or f"{FOLDER}/{network}.json"
    if not found.startswith("/") or not found.endswith(".json") or not found.isprintable():
        ipam.problem("file", "must be an absolute path that ends in .json")
    return found


def peers_path(path: str) -> str:
    """The file of the peers beside the network's."""
    return f"{path.removesuffix('.json')}.peers.json"


def hosts(block: Subnet) -> Iterator[Address]:
    """The host addresses of a block: without its network and IPv4 broadcast address, unless it is as
    small as a /31.
    """
    first, last = bounds(block)
    kind = IPv4Address if block.version == 4 else IPv6Address
    return map(kind, range(first, last + 1))


def first_addresses(blocks: Iterable[Subnet], gateway: Address | None) -> dict[int, Address]:
    """The own address of the host that has these blocks, of each IP version (``OverlayNetwork.own``)."""
    found: dict[int, Address] = {}
    for block in sorted(blocks, key=lambda one: one.num_addresses == 1):
        if block.version not in found:
            found[block.version] = next(one for one in hosts(block) if one != gateway)
    return found


def bounds(block: Subnet) -> tuple[int, int]:
    """The first and the last host address of a block, as numbers."""
    first, last = int(block.network_address), int(block.broadcast_address)
    if last - first < 2:
        return first, last
    return first + 1, last - (1 if block.version == 4 else 0)


def read_network(path: str, name: str) -> OverlayNetwork:
    """The network of a file. Raises Busy without one, StateDamaged naming each invalid value."""
    return parse_network(_read(path, f"overlay network {name}"), path, name)


def is_kept(path: str) -> bool:
    """Whether the network's file says that this host has the network also without containers."""
    try:
        found = json.loads(files.read(path))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("kept") is True


@lru_cache(maxsize=64)  # an ADD reads it four times
def parse_network(text: str, path: str, name: str) -> OverlayNetwork:
    """The network of a file's text. Raises StateDamaged naming each invalid value."""
    keys = _section(text, path, name)
    problems = keys.problems
    vni = keys.integer("vni", least=1, most=LAST_VNI)
    underlay = keys.address("underlay")
    subnets, blocks, static = (_subnets(keys, key) for key in ("subnets", "blocks", "static"))
    least = _LEAST_MTU6 if any(one.version == 6 for one in subnets) else _LEAST_MTU
    mtu = keys.integer("mtu", least=least, most=_MOST_MTU)
    port = keys.integer("port", least=1, most=_LAST_PORT)
    for key in ("vni", "underlay", "subnets", "mtu", "mac"):
        if key not in keys:
            problems.add(f"{key} is missing")
    if len({one.version for one in subnets}) < len(subnets):
        keys.problem("subnets", "has two of one IP version")
    gateway = keys.address("gateway") or next((one[1] for one in subnets if one.version == 4), None)
    if gateway is not None and not any(gateway in one for one in subnets if one.version == 4):
        keys.problem("gateway", "is not an IPv4 address of a subnet")
    if underlay is not None and (problem := _underlay_problem(underlay, subnets)):
        keys.problem("underlay", problem)
    if problem := _overlap(blocks):
        keys.problem("blocks", problem)
    mac = _mac(keys)
    found = OverlayNetwork(
        name,
        vni or 0,
        mac,
        underlay or OVERLAY_GATEWAY6,
        mtu or 0,
        subnets,
        blocks,
        gateway,
        static,
        port or PORT,
        keys.flag("kept"),
    )
    at_vlan = modes.parse_vlan_gateway(keys.section(modes.VLAN_GATEWAY))
    found = replace(_encrypted(found, keys), mode=keys.text("mode", choices=MODES) or ROUTED, vlan_gateway=at_vlan)
    if at_vlan is not None and (not found.is_l2 or found.subnet_of(at_vlan.range) is None):
        keys.problem(modes.VLAN_GATEWAY, "needs mode l2, and a range that is part of a subnet")
    for key, parts in (("blocks", blocks), ("static", static)):
        for one in parts:
            if found.subnet_of(one) is None:
                problems.add(f"{key} {quoted(str(one))} is part of no subnet")
    if any(one.num_addresses == 1 and one.network_address == gateway for one in blocks):
        keys.problem("blocks", f"has a block that is the gateway {gateway}")
    _raise(problems, path)
    return found


def _encrypted(found: OverlayNetwork, keys: Section) -> OverlayNetwork:
    encryption = keys.text("encryption", choices=ENCRYPTIONS)
    try:
        own = wireguard.parse_keys(keys.items("keys"), found.vni)
    except ValueError as error:
        keys.problem("keys", str(error))
        return found
    generation = keys.integer("generation", least=1) or (own[0].generation if own else 0)
    if encryption and all(one.generation != generation for one in own):
        keys.problem("generation", "is of none of the keys: an encrypted network needs one")
    return replace(found, encryption=encryption, keys=own, generation=generation)


def read_peers(network: OverlayNetwork, path: str) -> tuple[Peer, ...]:
    """The peers in the file beside the network's file ``path``. Raises Busy without one,
    StateDamaged naming what is invalid; then none of it is to be used.
    """
    path = peers_path(path)
    keys = _section(_read(path, f"peers of overlay network {network.name}"), path, network.name)
    known: dict[object, str] = {network.mac: "this host", network.underlay: "this host"}
    known |= dict.fromkeys((*network.blocks, *(one.key for one in network.keys)), "this host")
    found = []
    for number, item in enumerate(keys.items("peers")):
        peer = _peer(item, f"peers[{number}]", keys.problems, network.vni)
        if peer is not None and not (problem := peer_problem(peer, network, known)):
            found.append(peer)
        elif peer is not None:
            keys.problems.add(f"peers[{number}] {quoted(peer.name)} {problem}")
    if "peers" not in keys:
        keys.problems.add("peers is missing")
    _raise(keys.problems, path)
    return tuple(found)


def _peer(item: object, path: str, problems: Problems, vni: int) -> Peer | None:
    """One peer, read without a ``Section``: there may be 50,000."""
    try:
        if not isinstance(item, dict):
            raise TypeError("is not an object")
        mtu = item.get("mtu") or 0
        if isinstance(mtu, bool) or not isinstance(mtu, int) or not (mtu == 0 or _LEAST_MTU <= mtu <= _MOST_MTU):
            raise ValueError(f"has the mtu {quoted(mtu)}, which is not from {_LEAST_MTU} to {_MOST_MTU}")
        name, blocks = item["name"], item["blocks"]
        if not isinstance(name, str) or not isinstance(blocks, list):
            raise TypeError("name must be a string, and blocks a list")
        parts = tuple([addresses.network(_text(one)) for one in blocks])
        keys = wireguard.parse_keys(item["keys"], vni) if item.get("keys") else ()
        ports = parse_ports(item[PORTS], parts) if item.get(PORTS) else ()
        underlay = addresses.address(_text(item["underlay"]))
        return Peer(name, underlay, normal_mac(_text(item["mac"])), parts, mtu, keys, ports)
    except KeyError as error:
        problems.add(f"{path} lacks the key {error.args[0]}")
    except (ValueError, TypeError) as error:
        problems.add(f"{path}: {error}")
    return None


def _text(value: object) -> str:
    if not isinstance(value, str):  # a number would be taken for an address
        raise TypeError(f"{quoted(value)} is not a string")
    return value


def peer_problem(peer: Peer, network: OverlayNetwork, known: dict[object, str]) -> str:
    """Why a peer cannot be one of the network, "" if it can; ``known`` is what others have, and who: what this
    peer has is added, if it can be one.
    """
    if peer.underlay.version != network.underlay.version:
        return f"has the underlay address {peer.underlay}, not IPv{network.underlay.version} as this host's"
    if problem := _underlay_problem(peer.underlay, network.subnets):
        return f"has an underlay address that {problem}"
    has = (peer.mac, peer.underlay, *peer.blocks, *(one.key for one in peer.keys))
    for one in has:
        if known.get(one, peer.name) is not peer.name:
            return f"has {one}, which {known[one]} has"
    for block in peer.blocks:
        if network.subnet_of(block) is None:
            return f"has the block {block}, which is part of no subnet of the network"
    for one in has:
        known[one] = peer.name
    return ""


def _underlay_problem(address: Address, subnets: Iterable[Subnet]) -> str:
    if address.is_multicast or address.is_unspecified or address.is_loopback or address.is_link_local:
        return "is not the address of a host"
    inside = next((one for one in subnets if one.version == address.version and address in one), None)
    return f"is in the network's own subnet {inside}" if inside is not None else ""


def _overlap(blocks: tuple[Subnet, ...]) -> str:
    found = sorted(blocks, key=lambda one: (one.version, int(one.network_address), one.prefixlen))
    for one, other in itertools.pairwise(found):
        if one.version == other.version and int(one.broadcast_address) >= int(other.network_address):
            return f"has {one} and {other}, which overlap"
    return ""


def _contains(subnet: Subnet, block: Subnet) -> bool:
    differing = int(subnet.network_address) ^ int(block.network_address)
    return block.prefixlen >= subnet.prefixlen and not differing >> (subnet.max_prefixlen - subnet.prefixlen)


def _subnets(keys: Section, key: str) -> tuple[Subnet, ...]:
    found: list[Subnet] = []
    for text in keys.texts(key):
        try:
            found.append(ip_network(text))
        except ValueError as error:
            keys.problems.add(f"{key} {quoted(text)} is not a subnet: {error}")
    return tuple(found)


def _mac(keys: Section) -> str:
    text = keys.text("mac")
    try:
        return normal_mac(text) if text else ""
    except ValueError as error:
        keys.problem("mac", str(error))
        return ""


def _read(path: str, what: str) -> str:
    try:
        return files.read(path).decode()
    except FileNotFoundError:
        raise Busy(
            f"{path} is missing: the {what} has no file on this host",
            hint="the agent of a cluster writes it once this host has claimed a block of addresses; "
            "docs/overlay.md has its format",
        ) from None
    except OSError as error:
        raise StateDamaged(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StateDamaged(f"{path} is not valid UTF-8") from error


def _section(text: str, path: str, name: str) -> Section:
    """The keys of a file that is for this network and of this format."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateDamaged(f"{path} is not valid JSON: {error}", hint="the cluster's agent writes it anew") from error
    keys = Section(document)
    if keys.integer("format") != FORMAT:
        keys.problem("format", f"must be {FORMAT}")
    if keys.text("network") != name:
        keys.problem("network", f"must be {quoted(name)}")
    return keys


def _raise(problems: Problems, path: str) -> None:
    if problems.found:
        raise StateDamaged(f"{path}: {'; '.join(problems.found)}", hint="correct what writes the file")
