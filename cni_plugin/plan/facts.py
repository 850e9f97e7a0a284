"""What a plan may read of the host and the container, read from the kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.plan.plan import Device
from weft import files
from weft.errors import ConfigProblem, KernelLacks, Missing
from weft.kernel import default_route
from weft.kernel.interface import Namespace, Ruleset
from weft.kernel.values import Element, KernelRoute, Link, RoutingRule
from weft.types import Cidr, Side

if TYPE_CHECKING:
    from weft.uplink import Uplink

_BUSES = ("/sys/bus/pci/devices", "/sys/bus/auxiliary/devices")
_DEVICES = "/sys/devices/"
_MAIN_TABLE = 254


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """The facts, each read from the kernel whenever it is asked for."""

    host: Namespace
    container: Namespace | None
    rules: Callable[[], Ruleset] | None = None

    def _side(self, side: Side) -> Namespace | None:
        return self.host if side is Side.HOST else self.container

    def link(self, side: Side, name: str) -> Link | None:
        namespace = self._side(side)
        return namespace.link(name) if namespace is not None else None

    def links(self, side: Side) -> tuple[Link, ...]:
        namespace = self._side(side)
        return namespace.links() if namespace is not None else ()

    def default_link(self, side: Side) -> str:
        namespace = self._side(side)
        if namespace is None:
            return ""
        for family in (4, 6):
            routes = namespace.routes(family=family, table=_MAIN_TABLE)
            found = [one for one in routes if one.link and one.route.destination.prefixlen == 0]
            if found:
                return min(found, key=lambda one: one.route.priority or 0).link
        return ""

    def uplink_mtu(self) -> int:
        return default_route.mtu(self.host)

    def device(self, location: str) -> Device | None:
        paths = (location,) if location.startswith("/") else tuple(f"{bus}/{location}" for bus in _BUSES)
        for path in map(os.path.realpath, paths):
            if path.startswith(_DEVICES) and os.path.isdir(path):
                driver = os.path.realpath(f"{path}/driver")
                return Device(os.path.basename(driver) if os.path.exists(driver) else "", _links_of(path))
        return None

    def addresses(self, side: Side, link: str, permanent: bool = False) -> tuple[Cidr, ...]:
        namespace = self._side(side)
        try:
            return namespace.addresses(link, permanent=permanent) if namespace is not None else ()
        except Missing:
            return ()

    def sysctl(self, side: Side, key: str) -> str | None:
        namespace = self._side(side)
        return namespace.sysctl(key) if namespace is not None else None

    def routes(self, side: Side, link: str = "") -> tuple[KernelRoute, ...]:
        namespace = self._side(side)
        try:
            return namespace.routes(link=link) if namespace is not None else ()
        except Missing:
            return ()

    def routing_rules(self, side: Side) -> tuple[RoutingRule, ...]:
        namespace = self._side(side)
        return namespace.routing_rules() if namespace is not None else ()

    def drops_forwarded(self, version: int) -> bool:
        return self.host.drops_forwarded(version)

    def uplink(self) -> Uplink:
        from weft.uplink import configured

        return configured()

    def elements(self, collection: str) -> tuple[Element, ...]:
        try:
            return self.rules().elements(collection) if self.rules is not None else ()
        except (Missing, KernelLacks):
            return ()

    def lines(self, path: str) -> tuple[str, ...] | None:
        try:
            return tuple(files.read(path, own=False).decode("utf-8", "replace").splitlines())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigProblem(f"cannot read {path}: {error.strerror}") from error


def _links_of(path: str) -> tuple[str, ...]:
    """The links of a device in sysfs; for virtio they are under its virtio device."""
    with contextlib.suppress(OSError):
        return tuple(sorted(os.listdir(f"{path}/net")))
    found: list[str] = []
    for name in sorted(os.listdir(path)):
        if name.startswith("virtio"):
            with contextlib.suppress(OSError):
                found += sorted(os.listdir(f"{path}/{name}/net"))
    return tuple(found)
