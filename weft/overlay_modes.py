"""How hosts of an overlay network reach each other's containers: by routes, or in one broadcast domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address

from weft.identity import link_name_problem, normal_mac
from weft.section import Section
from weft.types import Address, Subnet

ROUTED, L2 = "routed", "l2"
MODES = (ROUTED, L2)
PORTS = "ports"
"""The key of the containers of a host in its record and in the peers' file, in mode ``l2``."""


VLAN_GATEWAY = "vlanGateway"
"""The key of the VLAN gateway in a network's record and file."""
LAST_VLAN = 4094


@dataclass(frozen=True, slots=True)
class VlanGateway:
    """The host at which a VLAN is part of a network of mode l2, by its link ``parent``, with the tag ``vlan``
    (0: without one). Machines on the VLAN have addresses of ``range``. ``local``: it is this host.
    """

    host: str
    parent: str
    vlan: int
    range: IPv4Network
    local: bool = False


def parse_vlan_gateway(keys: Section) -> VlanGateway | None:
    """The VLAN gateway, None without one or where something is wrong with it, which is recorded."""
    if not keys:
        return None
    host, parent, subnet = keys.text("host"), keys.text("parent"), keys.subnet("range")
    vlan = keys.integer("vlan", least=0, most=LAST_VLAN) or 0
    if not host:
        keys.problem("host", "must be the name of one host")
    if problem := link_name_problem(parent):
        keys.problem("parent", problem)
    if not isinstance(subnet, IPv4Network):
        keys.problem("range", "must be a part of the network's IPv4 subnet")
        return None
    return VlanGateway(host, parent, vlan, subnet, keys.flag("local"))


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A container behind the bridge of a host: its MAC address, and the addresses that it answers ARP for."""

    mac: str
    addresses: tuple[Address, ...]


def encoded(ports: Iterable[ContainerPort]) -> dict[str, list[str]]:
    """The addresses by MAC address, in order: equal ports have equal JSON."""
    found: dict[str, list[str]] = {}
    for one in sorted(ports, key=lambda one: one.mac):
        found[one.mac] = sorted({*found.get(one.mac, ()), *map(str, one.addresses)})
    return found


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
