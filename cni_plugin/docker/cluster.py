"""The cluster's overlay networks, as networks of this host's Docker: made and removed by Docker's API.

The agent of each host writes and removes the files of the networks (docs/overlay.md); so each host's Docker
has them. This is never done within a call of the driver: dockerd would wait for itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from cni_plugin.docker import overlays
from cni_plugin.docker.api import DockerApi
from cni_plugin.docker.state import Json, Kept, Network
from cni_plugin.wire.plugins import OWN_NAME
from weft import overlay, stderr
from weft.errors import WeftError
from weft.overlay import OverlayNetwork
from weft.section import Section

LABEL = "weft.cluster"
"""The label of networks in Docker that are made here, and removed with the cluster's."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Networks to create in Docker, and ids of those to remove."""

    create: tuple[OverlayNetwork, ...] = ()
    remove: tuple[str, ...] = ()


def changes(docker: Iterable[Section], attached: dict[str, str], wanted: Iterable[OverlayNetwork]) -> Changes:
    """What Docker's networks lack. ``attached`` has the overlay network of each of Docker's, by its id; one that
    a person has made counts as well, and stays.
    """
    own = {one.text("Id"): one.section("Labels").text(LABEL) for one in docker}
    there = {attached.get(name, label) for name, label in own.items()}
    networks = {one.name: one for one in wanted}
    return Changes(
        tuple(one for name, one in networks.items() if name not in there),
        tuple(name for name, label in own.items() if label and label not in networks),
    )


def creation(network: OverlayNetwork, *, internal: bool) -> Json:
    """The body of a call of Docker's API that creates the network."""
    return {
        "Name": network.name,
        "CheckDuplicate": True,
        "Driver": OWN_NAME,
        "Internal": internal,
        "EnableIPv6": any(one.version == 6 for one in network.subnets),
        "IPAM": {"Driver": OWN_NAME, "Config": [{"Subnet": str(one)} for one in network.subnets]},
        "Options": {"driver": overlays.DRIVER},
        "Labels": {LABEL: network.name},
    }


class ClusterNetworks:
    """Makes Docker's networks follow the files. ``blocking`` runs what reads files in a thread."""

    def __init__(
        self,
        api: DockerApi,
        kept: Kept,
        blocking: Callable[[Callable[[], list[OverlayNetwork]]], Awaitable[list[OverlayNetwork]]],
    ) -> None:
        self._api = api
        self._kept = kept
        self._blocking = blocking
        self._stamp = -1
        self._said: set[str] = set()

    def changed(self) -> bool:
        """Whether a file was written or removed since the last ``follow`` that did all it should."""
        return _stamp() != self._stamp

    async def follow(self) -> None:
        """Create and remove. What Docker refuses is logged once, and tried again at the next change. Raises
        NoDocker.
        """
        stamp, problems = _stamp(), set()
        wanted = await self._blocking(lambda: [one for one in overlays.networks() if one.kept and one.blocks])
        attached = {one.id: one.name for one in self._kept.all(Network) if one.driver == overlays.DRIVER}
        found = changes(await self._api.networks(OWN_NAME), attached, wanted)
        busy = False
        for name in found.remove:
            if problem := await self._api.remove_network(name):
                problems.add(f"network {name[:12]} of the cluster is not removed: {problem}")
                busy = True  # containers are on it: again in a moment
        for network in found.create:
            body = creation(network, internal=overlays.is_internal(network.name))
            if problem := await self._api.create_network(body):
                problems.add(f"network {network.name} of the cluster is not in Docker: {problem}")
            else:
                stderr.write(f"weft docker: network {network.name} of the cluster is in Docker\n")
        for one in sorted(problems - self._said):
            stderr.write(f"weft docker: {one}\n")
        self._said = problems
        self._stamp = -1 if busy else stamp


def _stamp() -> int:
    """Changes with every file that is renamed into the folder or removed."""
    with contextlib.suppress(OSError, WeftError):
        return os.stat(overlay.FOLDER).st_mtime_ns
    return 0
