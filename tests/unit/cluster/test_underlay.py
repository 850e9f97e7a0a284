"""From which address and with which MTU this host sends VXLAN packets, and the files of its networks."""

from __future__ import annotations

import json
from contextlib import nullcontext
from ipaddress import ip_address, ip_interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.host_files import Host
from cni_plugin.agent import overlay_host
from cni_plugin.agent.overlay_host import OverlayHost
from cni_plugin.networks.clustered import Folders
from cni_plugin.service.verbs import Service
from weft.errors import KernelRefused
from weft.kernel.route_lookup import RouteType


class Machine:
    """A host with addresses on eth0 (MTU 9000) and lo; the source of its default route is "" without one."""

    def __init__(self, source: str, **addresses: str) -> None:
        self._source = source
        self._addresses = addresses

    def all_addresses(self) -> list[tuple[str, Any]]:
        return [(link, ip_interface(address)) for link, address in self._addresses.items()]

    def link(self, name: str) -> Any:
        return SimpleNamespace(mtu={"lo": 65536, "eth0": 9000}[name])

    def find_route(self, question: object) -> Any:
        if not self._source:
            raise KernelRefused("unreachable")
        return SimpleNamespace(type=RouteType.UNICAST, link="eth0", source=ip_address(self._source))


def underlay(folder: Path, machine: Machine, configured: str = "") -> Host | None:
    host = OverlayHost("h1", configured, str(folder))
    service = SimpleNamespace(kernel=SimpleNamespace(host=machine))
    return host._underlay(cast(Service, service), host.folders.joined())


@pytest.fixture
def blue(tmp_path: Path) -> Path:
    """The folder with a network that this host has taken part in from 192.0.2.1."""
    written = {"format": 1, "network": "blue", "vni": 7, "mac": "02:77:00:00:00:01", "underlay": "192.0.2.1"}
    more = {"mtu": 1450, "subnets": ["10.60.0.0/16"], "blocks": ["10.60.1.0/24"], "kept": True}
    (tmp_path / "blue.json").write_text(json.dumps({**written, **more}))
    return tmp_path


def test_a_host_without_a_default_route_stays_in_its_networks(blue: Path, tmp_path: Path) -> None:
    """As while its link's addresses are renewed: others reach it as before."""
    assert underlay(blue, Machine("", eth0="192.0.2.1/24")) == Host("h1", ip_address("192.0.2.1"), 9000)
    assert underlay(blue, Machine("", eth0="192.0.2.2/24")) is None, "that address is not the host's any more"
    assert underlay(blue, Machine("192.0.2.2", eth0="192.0.2.2/24")) == Host("h1", ip_address("192.0.2.2"), 9000)
    assert underlay(blue / "none", Machine("", eth0="192.0.2.1/24")) is None


def test_packets_from_an_address_of_lo_leave_by_the_uplink(blue: Path) -> None:
    """65,536 bytes, the MTU of lo, are no MTU of a network; routing daemons have the host's address there."""
    for source, mtu in (("192.0.2.9", 9000), ("", 1500)):
        machine = Machine(source, lo="192.0.2.9/32", eth0="192.0.2.1/24")
        assert underlay(blue, machine, "192.0.2.9") == Host("h1", ip_address("192.0.2.9"), mtu)


def test_a_network_that_is_removed_takes_no_other_ones_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks blue.1 and blue.x have files whose names begin as those of blue."""
    host = OverlayHost("h1", "", str(tmp_path))
    host.folders = Folders(str(tmp_path / "cni"), str(tmp_path / "podman"), str(tmp_path))
    service = SimpleNamespace(records=SimpleNamespace(all=list))
    monkeypatch.setattr(OverlayHost, "_service", lambda self: nullcontext(service))
    monkeypatch.setattr(overlay_host, "remove_network", lambda *arguments: None)
    for name in ("blue.1.key", "blue.12.key", "blue.1.2.key", "blue.x.1.key"):
        (tmp_path / name).write_text("")
    assert host.leave("blue") == ""
    assert sorted(one.name for one in tmp_path.glob("*.key")) == ["blue.1.2.key", "blue.x.1.key"]
