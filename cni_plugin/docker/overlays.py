"""Overlay networks as networks of Docker's: a subnet names the network, and its blocks are this host's pool.

Docker tells a driver neither a network's name nor, when it asks for a pool, its driver. So ``--subnet``
says which of the networks that have a file on this host (``weft.overlay``) it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from cni_plugin.docker.state import Json
from cni_plugin.networks import conflists
from cni_plugin.service.overlaps import Use
from ipam import blocks
from ipam.ranges import Range
from weft import overlay
from weft.errors import BadOption, Missing, WeftError
from weft.overlay import OverlayNetwork
from weft.types import Address, Subnet

DRIVER = "overlay"
_PEERS = ".peers.json"
_NOT_PASSED = ("type", "driver", "ipam", "capabilities", "portmap", "names")
"""Keys that do not concern Docker, which asks for ports and names by itself."""


def networks() -> Iterator[OverlayNetwork]:
    """Those that this host takes part in; not those whose files are damaged, which an ADD reports."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(overlay.FOLDER)):
            if name.endswith(".json") and not name.endswith(_PEERS):
                with contextlib.suppress(WeftError):
                    yield named(name.removesuffix(".json"))


def named(name: str) -> OverlayNetwork:
    """Raises Busy without a file, StateDamaged."""
    return overlay.read_network(path(name), name)


def path(name: str) -> str:
    return os.path.join(overlay.FOLDER, f"{name}.json")


def of_subnet(subnet: Subnet) -> OverlayNetwork | None:
    """The network that has this subnet, None if there is none."""
    return next((one for one in networks() if subnet in one.subnets), None)


def require(subnets: list[Subnet]) -> OverlayNetwork:
    """The network that has these subnets. Raises BadOption, listing the networks there are."""
    known = list(networks())
    for one in known:
        if subnets and set(subnets) == set(one.subnets):
            return one
    listed = "; ".join(f"{one.name}: {' and '.join(map(str, one.subnets))}" for one in known)
    raise BadOption(
        f"this host takes part in no overlay network with the subnet {' and '.join(map(str, subnets)) or '(none)'}",
        hint=f"give --subnet of one of {listed}" if listed else "the cluster makes overlay networks: docs/overlay.md",
    )


def listed(name: str) -> Json:
    """The keys of the network's entry in its list, which the agent writes for runtimes; none where there is none."""
    with contextlib.suppress(WeftError, LookupError, TypeError):
        plugins = conflists.find(conflists.FOLDER, name).content["plugins"]
        [plugin] = plugins if isinstance(plugins, list) else []
        return {key: value for key, value in plugin.items() if key not in _NOT_PASSED}
    return {}


def is_internal(name: str) -> bool:
    return listed(name).get("internal") is True


def uses() -> list[Use]:
    """The subnets of overlay networks, which no other network of this host may have."""
    return [Use(subnet, f"overlay network {one.name}") for one in networks() for subnet in one.subnets]


def ranges(name: str, subnet: Subnet) -> tuple[Range, ...]:
    """What this host may give out of a subnet. Raises Missing where it has no block of it."""
    found = next((each for each in blocks.sets_of(named(name)) if each[0].subnet == subnet), ())
    if not found:
        raise Missing(f"this host has no block of {subnet} yet, the subnet of {name}", hint="try again in a moment")
    return found


def gateway(name: str, subnet: Subnet) -> Address:
    """The address that stands for the gateway, as Docker wants one of the subnet."""
    return next(one.ip for one in named(name).gateways if one.network == subnet)
