"""What a person may set about virtual IPs, and which addresses may be one at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

RANGES: tuple[Network, ...] = (ip_network("10.79.0.0/16"), ip_network("fd57:6566:7400::/112"))
"""Where virtual addresses come from unless said otherwise.

10.79.0.0/16 is free of what others take by default: Docker (172.16.0.0/12, 192.168.0.0/16), podman (10.88 to 10.255),
Kubernetes (10.96.0.0/12; k3s 10.42 and 10.43; flannel 10.244), OpenShift (10.128.0.0/14), OpenVPN (10.8), Google's
automatic networks (10.128.0.0/9) and the 10.0.0.0/16 of most clouds. The other is a unique local range (RFC 4193).
"""
_METADATA = tuple(ip_network(text) for text in ("100.100.100.200/32", "fd00:ec2::254/128", "fd20:ce::254/128"))


class Mode(StrEnum):
    """Which services get a virtual address."""

    ATTACHED = "attached"
    """Those that containers offer, and those that ask for one."""
    ALL = "all"
    ASKED = "asked"


@dataclass(frozen=True, slots=True)
class BalancerSettings:
    """How services are balanced on this host. ``node`` is its name; all times are in seconds.

    ``ranges`` belong to weft alone: what is sent there and is no service's is refused. A service may ask for an address
    of these and of ``allowed``. ``published`` are the first and last host port that a service may publish. ``outside``
    names the links by which virtual addresses are not reached; None are those of the default routes. ``drain`` is how
    long connections to an instance that was deregistered may go on, ``keep`` how long the address of a service that
    is gone is kept for it, ``interval`` how often connections are counted and the rules are looked at.
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
    """Why an address cannot be a service's virtual one, "" if it can (CVE-2020-8554: nobody takes others' addresses).

    ``occupied`` are the networks that this host has addresses in.
    """
    if not in_any_network(address, (*config.ranges, *config.allowed)):
        listed = ", ".join(map(str, (*config.ranges, *config.allowed))) or "none"
        return f"virtual address {address} is in none of the ranges for services ({listed}); take one of those"
    if address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local:
        return f"virtual address {address} is of a kind that stands for no machine; take another"
    if in_any_network(address, _METADATA) or address == IPv4Address("255.255.255.255"):
        return f"virtual address {address} has a meaning of its own; take another"
    for network in (*config.ranges, *config.allowed):
        ends = (network.network_address, network.broadcast_address)
        if address.version == 4 and network.prefixlen < 31 and address in ends:
            return f"virtual address {address} is the first or the last of {network}; take one between"
    for network in occupied:
        if address.version == network.version and address in network:
            return f"virtual address {address} lies in {network}, which this host or one of its networks uses"
    return ""


@lru_cache(65536)
def backend_address_error(address: Address, ranges: tuple[Network, ...]) -> str:
    """Why connections must not be sent to an instance's address, "" if they may.

    What a container may not reach itself (the clouds' metadata, the host's loopback) it must not reach by a service.
    ``ranges`` are those of virtual addresses.
    """
    if address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local:
        return f"{address} is an address of no other machine"
    if in_any_network(address, _METADATA) or address == IPv4Address("255.255.255.255"):
        return f"{address} has a meaning of its own"
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address.scope_id):
        return f"{address} cannot be an instance's"
    if in_any_network(address, ranges):
        return f"{address} is a virtual address itself"
    return ""
