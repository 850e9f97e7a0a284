"""VLANs of a bridge: access ports, trunk ports, and the gateway's VLAN link."""

from __future__ import annotations

from typing import Any

import pytest

from lab import frames, seen
from lab.abilities import lack, require
from lab.confs import SUBNET, bridge, pool
from lab.frames import UDP
from lab.host import Host
from lab.plugins import Cni


@pytest.fixture
def filtering(host: Host) -> Host:
    require("vlan_filtering")
    return host


def vlans(host: Host, link: str) -> dict[int, list[str]]:
    """The VLANs of a bridge port and their flags."""
    found: dict[int, list[str]] = {}
    for entry in host.run("bridge", "-j", "vlan", "show", "dev", link).json:
        for vlan in entry.get("vlans", []):
            for vid in range(vlan["vlan"], vlan.get("vlanEnd", vlan["vlan"]) + 1):
                found[vid] = sorted(vlan.get("flags", []))
    return found


def attach(host: Host, cni: Cni, name: str, **keys: Any) -> str:
    """Attach a container to VLANs of br0; returns the name of its port."""
    conf = bridge(pool(SUBNET), **keys)
    netns = host.container(name)
    result = cni.add(conf, netns, container=name)
    cni.check(conf, result, netns, container=name)
    return str(result["interfaces"][1]["name"])


@pytest.mark.parametrize("keys", [{"vlan": 7}, {"vlanTrunk": [{"id": 7}]}, {"vlanTrunk": []}, {"vlanTrunk": [{}]}])
def test_kernel_without_vlan_filtering_is_reported(host: Host, cni: Cni, keys: dict[str, Any]) -> None:
    if not lack("vlan_filtering"):
        pytest.skip("this kernel has VLAN filtering; the tests below cover it")
    before = host.snapshot()
    netns = host.container()
    problem = seen.problem(cni, "ADD", bridge(pool(SUBNET), **keys), netns)
    assert problem["code"] == 102 and "VLAN filtering" in problem["msg"] and "CONFIG_" in problem["details"]
    assert host.changes(before) == []
    assert seen.links(host, "c1") == ["lo"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"vlan": 4095}, "vlan 4095 must be between 0 and 4094"),
        ({"vlan": -1}, "vlan -1 must be between 0 and 4094"),
        ({"vlanTrunk": [{"id": 0}]}, "vlanTrunk[0].id 0 must be between 1 and 4094"),
        ({"vlanTrunk": [{"minID": 5}]}, "minID and maxID must be given together"),
        ({"vlanTrunk": [{"minID": 9, "maxID": 5}]}, "minID 9 is greater than maxID 5"),
        ({"bridge": "a-long-bridge-0", "vlan": 5, "isGateway": True}, "too long for the VLAN gateway"),
    ],
)
def test_invalid_vlans_are_refused(host: Host, cni: Cni, keys: dict[str, Any], words: str) -> None:
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", bridge(pool(SUBNET), **keys), host.container())
    assert problem["code"] == 7 and words in problem["msg"]
    assert host.changes(before) == []


def test_vlan_0_means_no_vlan(host: Host, cni: Cni) -> None:
    cni.add(bridge(pool(SUBNET), vlan=0, isGateway=True), host.container())
    assert host.ping("c1", "10.80.0.1")


def test_access_ports_of_one_vlan_reach_each_other_only(filtering: Host, cni: Cni) -> None:
    port = attach(filtering, cni, "c1", vlan=7)
    attach(filtering, cni, "c2", vlan=7)
    attach(filtering, cni, "c3", vlan=8)
    assert vlans(filtering, port) == {7: ["Egress Untagged", "PVID"]}
    assert filtering.ping("c1", "10.80.0.3")
    assert not filtering.ping("c1", "10.80.0.4", timeout=0.5)


def test_vlan_filtering_is_enabled_on_an_existing_bridge(filtering: Host, cni: Cni) -> None:
    """Without vlan_filtering a port's VLAN has no effect. Ports without a VLAN keep working."""
    attach(filtering, cni, "c1")
    attach(filtering, cni, "c2")
    attach(filtering, cni, "c3", vlan=7)
    assert filtering.ping("c1", "10.80.0.3")
    assert not filtering.ping("c1", "10.80.0.4", timeout=0.5)


def test_a_trunk_carries_tagged_vlans_and_vlan_1_bare(filtering: Host, cni: Cni) -> None:
    port = attach(filtering, cni, "c1", vlanTrunk=[{"id": 7}, {"minID": 10, "maxID": 12}])
    assert vlans(filtering, port) == {1: ["Egress Untagged", "PVID"], 7: [], 10: [], 11: [], 12: []}
    both = attach(filtering, cni, "c2", vlan=5, vlanTrunk=[{"id": 7}])
    assert vlans(filtering, both) == {5: ["Egress Untagged", "PVID"], 7: []}
    assert not filtering.ping("c1", "10.80.0.3", timeout=0.5)


def test_a_trunk_port_sends_one_tag_and_an_access_port_none(filtering: Host, cni: Cni) -> None:
    """A second tag would reach another VLAN once the bridge has removed the first (VLAN hopping)."""
    checked = {"type": "weft", "driver": "bridge"}
    attach(filtering, cni, "c1", vlan=5, vlanTrunk=[{"id": 7}], **checked)
    attach(filtering, cni, "c2", vlan=5, vlanTrunk=[{"id": 7}], **checked)
    attach(filtering, cni, "c3", vlan=7, **checked)
    listening = frames.Ear("/run/netns/c2")
    for name, address, expected in (("c1", "10.80.0.2", {b"<one tag>"}), ("c3", "10.80.0.4", set())):
        mac = seen.link(filtering, "eth0", name)["address"]

        def packet(token: bytes, mac: str = mac, address: str = address) -> bytes:
            return frames.frame(mac, *frames.ip(address, "255.255.255.255", UDP, frames.udp(4000, 4000, token)))

        kinds = {
            b"<one tag>": frames.tagged(packet(b"<one tag>"), 7),
            b"<two tags>": frames.tagged(frames.tagged(packet(b"<two tags>"), 7), 7),
            b"<priority>": frames.tagged(frames.tagged(packet(b"<priority>"), 7), 0),
            b"<hopping>": frames.tagged(frames.tagged(packet(b"<hopping>"), 7), 5),
            b"<provider>": frames.tagged(frames.tagged(packet(b"<provider>"), 7), 0, 0x88A8),
        }
        end = f"<end {name}>".encode()
        frames.send(f"/run/netns/{name}", [*kinds.values(), packet(end)])
        assert listening.heard(kinds, end) == expected
    listening.close()


def test_the_default_vlan_stays_if_it_is_to(filtering: Host, cni: Cni) -> None:
    port = attach(filtering, cni, "c1", vlan=5, preserveDefaultVlan=True)
    assert vlans(filtering, port) == {1: ["Egress Untagged"], 5: ["Egress Untagged", "PVID"]}


def test_check_notices_a_vlan_that_is_gone(filtering: Host, cni: Cni) -> None:
    conf = bridge(pool(SUBNET), vlan=7)
    netns = filtering.container()
    result = cni.add(conf, netns)
    filtering.run("bridge", "vlan", "delete", "dev", result["interfaces"][1]["name"], "vid", "7")
    problem = seen.problem(cni, "CHECK", {**conf, "prevResult": result}, netns)
    assert problem["code"] == 104 and "VLAN 7" in problem["msg"]
    filtering.run("ip", "link", "set", "br0", "type", "bridge", "vlan_filtering", "0")
    problem = seen.problem(cni, "CHECK", {**conf, "prevResult": result}, netns)
    assert problem["code"] == 104 and "br0 does not filter VLANs" in problem["msg"]


def test_each_vlan_has_a_gateway_of_its_own(filtering: Host, cni: Cni) -> None:
    seen.forward(filtering)
    before = filtering.snapshot()
    conf = bridge(pool(SUBNET), vlan=7, isGateway=True)
    other = bridge(pool("10.81.0.0/24"), vlan=8, isGateway=True, name="other")
    netns, second = filtering.container(), filtering.container("c2")
    result = cni.add(conf, netns)
    cni.add(other, second, container="c2")
    assert result["interfaces"][3]["name"] == "br0.7"
    seen.agrees(filtering, result, netns)
    assert seen.addresses(filtering, "br0.7") == ["10.80.0.1/24"]
    assert seen.addresses(filtering, "br0.8") == ["10.81.0.1/24"]
    assert seen.addresses(filtering, "br0") == []
    assert filtering.ping("c1", "10.80.0.1") and filtering.ping("c2", "10.81.0.1")
    cni.check(conf, result, netns)
    cni.delete(conf, netns)
    cni.delete(other, second, container="c2")
    seen.collect(cni, conf)
    assert seen.links(filtering)[-1] != "br0.7" and filtering.ping(None, "10.81.0.1")
    seen.collect(cni, other)
    assert filtering.changes(before) == []
