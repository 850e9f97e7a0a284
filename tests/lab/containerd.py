"""A private machine with containerd on it, driven by ``ctr``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.commands import Outcome
from lab.machine import Machine

_CONFIG = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
]
"""
_LEASES = "/var/lib/cni/networks"


class Containerd(Machine):
    """A machine with containerd and the networks of the given conflists; ctr uses the first."""

    def __init__(self, plugins: Path, folder: Path, *conflists: Mapping[str, Any]) -> None:
        super().__init__(controllers=True)
        for number, conflist in enumerate(conflists, 10):
            self.write(f"/etc/cni/net.d/{number}-{conflist['name']}.conflist", json.dumps(conflist))
        self.write("/run/containerd.toml", _CONFIG)
        self.run("ln", "-s", str(plugins), "/opt/cni/bin")
        self.start("containerd", "--config", "/run/containerd.toml", log=folder / "containerd.log")
        ready = self.until("ctr", "version")
        assert ready.code == 0, (ready, (folder / "containerd.log").read_text()[-2000:])

    def up(self, name: str, root: str) -> str:
        """Start a detached container; its address."""
        self.run("ctr", "run", "--detach", "--cni", "--rootfs", root, name, "/bin/sleep", "600")
        shown = self.inside(name, "/bin/ip", "-o", "-4", "address", "show", "eth0").stdout
        return shown.split(" inet ")[1].split("/")[0]

    def down(self, name: str) -> None:
        """Stop a detached container: ctr calls no DEL for it."""
        self.run("ctr", "task", "rm", "--force", name, check=False)
        self.run("ctr", "container", "rm", name)

    def inside(self, name: str, *argv: str) -> Outcome:
        return self.run("ctr", "task", "exec", "--exec-id", f"{name}-{abs(hash(argv))}", name, *argv, check=False)

    def answered(self, name: str, address: str) -> bool:
        """Whether an echo request of the container is answered."""
        return " 0% packet loss" in self.inside(name, "/bin/ping", "-c", "1", "-W", "1", address).stdout

    def leases(self, network: str) -> list[str]:
        """The addresses that are taken on disk."""
        names = [Path(path).name for path in self.files(f"{_LEASES}/{network}")]
        return [name for name in names if not name.startswith(("last_reserved_ip", "lock"))]
