"""Every conflist in conf/ is accepted, and together they use every driver and feature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.entry import cni
from cni_plugin.plan import modules
from cni_plugin.service import assemble
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from weft import overlay
from weft.types import Result

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "conf").glob("*.conflist"))
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": str(ROOT / "bin/cni"),
}
PREVIOUS = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}],
    "ips": [{"address": "10.1.0.5/24", "interface": 0}],
}


@pytest.fixture(autouse=True)
def overlay_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster's side writes the files of overlay networks to a folder of the host."""
    monkeypatch.setattr(overlay, "FOLDER", str(ROOT / "conf" / "overlay"))


def members(path: Path) -> list[dict[str, Any]]:
    conflist = json.loads(path.read_text(encoding="utf-8"))
    common = {"cniVersion": conflist["cniVersion"], "name": conflist["name"]}
    chained = [{"prevResult": PREVIOUS} if place else {} for place in range(len(conflist["plugins"]))]
    return [{**plugin, **common, **before} for plugin, before in zip(conflist["plugins"], chained, strict=True)]


def taken(conf: dict[str, Any]) -> tuple[int, dict[str, Any], list[assemble.Assembly]]:
    """An ADD that only parses the configuration: exit status, output, and what was parsed."""
    read = []

    def handle(request: Request) -> Result:
        read.append(assemble.read(request))
        request.config.keys.problems.raise_any()
        return Result()

    status, answer = cni.run(conf["type"], ENVIRONMENT, json.dumps(conf).encode(), handle)
    return status, json.loads(answer), read


def test_conf_contains_conflists() -> None:
    assert {path.stem for path in FILES} >= {"weft", "chain", "ptp", "loopback", "dual-stack", "static"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_conflist_is_accepted(path: Path) -> None:
    conflist = json.loads(path.read_text(encoding="utf-8"))
    assert conflist["name"] == path.stem
    for conf in members(path):
        assert conf["type"] in (OWN_NAME, *modules.plugins())
        status, answer, _ = taken(conf)
        assert status == 0, answer


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_invalid_key_is_refused(path: Path) -> None:
    """The previous test would pass if the parser accepted everything: it does not."""
    first = members(path)[0]
    spoiled = {**first, "type": "weft", "driver": "bridge", "mtu": "large"}
    status, answer, _ = taken(spoiled)
    assert status == 1
    assert "mtu" in answer["msg"]


def test_every_driver_and_feature_is_used_by_a_conflist() -> None:
    shown: set[str] = set()
    for path in FILES:
        for conf in members(path):
            _, _, [assembly] = taken(conf)
            shown |= {assembly.driver} | {type(part).__module__.rpartition(".")[2] for part in assembly.parts}
    assert unused(shown) == []


def unused(shown: set[str]) -> list[str]:
    """A sentence for each driver and feature that no conflist uses; those of ``shown`` are used."""
    names = {name.replace("-", "_"): name for name in (*modules.drivers(), *modules.features())}
    missing = sorted(name for known, name in names.items() if known not in shown and name not in shown)
    return [f"conf/{name}.conflist is missing: no conflist in conf/ uses {name}" for name in missing]


def test_a_missing_conflist_is_named() -> None:
    shown = {*modules.drivers(), *modules.features()} - {"host-device"}
    assert unused(shown) == ["conf/host-device.conflist is missing: no conflist in conf/ uses host-device"]


def test_every_name_in_bin_cni_is_a_plugin() -> None:
    """bin/cni has no link under a name that weft does not implement."""
    features = {path.stem for path in (ROOT / "cni_plugin/features").glob("[!_]*.py")}
    pools = {path.stem.replace("_", "-") for path in (ROOT / "ipam").glob("[!_]*.py")}
    names = set(modules.plugins())
    assert {modules.feature_of(name) or name for name in names} <= set(modules.drivers()) | features | pools
    assert {name for name in modules.drivers() if modules.driver(name).DRIVER.plugin} <= names


def test_every_reference_plugin_has_a_link() -> None:
    made = {"bridge", "ptp", "macvlan", "ipvlan", "vlan", "host-device", "dummy", "tap", "loopback"}
    chained = {"portmap", "firewall", "bandwidth", "tuning", "sbr", "vrf", "dnsname"}
    assert set(modules.plugins()) == made | chained | {"host-local", "static", "dhcp"}
