"""The configuration of host-local: ranges, requested addresses, routes and DNS settings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_interface

from ipam.ranges import Pool, Sets, describe, gateways, read_sets
from weft import files
from weft.cni_keys import routes
from weft.section import Section, quoted
from weft.types import Address, Dns

_LONGEST_PATH = 1024
DATA_DIRECTORY = "/var/lib/cni/networks"
_MAX_RESOLV_CONF = 65536


def read(
    ipam: Section,
    *,
    network: str,
    version: str,
    arguments: Mapping[str, str],
    args_cni: Section,
    runtime: Section,
) -> Pool:
    """The pool that an ``ipam`` object configures.

    ``arguments`` are the CNI_ARGS, ``args_cni`` is the object ``args.cni``, ``runtime`` is
    ``runtimeConfig``. Problems are added to the sections; the pool is then incomplete.
    """
    sets = read_sets(ipam, runtime, version)
    return Pool(
        network=network,
        directory=directory(ipam, network),
        sets=sets,
        routes=routes(ipam),
        dns=resolv_conf(ipam),
        requested=requested(ipam, sets, arguments, args_cni, runtime),
    )


def directory(ipam: Section, network: str) -> str:
    """The lease directory of a network: ``dataDir`` is that of all networks."""
    data = ipam.text("dataDir") or DATA_DIRECTORY
    if not data.startswith("/") or not data.isprintable() or ".." in data.split("/") or len(data) > _LONGEST_PATH:
        ipam.problem("dataDir", "must be an absolute path without '..' and control characters")
    return os.path.join(data, network)


def requested(
    ipam: Section,
    sets: Sets,
    arguments: Mapping[str, str],
    args_cni: Section,
    runtime: Section,
) -> tuple[Address, ...]:
    """The requested addresses, from all three sources, at most one of each set."""
    never = gateways(sets)
    by_set: dict[int, Address] = {}
    found: list[Address] = []
    for key, text in _requests(arguments, args_cni, runtime):
        try:
            address = ip_address(text.partition("/")[0].strip())
            if "/" in text:
                ip_interface(text.strip())
        except ValueError:
            ipam.problems.add(f"{key} {quoted(text)} is not an IP address")
            continue
        if address in found:
            continue
        problem = _not_available(address, sets, never)
        index = _set_of(address, sets)
        if not problem and index in by_set:
            problem = f"is a second address of the same set: {by_set[index]} is requested already"
        if problem or index is None:
            if sets:
                ipam.problems.add(f"{key} {quoted(text)} {problem}")
            continue
        by_set[index] = address
        found.append(address)
    return tuple(found)


def _requests(arguments: Mapping[str, str], args_cni: Section, runtime: Section) -> Iterator[tuple[str, str]]:
    """The requested addresses as text, each with the key it is from."""
    for text in arguments.get("IP", "").split(","):
        if text:
            yield "CNI_ARGS IP", text
    for section in (args_cni, runtime):
        for text in section.texts("ips"):
            yield section.at("ips"), text


def _set_of(address: Address, sets: Sets) -> int | None:
    return next((index for index, ranges in enumerate(sets) if any(address in each.requests for each in ranges)), None)


def _not_available(address: Address, sets: Sets, never: frozenset[Address]) -> str:
    """Why an address can never be leased, "" if it can."""
    index = _set_of(address, sets)
    if index is None:
        return f"is in none of the ranges {'; '.join(describe(ranges) for ranges in sets)}"
    if address in never:
        return "is a gateway"
    for each in sets[index]:
        if address in each.requests and any(address in span for span in each.exclude):
            return "is excluded"
    return ""


def resolv_conf(ipam: Section) -> Dns:
    """The DNS settings in the file ``resolvConf``. Source: ``resolv.conf(5)``."""
    path = ipam.text("resolvConf")
    if not path:
        return Dns()
    try:
        lines = files.read(path, _MAX_RESOLV_CONF, own=False).decode("utf-8", "replace").splitlines()
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
