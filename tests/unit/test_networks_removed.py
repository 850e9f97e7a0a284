"""Networks that a runtime removes, or creates again, without calling a plugin."""

from __future__ import annotations

import json
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.networks import podman
from cni_plugin.networks.findings import of_leftovers, of_subnets
from cni_plugin.service.orphans import orphans
from lab.calls import Weft
from lab.confs import bridge
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host


@pytest.fixture
def kernel() -> FakeKernel:
    made = FakeKernel()
    for name in ("/c1", "/c2"):
        made.add(name)
    return made


@pytest.fixture
def weft(kernel: FakeKernel, tmp_path: Path) -> Weft:
    return Weft(kernel, Host(str(tmp_path / "run"), "boot", 0.0))


@pytest.fixture
def network(tmp_path: Path) -> Any:
    def made(name: str, link: str, subnet: str = "10.91.0.0/24", **keys: Any) -> dict[str, Any]:
        ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "dataDir": str(tmp_path / "disk")}
        return {**bridge(ipam, isGateway=True, ipMasq=True, **keys), "name": name, "bridge": link}

    return made


def addresses(kernel: FakeKernel) -> dict[str, list[str]]:
    """The bridges of the host, with their IPv4 addresses."""
    names = [link.name for link in kernel.host.links() if link.kind == "bridge"]
    return {name: [str(one) for one in kernel.host.addresses(name, 4)] for name in names}


@pytest.mark.parametrize(
    ("name", "link", "subnet", "expected"),
    [
        ("green", "wbr-2", "10.91.0.0/24", {"wbr-2": ["10.91.0.1/24"]}),  # network rm green; network create green
        ("blue", "wbr-2", "10.91.0.0/24", {"wbr-2": ["10.91.0.1/24"]}),  # another network has the subnet now
        ("blue", "wbr-2", "10.91.0.0/16", {"wbr-2": ["10.91.0.1/16"]}),
        ("green", "wbr-1", "10.92.0.0/24", {"wbr-1": ["10.92.0.1/24"]}),  # another subnet on the same bridge
        ("blue", "wbr-2", "10.92.0.0/24", {"wbr-1": ["10.91.0.1/24"], "wbr-2": ["10.92.0.1/24"]}),
    ],
)
def test_unused_bridge_goes_when_another_gets_its_subnet(
    weft: Weft, kernel: FakeKernel, network: Any, name: str, link: str, subnet: str, expected: dict[str, list[str]]
) -> None:
    """Of two bridges with one subnet, the host would use the one without containers."""
    old = network("green", "wbr-1")
    weft.add(old, "/c1")
    weft.delete(old, "/c1")
    new = network(name, link, subnet)
    result = weft.add(new, "/c1")
    assert addresses(kernel) == expected
    assert weft.check(new, result, "/c1") == ""
    weft.delete(new, "/c1")
    weft.collect(new)
    weft.collect(old)
    assert addresses(kernel) == {}


def test_bridge_in_use_stays_and_doctor_reports_it(weft: Weft, kernel: FakeKernel, network: Any) -> None:
    weft.add(network("green", "wbr-1"), "/c1", "a")
    weft.add(network("green", "wbr-2"), "/c2", "b")
    both = {"wbr-1": ["10.91.0.1/24"], "wbr-2": ["10.91.0.1/24"]}
    assert addresses(kernel) == both
    service = weft.service(kernel)
    found = {one.what for one in of_subnets(service)}
    assert found == {
        "wbr-2 has 10.91.0.1/24, an address of the subnet of network green on wbr-1",
        "wbr-1 has 10.91.0.1/24, an address of the subnet of network green on wbr-2",
    }


def test_doctor_reports_an_address_of_the_host_in_the_subnet(weft: Weft, kernel: FakeKernel, network: Any) -> None:
    weft.add(network("green", "wbr-1"), "/c1")
    kernel.host.add_link("lan0", "dummy")
    for address, reported in (("10.91.0.9/25", True), ("10.91.0.9/24", True), ("10.91.0.9/8", False)):
        kernel.host.add_address("lan0", ip_interface(address))
        found = [one.what for one in of_subnets(weft.service(kernel))]
        expected = f"lan0 has {address}, an address of the subnet of network green on wbr-1"
        assert found == ([expected] if reported else [])
        kernel.host.delete_address("lan0", ip_interface(address))


def test_failed_add_takes_back_its_bridge_and_not_that_of_before(weft: Weft, kernel: FakeKernel, network: Any) -> None:
    old = network("green", "wbr-1")
    weft.add(old, "/c1")
    weft.delete(old, "/c1")
    kernel.open("/c1").add_link("eth0", "dummy")
    answer = weft("ADD", network("green", "wbr-2"), "/c1")
    assert answer.code
    assert "wbr-2" not in addresses(kernel)


def test_networks_that_podman_has_removed(weft: Weft, kernel: FakeKernel, network: Any, tmp_path: Path) -> None:
    """Their bridges are those that create has named; idle networks of others stay."""
    for name, link in (("green", "wbr-1"), ("red", "wbr-2"), ("cni", "cni0"), ("used", "wbr-3")):
        one = network(name, link, f"10.9{len(name)}.0.0/24")
        weft.add(one, "/c1")
        if name != "used":
            weft.delete(one, "/c1")
    folder = tmp_path / "networks"
    folder.mkdir()
    (folder / "bad.json").write_text("{")
    for name, link in (("green", "wbr-9"), ("red", "wbr-2")):
        value = {"name": name, "network_interface": link, "subnets": [{"subnet": "10.91.0.0/24"}]}
        (folder / f"{name}.json").write_text(json.dumps(value))
    networks = podman.listed(str(folder))
    assert [(one.name, one.link, str(*one.subnets)) for one in networks] == [
        ("green", "wbr-9", "10.91.0.0/24"),
        ("red", "wbr-2", "10.91.0.0/24"),
    ]
    assert podman.forgotten(weft.service(kernel), networks) == ["green"]
    assert podman.listed(str(tmp_path / "none")) == []
    service = weft.service(kernel)
    names = {one.what.split()[1] for one in of_leftovers(service, orphans(service), [])}
    assert names >= {"green", "cni"}
