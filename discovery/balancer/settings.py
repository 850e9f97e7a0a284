"""Settings of the balancer, and validation of virtual addresses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from weft.virtual_ranges import RANGES

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_METADATA = tuple(
    ip_network(text)
    for text in ("100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::23/128", "fd00:ec2::254/128", "fd20:ce::254/128")
)


class Mode(StrEnum):
    """Which services get a virtual address."""

    ATTACHED = "attached"
    """Services of containers, and those that request one."""
    ALL = "all"
    ASKED = "asked"


@dataclass(frozen=True, slots=True)
class BalancerSettings:
    """Settings of the balancer. ``node`` is this host's name; times in seconds.

    ``ranges`` are weft's alone: connections to unassigned addresses are rejected. Services may
    request addresses of these and of ``allowed``. ``published`` is the range of host ports that
    services may publish. ``outside`` are interfaces from which virtual addresses are not reachable;
    None for all but containers' links. ``drain`` is the draining period of deregistered
    instances, ``keep`` how long an address stays reserved without instances, ``interval`` the
    period of resyncs.
    """

    node: str
    ranges: tuple[Network, ...] = RANGES
    allowed: tuple[Network, ...] = ()
    mode: Mode = Mode.ATTACHED
    published: tuple[int, int] = (1024, 32767)
    outside: tuple[str, ...] | None = None
    drain: float = 300.0
    keep: float = 3600.0
    interval: float = 5.0


def in_any_network(address: Address, networks: Iterable[Network]) -> bool:
    """Whether the address is in one of the networks."""
    return any(address.version == network.version and address in network for network in networks)


def virtual_address_error(address: Address, config: BalancerSettings, occupied: Iterable[Network] = ()) -> str:
    """Why an address is not allowed as virtual address, "" if it is (CVE-2020-8554: no hijacking).

    ``occupied`` are the networks that this host has addresses in.
    """
    if not in_any_network(address, (*config.ranges, *config.allowed)):
        listed = ", ".join(map(str, (*config.ranges, *config.allowed))) or "none"
        return f"virtual address {address} is not in a configured range ({listed})"
    if address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local:
        return f"virtual address {address} is not a unicast address"
    if in_any_network(address, _METADATA) or address == IPv4Address("255.255.255.255"):
        return f"virtual address {address} is reserved"
    for network in (*config.ranges, *config.allowed):
        ends = (network.network_address, network.broadcast_address)
        if address.version == 4 and network.prefixlen < 31 and address in ends:
            return f"virtual address {address} is the network or broadcast address of {network}"
    for network in occupied:
        if address.version == network.version and address in network:
            return f"virtual address {address} is in {network}, which is in use on this host"
    return ""


@lru_cache(65536)
def backend_address_error(address: Address, ranges: tuple[Network, ...]) -> str:
    """Why an address is not allowed as backend, "" if it is.

    A service must not give access to what a container cannot reach itself: cloud metadata, the
    host's loopback. ``ranges`` are those of virtual addresses.
    """
    if address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local:
        return f"{address} is not a routable unicast address"
    if in_any_network(address, _METADATA) or address == IPv4Address("255.255.255.255"):
        return f"{address} is reserved"
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address.scope_id):
        return f"{address} is not allowed"
    if in_any_network(address, ranges):
        return f"{address} is a virtual address"
    return ""
