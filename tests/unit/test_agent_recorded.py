"""What the agent tells of networks and attachments by their files, of which only changed ones are read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.agent import recorded
from cni_plugin.agent.host_metrics import HostMetrics, Traffic
from cni_plugin.agent.recorded import Configured
from cni_plugin.networks import conflists, leases
from cni_plugin.service.records import Records
from discovery.metrics import Metrics
from ipam import host_local_config
from lab.calls import Weft
from lab.cases import conf, pool
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host


class Networks:
    """A folder of networks, each with a /24 of its own, and their lease directories."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "net.d"
        self.leases = folder / "leases"

    def write(self, name: str, subnet: str) -> None:
        keys = {"type": "weft", "driver": "bridge", "ipam": pool(subnet)}
        (self.folder / f"{name}.conflist").unlink(missing_ok=True)
        conflists.write(str(self.folder), name, {"cniVersion": "1.1.0", "name": name, "plugins": [keys]})

    def lease(self, name: str, address: str) -> None:
        place = self.leases / name
        place.mkdir(parents=True, exist_ok=True)
        (place / address).write_bytes(b"c1\r\neth0")
        self.settle(name)

    def settle(self, name: str, seconds: float = 1.0) -> None:
        """As if the lease directory had been changed some time ago, each time another one."""
        before = os.stat(self.leases / name).st_mtime
        os.utime(self.leases / name, (before - seconds,) * 2)


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Networks:
    made = Networks(tmp_path)
    made.folder.mkdir()
    monkeypatch.setattr(host_local_config, "DATA_DIRECTORY", str(made.leases))
    return made


def noted(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """The function, with the first argument of each call noted."""

    def called(first: str, *rest: Any) -> Any:
        calls.append(first)
        return function(first, *rest)

    return called


def test_leases_are_counted_when_one_has_come_or_gone(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    monkeypatch.setattr(leases, "fill", noted(leases.fill, counted))
    networks.write("blue", "10.7.0.0/24")
    networks.write("green", "10.8.0.0/24")
    networks.lease("blue", "10.7.0.2")
    networks.lease("green", "10.8.0.2")
    configured = Configured(str(networks.folder))

    def used() -> dict[str, int]:
        counted.clear()
        return {one.name: one.pools[0][1] for one in configured.read()}

    assert (used(), counted) == ({"blue": 1, "green": 1}, ["blue", "green"])
    assert (used(), counted) == ({"blue": 1, "green": 1}, [])
    networks.lease("blue", "10.7.0.3")
    assert (used(), counted) == ({"blue": 2, "green": 1}, ["blue"])
    (networks.leases / "blue" / "10.7.0.2").unlink()
    networks.settle("blue", 9.0)
    assert (used(), counted) == ({"blue": 1, "green": 1}, ["blue"])
    networks.write("blue", "10.9.0.0/24")
    assert (used(), counted) == ({"blue": 0, "green": 1}, ["blue"])


def test_a_directory_changed_just_now_is_counted_again(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next change might leave the same mtime."""
    monkeypatch.setattr(recorded, "_MTIME_RESOLUTION", 3600 * 10**9)
    networks.write("blue", "10.7.0.0/24")
    networks.lease("blue", "10.7.0.2")
    configured = Configured(str(networks.folder))
    assert configured.read()[0].pools[0][1] == 1
    written = os.stat(networks.leases / "blue").st_mtime_ns
    (networks.leases / "blue" / "10.7.0.3").touch()
    os.utime(networks.leases / "blue", ns=(written, written))
    assert configured.read()[0].pools[0][1] == 2


def test_files_are_parsed_when_they_have_changed(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(conflists, "load", noted(conflists.load, loaded))
    networks.write("blue", "10.7.0.0/24")
    networks.write("green", "10.8.0.0/24")
    configured = Configured(str(networks.folder))
    assert [one.subnets for one in configured.read()] == [("10.7.0.0/24",), ("10.8.0.0/24",)]
    networks.write("green", "10.9.0.0/24")
    loaded.clear()
    assert [one.subnets for one in configured.read()] == [("10.7.0.0/24",), ("10.9.0.0/24",)]
    assert loaded == [str(networks.folder / "green.conflist")]
    (networks.folder / "blue.conflist").write_text("{")
    assert [one.name for one in configured.read()] == ["green"]


def test_metrics_of_what_is_attached_and_leased(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, host = FakeKernel(), Host(str(tmp_path / "run"), "boot", time.time() - 3600)
    for name, subnet, count in (("blue", "10.7.0.0/24", 3), ("green", "10.8.0.0/24", 1)):
        networks.write(name, subnet)
        given = conf("weft", name, {"driver": "bridge", "bridge": name, "ipam": pool(subnet)})
        for number in range(count):
            kernel.add(f"/run/netns/{name}{number}")
            Weft(kernel, host).add(given, f"/run/netns/{name}{number}", f"{name}{number}")
    metrics = HostMetrics(Metrics(), host.run, 0, str(networks.folder))
    attached, used, size = metrics._read()
    assert attached == {("blue", "bridge"): 3, ("green", "bridge"): 1}
    assert {name: number for (name, _), number in used.items()} == {"blue": 3, "green": 1}
    assert {name: number for (name, _), number in size.items()} == {"blue": 253, "green": 253}
    read: list[str] = []
    monkeypatch.setattr(Records, "read_digest", lambda self, digest: read.append(digest))
    assert metrics._read()[0] == attached and not read


def test_traffic_is_added_up_over_the_ends_of_links() -> None:
    traffic, networks = Traffic(), {"v1": "blue", "v2": "blue", "v3": "green"}
    traffic.add(networks, {"v1": (100, 1, 50, 1), "v2": (10, 1, 0, 0), "eth0": (9, 9, 9, 9)})
    traffic.add(networks, {"v1": (150, 2, 50, 1), "v3": (7, 1, 0, 0)})
    traffic.add(networks, {"v1": (20, 1, 5, 1), "v3": (7, 1, 0, 0)})  # another link of that name
    assert dict(traffic.bytes) == {
        ("blue", "sent"): 180,
        ("blue", "received"): 55,
        ("green", "sent"): 7,
        ("green", "received"): 0,
    }
    assert traffic.packets["blue", "sent"] == 4


def test_what_links_have_counted_before_is_no_traffic_of_this_agent() -> None:
    traffic = Traffic({"v1": (100, 1, 50, 1)})
    traffic.add({"v1": "blue"}, {"v1": (130, 2, 50, 1)})
    assert traffic.bytes == {("blue", "sent"): 30, ("blue", "received"): 0}
