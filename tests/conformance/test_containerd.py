"""Containerd's ctr: it passes no namespace to DEL, and never calls DEL for a detached task."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.containerd import Containerd
from lab.waiting import until


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
            until(partial(containerd.answered, name, address), what=f"an answer of {address}")
    finally:
        for name in ("c1", "c2"):
            containerd.down(name)


def test_del_without_a_namespace_frees_everything(containerd: Containerd, roots: list[str]) -> None:
    """A foreground container: when it exits, ctr calls DEL with an empty CNI_NETNS."""
    before, links = containerd.leases("lab"), containerd.links()
    show = ("/bin/ip", "-o", "-4", "address", "show", "eth0")
    outcome = containerd.run("ctr", "run", "--rm", "--cni", "--rootfs", roots[0], "short", *show)
    address = outcome.stdout.split(" inet ")[1].split("/")[0]
    assert address not in before
    assert containerd.leases("lab") == before
    assert "failed" not in outcome.stderr
    assert containerd.links() == links


def test_first_list_in_the_directory_is_used(
    two_lists: tuple[dict[str, Any], ...], plugin_folder: Path, roots: list[str], tmp_path: Path
) -> None:
    made = Containerd(plugin_folder, tmp_path, *two_lists)
    try:
        assert made.up("c1", roots[0]).startswith("10.66.0.")
        assert (len(made.leases("lab")), made.leases("other")) == (1, [])
        made.down("c1")
    finally:
        made.close()


def test_host_network_calls_no_plugin(containerd: Containerd, roots: list[str]) -> None:
    """``ctr run --net-host`` calls no CNI plugin."""
    before = containerd.leases("lab")
    shown = containerd.run("ctr", "run", "--rm", "--net-host", "--rootfs", roots[0], "bare", "/bin/ip", "-o", "link")
    names = {line.split(": ")[1].split("@")[0] for line in shown.stdout.splitlines()}
    assert names == set(containerd.links())
    assert containerd.leases("lab") == before


def test_gc_frees_attachments_of_detached_tasks(own: None, containerd: Containerd, roots: list[str]) -> None:
    """ctr never calls DEL for them; weft detects that their network namespaces no longer exist."""
    containerd.weft("gc")
    assert containerd.leases("lab") == []
    addresses = [containerd.up(name, root) for name, root in zip(("c1", "c2", "c3"), roots, strict=True)]
    for name in ("c1", "c2"):
        containerd.down(name)
    assert sorted(containerd.leases("lab")) == sorted(addresses)
    said = containerd.weft("doctor").stdout
    assert "default-c1/eth0 on lab: its network namespace" in said and "default-c3" not in said
    assert "attachment default-c1/eth0 on lab" in containerd.weft("gc").stdout
    assert containerd.leases("lab") == [addresses[2]]
    assert len([link for link in containerd.links() if link.startswith("veth")]) == 1
    until(lambda: containerd.answered("c3", "10.66.0.1"), what="an answer")
    containerd.down("c3")
    containerd.weft("gc")
    assert containerd.leases("lab") == []
    assert containerd.weft("doctor").code == 0
