"""Podman 5 of Debian 13: netavark calls weft, its driver plugin, for the networks created with ``-d weft``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.podman import Podman
from lab.roots import PLACE

Create = Callable[..., None]
OUTSIDE = "192.0.2.2"
ONE = ("-d", "weft", "-o", "driver=bridge", "--subnet", "10.91.0.0/24")
TWO = ("-d", "weft", "-o", "driver=bridge", "--subnet", "10.92.0.0/24")


@pytest.fixture(scope="module")
def machine(trixie: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    made = Podman(Path(PLACE) / "bin" / "cni", layers=trixie, shared=tmp_path_factory.getbasetemp())
    yield made
    made.close()


def test_containers_reach_each_other_and_the_world(podman: Podman, create: Create, roots: list[str]) -> None:
    create("green", *ONE)
    first, second = podman.up("c1", roots[0], network="green"), podman.up("c2", roots[1], network="green")
    assert podman.ping("c1", second) and podman.ping("c2", first)
    assert podman.ping("c1", OUTSIDE)
