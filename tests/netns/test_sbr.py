"""``sbr`` with real traffic: packets from an address leave by the link that has it."""

from __future__ import annotations

from typing import Any

from lab import seen
from lab.confs import bridge, network, pool
from lab.host import Host
from lab.plugins import Cni
from lab.snapshot import difference

ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
NETS = {
    ifname: bridge(
        pool(f"10.{number}.0.0/24", f"fd{number}::/64", routes=ROUTES),
        bridge=f"br{number}",
        name=f"net{number}",
        isGateway=True,
        ipMasq=True,
    )
    for ifname, number in (("eth0", 85), ("eth1", 86))
}


def sbr(ifname: str, **keys: Any) -> dict[str, Any]:
    return network("sbr", name=NETS[ifname]["name"], **keys)


def attach(cni: Cni, netns: str, ifname: str, **keys: Any) -> Any:
    result = cni.add(NETS[ifname], netns, ifname=ifname)
    assert cni.add({**sbr(ifname, **keys), "prevResult": result}, netns, ifname=ifname) == result
    return result


def test_two_links_each_with_a_way_of_its_own(host: Host, cni: Cni) -> None:
    lan = host.lan()
    netns = host.container()
    host.serve_tcp(lan.name, 80)
    results = {ifname: attach(cni, netns, ifname) for ifname in NETS}
    for number in (85, 86):
        assert host.fetch("c1", lan.outside, 80, source=f"10.{number}.0.2") == lan.host
        assert host.fetch("c1", lan.outside6, 80, source=f"fd{number}::2") == lan.host6
        way = host.inside("c1", "ip", "-j", "route", "get", lan.outside, "from", f"10.{number}.0.2").json[0]
        assert (way["dev"], way["gateway"]) == (f"eth{number - 85}", f"10.{number}.0.1")
    assert seen.routes(host, "c1") == []
    for ifname, result in results.items():
        cni.check(sbr(ifname), result, netns, ifname=ifname)
        cni.check(NETS[ifname], result, netns, ifname=ifname)
    cni.delete(sbr("eth0"), netns, ifname="eth0")
    assert {one["dst"] for one in seen.routes(host, "c1")} == {"0.0.0.0/0", "::/0", "10.85.0.0/24", "fd85::/64"}
    cni.check(NETS["eth0"], results["eth0"], netns, ifname="eth0")
    cni.check(sbr("eth1"), results["eth1"], netns, ifname="eth1")
    assert host.fetch("c1", lan.outside, 80, source="10.86.0.2") == lan.host


def test_del_leaves_the_container_as_it_was(host: Host, cni: Cni) -> None:
    netns = host.container()
    result = cni.add(NETS["eth0"], netns)
    before = seen.inner(netns)
    cni.add({**sbr("eth0"), "prevResult": result}, netns)
    assert difference(before, seen.inner(netns)) != []
    cni.delete(sbr("eth0"), netns)
    cni.delete(sbr("eth0"), netns)
    cni.delete(sbr("eth0"), "")
    assert difference(before, seen.inner(netns)) == []


def test_a_table_of_one_s_own_gets_rules_alone(host: Host, cni: Cni) -> None:
    netns = host.container()
    result = cni.add(NETS["eth0"], netns)
    routes = seen.routes(host, "c1")
    cni.add({**sbr("eth0", table=4000), "prevResult": result}, netns)
    assert seen.routes(host, "c1") == routes and seen.routes(host, "c1", table="4000") == []
    for family, source in (("-4", "10.85.0.2"), ("-6", "fd85::2")):
        rules = host.inside("c1", "ip", family, "-j", "rule").json
        assert [one["table"] for one in rules if one["src"] == source] == ["4000"]
    host.inside("c1", "ip", "rule", "delete", "from", "10.85.0.2")
    problem = seen.problem(cni, "CHECK", {**sbr("eth0", table=4000), "prevResult": result}, netns)
    assert problem["code"] == 104 and "10.85.0.2" in problem["msg"]


def test_other_gateways_and_source_hints(host: Host, cni: Cni) -> None:
    netns = host.container()
    keys = {"gateways": ["10.85.0.77", "fd85::77"], "addSourceHints": True}
    result = attach(cni, netns, "eth0", **keys)
    default = seen.route(host, "0.0.0.0/0", "c1", table="100")
    assert (default["gateway"], default["prefsrc"]) == ("10.85.0.77", "10.85.0.2")
    assert seen.route(host, "::/0", "c1", table="101")["gateway"] == "fd85::77"
    for subnet, source in (("10.85.0.0/24", "10.85.0.2"), ("fd85::/64", "fd85::2")):
        assert seen.route(host, subnet, "c1")["prefsrc"] == source
    assert seen.route(host, "10.85.0.0/24", "c1")["scope"] == "link"
    assert {one["dst"] for one in seen.routes(host, "c1")} == {"10.85.0.0/24", "fd85::/64"}
    cni.check(sbr("eth0", **keys), result, netns)
    cni.check(NETS["eth0"], result, netns)
    problem = seen.problem(cni, "ADD", {**sbr("eth1", gateways=["10.0.0.1", "10.0.0.2"]), "prevResult": result}, netns)
    assert problem["code"] == 7 and "gateways" in problem["msg"]
