"""Containerd's ctr with weft. It gives DEL no namespace, and calls none at all for a detached task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.machine import Machine

CONFIG = """
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
]
"""
LEASES = "/var/lib/cni/networks/lab"


class Containerd(Machine):
    """A machine that runs containerd, with one network."""

    def __init__(self, conflist: dict[str, Any], plugins: Path, folder: Path) -> None:
        super().__init__(controllers=True)
        self.write("/etc/cni/net.d/10-lab.conflist", json.dumps(conflist))
        self.write("/run/containerd.toml", CONFIG)
        self.run("ln", "-s", str(plugins), "/opt/cni/bin")
        self.start("containerd", "--config", "/run/containerd.toml", log=folder / "containerd.log")
        ready = self.until("ctr", "version")
        assert ready.code == 0, (ready, (folder / "containerd.log").read_text()[-2000:])

    def up(self, name: str, root: str) -> str:
        """Start a detached container; its address."""
        self.run("ctr", "run", "--detach", "--cni", "--rootfs", root, name, "/bin/sleep", "600")
        shown = self.inside(name, "/bin/ip", "-o", "-4", "address", "show", "eth0").stdout
        return shown.split(" inet ")[1].split("/")[0]

    def inside(self, name: str, *argv: str) -> Any:
        return self.run("ctr", "task", "exec", "--exec-id", f"{name}-{abs(hash(argv))}", name, *argv, check=False)

    def leases(self) -> list[str]:
        names = [Path(path).name for path in self.files(LEASES)]
        return [name for name in names if not name.startswith(("last_reserved_ip", "lock"))]


@pytest.fixture(scope="module")
def containerd(
    network: dict[str, Any], plugin_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    made = Containerd(network, plugin_folder, tmp_path_factory.mktemp("containerd"))
    yield made
    made.close()


def test_containers_reach_each_other(containerd: Containerd, roots: list[str]) -> None:
    first, second = containerd.up("c1", roots[0]), containerd.up("c2", roots[1])
    try:
        assert first != second
        for name, address in (("c1", second), ("c2", first)):
            answer = containerd.inside(name, "/bin/ping", "-c", "3", "-w", "5", address).stdout
            assert " 0% packet loss" in answer
    finally:
        for name in ("c1", "c2"):
            containerd.run("ctr", "task", "rm", "--force", name, check=False)
            containerd.run("ctr", "container", "rm", name)


def test_del_without_a_namespace_frees_everything(containerd: Containerd, roots: list[str]) -> None:
    """A foreground container: ctr calls DEL when it is over, with CNI_NETNS empty."""
    before, links = containerd.leases(), containerd.links()
    show = ("/bin/ip", "-o", "-4", "address", "show", "eth0")
    outcome = containerd.run("ctr", "run", "--rm", "--cni", "--rootfs", roots[0], "short", *show)
    address = outcome.stdout.split(" inet ")[1].split("/")[0]
    assert address not in before
    assert containerd.leases() == before
    assert "failed" not in outcome.stderr
    assert containerd.links() == links
