"""Networks of ``weft network create`` used by runtimes; podman's networks seen by ``weft``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.containerd import Containerd
from lab.podman import Podman

pytestmark = pytest.mark.usefixtures("own")


@pytest.fixture
def networks(podman: Podman) -> Iterator[Podman]:
    """Podman with a network of each driver that needs no optional kernel module."""
    wire = ("-d", "macvlan", "-o", "parent=lan0", "--subnet", "192.0.2.0/24", "--ip-range", "192.0.2.128/25")
    made = {
        "blue": ("--subnet", "10.80.0.0/24", "-o", "mtu=1400", "--label", "a=b"),
        "closed": ("--internal", "--ipv6", "--subnet", "10.81.0.0/24"),
        "points": ("-d", "ptp", "--subnet", "10.82.0.0/24"),
        "wire": wire,
    }
    for name, options in made.items():
        outcome = podman.weft("network", "create", name, *options)
        assert outcome.code == 0, outcome
    yield podman
    podman.podman("rm", "-fa", "-t0")
    for name in made:
        podman.weft("network", "rm", name)
    # Podman's own networks have DNS names, so an agent may be running; it keeps its link.
    assert [name for name in podman.links() if name != "weft-services"] == ["lan0", "lo"]


def test_podman_uses_them_by_name(networks: Podman, roots: list[str]) -> None:
    podman = networks
    listed = podman.run("podman", "network", "ls", "--format", "{{.Name}} {{.Driver}}")
    assert listed.stderr == ""
    assert {"blue weft", "closed weft", "points weft", "wire weft"} <= set(listed.stdout.splitlines())
    shown = json.loads(podman.podman("network", "inspect", "blue", "wire"))
    assert [one["name"] for one in shown] == ["blue", "wire"]

    fixed = ("--ip", "10.80.0.77", "--mac-address", "02:00:00:00:00:77", "-p", "8080:80")
    assert podman.serve("web", roots[0], *fixed, network="blue") == "10.80.0.77"
    assert podman.inspect("web", "blue")["MacAddress"] == "02:00:00:00:00:77"
    assert "mtu 1400" in podman.show("web", "link", "show", "eth0")
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    for name in ("closed", "points", "wire"):
        podman.podman("network", "connect", name, "web")
    assert len(podman.state("web")["NetworkSettings"]["Networks"]) == 4
    assert podman.ping("web", "192.0.2.2")
    assert podman.inspect("web", "closed")["GlobalIPv6Address"].startswith("fd")
    assert podman.findings() == []

    [row] = [one for one in podman.weft("ps", "--json").json if one["network"] == "blue"]
    assert "10.80.0.77/24" in json.dumps(row) and "8080" in json.dumps(row)
    assert row["name"] == "web"
    assert "No differences" in podman.weft("show", "web", "blue").stdout
    podman.podman("restart", "-t0", "web")
    assert len(podman.leases("*")) == 5
    for name in ("wire", "closed"):
        podman.podman("network", "disconnect", name, "web")
    assert len(podman.leases("*")) == 2
    podman.podman("rm", "-fa", "-t0")
    assert podman.left() == []
    assert podman.findings() == []


def test_weft_sees_podmans_networks(networks: Podman, roots: list[str]) -> None:
    podman = networks
    podman.podman("network", "create", "--subnet", "10.83.0.0/24", "theirs")
    try:
        [row] = [one for one in podman.weft("network", "ls", "--json").json if one["name"] == "theirs"]
        assert (row["driver"], "10.83.0.0/24" in json.dumps(row)) == ("bridge", True)
        # Neither is given a subnet that the other one has.
        assert podman.weft("network", "create", "mine", "--subnet", "10.83.0.0/25").code == 4
        podman.up("c1", roots[0], network="theirs")
        podman.podman("rm", "-fa", "-t0")
        refused = podman.weft("network", "rm", "theirs")
        assert refused.code == 4 and "was not created by weft" in refused.stderr
        assert podman.weft("network", "rm", "--force", "theirs").code == 0
        assert "theirs" not in podman.podman("network", "ls", "-q").split()
    finally:
        podman.podman("rm", "-fa", "-t0")
        podman.podman("network", "rm", "-f", "theirs")


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
def test_ctr_uses_the_only_network(driver: str, plugin_folder: Path, roots: list[str], tmp_path: Path) -> None:
    containerd = Containerd(plugin_folder, tmp_path)
    try:
        assert containerd.weft("network", "create", "blue", "-d", driver, "--subnet", "10.80.0.0/24").code == 0
        assert containerd.up("c1", roots[0]) == "10.80.0.2"
        [row] = containerd.weft("ps", "--json").json
        assert (row["name"], row["container"]) == ("c1", "default-c1")
        assert containerd.weft("check", "c1").code == 0
        containerd.down("c1")
    finally:
        containerd.close()
