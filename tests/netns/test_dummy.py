"""The dummy driver: a link without a peer, which holds addresses."""

from __future__ import annotations

from lab import seen
from lab.abilities import require
from lab.calls import Weft
from lab.confs import dual, network
from lab.host import Host
from lab.snapshot import difference


def test_it_holds_its_addresses(host: Host) -> None:
    require("dummy")
    weft, netns = Weft(), host.container()
    before, inner = host.snapshot(), seen.inner(netns)
    conf = network("dummy", dual(), mtu=1400)
    conf["ipam"]["routes"] = []
    result = weft.add(conf, netns)
    seen.agrees(host, result, netns)
    assert (result["interfaces"][0]["name"], result["interfaces"][0]["mtu"]) == ("eth0", 1400)
    assert [ip["interface"] for ip in result["ips"]] == [0, 0]
    assert weft.check(conf, result, netns) == ""
    host.inside("c1", "ip", "link", "set", "eth0", "down")
    assert "is down" in weft.check(conf, result, netns)
    weft.delete(network("dummy"), netns)
    weft.delete(network("dummy"), netns)
    assert host.changes(before) == [] and difference(inner, seen.inner(netns)) == []


def test_it_needs_addresses(host: Host) -> None:
    weft, netns = Weft(), host.container()
    answer = weft("ADD", network("dummy"), netns)
    assert answer.code == 7 and "ipam.type is missing" in answer.text
    weft.delete(network("dummy"), netns)
