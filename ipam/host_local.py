"""Addresses from the configured subnets of one host: the configuration, and what ADD, DEL, CHECK and STATUS do.

A drop-in for host-local: its keys, its lease directory, its lock, its answers. What it does otherwise: all sets
of a call are reserved under one lock, all or none; a failure frees what that very call took and nothing older;
nothing outside the subnet, and neither its gateway nor its network or broadcast address, is ever given out;
and the cost does not grow with the number of leases.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_interface

from ipam.allocate import Leased, next_free
from ipam.directory import Directory
from ipam.leases import Leases, make_directory, open_locked, open_readonly, owners, release, release_address
from ipam.ranges import Pool, Sets, described, gateways, read_sets, size
from ipam.values import HostState, Owner
from weft.cni_keys import routes
from weft.errors import NOT_AVAILABLE, Busy, Conflict, PoolExhausted, WeftError
from weft.section import Section, quoted
from weft.types import Address, Cidr, Dns, Result, ResultAddress

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

DATA = "/var/lib/cni/networks"
_ATTEMPTS = 8
_STATUS_PATIENCE = 5.0  # seconds
_LONGEST_RESOLV_CONF = 65536


def read(
    ipam: Section,
    *,
    network: str,
    version: str,
    arguments: Mapping[str, str],
    args_cni: Section,
    runtime: Section,
) -> Pool:
    """The pool that an ``ipam`` object describes.

    ``arguments`` are the CNI_ARGS, ``args_cni`` the object ``args.cni``, ``runtime`` is ``runtimeConfig``. What
    is wrong goes to the sections' problems and nothing is raised; the pool is then not to be used.
    """
    data = ipam.text("dataDir") or DATA
    if not data.startswith("/"):
        ipam.problem("dataDir", "must be an absolute path")
    sets = read_sets(ipam, runtime, version)
    return Pool(
        network=network,
        directory=os.path.join(data, network),
        sets=sets,
        routes=routes(ipam),
        dns=_resolv_conf(ipam),
        requested=_requested(ipam, sets, arguments, args_cni, runtime),
    )


def reserve(pool: Pool, owner: Owner, state: HostState) -> Result:
    """Lease an address of every set to the owner, or of none.

    Raises PoolExhausted, Conflict (the owner has an address of a set already, or a requested one is somebody
    else's), Busy and StateDamaged. Earlier leases of the owner are left as they are.
    """
    if not os.path.isdir(pool.directory):
        make_directory(pool.directory)
    with open_locked(pool.directory, pool.network, state) as leases:
        for _ in range(_ATTEMPTS):
            chosen = _choose(pool, owner, leases)
            if leases.take(chosen, owner):
                break
            leases.reread()  # somebody without the lock was here, or the index was wrong
        else:
            raise Busy(
                f"the addresses of {pool.network} in {pool.directory} change too fast to take one",
                hint="see who writes there without taking its lock",
            )
        for place, address in enumerate(chosen):
            if address not in pool.requested:
                leases.directory.point(place, address)
    return _result(pool, chosen)


def preview(pool: Pool, owner: Owner, state: HostState) -> Result:
    """What ``reserve`` would answer now; raises what it would raise. Changes no file and makes none."""
    try:
        with open_readonly(pool.directory, pool.network, state) as leases:
            return _result(pool, _choose(pool, owner, leases))
    except FileNotFoundError:
        kept = gateways(pool.sets)
        firsts = (_wanted(pool, place) or _next(pool, place, kept, None, _Nothing()) for place in range(len(pool.sets)))
        return _result(pool, tuple(firsts))


def lacks(pool: Pool, owner: Owner, expected: tuple[Cidr, ...], state: HostState) -> str | None:
    """Which of the expected addresses is not leased to the owner, as a sentence; None if all are."""
    mine = {owner, Owner(owner.container, "")}
    try:
        with Directory(pool.directory) as directory:
            for cidr in expected:
                found = directory.read(cidr.ip)
                if found is None:
                    return f"{cidr.ip} is not leased in {pool.directory}, it should be to {owner}"
                if found.owner not in mine:
                    whose = f"leased to {found.owner}" if found.owner else "marked with no valid owner"
                    return f"{cidr.ip} is {whose} in {pool.directory}, it should be leased to {owner}"
            if expected:
                return None
        with open_readonly(pool.directory, pool.network, state) as leases:
            return None if any(leases.held(each) for each in mine) else f"{owner} has no lease in {pool.directory}"
    except FileNotFoundError:
        return f"{owner} has no lease: there is no directory {pool.directory}"


def available(pool: Pool, state: HostState) -> None:
    """Whether an ADD could be served now. Raises WeftError of code 50 that says what is in the way."""
    try:
        with open_locked(pool.directory, pool.network, state, timeout=_STATUS_PATIENCE) as leases:
            kept = gateways(pool.sets)
            for place in range(len(pool.sets)):
                _next(pool, place, kept, None, leases)
            if not os.access(pool.directory, os.W_OK | os.X_OK):
                raise WeftError(f"the lease directory {pool.directory} cannot be written", hint="see to the disk")
    except FileNotFoundError:
        above = pool.directory
        while not os.path.lexists(above):
            above = os.path.dirname(above)
        if not os.path.isdir(above) or not os.access(above, os.W_OK | os.X_OK):
            raise WeftError(
                f"the lease directory {pool.directory} cannot be made in {above}",
                hint="see to the disk, or set ipam.dataDir",
                code=NOT_AVAILABLE,
            ) from None
    except WeftError as error:
        raise WeftError(error.message, hint=error.hint, code=NOT_AVAILABLE) from error


class _Nothing:
    """A view in which nothing is taken."""

    def first_free_from(self, version: int, number: int) -> int:
        return number


def _choose(pool: Pool, owner: Owner, leases: Leases) -> tuple[Address, ...]:
    """The address of every set that the owner is to have."""
    kept = gateways(pool.sets)
    held = leases.held(owner)
    chosen = []
    for place, ranges in enumerate(pool.sets):
        already = [address for address in held if any(address in each.span for each in ranges)]
        if already:
            raise Conflict(
                f"{owner} already has {already[0]} of {described(ranges)} on {pool.network}",
                hint="delete that attachment first, or use another interface name",
            )
        wanted = _wanted(pool, place)
        if wanted is None:
            chosen.append(_next(pool, place, kept, leases.directory.pointer(place), leases))
            continue
        if leases.first_free_from(wanted.version, int(wanted)) != int(wanted):
            if leases.directory.read(wanted) is None:
                leases.reread()
                return _choose(pool, owner, leases)
            holder = leases.holder(wanted)
            raise Conflict(
                f"the requested address {wanted} of {pool.network} is leased to {holder or 'somebody unknown'}",
                hint=f"ask for another address, or see whose lease {os.path.join(pool.directory, str(wanted))} is",
            )
        chosen.append(wanted)
    return tuple(chosen)


def _wanted(pool: Pool, place: int) -> Address | None:
    """The address asked for by name in a set, None where there is none."""
    ranges = pool.sets[place]
    return next((address for address in pool.requested if any(address in each.span for each in ranges)), None)


def _next(pool: Pool, place: int, kept: frozenset[Address], last: Address | None, taken: Leased) -> Address:
    """The next free address of a set. Raises PoolExhausted."""
    ranges = pool.sets[place]
    found = next_free(ranges, kept, last, taken)
    if found is None and isinstance(taken, Leases) and taken.reread_if_stale():
        found = next_free(ranges, kept, last, taken)
    if found is None:
        total = size(ranges, kept)
        raise PoolExhausted(
            f"no address is left on {pool.network} in {described(ranges)}: {total} of {total} in use",
            hint=f"make the range larger, or free what is not used any more ({pool.directory})",
        )
    return found


def _result(pool: Pool, chosen: tuple[Address, ...]) -> Result:
    ips = []
    for ranges, address in zip(pool.sets, chosen, strict=True):
        each = next(one for one in ranges if address in one.span)
        ips.append(ResultAddress(ip_interface(f"{address}/{each.subnet.prefixlen}"), each.gateway))
    return Result(ips=tuple(ips), routes=pool.routes, dns=pool.dns)


def _requested(
    ipam: Section,
    sets: Sets,
    arguments: Mapping[str, str],
    args_cni: Section,
    runtime: Section,
) -> tuple[Address, ...]:
    """The addresses asked for by name, from all three places, each once. Each must suit a set of its own."""
    kept = gateways(sets)
    taken_sets: dict[int, Address] = {}
    found: list[Address] = []
    for where, text in _asked(arguments, args_cni, runtime):
        try:
            address = ip_address(text.partition("/")[0].strip())
            if "/" in text:
                ip_interface(text.strip())
        except ValueError:
            ipam.problems.add(f"{where} {quoted(text)} is not an IP address")
            continue
        if address in found:
            continue
        problem = _unsuited(address, sets, kept)
        place = _place(address, sets)
        if not problem and place in taken_sets:
            problem = f"is a second address of the same set: {taken_sets[place]} is requested already"
        if problem or place is None:
            if sets:
                ipam.problems.add(f"{where} {quoted(text)} {problem}")
            continue
        taken_sets[place] = address
        found.append(address)
    return tuple(found)


def _asked(arguments: Mapping[str, str], args_cni: Section, runtime: Section) -> Iterator[tuple[str, str]]:
    """Each requested address as text, and the key it stands under."""
    for text in arguments.get("IP", "").split(","):
        if text:
            yield "CNI_ARGS IP", text
    for section in (args_cni, runtime):
        for text in section.texts("ips"):
            yield section.at("ips"), text


def _place(address: Address, sets: Sets) -> int | None:
    return next((place for place, ranges in enumerate(sets) if any(address in each.span for each in ranges)), None)


def _unsuited(address: Address, sets: Sets, kept: frozenset[Address]) -> str:
    """Why an address cannot be had, "" if it can."""
    place = _place(address, sets)
    if place is None:
        return f"is in none of the ranges {'; '.join(described(ranges) for ranges in sets)}"
    if address in kept:
        return "is a gateway"
    for each in sets[place]:
        if address in each.span and any(address in span for span in each.exclude):
            return "is excluded"
    return ""


def _resolv_conf(ipam: Section) -> Dns:
    """The DNS settings of the file under ``resolvConf``, in resolv.conf(5)'s format."""
    path = ipam.text("resolvConf")
    if not path:
        return Dns()
    try:
        # Without O_NONBLOCK a FIFO would hang the call for ever, a DEL's too.
        with open(
            os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), encoding="utf-8", errors="replace"
        ) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("it is no ordinary file")
            lines = file.read(_LONGEST_RESOLV_CONF).splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        ipam.problem("resolvConf", f"cannot be read: {reason}")
        return Dns()
    found: dict[str, list[str]] = {"nameserver": [], "domain": [], "search": [], "options": []}
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] in found:
            found[words[0]] += words[1:2] if words[0] in ("nameserver", "domain") else words[1:]
    return Dns(
        nameservers=tuple(found["nameserver"]),
        domain=found["domain"][-1] if found["domain"] else "",
        search=tuple(found["search"]),
        options=tuple(found["options"]),
    )
