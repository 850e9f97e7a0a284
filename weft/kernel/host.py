"""The host: weft's state directory for its network namespace, and the current boot."""

from __future__ import annotations

import time
from dataclasses import dataclass

from weft.kernel.interface import Kernel


@dataclass(frozen=True, slots=True)
class Host:
    """``run``: the state directory, on a tmpfs; ``boot``: the boot id; ``booted``: its time (s)."""

    run: str
    boot: str
    booted: float

    @staticmethod
    def current(kernel: Kernel) -> Host:
        with open("/proc/uptime", encoding="ascii") as file:
            booted = time.time() - float(file.read().split()[0])
        return Host(f"/run/weft/{kernel.host.id.inode}", boot_id(), booted)


def boot_id() -> str:
    """The kernel's boot_id. Source: ``random(4)``."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
