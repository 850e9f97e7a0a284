"""``vrf``: links of a container in VRFs, with their addresses and routes."""

from __future__ import annotations

from typing import Any

import pytest

from lab import seen
from lab.abilities import require
from lab.confs import bridge, network, pool
from lab.host import Host
from lab.plugins import Cni

ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
NETS = {
    ifname: bridge(
        pool("10.87.0.0/24", "fd87::/64", routes=ROUTES),
        bridge=f"br{number}",
        name=f"net{number}",
        isGateway=number == 0,
    )
    for ifname, number in (("eth0", 0), ("eth1", 1))
}


@pytest.fixture(autouse=True)
def vrfs(host: Host) -> None:
    require("vrf")


def vrf(ifname: str, name: str, **keys: Any) -> dict[str, Any]:
    return network("vrf", name=NETS[ifname]["name"], vrfname=name, **keys)


def attach(cni: Cni, netns: str, ifname: str, name: str, **keys: Any) -> Any:
    result = cni.add(NETS[ifname], netns, ifname=ifname)
    assert cni.add({**vrf(ifname, name, **keys), "prevResult": result}, netns, ifname=ifname) == result
    return result


def test_one_subnet_twice_in_two_domains(host: Host, cni: Cni) -> None:
    netns = host.container()
    results = {ifname: attach(cni, netns, ifname, name) for ifname, name in (("eth0", "red"), ("eth1", "blue"))}
    for table, (ifname, result) in zip((1, 2), results.items(), strict=True):
        name = ("red", "blue")[table - 1]
        assert seen.link(host, ifname, "c1")["master"] == name
        there = {one["dst"]: one for one in seen.routes(host, "c1", table=str(table))}
        assert {"0.0.0.0/0", "::/0", "10.87.0.0/24", "fd87::/64"} <= there.keys()
        assert all(one["dev"] == ifname for one in there.values())
        assert seen.addresses(host, ifname, "c1") == ["10.87.0.2/24", "fd87::2/64"]
        cni.check(vrf(ifname, name), result, netns, ifname=ifname)
        cni.check(NETS[ifname], result, netns, ifname=ifname)
    assert host.inside("c1", "ping", "-nqc1", "-w10", "-I", "red", "10.87.0.1").code == 0
    assert host.ping("c1", "10.87.0.1", expected=False) is False
    cni.delete(vrf("eth0", "red"), netns)
    cni.delete(vrf("eth0", "red"), netns)
    assert "red" not in seen.links(host, "c1") and "blue" in seen.links(host, "c1")
    assert host.ping("c1", "10.87.0.1")
    cni.check(NETS["eth0"], results["eth0"], netns)


def test_a_domain_that_is_shared_goes_with_its_last_link(host: Host, cni: Cni) -> None:
    netns = host.container()
    for ifname in NETS:
        attach(cni, netns, ifname, "red", table=77)
    assert seen.link(host, "red", "c1")["linkinfo"]["info_data"]["table"] == 77
    cni.delete(vrf("eth0", "red"), netns, ifname="eth0")
    assert seen.link(host, "eth1", "c1")["master"] == "red"
    cni.delete(vrf("eth1", "red"), netns, ifname="eth1")
    assert "red" not in seen.links(host, "c1")


def test_ipv6_addresses_and_next_hops_of_the_link_move_along(host: Host, cni: Cni) -> None:
    """The default routes of both links are one IPv6 route with two next hops, which stays as the link is set down."""
    netns = host.container()
    results = {ifname: cni.add(NETS[ifname], netns, ifname=ifname) for ifname in NETS}
    host.inside("c1", "ip", "address", "add", "fd99::7/64", "dev", "eth0", "nodad")
    cni.add({**vrf("eth0", "red"), "prevResult": results["eth0"]}, netns)
    assert seen.addresses(host, "eth0", "c1") == ["10.87.0.2/24", "fd87::2/64", "fd99::7/64"]
    assert {one["dev"] for one in seen.routes(host, "c1")} == {"eth1"}
    assert {"0.0.0.0/0", "::/0", "fd87::/64", "fd99::/64"} <= {one["dst"] for one in seen.routes(host, "c1", table="1")}
    cni.check(vrf("eth0", "red"), results["eth0"], netns)
    cni.check(NETS["eth0"], results["eth0"], netns)
    problem = seen.problem(cni, "ADD", {**vrf("eth0", "blue"), "name": "other", "prevResult": results["eth0"]}, netns)
    assert problem["code"] == 101 and "port of red" in problem["msg"]
    cni.delete(vrf("eth0", "red"), netns)
    assert seen.addresses(host, "eth0", "c1") == ["10.87.0.2/24", "fd87::2/64", "fd99::7/64"]
    for family in ("-4", "-6"):
        default = host.inside("c1", "ip", family, "route", "show", "default").stdout
        assert "dev eth0" in default and "dev eth1" in default, default
    cni.check(NETS["eth0"], results["eth0"], netns)


@pytest.mark.parametrize(("name", "said"), [("", "vrfname"), ("lo", "lo"), ("eth0", "eth0")])
def test_what_cannot_be_is_refused(host: Host, cni: Cni, name: str, said: str) -> None:
    netns = host.container()
    result = cni.add(NETS["eth0"], netns)
    problem = seen.problem(cni, "ADD", {**vrf("eth0", name), "prevResult": result}, netns)
    assert problem["code"] in (7, 101) and said in problem["msg"]
    assert seen.link(host, "eth0", "c1").get("master") is None
