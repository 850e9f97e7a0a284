"""This host: where weft remembers things, which boot it is, and what a plan may look at."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cni_plugin.errors import Missing
from cni_plugin.kernel import Kernel, Link, Namespace
from cni_plugin.types import Cidr, Side


@dataclass(frozen=True, slots=True)
class Host:
    """This host: where weft keeps what it must remember, and which boot this is.

    ``run`` is a folder on a tmpfs; ``booted`` is wall-clock seconds, ``boot`` the kernel's boot id.
    """

    run: str
    boot: str
    booted: float

    @staticmethod
    def current(kernel: Kernel) -> Host:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        with open("/proc/uptime", encoding="ascii") as file:
            booted = time.time() - float(file.read().split()[0])
        return Host(f"/run/weft/{kernel.host.id.inode}", boot, booted)


@dataclass(frozen=True, slots=True)
class Look:
    """The facts a plan may ask for, from the kernel."""

    host: Namespace
    container: Namespace | None

    def _side(self, side: Side) -> Namespace | None:
        return self.host if side is Side.HOST else self.container

    def link(self, side: Side, name: str) -> Link | None:
        namespace = self._side(side)
        return namespace.link(name) if namespace is not None else None

    def addresses(self, side: Side, link: str) -> tuple[Cidr, ...]:
        namespace = self._side(side)
        try:
            return namespace.addresses(link) if namespace is not None else ()
        except Missing:
            return ()

    def sysctl(self, side: Side, key: str) -> str | None:
        namespace = self._side(side)
        return namespace.sysctl(key) if namespace is not None else None
