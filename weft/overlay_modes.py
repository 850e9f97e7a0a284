"""How hosts of an overlay network reach each other's containers: by routes, or in one broadcast domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from weft.identity import normal_mac
from weft.types import Address, Subnet

ROUTED, L2 = "routed", "l2"
MODES = (ROUTED, L2)
PORTS = "ports"
"""The key of the containers of a host in its record and in the peers' file, in mode ``l2``."""


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A container behind the bridge of a host: its MAC address, and the addresses that it answers ARP for."""

    mac: str
    addresses: tuple[Address, ...]


def encoded(ports: Iterable[ContainerPort]) -> dict[str, list[str]]:
    """The addresses by MAC address, in order: equal ports have equal JSON."""
    return {one.mac: sorted(map(str, one.addresses)) for one in sorted(ports, key=lambda one: one.mac)}


def parse_ports(value: object, blocks: Iterable[Subnet]) -> tuple[ContainerPort, ...]:
    """The ports of a host that has these blocks; without the addresses in none of them, which are other
    hosts'. Raises ValueError, TypeError.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{PORTS} must be an object")
    parts, found = tuple(blocks), []
    for mac, texts in value.items():
        if not isinstance(texts, list):
            raise TypeError(f"{PORTS} must have lists of addresses")
        addresses = tuple(ip_address(str(one)) for one in texts)
        own = tuple(one for one in addresses if any(one.version == part.version and one in part for part in parts))
        if own:
            found.append(ContainerPort(normal_mac(str(mac)), own))
    return tuple(found)
