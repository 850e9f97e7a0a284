"""The namespaces of a contract test: host and two containers, on the fake or the real kernel."""

from __future__ import annotations

from dataclasses import dataclass

from weft.kernel.interface import Kernel, Namespace


@dataclass(frozen=True, slots=True)
class Topology:
    kernel: Kernel
    container_path: str
    container: Namespace
    other_container: Namespace

    @property
    def host(self) -> Namespace:
        return self.kernel.host
