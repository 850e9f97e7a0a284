"""What a contract test stands in: a host's namespace and two containers', of the fake or of the kernel."""

from __future__ import annotations

from dataclasses import dataclass

from weft.kernel.interface import Kernel, Namespace


@dataclass(frozen=True, slots=True)
class Place:
    kernel: Kernel
    box_path: str
    box: Namespace
    other: Namespace

    @property
    def host(self) -> Namespace:
        return self.kernel.host
