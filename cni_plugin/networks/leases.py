"""The addresses that networks have given out, whoever gave them, and which of them nobody seems to need."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

from cni_plugin.networks.conflists import NetworkList
from cni_plugin.service.context import ServiceContext
from ipam import host_local
from ipam.directory import LOCK, POINTER
from ipam.ranges import Pool, described, gateways, size
from ipam.values import Owner
from weft.section import Problems, Section
from weft.types import Address

YOUNG = 60.0
"""Seconds for which a lease without an attachment is nothing strange: its owner's ADD may be under way."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One address that is given out; ``age`` in seconds. ``attached``: an attachment of weft's holds it."""

    network: str
    address: Address
    owner: Owner
    age: float
    attached: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of one set of ranges is in use."""

    network: str
    ranges: str
    used: int
    size: int


def pool(network: NetworkList) -> Pool | None:
    """The network's own pools of addresses; None where its addresses come from elsewhere, or make no sense."""
    for plugin in network.plugins:
        problems = Problems()
        ipam = Section(plugin, "", problems).section("ipam")
        if ipam.text("type") != "host-local":
            continue
        nothing = Section(None)
        found = host_local.read(
            ipam, network=network.name, version=network.version, arguments={}, args_cni=nothing, runtime=nothing
        )
        return None if problems.found else found
    return None


def listed(context: ServiceContext, network: NetworkList) -> list[Lease]:
    """What is leased on a network, by address. Raises StateDamaged where that cannot be read."""
    known = pool(network)
    if known is None:
        return []
    attached = {
        (record.attachment.container, record.attachment.interface)
        for record in context.records.all()
        if record.attachment.network == network.name
    }
    bare = {container for container, _ in attached}
    now = time.time()
    found = [
        Lease(
            network.name,
            address,
            owner,
            max(0.0, now - modified),
            (owner.container, owner.interface) in attached or (not owner.interface and owner.container in bare),
        )
        for address, owner, modified in host_local.owners(known.directory)
    ]
    return sorted(found, key=lambda lease: (lease.address.version, int(lease.address)))


def usage(network: NetworkList, leases: Iterable[Lease]) -> list[Usage]:
    """How full each set of ranges is."""
    known = pool(network)
    if known is None:
        return []
    kept = gateways(known.sets)
    given = [lease.address for lease in leases]
    return [
        Usage(
            network.name,
            described(ranges),
            sum(any(address in each.span for each in ranges) for address in given),
            size(ranges, kept),
        )
        for ranges in known.sets
    ]


def lost(context: ServiceContext, networks: Iterable[NetworkList]) -> list[Lease]:
    """Leases that no attachment holds, of networks that weft alone serves: nobody else can have made them."""
    return [
        lease
        for network in networks
        if network.weft
        for lease in listed(context, network)
        if not lease.attached and lease.age >= YOUNG
    ]


def free(context: ServiceContext, network: NetworkList, lease: Lease) -> bool:
    """Free one address if it is still that owner's; says whether it was. Raises Busy and StateDamaged."""
    known = pool(network)
    return known is not None and host_local.release_address(
        known.directory, lease.address, lease.owner, context.leases()
    )


def forget(network: NetworkList) -> None:
    """Remove the network's lease directory if it holds no address any more."""
    known = pool(network)
    if known is None or not os.path.isdir(known.directory) or any(True for _ in host_local.owners(known.directory)):
        return
    # What else is in it is somebody's, and keeps the directory.
    with contextlib.suppress(OSError):
        for name in os.listdir(known.directory):
            if name == LOCK or name.startswith(POINTER):
                os.unlink(os.path.join(known.directory, name))
        os.rmdir(known.directory)
