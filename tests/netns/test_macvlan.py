"""The macvlan driver with real containers on a LAN: its keys, its result, and what DEL leaves."""

from __future__ import annotations

from typing import Any

import pytest

from lab import seen
from lab.abilities import require
from lab.calls import Weft
from lab.confs import DEFAULT4, network, pool
from lab.host import Host
from lab.plugins import REFERENCE_FOLDER, Cni
from lab.snapshot import difference

LAN, LAN6 = "192.0.2.0/25", "2001:db8:99::/112"
MAC = "02:00:00:00:00:77"


@pytest.fixture(autouse=True)
def able() -> None:
    require("macvlan")


def macvlan(*subnets: str, **keys: Any) -> dict[str, Any]:
    """Addresses of the LAN's own subnets that neither the host nor the neighbour has."""
    ipam = pool(*(subnets or (LAN, LAN6)))
    for [subnet], first in zip(ipam["ranges"], ("192.0.2.10", "2001:db8:99::10"), strict=False):
        subnet["rangeStart"] = first
    return network("macvlan", ipam, **keys)


def test_containers_and_the_neighbour_reach_each_other(host: Host, cni: Cni) -> None:
    lan = host.lan()
    one, two = host.container("c1"), host.container("c2")
    before, inner = host.snapshot(), seen.inner(one)
    conf = macvlan(master=lan.link)
    first, second = cni.add(conf, one), cni.add(conf, two, container="c2")
    seen.agrees(host, first, one)
    seen.agrees(host, second, two, "c2")
    assert [each["name"] for each in first["interfaces"]] == ["eth0"]
    assert [ip["interface"] for ip in first["ips"]] == [0, 0]
    addresses = [ip["address"].split("/")[0] for ip in first["ips"]]
    for name in ("c1", lan.name):
        host.serve_tcp(name, 80)
    assert host.fetch("c1", lan.outside, 80) == addresses[0]
    assert host.fetch("c1", lan.outside6, 80) == addresses[1]
    assert host.fetch(lan.name, addresses[0], 80) == lan.outside
    assert host.fetch("c2", addresses[1], 80) == second["ips"][1]["address"].split("/")[0]
    cni.check(conf, first, one)
    cni.delete({**conf, "prevResult": first}, one)
    cni.delete(conf, one)
    assert difference(inner, seen.inner(one)) == []
    cni.check(conf, second, two, container="c2")
    assert host.fetch("c2", lan.outside, 80) is not None
    cni.delete(conf, two, container="c2")
    assert host.changes(before) == []


def test_the_master_is_the_link_of_the_default_route(host: Host, cni: Cni) -> None:
    lan = host.lan()
    host.lan("other", link="lan1", subnet="198.51.100.0/24", subnet6="2001:db8:98::/64")
    host.run("ip", "route", "delete", "default", "via", "198.51.100.2")
    cni.add(macvlan(), host.container())
    assert host.ping("c1", lan.outside)


def test_without_a_default_route_a_master_must_be_named(host: Host, cni: Cni) -> None:
    problem = seen.problem(cni, "ADD", macvlan(), host.container())
    assert problem["code"] == 7 and "master" in problem["msg"] and "default route" in problem["msg"]


def test_a_vlan_link_that_is_missing_is_not_made(host: Host, cni: Cni) -> None:
    lan = host.lan()
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", macvlan(master=f"{lan.link}.10"), host.container())
    assert problem["code"] == 7 and "lan0.10" in problem["msg"]
    assert "ip link add link lan0 name lan0.10 type vlan id 10" in problem["details"]
    assert host.changes(before) == []


@pytest.mark.parametrize("mode", ["", "bridge", "private", "vepa", "passthru"])
def test_modes(host: Host, cni: Cni, mode: str) -> None:
    lan = host.lan()
    before = host.snapshot()
    netns = host.container()
    conf = macvlan(master=lan.link, mode=mode)
    result = cni.add(conf, netns)
    link = seen.link(host, "eth0", "c1")
    assert link["linkinfo"]["info_data"]["mode"] == (mode or "bridge")
    same = seen.link(host, lan.link)["address"] == result["interfaces"][0]["mac"]
    assert same is (mode == "passthru")
    seen.agrees(host, result, netns)
    assert host.ping("c1", lan.outside)
    cni.check(conf, result, netns)
    cni.delete(conf, netns)
    assert host.changes(before) == []


def test_private_containers_do_not_reach_each_other(host: Host, cni: Cni) -> None:
    lan = host.lan()
    for name in ("c1", "c2"):
        cni.add(macvlan(master=lan.link, mode="private"), host.container(name), container=name)
    host.serve_tcp("c2", 80)
    address = seen.addresses(host, "eth0", "c2")[0].split("/")[0]
    assert host.fetch("c1", address, 80, timeout=0.5) is None
    assert host.fetch(lan.name, address, 80) == lan.outside


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"mode": "l2"}, "mode"),
        ({"mtu": 1501}, "mtu 1501"),
        ({"mtu": 20}, "mtu 20"),
        ({"mac": "01:00:00:00:00:01"}, "multicast"),
        ({"bcqueuelen": -1}, "bcqueuelen"),
        ({"master": "nope"}, "nope"),
        ({"mode": "passthru", "mac": "02:00:00:00:00:01"}, "passthru"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    host: Host, cni: Cni, keys: dict[str, Any], words: str
) -> None:
    lan = host.lan()
    netns = host.container()
    before, inner = host.snapshot(), seen.inner(netns)
    problem = seen.problem(cni, "ADD", macvlan(**{"master": lan.link, **keys}), netns)
    assert problem["code"] == 7 and words in problem["msg"], problem
    cni.delete(macvlan(**{"master": lan.link, **keys}), netns)
    assert host.changes(before) == [] and difference(inner, seen.inner(netns)) == []


def test_mtu_mac_and_queue(host: Host, cni: Cni) -> None:
    lan = host.lan()
    netns = host.container()
    conf = macvlan(master=lan.link, mtu=1400, mac="02:00:00:00:00:aa", bcqueuelen=500)
    result = cni.add(conf, netns)
    assert result["interfaces"] == [{"name": "eth0", "mac": "02:00:00:00:00:aa", "mtu": 1400, "sandbox": netns}]
    data = seen.link(host, "eth0", "c1")["linkinfo"]["info_data"]
    assert data.get("bcqueuelen", 500) == 500
    seen.agrees(host, result, netns)
    cni.check(conf, result, netns)


def test_which_mac_address_wins(host: Host, cni: Cni) -> None:
    lan = host.lan()
    conf = macvlan(master=lan.link, mac="02:00:00:00:00:aa")
    args = "IgnoreUnknown=1;MAC=02:00:00:00:00:bb"
    first = cni.add(conf, host.container(), args=args)
    assert first["interfaces"][0]["mac"] == "02:00:00:00:00:bb"
    given = {**conf, "runtimeConfig": {"mac": "02:00:00:00:00:cc"}}
    second = cni.add(given, host.container("c2"), container="c2", args=args)
    assert second["interfaces"][0]["mac"] == "02:00:00:00:00:cc"


def test_the_master_may_be_in_the_container(host: Host, cni: Cni) -> None:
    lan = host.lan()
    cni.add(macvlan(master=lan.link), host.container(), ifname="up0")
    conf = macvlan(master="up0", linkInContainer=True, mtu=1400, name="inner")
    result = cni.add(conf, "/run/netns/c1")
    seen.agrees(host, result, "/run/netns/c1")
    assert host.ping("c1", lan.outside)
    cni.check(conf, result, "/run/netns/c1")
    cni.delete(conf, "/run/netns/c1")
    assert seen.links(host, "c1") == ["lo", "up0"]
    problem = seen.problem(cni, "ADD", {**conf, "master": lan.link}, "/run/netns/c1")
    assert "container" in problem["msg"] and lan.link in problem["msg"]


def test_layer_2_alone(host: Host, cni: Cni) -> None:
    lan = host.lan()
    netns = host.container()
    conf = network("macvlan", master=lan.link)
    result = cni.add(conf, netns)
    assert "ips" not in result and "UP" in seen.link(host, "eth0", "c1")["flags"]
    host.inside("c1", "ip", "address", "add", "192.0.2.77/24", "dev", "eth0")
    assert host.ping("c1", lan.outside)
    cni.check(conf, result, netns)


def test_container_announces_its_addresses(host: Host, cni: Cni) -> None:
    lan = host.lan()
    cni.add(macvlan(master=lan.link), host.container())
    assert seen.setting(host, "net/ipv4/conf/eth0/arp_notify", "c1") == "1"
    assert seen.setting(host, "net/ipv6/conf/eth0/ndisc_notify", "c1") == "1"


def test_dns_of_ipam_is_kept(host: Host, cni: Cni) -> None:
    lan = host.lan()
    static = {"type": "static", "addresses": [{"address": "192.0.2.9/24"}], "dns": {"nameservers": ["192.0.2.53"]}}
    result = cni.add(network("macvlan", static, master=lan.link), host.container())
    assert result["dns"] == {"nameservers": ["192.0.2.53"]}


@pytest.mark.parametrize("end", ["master gone", "namespace gone", "no namespace given", "link gone"])
def test_del_in_every_state(host: Host, cni: Cni, end: str) -> None:
    lan = host.lan()
    netns = host.container()
    conf = macvlan(master=lan.link)
    first = cni.add(conf, netns)
    if end == "master gone":
        host.run("ip", "link", "delete", lan.link)
    elif end == "namespace gone":
        host.remove_container()
    elif end == "link gone":
        host.inside("c1", "ip", "link", "delete", "eth0")
    cni.delete(conf, "" if end == "no namespace given" else netns)
    cni.delete(conf, netns)
    if end == "no namespace given":
        assert seen.links(host, "c1") == ["lo"]
    if end != "master gone":
        host.container("c2")
        again = cni.add(conf, "/run/netns/c2")
        assert again["interfaces"][0]["mac"] == first["interfaces"][0]["mac"]


def test_del_without_a_record_deletes_the_marked_link(host: Host, cni: Cni) -> None:
    lan = host.lan()
    netns = host.container()
    conf = macvlan(master=lan.link)
    cni.add(conf, netns)
    host.run("rm", "-r", "/run/weft")
    cni.delete(conf, netns)
    assert seen.links(host, "c1") == ["lo"]


BREAKS = {
    "gone": (("link", "delete", "eth0"), "missing"),
    "down": (("link", "set", "eth0", "down"), "is down"),
    "mtu": (("link", "set", "eth0", "mtu", "1300"), "MTU"),
    "mac": (("link", "set", "eth0", "address", "02:00:00:00:00:99"), "MAC"),
    "mode": (("link", "set", "eth0", "type", "macvlan", "mode", "private"), "macvlan_mode"),
    "address": (("address", "flush", "dev", "eth0", "scope", "global"), "lacks the address"),
    "route": (("route", "delete", "default"), "route 0.0.0.0/0"),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_check_sees_what_is_broken_by_hand(host: Host, cni: Cni, broken: str) -> None:
    lan = host.lan()
    netns = host.container()
    conf = macvlan(master=lan.link)
    conf["ipam"]["routes"] = [{**DEFAULT4, "gw": lan.outside}]
    result = cni.add(conf, netns)
    cni.check(conf, result, netns)
    words, sentence = BREAKS[broken]
    host.inside("c1", "ip", *words)
    problem = seen.problem(cni, "CHECK", {**conf, "prevResult": result}, netns)
    assert problem["code"] == 104 and sentence in problem["msg"], problem


def test_existing_interface_is_left_alone(host: Host, cni: Cni) -> None:
    lan = host.lan()
    netns = host.container()
    conf = macvlan(master=lan.link)
    result = cni.add(conf, netns)
    for refused in (conf, macvlan(master=lan.link, name="other")):
        assert seen.problem(cni, "ADD", refused, netns)["code"] == 101
    cni.check(conf, result, netns)


@pytest.mark.skipif(not (REFERENCE_FOLDER / "macvlan").exists(), reason="the reference plugins are not installed")
@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.0.0"])
def test_the_answer_is_the_reference_plugins_own(host: Host, cni: Cni, version: str) -> None:
    """Apart from the MAC address, and from the MTU, which the reference leaves out."""
    lan = host.lan()
    conf = macvlan(LAN, master=lan.link, version=version, mtu=1400)
    answers = []
    for name, plugins in (("c1", cni), ("c2", Cni(REFERENCE_FOLDER))):
        own = {**conf, "ipam": {**conf["ipam"], "dataDir": f"/run/leases-{name}"}}
        netns = host.container(name)
        answer = plugins.add(own, netns, container=name)
        for link in answer.get("interfaces", []):
            link.pop("mac"), link.pop("mtu", None)
            assert link.pop("sandbox") == netns
        if not answer.get("dns"):  # recent reference plugins omit an empty dns from 1.0.0 on
            answer.pop("dns", None)
        answers.append(answer)
        plugins.delete(own, netns, container=name)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan"])
def test_an_add_right_after_the_namespace_was_removed(host: Host, driver: str) -> None:
    """The old link, which has the same MAC address, goes when the kernel has removed the namespace."""
    require(driver)
    lan, weft = host.lan(), Weft()
    conf = {**macvlan(master=lan.link), "type": driver}
    for turn in range(20):
        path = host.container()
        weft.add(conf, path)
        if turn % 2:
            weft.delete(conf, path)
        host.remove_container()
    weft.add(conf, host.container())


@pytest.mark.parametrize("keys", [{"runtimeConfig": {"mac": MAC}}, {"tuning": {"mac": MAC}}], ids=["driver", "tuning"])
def test_a_mac_address_that_a_dying_namespace_has_is_waited_for(host: Host, keys: dict[str, Any]) -> None:
    lan, weft = host.lan(), Weft()
    host.container("dying")
    host.run("ip", "link", "add", "old", "link", lan.link, "address", MAC, "type", "macvlan", "mode", "bridge")
    host.run("ip", "link", "set", "old", "netns", "dying")
    host.inside("dying", "ip", "link", "set", "old", "up")
    end = host.start("sh", "-c", "sleep 0.5; ip link delete old", name="dying")
    weft.add({**macvlan(master=lan.link), "type": "weft", "driver": "macvlan", **keys}, host.container())
    assert seen.link(host, "eth0", "c1")["address"] == MAC
    assert end.wait(30) == 0
