"""The ipvlan driver on a LAN: modes, chained plugins, and what DEL leaves.

Few tests, in this process: an emulated kernel runs them if the machine's has no ipvlan.
"""

from __future__ import annotations

from typing import Any

import pytest

from lab import seen
from lab.abilities import require
from lab.calls import Weft
from lab.confs import network
from lab.host import Host
from lab.snapshot import difference


def ipvlan(address: str = "192.0.2.9/24", **keys: Any) -> dict[str, Any]:
    return network("ipvlan", {"type": "static", "addresses": [{"address": address}]}, **keys)


def test_modes(host: Host) -> None:
    require("ipvlan")
    weft, lan, netns = Weft(), host.lan(), host.container()
    host.serve_tcp(lan.name, 80)
    before, inner = host.snapshot(), seen.inner(netns)
    for mode in ("", "l3", "l3s"):
        conf = ipvlan(mode=mode)
        result = weft.add(conf, netns)
        seen.agrees(host, result, netns)
        assert result["interfaces"][0]["mac"] == seen.link(host, lan.link)["address"]
        assert seen.link(host, "eth0", "c1")["linkinfo"]["info_data"]["mode"] == (mode or "l2")
        if not mode:
            assert host.fetch("c1", lan.outside, 80) == "192.0.2.9"
        assert weft.check(conf, result, netns) == ""
        host.inside("c1", "ip", "link", "set", "eth0", "type", "ipvlan", "mode", "l3" if not mode else "l2")
        assert "ipvlan_mode" in weft.check(conf, result, netns)
        host.inside("c1", "ip", "address", "flush", "dev", "eth0", "scope", "global")
        assert "lacks the address" in weft.check(conf, result, netns)
        weft.delete(conf, netns)
        weft.delete(conf, netns)
        assert host.changes(before) == [] and difference(inner, seen.inner(netns)) == []


def test_two_containers_share_the_masters_mac_address(host: Host) -> None:
    require("ipvlan")
    weft, lan = Weft(), host.lan()
    for name, address in (("c1", "192.0.2.9/24"), ("c2", "192.0.2.10/24")):
        weft.add(ipvlan(address, master=lan.link, mtu=1400), host.container(name), name)
    assert host.ping("c1", "192.0.2.10") and host.ping("c2", lan.outside)
    assert seen.link(host, "eth0", "c1")["address"] == seen.link(host, "eth0", "c2")["address"]
    # A restarted container gets its address, even while the kernel still deletes its old namespace.
    host.remove_container()
    weft.delete(ipvlan(), "/run/netns/c1")
    weft.add(ipvlan(), host.container())
    host.run("ip", "link", "delete", lan.link)
    weft.delete(ipvlan(), "/run/netns/c1")
    weft.delete(ipvlan(), "/run/netns/c2", "c2")
    assert seen.links(host, "c1") == ["lo"]


def test_in_a_chain_the_addresses_move_to_it(host: Host) -> None:
    """The plugin before created a link on the host; its addresses move to the container."""
    require("ipvlan")
    weft, lan, netns = Weft(), host.lan(), host.container()
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": lan.link}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
        "routes": [{"dst": "203.0.113.0/24", "gw": lan.outside}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    conf = network("ipvlan", mode="l2")
    result = weft.add({**conf, "prevResult": previous}, netns)
    assert result["ips"] == [{"address": "192.0.2.9/24", "interface": 0}]
    assert [one["name"] for one in result["interfaces"]] == ["eth0"]
    assert result["dns"] == {"nameservers": ["192.0.2.53"]}
    seen.agrees(host, result, netns)
    assert host.ping("c1", lan.outside)
    assert weft.check(conf, result, netns) == ""
    weft.delete(conf, netns)
    assert seen.links(host, "c1") == ["lo"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"mode": "bridge"}, "mode"),
        ({"mtu": 1501}, "mtu 1501"),
        ({"master": "nope"}, "nope"),
        ({"ipam": {}}, "ipam.type is missing"),
        ({"prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.9/24"}]}}, "exactly one named interface"),
    ],
)
def test_what_cannot_be_is_refused(host: Host, keys: dict[str, Any], words: str) -> None:
    host.lan()
    before = host.snapshot()
    answer = Weft()("ADD", {**ipvlan(), **keys}, host.container())
    assert answer.code == 7 and words in answer.text, answer
    assert host.changes(before) == []
