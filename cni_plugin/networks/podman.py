"""Podman's networks by netavark: a file each, which weft's ``create`` fills in, and which podman writes
and removes without calling a plugin.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from ipaddress import ip_network

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.networks import conflists, pools
from cni_plugin.service import overlaps
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.orphans import unused_networks
from cni_plugin.service.removal import remove_network
from weft.errors import WeftError
from weft.identity import digest
from weft.kernel.host import Host
from weft.kernel.linux.kernel import LinuxKernel
from weft.types import Subnet

FOLDER = "/etc/containers/networks"
_PREFIX = "wbr-"


@dataclass(frozen=True, slots=True)
class PodmanNetwork:
    """A network as podman keeps it. ``link`` is its bridge or parent."""

    name: str
    link: str
    subnets: tuple[Subnet, ...]


def bridge_name(network: str) -> str:
    """The name of the bridge for a network without one, by the network's id."""
    return f"{_PREFIX}{digest('netavark', network)[:8]}"


def listed(folder: str = FOLDER) -> list[PodmanNetwork]:
    """The networks; not those whose files cannot be read, of which podman says what is wrong."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except OSError:
        return []
    found = []
    for name in names:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                value = json.load(file)
            subnets = tuple(ip_network(one["subnet"]) for one in value.get("subnets") or ())
            found.append(PodmanNetwork(str(value["name"]), str(value.get("network_interface") or ""), subnets))
    return found


def forgotten(context: ServiceContext, networks: list[PodmanNetwork]) -> list[str]:
    """The unused networks whose bridge ``create`` has named, and that podman has no more, or with another
    bridge.
    """
    known = {(one.name, one.link) for one in networks}
    unused = unused_networks(context)
    found = []
    for record in context.records.networks():
        links = {link for operation in record.shared for _, link in operation.creates if link.startswith(_PREFIX)}
        if record.network in unused and links and not any((record.network, link) in known for link in links):
            found.append(record.network)
    return found


def subnets_in_use(*, routes: bool = True) -> list[overlaps.Use]:
    """The subnets of this host, of CNI's networks and of podman's; without ``routes`` not those that the
    host only has routes to. Bridges of networks that podman has removed are removed first.
    """
    networks = listed()
    kernel = LinuxKernel(TABLES)
    try:
        context = ServiceContext(kernel, Host.current(kernel))
        for name in forgotten(context, networks):
            with contextlib.suppress(WeftError):  # a call is just about to use it
                remove_network(context, name, timeout=0)
        uses = pools.of_host(kernel.host, routes=routes)
    finally:
        kernel.close()
    uses += pools.of_networks(conflists.listed(conflists.FOLDER)[0]) + pools.of_docker()
    return uses + [overlaps.Use(subnet, f"podman's network {one.name}") for one in networks for subnet in one.subnets]
