"""The leases of networks, weft's and the reference host-local's, and those without an attachment."""

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
from ipam.ranges import Pool, describe, gateways, size
from ipam.values import Owner
from weft.section import Problems, Section
from weft.types import Address

GRACE = 60.0
"""Seconds for which a lease without an attachment is not stale: the ADD that took it may still be
running.
"""


@dataclass(frozen=True, slots=True)
class LeaseEntry:
    """One leased address; ``age`` in seconds. ``attached``: an attachment of weft holds it."""

    network: str
    address: Address
    owner: Owner
    age: float
    attached: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """The utilization of one set of ranges, in addresses."""

    network: str
    ranges: str
    used: int
    size: int


def pool(network: NetworkList) -> Pool | None:
    """The network's host-local pool; None for another IPAM plugin, or an invalid configuration."""
    for plugin in network.plugins:
        problems = Problems()
        ipam = Section(plugin, "", problems).section("ipam")
        if ipam.text("type") != "host-local":
            continue
        empty = Section(None)
        found = host_local.read(
            ipam, network=network.name, version=network.version, arguments={}, args_cni=empty, runtime=empty
        )
        return None if problems.found else found
    return None


def listed(context: ServiceContext, network: NetworkList) -> list[LeaseEntry]:
    """The leases of a network, by address. Raises StateDamaged where they cannot be read."""
    own_pool = pool(network)
    if own_pool is None:
        return []
    attached = {
        (record.attachment.container, record.attachment.interface)
        for record in context.records.all()
        if record.attachment.network == network.name
    }
    containers = {container for container, _ in attached}
    now = time.time()
    found = [
        LeaseEntry(
            network.name,
            address,
            owner,
            max(0.0, now - modified),
            (owner.container, owner.interface) in attached or (not owner.interface and owner.container in containers),
        )
        for address, owner, modified in host_local.owners(own_pool.directory)
    ]
    return sorted(found, key=lambda lease: (lease.address.version, int(lease.address)))


def usage(network: NetworkList, leases: Iterable[LeaseEntry]) -> list[Usage]:
    """The utilization of each set of ranges."""
    known = pool(network)
    if known is None:
        return []
    kept = gateways(known.sets)
    addresses = [lease.address for lease in leases]
    return [
        Usage(
            network.name,
            describe(ranges),
            sum(any(address in each.span for each in ranges) for address in addresses),
            size(ranges, kept),
        )
        for ranges in known.sets
    ]


def stale(context: ServiceContext, networks: Iterable[NetworkList]) -> list[LeaseEntry]:
    """Leases that no attachment holds, of networks that only weft serves."""
    return [
        lease
        for network in networks
        if network.weft
        for lease in listed(context, network)
        if not lease.attached and lease.age >= GRACE
    ]


def free(context: ServiceContext, network: NetworkList, lease: LeaseEntry) -> bool:
    """Free one address if it still has that owner; False otherwise. Raises Busy and StateDamaged."""
    known = pool(network)
    return known is not None and host_local.release_address(
        known.directory, lease.address, lease.owner, context.leases()
    )


def remove_directory(network: NetworkList) -> None:
    """Remove the network's lease directory if it has no leases."""
    known = pool(network)
    if known is None or not os.path.isdir(known.directory) or any(True for _ in host_local.owners(known.directory)):
        return
    # A directory with files of others is not removed.
    with contextlib.suppress(OSError):
        for name in os.listdir(known.directory):
            if name == LOCK or name.startswith(POINTER):
                os.unlink(os.path.join(known.directory, name))
        os.rmdir(known.directory)
