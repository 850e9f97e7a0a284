"""Subnets: those in use on this host and by networks, and choosing a free one."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from itertools import islice

from cni_plugin.networks.conflists import NetworkList, can_conflict, subnets
from cni_plugin.plan import modules
from cni_plugin.service import overlaps
from cni_plugin.service.overlaps import Use
from weft import files
from weft.errors import BadOption, InUse, PoolExhausted
from weft.kernel.interface import Namespace
from weft.types import Address, Subnet

FIRST = IPv4Network("10.89.0.0/16")
"""The first pool of podman as well."""

_POOLS = (
    FIRST,
    *(IPv4Network(f"10.{number}.0.0/16") for number in range(90, 256)),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
)
_ATTEMPTS = 64
DOCKER_NETWORKS = "/var/lib/weft/docker/networks"
"""What weft's driver for Docker keeps."""
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Default:
    """Where subnets come from that nobody has chosen, and their prefix length."""

    pools: tuple[IPv4Network, ...]
    length: int


LOCAL = Default(_POOLS, 24)
OVERLAY = Default((IPv4Network("10.128.0.0/9"), *_POOLS), 16)
"""A block for each of 256 hosts."""


def taken(host: Namespace) -> dict[Address, str]:
    """The addresses on the LAN that no container may lease, each with whose it is: the host's own, and
    those of its routers.
    """
    found = {address.ip: f"this host's {link}" for link, address in host.all_addresses()}
    gateways = (one.route.gateway for one in host.routes())
    return {gateway: "a router of this host" for gateway in gateways if gateway is not None} | found


class Subnets:
    """Which of many subnets overlap with another, as their places in the list, in order.

    Two subnets overlap if one contains the other, so those that contain it are found by their
    prefixes, and those in it lie between its first and last address.
    """

    def __init__(self, subnets: Sequence[Subnet]) -> None:
        self._places: dict[tuple[int, int, int], list[int]] = {}
        for place, subnet in enumerate(subnets):
            key = subnet.version, int(subnet.network_address), subnet.prefixlen
            self._places.setdefault(key, []).append(place)
        self._sorted = sorted(self._places)
        self._lengths = sorted({(version, length) for version, _, length in self._places})

    def overlapping(self, subnet: Subnet) -> list[int]:
        found = self.within([subnet])
        number = int(subnet.network_address)
        for version, length in self._lengths:
            if version == subnet.version and length < subnet.prefixlen:
                rest = subnet.max_prefixlen - length
                found += self._places.get((version, number >> rest << rest, length), ())
        return sorted(found)

    def within(self, subnets: Iterable[Subnet]) -> list[int]:
        """Those that are the same as one of the subnets or a part of it."""
        found: set[int] = set()
        for subnet in subnets:
            low = bisect_left(self._sorted, (subnet.version, int(subnet.network_address), subnet.prefixlen))
            for key in islice(self._sorted, low, None):
                if key[:2] > (subnet.version, int(subnet.broadcast_address)):
                    break
                found.update(self._places[key])
        return sorted(found)


def of_networks(networks: Iterable[NetworkList]) -> list[Use]:
    """The subnets of the networks."""
    return [Use(subnet, f"network {network.name}") for network in networks for subnet in subnets(network)]


def of_host(host: Namespace, *, routes: bool = True) -> list[Use]:
    """The subnets that the host has addresses in or, with ``routes``, routes to."""
    found: dict[tuple[Subnet, str], Use] = {}
    for use in overlaps.of_addresses(host):
        found.setdefault((use.subnet, use.link), use)
    for known, link in overlaps.with_links(host, host.routes()) if routes else ():
        destination = known.route.destination
        via = f"this host's route to {destination}" + (f" over {link}" if link else "")
        found.setdefault((destination, link), Use(destination, via, link))
    return [use for use in found.values() if can_conflict(use.subnet)]


def of_docker() -> list[Use]:
    """The subnets of Docker's networks of weft's, also of those without containers, which the host does not show.

    Those on a LAN are not among them: the LAN's subnet is shared.
    """
    found = []
    try:
        names = sorted(name for name in os.listdir(DOCKER_NETWORKS) if name.endswith(".json"))
    except OSError:
        return []
    for name in names:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            value = json.loads(files.read(os.path.join(DOCKER_NETWORKS, name), _MOST_BYTES))
            if modules.declared(str(value["driver"])).routed:
                subnets = [ip_interface(text).network for text in value["gateways"]]
                found += [Use(one, f"Docker's network {value['id'][:12]}") for one in subnets]
    return found


def first_overlap(subnet: Subnet, uses: Iterable[Use]) -> Use | None:
    """The first use that overlaps with the subnet."""
    return next((use for use in uses if use.subnet.version == subnet.version and use.subnet.overlaps(subnet)), None)


def require_free(subnet: Subnet, uses: Iterable[Use]) -> None:
    """Raises BadOption for addresses of special use, InUse with docker's message and what it overlaps
    with.
    """
    if what := overlaps.special(subnet):
        raise BadOption(f"invalid --subnet {subnet}: it contains {what}", hint="choose another --subnet")
    other = first_overlap(subnet, uses)
    if other is not None:
        raise InUse(
            f"Pool overlaps with other one on this address space: {subnet} with {other.subnet}, {other.by}",
            hint="choose another --subnet, or omit it to use a free one",
        )


def free_ipv4(uses: Sequence[Use], kind: Default = LOCAL) -> IPv4Network:
    """The first free subnet of the default pools: a /24, from 10.89.0.0/16 on. Raises PoolExhausted."""
    from netaddr import IPNetwork, IPSet  # 50 ms to import, needed by this command only

    taken = IPSet([str(use.subnet) for use in uses if use.subnet.version == 4])
    for pool in kind.pools:
        for block in (IPSet([str(pool)]) - taken).iter_cidrs():
            if block.prefixlen <= kind.length:
                first = next(IPNetwork(block).subnet(kind.length))
                return IPv4Network(str(first))
    raise PoolExhausted(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network",
        hint="specify one with --subnet",
    )


def free_ipv6(uses: Sequence[Use]) -> IPv6Network:
    """A unique local /64 with a random global id (RFC 4193, section 3.2). Raises PoolExhausted."""
    for _ in range(_ATTEMPTS):
        subnet = ip_network((b"\xfd" + secrets.token_bytes(7) + bytes(8), 64))
        if isinstance(subnet, IPv6Network) and first_overlap(subnet, uses) is None:
            return subnet
    raise PoolExhausted("could not find a free IPv6 /64 in fd00::/8", hint="specify one with --subnet")
