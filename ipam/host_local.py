"""IPAM type host-local: what ADD, DEL, CHECK and STATUS do with the addresses of a pool.

A drop-in replacement of host-local with its keys, lease directory, lock and results. Different is
that all sets of a call are leased or none; that an error frees only what the same call leased; that
the network and broadcast addresses and gateways are never leased; and that the cost is independent
of the number of leases.

A reservation: ``reserve`` locks the lease directory, ``_choose`` picks an address from each set,
starting after ``last_reserved_ip``, and ``Leases.lease`` creates their files. If one exists by
then, it starts over from the files.
"""

from __future__ import annotations

import os
from ipaddress import ip_interface

from ipam.allocate import Leased, next_free
from ipam.directory import Directory
from ipam.host_local_config import read
from ipam.leases import Leases, make_directory, open_locked, open_readonly, owners, release, release_address
from ipam.ranges import Pool, describe, gateways, size
from ipam.values import HostState, Owner
from weft.errors import NOT_AVAILABLE, Busy, Conflict, PoolExhausted, WeftError
from weft.types import Address, Cidr, Result, ResultAddress

__all__ = [
    "HostState",
    "Owner",
    "Pool",
    "available",
    "lacks",
    "owners",
    "preview",
    "read",
    "release",
    "release_address",
    "reserve",
]

_ATTEMPTS = 8
_STATUS_TIMEOUT = 5.0  # seconds


def reserve(pool: Pool, owner: Owner, state: HostState) -> Result:
    """Lease an address of every set to the owner, or none.

    Raises PoolExhausted, Conflict (the owner has an address of a set already, or a requested one is
    leased), Busy and StateDamaged. Other leases of the owner are not changed.
    """
    if not os.path.isdir(pool.directory):
        make_directory(pool.directory)
    with open_locked(pool.directory, pool.network, state) as leases:
        for _ in range(_ATTEMPTS):
            chosen = _choose(pool, owner, leases)
            if leases.lease(chosen, owner):
                break
            leases.reread()  # a file was created without the lock, or the index was wrong
        else:
            raise Busy(
                f"the leases of {pool.network} in {pool.directory} keep changing",
                hint="check which program writes there without its lock",
            )
        for index, address in enumerate(chosen):
            if address not in pool.requested:
                leases.directory.set_last_reserved(index, address)
    return _result(pool, chosen)


def preview(pool: Pool, owner: Owner, state: HostState) -> Result:
    """What ``reserve`` would return or raise now, without creating or changing any file."""
    try:
        with open_readonly(pool.directory, pool.network, state) as leases:
            return _result(pool, _choose(pool, owner, leases))
    except FileNotFoundError:
        firsts = (_requested(pool, index) or _next(pool, index, None, _NoLeases()) for index in range(len(pool.sets)))
        return _result(pool, tuple(firsts))


def lacks(pool: Pool, owner: Owner, expected: tuple[Cidr, ...], state: HostState) -> str | None:
    """CHECK: which expected address is not leased to the owner, None if all are."""
    same = {owner, Owner(owner.container, "")}
    try:
        with Directory(pool.directory) as directory:
            for cidr in expected:
                lease = directory.read(cidr.ip)
                if lease is None:
                    return f"{cidr.ip} is not leased in {pool.directory}, expected a lease of {owner}"
                if lease.owner not in same:
                    whose = f"leased to {lease.owner}" if lease.owner else "leased to no valid owner"
                    return f"{cidr.ip} is {whose} in {pool.directory}, expected {owner}"
            if expected:
                return None
        with open_readonly(pool.directory, pool.network, state) as leases:
            if any(leases.addresses_of(each) for each in same):
                return None
            return f"{owner} has no lease in {pool.directory}"
    except FileNotFoundError:
        return f"{owner} has no lease: {pool.directory} does not exist"


def available(pool: Pool, state: HostState) -> None:
    """STATUS: raise WeftError with code 50 and the reason if an ADD would fail now, PoolExhausted with
    the same code where no address is free.
    """
    try:
        with open_locked(pool.directory, pool.network, state, timeout=_STATUS_TIMEOUT) as leases:
            for index in range(len(pool.sets)):
                _next(pool, index, None, leases)
            if not os.access(pool.directory, os.W_OK | os.X_OK):
                raise WeftError(f"the lease directory {pool.directory} is not writable", hint="check the disk")
    except FileNotFoundError:
        parent = pool.directory
        while not os.path.lexists(parent):
            parent = os.path.dirname(parent)
        if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
            raise WeftError(
                f"cannot create the lease directory {pool.directory} in {parent}",
                hint="check the disk, or set ipam.dataDir",
                code=NOT_AVAILABLE,
            ) from None
    except WeftError as error:
        kind = PoolExhausted if isinstance(error, PoolExhausted) else WeftError
        raise kind(error.message, hint=error.hint, code=NOT_AVAILABLE) from error


class _NoLeases:
    """A directory without leases."""

    def first_free_from(self, version: int, number: int) -> int:
        return number


def _choose(pool: Pool, owner: Owner, leases: Leases) -> tuple[Address, ...]:
    """The address to lease from every set: the requested one, or the next free one."""
    held = leases.addresses_of(owner)
    chosen = []
    for index, ranges in enumerate(pool.sets):
        already = [address for address in held if any(address in each.requests for each in ranges)]
        if already:
            raise Conflict(
                f"{owner} already has {already[0]} of {describe(ranges)} on {pool.network}",
                hint="delete that attachment first, or use another interface name",
            )
        requested = _requested(pool, index)
        if requested is None:
            chosen.append(_next(pool, index, leases.directory.last_reserved(index), leases))
        else:
            _check_free(pool, requested, leases)
            chosen.append(requested)
    return tuple(chosen)


def _requested(pool: Pool, index: int) -> Address | None:
    """The address that the runtime requests from a set, None without one."""
    ranges = pool.sets[index]
    return next((address for address in pool.requested if any(address in each.requests for each in ranges)), None)


def _check_free(pool: Pool, address: Address, leases: Leases) -> None:
    """Raise Conflict if a requested address is leased."""
    if leases.first_free_from(address.version, int(address)) == int(address):
        return
    if leases.directory.read(address) is None:
        leases.reread()  # the index was wrong
        return
    owner = leases.owner_of(address)
    raise Conflict(
        f"the requested address {address} of {pool.network} is leased to {owner or 'an unknown owner'}",
        hint=f"request another address, or check {os.path.join(pool.directory, str(address))}",
    )


def _next(pool: Pool, index: int, last: Address | None, leases: Leased) -> Address:
    """The next free address of a set after ``last``. Raises PoolExhausted."""
    ranges, never = pool.sets[index], gateways(pool.sets)
    found = next_free(ranges, never, last, leases)
    if found is None and isinstance(leases, Leases) and leases.reread_if_stale():
        found = next_free(ranges, never, last, leases)
    if found is None:
        total = size(ranges, never)
        raise PoolExhausted(
            f"no address is left on {pool.network} in {describe(ranges)}: {total} of {total} in use",
            hint=f"extend the range, or free unused leases in {pool.directory}",
        )
    return found


def _result(pool: Pool, chosen: tuple[Address, ...]) -> Result:
    ips = []
    for ranges, address in zip(pool.sets, chosen, strict=True):
        each = next(one for one in ranges if address in one.requests)
        ips.append(ResultAddress(ip_interface(f"{address}/{each.subnet.prefixlen}"), each.gateway))
    return Result(ips=tuple(ips), routes=pool.routes, dns=pool.dns)
