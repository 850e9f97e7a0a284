"""The cluster's overlay networks in Docker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.docker.api import DockerApi
from cni_plugin.docker.cluster import LABEL, ClusterNetworks
from cni_plugin.docker.state import Json, Kept, Network
from cni_plugin.networks import conflists
from weft import overlay
from weft.overlay import OverlayNetwork
from weft.section import Problems, Section


class FakeDocker(DockerApi):
    """Docker's networks, by their ids, and what it refuses."""

    def __init__(self, kept: Kept) -> None:
        super().__init__("/nowhere")
        self.there: dict[str, dict[str, Any]] = {}
        self.refusal = ""
        self.calls: list[str] = []
        self._kept = kept

    async def networks(self, driver: str) -> list[Section]:
        return [Section(one, "network", Problems()) for one in self.there.values()]

    async def create_network(self, body: Json) -> str:
        self.calls.append(f"create {body['Name']}")
        if not self.refusal:
            self.add(str(body["Name"]), **body)
        return self.refusal

    def add(self, name: str, **body: Any) -> None:
        self.there[name] = {**body, "Id": name}
        self._kept.write(Network(name, "overlay", {"name": name}))

    async def remove_network(self, name: str) -> str:
        self.calls.append(f"remove {name}")
        if not self.refusal:
            del self.there[name]
        return self.refusal


def write(folder: Path, name: str, number: int, **keys: object) -> None:
    found = {
        "format": 1, "network": name, "vni": number, "mac": "02:77:00:00:00:01", "underlay": "192.0.2.1", "mtu": 1450,
        "subnets": [f"10.{number}.0.0/16", f"fd00:{number}::/48"], "blocks": [f"10.{number}.1.0/24"], "kept": True,
        **keys,
    }  # fmt: skip
    (folder / f"new-{name}").write_text(json.dumps(found))
    (folder / f"new-{name}").rename(folder / f"{name}.json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "overlay"
    found.mkdir()
    monkeypatch.setattr(overlay, "FOLDER", str(found))
    monkeypatch.setattr(conflists, "FOLDER", str(tmp_path / "net.d"))
    return found


async def blocking(work: Callable[[], list[OverlayNetwork]]) -> list[OverlayNetwork]:
    return work()


def test_docker_has_the_networks_of_the_cluster(folder: Path, kept: Kept, capfd: pytest.CaptureFixture[str]) -> None:
    docker = FakeDocker(kept)
    cluster = ClusterNetworks(docker, kept, blocking)
    write(folder, "blue", 60)
    write(folder, "byhand", 61, kept=False)  # by a person: no network of the cluster
    write(folder, "waiting", 62, blocks=[])
    docker.add("mine", Name="mine")
    write(folder, "mine", 63)  # a person has it in Docker already
    assert cluster.changed()
    asyncio.run(cluster.follow())
    assert docker.calls == ["create blue"] and not cluster.changed()
    made = docker.there["blue"]
    assert made["IPAM"] == {"Driver": "weft", "Config": [{"Subnet": "10.60.0.0/16"}, {"Subnet": "fd00:60::/48"}]}
    assert (made["Options"], made["Labels"]) == ({"driver": "overlay"}, {LABEL: "blue"})
    assert made["EnableIPv6"] and not made["Internal"]

    (folder / "blue.json").unlink()
    (folder / "mine.json").unlink()
    docker.refusal = "network blue has active endpoints"
    for _ in range(2):  # as long as it has containers
        assert cluster.changed()
        asyncio.run(cluster.follow())
    assert capfd.readouterr().err.count("active endpoints") == 1
    docker.refusal = ""
    asyncio.run(cluster.follow())
    assert set(docker.there) == {"mine"} and not cluster.changed()


def test_a_name_that_docker_has_otherwise_is_left_alone(
    folder: Path, kept: Kept, capfd: pytest.CaptureFixture[str]
) -> None:
    docker = FakeDocker(kept)
    docker.refusal = "network with name blue already exists"
    cluster = ClusterNetworks(docker, kept, blocking)
    write(folder, "blue", 60)
    asyncio.run(cluster.follow())
    assert not cluster.changed()  # until the cluster's networks change
    assert "network blue of the cluster is not in Docker: network with name blue" in capfd.readouterr().err
