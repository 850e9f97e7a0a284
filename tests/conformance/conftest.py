"""Container runtimes in private namespaces, with the plugins of bin/cni or WEFT_TEST_PLUGINS."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.docked import Docked
from lab.machine import make_root
from lab.plugins import OWN_FOLDER, chosen_folder
from lab.podman import Podman
from lab.roots import PLACE, layers

NETWORK = "lab"
SUBNET = "10.66.0.0/24"
IPAM = {"type": "host-local", "ranges": [[{"subnet": SUBNET}]], "routes": [{"dst": "0.0.0.0/0"}]}
BRIDGE = {"bridge": "lab0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": IPAM}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs root to create namespaces for the runtimes"))


def conflist(kind: str) -> dict[str, Any]:
    """The same network twice: as a chain of reference plugins, and as the one plugin ``weft``."""
    if kind == "chain":
        plugins: list[dict[str, Any]] = [
            {"type": "bridge", **BRIDGE, "capabilities": {"ips": True}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "firewall"},
            {"type": "tuning"},
        ]
    else:
        both = {"ips": True, "portMappings": True}
        plugins = [{"type": "weft", "driver": "bridge", **BRIDGE, "portmap": {}, "capabilities": both}]
    return {"cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins}


@pytest.fixture(scope="module", params=["chain", "single"])
def network(request: pytest.FixtureRequest) -> dict[str, Any]:
    kind = str(request.param)
    if kind == "single" and chosen_folder() != OWN_FOLDER:
        pytest.skip("the reference has no single plugin for what a chain does")
    return conflist(kind)


@pytest.fixture
def two_lists() -> tuple[dict[str, Any], dict[str, Any]]:
    """Two networks, in the order of their file names."""
    return conflist("chain"), conflist("single") | {"name": "other"}


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugins under test and no others; the lists that podman writes need only ``bin/cni``."""
    if chosen_folder() == OWN_FOLDER:
        return OWN_FOLDER
    # The machine hides the directory of the reference plugins.
    folder = tmp_path_factory.mktemp("cni")
    for path in chosen_folder().iterdir():
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def own() -> None:
    """Skip tests that use weft's own commands when the plugins under test are another project's."""
    if chosen_folder() != OWN_FOLDER:
        pytest.skip("the plugins under test are not weft's")


@pytest.fixture(scope="session")
def machine(plugin_folder: Path) -> Iterator[Podman]:
    """Podman with the networks that the tests have it create."""
    made = Podman(plugin_folder)
    yield made
    made.close()


@pytest.fixture(scope="session")
def trixie(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The layers of a Debian 13 root with weft in it."""
    if chosen_folder() != OWN_FOLDER:
        pytest.skip("the root contains weft, not the plugins under test")
    return layers("trixie", tmp_path_factory.mktemp("trixie"))


@pytest.fixture(scope="module")
def podman5(trixie: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """The podman of that root, with netavark."""
    made = Podman(Path(PLACE) / "bin" / "cni", layers=trixie, shared=tmp_path_factory.getbasetemp())
    yield made
    made.close()


@pytest.fixture
def podman(machine: Podman) -> Iterator[Podman]:
    """Podman without containers, before the test and after it."""
    yield machine
    machine.podman("rm", "-fa", "-t0")


@pytest.fixture
def create(podman: Podman) -> Iterator[Callable[..., None]]:
    """Create networks with ``podman network create``; afterwards none of their state is left."""
    made: list[str] = []

    def create(name: str, *options: str) -> None:
        podman.podman("network", "create", *options, name)
        made.append(name)

    yield create
    podman.podman("rm", "-fa", "-t0")
    left = podman.left()
    if made:
        podman.podman("network", "rm", "-f", *made)
    podman.weft("gc")
    assert left == []


@pytest.fixture(scope="session")
def root_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("image") / "root")


@pytest.fixture
def roots(root_image: Path, tmp_path: Path) -> list[str]:
    """Three root file systems, one for each container."""
    places = [tmp_path / f"root{number}" for number in range(3)]
    for place in places:
        shutil.copytree(root_image, place, symlinks=True)
    return [str(place) for place in places]


@pytest.fixture(scope="module", params=["20.10", pytest.param("26", marks=pytest.mark.long)])
def docked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, root_image: Path
) -> Iterator[Docked]:
    """Docker of Debian 12, unpacked, and of Debian 13, in a root of its own."""
    below = layers("docker", tmp_path_factory.mktemp("docker")) if request.param == "26" else ()
    shared = tmp_path_factory.getbasetemp()
    made = Docked(tmp_path_factory.mktemp("docked"), str(root_image), layers=below, shared=shared)
    assert made.ask("version", "-f", "{{.Server.Version}}").startswith(request.param)
    yield made
    made.close()
