"""Containerd's ctr with weft. It gives DEL no namespace, and calls none at all for a detached task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.containerd import Containerd


@pytest.fixture(scope="module")
def containerd(
    network: dict[str, Any], plugin_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    made = Containerd(plugin_folder, tmp_path_factory.mktemp("containerd"), network)
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
            containerd.down(name)


def test_del_without_a_namespace_frees_everything(containerd: Containerd, roots: list[str]) -> None:
    """A foreground container: ctr calls DEL when it is over, with CNI_NETNS empty."""
    before, links = containerd.leases("lab"), containerd.links()
    show = ("/bin/ip", "-o", "-4", "address", "show", "eth0")
    outcome = containerd.run("ctr", "run", "--rm", "--cni", "--rootfs", roots[0], "short", *show)
    address = outcome.stdout.split(" inet ")[1].split("/")[0]
    assert address not in before
    assert containerd.leases("lab") == before
    assert "failed" not in outcome.stderr
    assert containerd.links() == links
