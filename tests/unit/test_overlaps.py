"""A network's subnet must be free on this host: what ADD refuses, and what it must not refuse."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.networks.conflists import NetworkList
from cni_plugin.networks.findings import of_pools
from lab.calls import Answer
from tests.unit.test_service import Fake
from weft.kernel.values import KernelRoute
from weft.types import Route

OVERLAPS = 101


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A host with an uplink 10.1.2.3/16 and a default route, and two containers."""
    monkeypatch.setattr("weft.configuration.PATH", str(tmp_path / "weft.toml"))
    monkeypatch.delenv("WEFT_CONFIG", raising=False)
    made = Fake(tmp_path)
    for path in ("/c1", "/c2", "/c3"):
        made.kernel.add(path)
    link(made, "eth0", "10.1.2.3/16")
    route(made, "0.0.0.0/0", "10.1.0.1")
    return made


def link(fake: Fake, name: str, *addresses: str, master: str = "") -> None:
    fake.kernel.host.add_link(name, "dummy", up=True, master=master)
    for address in addresses:
        fake.kernel.host.add_address(name, ip_interface(address))


def route(fake: Fake, destination: str, gateway: str = "", *, over: str = "eth0", table: int | None = None) -> None:
    via = ip_address(gateway) if gateway else None
    fake.kernel.host.add_route(KernelRoute(Route(ip_network(destination), via, table=table), over))


def own(fake: Fake, name: str, subnet: str, driver: str = "bridge", **keys: Any) -> dict[str, Any]:
    """The network under weft's own name."""
    return {**fake.network(name, subnet, **keys), "type": "weft", "driver": driver}


def refused(answer: Answer, *words: str) -> None:
    assert not answer.ok
    assert answer.document["code"] == OVERLAPS, answer
    assert all(word in answer.text for word in words), answer.text


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
@pytest.mark.parametrize(
    ("subnet", "other"),
    [
        ("10.1.64.0/24", "the address 10.1.2.3/16 of this host's eth0"),
        ("10.0.0.0/14", "eth0"),
        ("127.9.0.0/24", "loopback"),
        ("0.0.0.0/0", "this host itself"),
        ("169.254.0.0/16", "cloud metadata"),
        ("224.1.0.0/24", "multicast"),
        ("10.79.3.0/24", "10.79.0.0/16 of virtual addresses"),
        ("10.8.7.0/24", "this host's route to 10.8.0.0/16 over eth0"),
        ("10.9.0.0/24", "this host's route to 10.9.0.7/32"),
    ],
)
def test_a_subnet_in_use_is_refused_before_any_change(fake: Fake, driver: str, subnet: str, other: str) -> None:
    route(fake, "10.8.0.0/16", "10.1.0.9")
    route(fake, "10.9.0.7/32", "10.1.0.9")
    before = fake.state()
    answer = fake("ADD", own(fake, "blue", subnet, driver), "/c1")
    refused(answer, f"subnet {subnet} of network blue", other, "allowOverlap")
    assert fake.state() == before
    assert fake.leases("blue") == {}
    assert fake("ADD", own(fake, "blue", subnet, driver, allowOverlap=True), "/c1").ok or subnet == "0.0.0.0/0"


def test_what_says_nothing_of_a_subnet_is_no_overlap(fake: Fake) -> None:
    """Default routes, those of VPNs for everything, aggregates, other tables, other routing domains."""
    for destination in ("0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8", "::/0", "2000::/3"):
        route(fake, destination)
    route(fake, "10.60.0.0/24", table=100)
    fake.kernel.host.add_link("red", "vrf", up=True, options={"vrf_table": 10})
    link(fake, "eth1", "10.60.0.9/24", master="red")
    assert fake("ADD", own(fake, "blue", "10.60.0.0/28"), "/c1").ok
    assert fake("ADD", own(fake, "point", "10.61.0.0/28", "ptp"), "/c2").ok


def test_a_reference_name_and_links_of_the_lan_are_not_refused(fake: Fake) -> None:
    assert fake("ADD", fake.network("blue", "10.1.64.0/24"), "/c1").ok
    lan = own(fake, "lan", "10.1.0.0/16", "macvlan", master="eth0")
    assert fake("ADD", lan, "/c2").ok


def test_networks_do_not_take_each_others_addresses(fake: Fake) -> None:
    fake.add(own(fake, "blue", "10.60.0.0/28"), "/c1")
    one = "network blue on bblue, with 1 container"
    refused(fake("ADD", own(fake, "other", "10.60.0.0/24"), "/c2"), one, "subnet 10.60.0.0/24 of network other")
    refused(fake("ADD", own(fake, "same", "10.60.0.0/28", bridge="bblue"), "/c2"), one)
    # The same network: another container, and after its configuration file was renamed.
    fake.add(own(fake, "blue", "10.60.0.0/28"), "/c2", "c2")
    fake.delete(own(fake, "blue", "10.60.0.0/28"), "/c1")
    fake.delete(own(fake, "blue", "10.60.0.0/28"), "/c2", "c2")
    # Without containers it is in nobody's way.
    assert fake("ADD", own(fake, "other", "10.60.0.0/24"), "/c2").ok


def test_networks_may_share_a_bridge_and_its_subnet_on_purpose(fake: Fake) -> None:
    def part(name: str, first: str, last: str) -> dict[str, Any]:
        whole = own(fake, name, "10.60.0.0/28", bridge="shared")
        (ranges,) = whole["ipam"]["ranges"][0]
        return {**whole, "ipam": {**whole["ipam"], "ranges": [[{**ranges, "rangeStart": first, "rangeEnd": last}]]}}

    fake.add(part("blue", "10.60.0.2", "10.60.0.7"), "/c1")
    assert fake("ADD", part("red", "10.60.0.8", "10.60.0.14"), "/c2").ok
    refused(fake("ADD", part("green", "10.60.0.7", "10.60.0.9"), "/c3"), "network ")


def test_what_is_set_up_keeps_working_when_a_route_comes(fake: Fake) -> None:
    blue = own(fake, "blue", "10.60.0.0/28")
    fake.add(blue, "/c1")
    route(fake, "10.60.0.0/16", "10.1.0.9")
    fake.add(blue, "/c2", "c2")
    # Also where the bridge is there and the records are lost.
    for path in (Path(fake.folder) / "run").rglob("*.json"):
        path.unlink()
    fake.add(blue, "/c3", "c3")


def test_later_adds_look_at_nothing(fake: Fake) -> None:
    blue = own(fake, "blue", "10.60.0.0/28")
    fake.add(blue, "/c1")
    assert fake.kernel.calls.count("all_addresses") == 1
    fake.add(blue, "/c2", "c2")
    assert fake.kernel.calls.count("all_addresses") == 1


def test_doctor_tells_of_addresses_of_the_lan_that_are_leased(fake: Fake) -> None:
    """A network on the LAN has the uplink's subnet on purpose; its pool must leave out who is there."""

    def told(**ipam: Any) -> list[str]:
        plugin = {
            "type": "weft",
            "driver": "macvlan",
            "master": "eth0",
            "ipam": {"type": "host-local", "subnet": "10.1.0.0/16", **ipam},
        }
        context = fake.service(fake.kernel)
        return [one.what for one in of_pools(context, [NetworkList("/lan", "lan", "1.0.0", (plugin,), {})])]

    assert told() == ["network lan leases 10.1.2.3, an address of this host's eth0"]
    assert len(told(gateway="10.1.9.9")) == 2
    assert told(rangeStart="10.1.128.0") == told(exclude=["10.1.2.0/24"]) == []
