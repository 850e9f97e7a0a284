"""Creating and removing overlay networks: one transaction each, on the condition that the list of networks
is as it was read.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address

from cluster import nodes, records, tunnels
from cluster.blocks import freed, static_problem
from cluster.records import Member, Network
from cluster.view import View
from store import Compare, Delete, Operation, Put, Range, Store, Unavailable
from weft import identity, overlay, overlay_modes, wireguard
from weft.errors import BadOption, InUse, Missing
from weft.overlay_modes import VlanGateway
from weft.types import Address, Subnet

_ATTEMPTS = 8
_FIRST_VNI = 1 << 16
"""Swarm's and Calico's VNIs are below."""

_FILES = ("networks", "restored")
"""What agents have beside the files of networks (``Overlays``, ``Hold``)."""


class SubnetInUse(InUse):
    """Another network of the cluster has a part of the subnet."""


async def create(store: Store, wanted: Network) -> Network:
    """Store a network, with a VNI that no other has; its ``vni`` and ``revision`` are ignored.

    Raises InUse naming the network whose name or subnet it has, BadOption, StoreError.
    """
    check(wanted)
    for _ in range(_ATTEMPTS):
        found = await store.range(records.ROOT)
        others = _others(found)
        _require_free(wanted, others)
        network = _with_port(replace(wanted, vni=_free_vni(found, others, wanted)), others)
        outcome = await store.transact(
            [*_unchanged(found), Compare(network.key, "create", 0), Compare(records.vni_key(network.vni), "create", 0)],
            [
                Put(network.key, records.encode(network)),
                Put(records.vni_key(network.vni), network.name.encode()),
                Put(records.LIST, network.name.encode()),
            ],
        )
        if outcome.succeeded:
            return replace(network, revision=outcome.revision)
    raise Unavailable(f"network {wanted.name} was not created: the list of networks keeps changing")


async def remove(store: Store, name: str, *, force: bool = False) -> None:
    """Remove a network with its blocks. Raises InUse naming the hosts with containers on it, unless ``force``;
    Missing, StoreError.
    """
    for _ in range(_ATTEMPTS):
        found = await store.range(records.ROOT)
        network = next((one for one in found.entries if one.key == records.network_key(name)), None)
        if network is None:
            raise Missing(f"network {name} is no network of the cluster")
        gone = await _gone(store, found, name)
        members = [one for one in _members(found, name) if one.node not in gone]
        if (attached := sorted(one.node for one in members if one.attached)) and not force:
            hosts = ", ".join(attached)
            raise InUse(f"network {name} has containers on {hosts}", hint="remove them there first, or use --force")
        deletions: list[Operation] = [
            Delete(network.key),
            *(Delete(one.key) for one in found.entries if records.is_vni_of(one, name)),
            Delete(records.blocks_prefix(name), prefix=True),
            Delete(f"{records.ROOT}wanted/{name}/", prefix=True),
            Delete(records.asks_prefix(name), prefix=True),
            Put(records.LIST, name.encode()),
        ]
        # Each host deletes its own record of it when it has removed the network.
        same = [Compare(network.key, "mod", network.mod_revision)]
        same += [Compare(records.member_key(one.node, name), "mod", one.revision) for one in members[:_MOST_COMPARED]]
        if (await store.transact([*_unchanged(found), *same], deletions)).succeeded:
            return
    raise Unavailable(f"network {name} was not removed: its hosts' records keep changing")


async def free_blocks(store: Store, view: View, node: str, revision: int) -> None:
    """Free the blocks of a node that was removed, while its record has this revision. Raises StoreError."""
    gone = Compare(nodes.record_key(node), "mod", revision)
    for network in view.networks().values():
        for change in filter(None, (freed(block, node) for block in view.blocks(network).all)):
            key = records.block_key(network.name, change.subnet)
            assert change.old is not None
            operation = Put(key, records.encode(change.new)) if change.new is not None else Delete(key)
            await store.transact([gone, Compare(key, "mod", change.old.revision)], [operation])


async def replace_keys(store: Store, name: str) -> Network:
    """Ask all hosts for the next generation of an encrypted network's keys; the network as it is then.

    Raises InUse naming the hosts that have not replaced the last one yet, BadOption without encryption,
    Missing, StoreError.
    """
    for _ in range(_ATTEMPTS):
        view = View()
        view.load(await store.range(records.ROOT))
        network = view.network(name)
        if network is None:
            raise Missing(f"network {name} is no network of the cluster")
        if not (generation := tunnels.wanted(network)):
            raise BadOption(f"network {name} is not encrypted", hint="create it with -o encryption=wireguard")
        if lagging := tunnels.lagging(network, view.sharing(network)):
            raise InUse(
                f"the keys of network {name} are being replaced: {', '.join(lagging)} has older ones still",
                hint="weft network inspect says which hosts; one that is gone for good: weft node rm",
            )
        asked = replace(network, keys={**network.keys, tunnels.GENERATION: generation + 1})
        outcome = await store.transact(
            [Compare(network.key, "mod", network.revision)], [Put(network.key, records.encode(asked))]
        )
        if outcome.succeeded:
            return replace(asked, revision=outcome.revision)
    raise Unavailable(f"the keys of network {name} were not replaced: its record keeps changing")


_MOST_COMPARED = 64
"""Of etcd's 128 operations a transaction."""


def check(network: Network) -> None:
    """Raises BadOption for what cannot be a network, whatever others there are."""
    if problem := identity.identifier_problem(network.name):
        raise BadOption(f"invalid network name {network.name!r}: {problem}")
    if network.name in _FILES or network.name.endswith(".peers"):
        raise BadOption(
            f"invalid network name {network.name!r}: its file would be another one of overlay networks",
            hint="choose another name",
        )
    for subnet, length in zip(network.subnets, network.blocks, strict=True):
        longest = 30 if subnet.version == 4 else 126
        if not subnet.prefixlen < length <= longest:
            raise BadOption(
                f"invalid subnet {subnet}: too small for blocks with a prefix of {length}, one for each host",
                hint="a block for each host: a /27 or wider for blocks of 16 addresses, a /16 for blocks of 256",
            )
    four = next((one for one in network.subnets if one.version == 4), None)
    gateway = network.gateway
    if gateway is not None and (not isinstance(gateway, IPv4Address) or four is None or gateway not in four):
        raise BadOption(f"invalid gateway {gateway}: it is no IPv4 address of a subnet")
    if (at_vlan := network.vlan_gateway) is not None:
        _check_vlan(network, at_vlan, gateway or (four[1] if four is not None else None))
    for static in network.static:
        if problem := static_problem(network, static):
            raise BadOption(f"invalid static range {static}: it {problem}")


def _check_vlan(network: Network, at_vlan: VlanGateway, gateway: Address | None) -> None:
    if network.mode != overlay_modes.L2:
        raise BadOption("option vlan-gateway needs mode=l2, in which hosts share a segment", hint="add -o mode=l2")
    if problem := static_problem(network, at_vlan.range):
        raise BadOption(f"invalid vlan-range {at_vlan.range}: it {problem}")
    if gateway is not None and gateway in at_vlan.range:
        raise BadOption(f"invalid vlan-range {at_vlan.range}: it has the network's gateway {gateway}")


def _require_free(wanted: Network, others: Iterable[Network]) -> None:
    at_vlan = wanted.vlan_gateway
    for other in others:
        if other.name == wanted.name:
            raise InUse(f"network with name {wanted.name} already exists", hint="choose another name")
        there = other.vlan_gateway
        if at_vlan is not None and there is not None and replace(at_vlan, range=there.range) == there:
            raise InUse(
                f"the VLAN at {at_vlan.parent} of host {at_vlan.host} is a part of network {other.name}",
                hint="each VLAN is part of one network: name another vlan or vlan-parent",
            )
        for subnet in wanted.subnets:
            theirs = next((one for one in other.subnets if _overlap(one, subnet)), None)
            if theirs is not None:
                raise SubnetInUse(
                    f"subnet {subnet} overlaps with {theirs} of network {other.name} of the cluster",
                    hint="choose another --subnet, or omit it to use a free one",
                )


def _with_port(network: Network, others: Iterable[Network]) -> Network:
    """With a UDP port of its own, if it is encrypted by IPsec, whose policies know a network by its port."""
    if tunnels.is_ipsec(network):
        taken = {port: one.name for one in others for port in tunnels.ports(one)}
        if network.port == overlay.PORT:
            free = (port for port in wireguard.ports_from(network.vni) if port not in taken)
            return replace(network, port=next(free))
    else:
        taken = {one.port: one.name for one in others if tunnels.is_ipsec(one)}
    if network.port in taken:
        raise InUse(
            f"port {network.port} is that of network {taken[network.port]}, and a network with IPsec needs its own",
            hint="omit the port to get a free one",
        )
    return network


def _overlap(one: Subnet, other: Subnet) -> bool:
    return one.version == other.version and one.overlaps(other)


def _free_vni(found: Range, others: Iterable[Network], wanted: Network) -> int:
    """One that nobody has, and of which no UDP port is that of a network with IPsec."""
    taken = {one.key for one in found.entries}
    ipsec = {one.port for one in others if tunnels.is_ipsec(one)}
    while True:
        vni = _FIRST_VNI + secrets.randbelow(overlay.LAST_VNI - _FIRST_VNI)
        derived = tunnels.ports(replace(wanted, vni=vni)) - {wanted.port}
        if records.vni_key(vni) not in taken and not derived & ipsec:
            return vni


def _others(found: Range) -> list[Network]:
    """Nothing else is decoded: an invalid record of a host must not keep networks from being created. One of a
    network must, since it does not say which subnet it has: raises InUse.
    """
    networks: list[Network] = []
    for entry in found.entries:
        if entry.key.startswith(records.network_key("")):
            try:
                network = records.decode(entry)
            except records.DecodeError as error:
                name = entry.key.rpartition("/")[2]
                raise InUse(
                    f"the cluster's record of network {name} is invalid: {error}",
                    hint=f"weft network rm {name} removes it",
                ) from error
            assert isinstance(network, Network)
            networks.append(network)
    return networks


def _unchanged(found: Range) -> list[Compare]:
    """That the list of networks is the one that was read."""
    revision = next((one.mod_revision for one in found.entries if one.key == records.LIST), 0)
    return [Compare(records.LIST, "mod", revision)]


async def _gone(store: Store, found: Range, name: str) -> set[str]:
    """The nodes that were removed and have no blocks of a network any more; what they have said of it stays."""
    known, _, _ = nodes.split((await store.range(nodes.ROOT)).entries)
    blocks = [one.value for one in found.entries if one.key.startswith(records.blocks_prefix(name))]
    removed = (node for node, one in known.items() if one.state is nodes.State.REMOVED)
    return {node for node in removed if not any(json.dumps(node).encode() in value for value in blocks)}


def _members(found: Range, name: str) -> list[Member]:
    """How hosts take part in a network; invalid records say nothing."""
    keys = (one for one in found.entries if one.key.startswith(f"{records.ROOT}member/"))
    members: list[Member] = []
    for entry in keys:
        if entry.key.rpartition("/")[2] == name:
            with contextlib.suppress(records.DecodeError):
                member = records.decode(entry)
                assert isinstance(member, Member)
                members.append(member)
    return members
