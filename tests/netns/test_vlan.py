"""The vlan driver on a LAN: tagged frames, and one container for each VLAN.

Few tests, in this process: an emulated kernel runs them if the machine's has no VLAN links.
"""

from __future__ import annotations

from typing import Any

import pytest

from lab import seen
from lab.abilities import require
from lab.calls import Weft
from lab.confs import network
from lab.host import Host, Lan
from lab.snapshot import difference

BREAKS = {
    ("set", "eth0", "mtu", "1300"): "MTU",
    ("set", "eth0", "mtu", "1500", "address", "02:00:00:00:00:99"): "MAC",
    ("set", "eth0", "down"): "is down",
    ("delete", "eth0"): "missing",
}


def vlan(vid: int | None = 42, **keys: Any) -> dict[str, Any]:
    ipam = {"type": "static", "addresses": [{"address": "198.51.100.5/24"}]}
    given = {} if vid is None else {"vlanId": vid}
    return network("vlan", ipam, **{"master": "lan0", **given, **keys})


def tagged(host: Host, vid: int = 42) -> Lan:
    """A neighbour with a link in the VLAN."""
    lan = host.lan()
    host.inside(lan.name, "ip", "link", "add", "link", "eth0", "name", "tagged", "type", "vlan", "id", str(vid))
    host.inside(lan.name, "ip", "address", "add", "198.51.100.1/24", "dev", "tagged")
    host.inside(lan.name, "ip", "link", "set", "tagged", "up")
    return lan


def test_frames_bear_the_tag(host: Host) -> None:
    """Traffic, CHECK before and after a manual change, and nothing left after two DELs."""
    require("vlan")
    weft, lan, netns = Weft(), tagged(host), host.container()
    before, inner = host.snapshot(), seen.inner(netns)
    result = weft.add(vlan(), netns)
    seen.agrees(host, result, netns)
    assert result["interfaces"][0]["mac"] == seen.link(host, lan.link)["address"]
    assert seen.link(host, "eth0", "c1")["linkinfo"]["info_data"]["id"] == 42
    host.serve_tcp(lan.name, 80)
    assert host.fetch("c1", "198.51.100.1", 80) == "198.51.100.5"
    assert weft.check(vlan(), result, netns) == ""
    for words, sentence in BREAKS.items():
        host.inside("c1", "ip", "link", *words)
        assert sentence in weft.check(vlan(), result, netns), words
    weft.delete(vlan(), netns)
    weft.delete(vlan(), netns)
    assert host.changes(before) == [] and difference(inner, seen.inner(netns)) == []


def test_a_vlan_is_for_one_container(host: Host) -> None:
    require("vlan")
    weft, netns, other = Weft(), host.container(), host.container("c2")
    host.lan()
    result = weft.add(vlan(mtu=1400), netns)
    assert result["interfaces"][0]["mtu"] == 1400
    answer = weft("ADD", vlan(), other, "c2")
    assert answer.code == 101 and "lan0" in answer.text and "VLAN" in answer.text
    assert weft.check(vlan(mtu=1400), result, netns) == ""
    assert seen.links(host, "c2") == ["lo"]
    for vid in (None, 4094):
        weft.add(vlan(vid), other, "c2")
        assert seen.link(host, "eth0", "c2")["linkinfo"]["info_data"]["id"] == (vid or 0)
        weft.delete(vlan(vid), other, "c2")
    # A restarted container gets its VLAN, even while the kernel still deletes its old namespace.
    host.remove_container()
    weft.delete(vlan(), netns)
    weft.add(vlan(), host.container())


def test_its_master_gone_or_in_the_container(host: Host) -> None:
    require("vlan")
    weft, lan, netns = Weft(), host.lan(), host.container()
    weft.add(vlan(), netns)
    host.run("ip", "link", "delete", lan.link)
    assert "lan0 is missing" in weft.check(vlan(), {}, netns)
    weft.delete({key: value for key, value in vlan().items() if key != "ipam"}, netns)
    host.inside("c1", "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    host.inside("c1", "ip", "link", "set", "up0", "up")
    conf = vlan(master="up0", linkInContainer=True)
    result = weft.add(conf, netns)
    seen.agrees(host, result, netns)
    assert weft.check(conf, result, netns) == ""
    weft.delete(conf, netns)
    assert seen.links(host, "c1") == ["lo", "up1", "up0"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"vlanId": 4095}, "vlanId 4095"),
        ({"vlanId": -1}, "vlanId -1"),
        ({"mtu": 1501}, "mtu 1501"),
        ({"master": "nope"}, "nope"),
        ({"ipam": {}}, "ipam.type is missing"),
    ],
)
def test_what_cannot_be_is_refused(host: Host, keys: dict[str, Any], words: str) -> None:
    host.lan()
    before = host.snapshot()
    answer = Weft()("ADD", {**vlan(), **keys}, host.container())
    assert answer.code == 7 and words in answer.text, answer
    assert host.changes(before) == []
