"""Real runtimes on private machines, with the plugins of bin/cni, or of the folder that WEFT_TEST_PLUGINS names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lab.machine import make_root
from lab.plugins import OWN_FOLDER, REFERENCE_FOLDER, chosen_folder

NETWORK = "lab"
SUBNET = "10.66.0.0/24"
IPAM = {"type": "host-local", "ranges": [[{"subnet": SUBNET}]], "routes": [{"dst": "0.0.0.0/0"}]}
BRIDGE = {"bridge": "lab0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": IPAM}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs root: it makes machines of its own for the runtimes"))


def conflist(kind: str) -> dict[str, Any]:
    """The same network said twice: as a chain of reference plugins, and as weft alone."""
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
        pytest.skip("only weft itself does with one plugin what a chain does")
    return conflist(kind)


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugins under test; from the reference come only the links of a chain that they do not claim to replace."""
    folder = tmp_path_factory.mktemp("cni")
    for name in ("firewall", "tuning"):
        shutil.copy(REFERENCE_FOLDER / name, folder)
    for path in chosen_folder().iterdir():
        target = folder / path.name
        target.unlink(missing_ok=True)
        # The machine hides the reference's own folder; weft's executables know where they come from.
        if chosen_folder() == REFERENCE_FOLDER:
            shutil.copy(path, target)
        else:
            target.symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def root_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("image") / "root")


@pytest.fixture
def roots(root_image: Path, tmp_path: Path) -> list[str]:
    """Three root file systems, of which each container gets its own."""
    places = [tmp_path / f"root{number}" for number in range(3)]
    for place in places:
        shutil.copytree(root_image, place, symlinks=True)
    return [str(place) for place in places]
