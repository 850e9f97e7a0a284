"""The leases of networks, weft's and the reference host-local's, and those without an attachment."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from cni_plugin.networks.conflists import NetworkList
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.gc import free_leases, unheld_leases
from cni_plugin.service.holders import Holders
from ipam import blocks, host_local
from ipam.directory import LOCK, POINTER, LeaseFile, as_address
from ipam.ranges import Pool, describe, gateways, size
from ipam.values import Owner
from weft.section import Problems, Section
from weft.types import Address


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
    """The network's pool, of type host-local or blocks; None for another IPAM plugin, or an invalid configuration."""
    for plugin in network.plugins:
        problems = Problems()
        ipam = Section(plugin, "", problems).section("ipam")
        kind, empty = ipam.text("type"), Section(None)
        if kind == "host-local":
            found = host_local.read(
                ipam, network=network.name, version=network.version, arguments={}, args_cni=empty, runtime=empty
            )
        elif kind == "blocks":
            found = blocks.read(ipam, network=network.name, arguments={}, args_cni=empty, runtime=empty)
        else:
            continue
        return None if problems.found else found
    return None


Attached = Mapping[str, Set[tuple[str, str]]]
"""The attached containers with their interfaces, by network."""


def attached(context: ServiceContext) -> Attached:
    """What is attached, by the records."""
    found: dict[str, set[tuple[str, str]]] = {}
    for record in context.records.all():
        attachment = record.attachment
        found.setdefault(attachment.network, set()).add((attachment.container, attachment.interface))
    return found


def listed(network: NetworkList, attached: Attached) -> list[LeaseEntry]:
    """The leases of a network, by address. Raises StateDamaged where they cannot be read."""
    own_pool = pool(network)
    if own_pool is None:
        return []
    own = attached.get(network.name, frozenset())
    containers = {container for container, _ in own}
    now = time.time()
    found = [
        LeaseEntry(
            network.name,
            address,
            owner,
            max(0.0, now - modified),
            (owner.container, owner.interface) in own or (not owner.interface and owner.container in containers),
        )
        for address, owner, modified in host_local.owners(own_pool.directory)
    ]
    return sorted(found, key=lambda lease: (lease.address.version, int(lease.address)))


def fill(network: str, pool: Pool) -> list[Usage]:
    """The utilization of each set of ranges by the names of the lease files alone, which are not read."""
    try:
        names = os.listdir(pool.directory)
    except OSError:
        names = []
    return usage(network, pool, [address for name in names if (address := as_address(name)) is not None])


def usage(network: str, pool: Pool, addresses: Sequence[Address]) -> list[Usage]:
    """The utilization of each set of ranges by these leased addresses."""
    kept = gateways(pool.sets)
    return [
        Usage(
            network,
            describe(ranges),
            sum(any(address in each.span for each in ranges) for address in addresses),
            size(ranges, kept),
        )
        for ranges in pool.sets
    ]


def stale(context: ServiceContext, networks: Iterable[NetworkList]) -> list[LeaseEntry]:
    """Leases that nothing holds any more: no attachment, link, namespace or runtime."""
    context = context.reading_once()
    found, holders, held = [], Holders(context), attached(context)
    for network in networks:
        entries = [one for one in listed(network, held) if not one.attached]
        own_pool = pool(network) if entries else None
        if own_pool is not None:
            files = [LeaseFile(one.address, one.owner, time.time() - one.age) for one in entries]
            unheld = {lease.address for lease in unheld_leases(holders, own_pool, files)}
            found += [entry for entry in entries if entry.address in unheld]
    return found


def free_stale(context: ServiceContext, networks: Sequence[NetworkList]) -> list[str]:
    """Free the leases that nothing holds; returns them as text. Raises Busy and StateDamaged."""
    left = {lease.network for lease in stale(context, networks)}  # looked at again under the pool's lock
    pools = ((network, pool(network)) for network in networks if network.name in left)
    return [
        text(network.name, lease.address, lease.owner)
        for network, own_pool in pools
        if own_pool is not None
        for lease in free_leases(context, own_pool)
        if lease.owner is not None
    ]


def text(network: str, address: Address, owner: Owner) -> str:
    """A lease as messages name it."""
    return f"address {address} of {owner} on {network}"


def free(context: ServiceContext, network: NetworkList, lease: LeaseEntry) -> bool:
    """Free one address if it still has that owner; False otherwise. Raises Busy and StateDamaged."""
    known = pool(network)
    return known is not None and host_local.release_address(
        known.directory, lease.address, lease.owner, context.leases()
    )


def remove_directory(network: NetworkList) -> None:
    """Remove the network's lease directory if it has no leases."""
    known = pool(network)
    if known is not None:
        remove_unused(known.directory)


def remove_unused(directory: str) -> None:
    """Remove a lease directory if it has no leases."""
    if not os.path.isdir(directory) or any(True for _ in host_local.owners(directory)):
        return
    # A directory with files of others is not removed.
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            if name == LOCK or name.startswith(POINTER):
                os.unlink(os.path.join(directory, name))
        os.rmdir(directory)
