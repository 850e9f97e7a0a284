"""What weft doctor says of the host around the networks, and of keys that nothing reads."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cni_plugin.networks import conditions, conflists
from cni_plugin.networks.chain import Chain, Target
from cni_plugin.service.verbs import Service
from lab.cases import CASES
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.remedies import Command

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(FakeKernel(), Host(str(tmp_path / "run"), "boot", 0.0))


def unread(service: Service, *plugins: dict[str, object]) -> list[str]:
    network = conflists.parse("x", {"cniVersion": "1.0.0", "name": "net", "plugins": list(plugins)})
    target = Target("c", "/run/netns/none", "eth0")
    return [f"{plugin} {said}" for plugin, said in Chain(service, network, target, ()).unread_keys()]


POOL = {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24", "rangStart": "10.0.0.5"}]], "rotes": []}


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ({"type": "weft", "driver": "bridge", "isGatway": True}, ["weft has no key isGatway; did you mean isGateway?"]),
        ({"type": "weft", "driver": "bridge", "bandwith": {}}, ["weft has no key bandwith; did you mean bandwidth?"]),
        (
            {"type": "weft", "driver": "bridge", "ipam": POOL},
            [
                "weft has no key ipam.ranges[0][0].rangStart; did you mean rangeStart?",
                "weft has no key ipam.rotes; did you mean routes?",
            ],
        ),
        ({"type": "bridge", "nerdctlID": 3, "ipam": {"type": "calico", "x": 1}}, ["bridge has no key nerdctlID"]),
        ({"type": "weft", "driver": "ptp", "ipam": {}, "capabilities": {"mac": True}, "args": {"x": {}}}, []),
        ({"type": "tuning", "sysctl": {"net.core.somaxconn": "5"}}, []),
    ],
)
def test_keys_that_nothing_reads(service: Service, plugin: dict[str, object], said: list[str]) -> None:
    assert unread(service, plugin) == said


def test_no_shipped_configuration_has_such_a_key(service: Service) -> None:
    shipped = [json.loads(path.read_text()) for path in (ROOT / "conf").rglob("*.conflist")]
    assert len(shipped) > 10
    for one in shipped:
        assert unread(service, *one["plugins"]) == []
    for case in CASES:
        plugins = [{key: value for key, value in one.items() if key != "cniVersion"} for one in (case.first, case.conf)]
        assert unread(service, *filter(None, plugins)) == [], case.name


def test_a_file_of_the_future_tells_that_the_clock_was_set_back(tmp_path: Path) -> None:
    lease = tmp_path / "blue" / "10.0.0.2"
    lease.parent.mkdir()
    lease.touch()
    assert list(conditions.of_clock([str(tmp_path), "/nowhere"])) == []
    os.utime(lease, (time.time() + 7200,) * 2)
    [found] = conditions.of_clock([str(tmp_path)])
    assert "set back by 7" in found.what and str(lease) in found.what


@pytest.mark.parametrize(
    ("size", "free", "inodes", "said"),
    [
        (250_000, 125_000, 90, ""),
        (250_000, 1_000, 90, ""),  # little for its size, but enough
        (250_000, 300, 90, "about to be full: 300 of 250000 MiB"),
        (64, 20, 90, ""),  # a small tmpfs
        (64, 10, 90, "about to be full: 10 of 64 MiB"),
        (250_000, 125_000, 1, "only 1 of 100 inodes"),
    ],
)
def test_full_file_systems(monkeypatch: pytest.MonkeyPatch, size: int, free: int, inodes: int, said: str) -> None:
    sizes = SimpleNamespace(
        f_flag=0, f_bavail=free << 8, f_frsize=4096, f_blocks=size << 8, f_files=100, f_favail=inodes
    )
    monkeypatch.setattr(os, "statvfs", lambda _: sizes)
    found = list(conditions.of_disks(["/", "/"]))
    assert [said in one.what for one in found] == ([True] if said else [])


def test_read_only_file_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(f_flag=os.ST_RDONLY, f_bavail=0, f_frsize=4096, f_blocks=64 << 8, f_files=9, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert ["is read-only" in one.what for one in conditions.of_disks(["/"])] == [True]


def test_certificates(tmp_path: Path) -> None:
    path = tmp_path / "agent.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 40 -subj /CN=agent"
    subprocess.run(
        [*command.split(), "-keyout", str(tmp_path / "k"), "-out", str(path)], check=True, capture_output=True
    )
    ends = conditions.not_after(path.read_text())
    assert abs(ends - time.time() - 40 * 86400) < 3600
    assert list(conditions.of_certificates([str(path)])) == []
    [soon] = conditions.of_certificates([str(path)], now=ends - 5 * 86400)
    assert "expires in 5 days" in soon.what
    # weft up --restart does not restart an agent of the same release.
    assert "weft down && weft up" in str(soon.remedy) and "--restart" not in str(soon.remedy)
    [over] = conditions.of_certificates([str(path)], now=ends + 1)
    assert "has expired" in over.what
    path.write_text(path.read_text()[:200] + "\n-----END CERTIFICATE-----\n")
    [broken] = conditions.of_certificates([str(path)])
    assert "cannot be read" in broken.what


def test_bridge_netfilter_where_nothing_needs_it(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "net/bridge/bridge-nf-call-iptables"
    monkeypatch.setattr(conditions, "USERS_OF_BRIDGE_NETFILTER", ())
    monkeypatch.setattr(type(service.records), "networks", lambda _: iter((1,)))
    assert list(conditions.of_bridge_netfilter(service)) == []
    service.kernel.host.set_sysctl(key, "1")
    [found] = conditions.of_bridge_netfilter(service)
    assert found.advice and found.remedy == Command("sysctl -w net.bridge.bridge-nf-call-iptables=0")
    service.kernel.host.set_sysctl("net/bridge/bridge-nf-call-ip6tables", "1")
    [both] = conditions.of_bridge_netfilter(service)
    assert "bridge-nf-call-iptables and net/bridge/bridge-nf-call-ip6tables are 1: every packet" in both.what
    monkeypatch.setattr(conditions, "USERS_OF_BRIDGE_NETFILTER", ("/",))
    assert list(conditions.of_bridge_netfilter(service)) == []


def test_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "SYSTEMD", str(tmp_path))
    monkeypatch.setattr(conditions, "UNIT_FOLDERS", (str(tmp_path),))
    assert list(conditions.of_units(False)) == []
    [found] = conditions.of_units(True)
    assert found.advice
    (tmp_path / "weft-agent.service").touch()
    assert list(conditions.of_units(True)) == []
