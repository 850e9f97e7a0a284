"""This host: where weft keeps what it must remember, and which boot it is."""

from __future__ import annotations

import time
from dataclasses import dataclass

from weft.kernel.interface import Kernel


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
        with open("/proc/uptime", encoding="ascii") as file:
            booted = time.time() - float(file.read().split()[0])
        return Host(f"/run/weft/{kernel.host.id.inode}", boot_id(), booted)


def boot_id() -> str:
    """The kernel's name for this boot. Source: ``random(4)``."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
