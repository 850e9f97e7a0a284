"""How owners call their containers: each source's files, as the real programs write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cni_plugin.networks import owners
from cni_plugin.networks.owners import OwnerName

HEX = "0123456789abcdef" * 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(owners, "LIBCNI_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(owners, "PODMAN_CONTAINERS", (str(tmp_path / "storage/*-containers/containers.json"),))
    monkeypatch.setattr(owners, "NERDCTL_NAMES", str(tmp_path / "nerdctl/*/names/*/*"))
    monkeypatch.setattr(owners, "CONTAINERD_TASKS", str(tmp_path / "task/*"))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_namespace_attached_by_hand() -> None:
    assert owners.names(["weft-c1", HEX]) == {"weft-c1": OwnerName("c1")}


def test_ctr(folder: Path) -> None:
    (folder / "task/my-team").mkdir(parents=True)
    found = owners.names(["default-web", "my-team-db", "other-x"])
    assert {one: name.name for one, name in found.items()} == {"default-web": "web", "my-team-db": "db"}


def test_nerdctl(folder: Path) -> None:
    write(folder / "nerdctl/1935db59/names/default/web", HEX)
    found = owners.names([f"default-{HEX}"])[f"default-{HEX}"]
    assert found.name == "web" and HEX in found.words
    assert owners.short(f"default-{HEX}", found) == HEX[:12]


def test_podman(folder: Path) -> None:
    content = [{"id": HEX, "names": ["web"], "layer": "x"}, {"id": "f" * 64, "names": ["other"]}, {"id": "e" * 64}]
    write(folder / "storage/overlay-containers/containers.json", json.dumps(content))
    assert owners.names([HEX, "e" * 64]) == {HEX: OwnerName("web")}
    assert owners.short(HEX, OwnerName("web")) == HEX[:12]


def test_kubernetes(folder: Path) -> None:
    arguments = [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "web-0"]]
    cached = {"kind": "cniCacheV1", "containerId": HEX, "networkName": "pods", "ifName": "eth0", "cniArgs": arguments}
    write(folder / f"results/pods-{HEX}-eth0", json.dumps(cached))
    assert owners.names([HEX]) == {HEX: OwnerName("web-0", ("shop/web-0",))}


@pytest.mark.parametrize("text", ["", "[", "3", '{"a": 1}', '[{"id": 3, "names": "x"}]', "[" * 100_000])
def test_a_damaged_file_has_no_names(folder: Path, text: str) -> None:
    write(folder / "storage/overlay-containers/containers.json", text)
    write(folder / "results/x", text)
    assert owners.names([HEX]) == {}


def test_long_ids_alone_are_cut() -> None:
    assert owners.short("weft-a-long-name-of-a-namespace-1234", None) == "weft-a-long-name-of-a-namespace-1234"
    assert owners.short("default-web", OwnerName("web")) == "default-web"


@pytest.mark.parametrize(
    ("netns", "container"),
    [
        ("c1", "weft-c1"),
        ("/run/netns/c1", "weft-c1"),
        ("/proc/4711/ns/net", "weft-4711"),
        ("a b/", "weft-a-b"),
    ],
)
def test_a_namespace_without_a_runtime_gives_the_container_its_name(netns: str, container: str) -> None:
    assert owners.container_of(netns) == container
