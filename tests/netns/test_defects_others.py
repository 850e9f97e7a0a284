"""Known defects of the reference's chained plugins and device drivers, at least one test each.

The calls run in this process if the kernel may lack a link type: an emulated kernel can take its
place.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from lab import seen
from lab.abilities import require
from lab.calls import Weft, leases
from lab.confs import DEFAULT4, SUBNET, bridge, dual, network, pool, port, published
from lab.dnsmasq import Dnsmasq, end_keepers
from lab.host import Host
from lab.plugins import Cni

GATEWAY = bridge(pool(SUBNET), isGateway=True)
KINDS = {"macvlan": "macvlan", "ipvlan": "ipvlan", "vlan": "vlan", "dummy": "dummy", "tap": "tun", "vrf": "vrf"}
MAC = "02:00:00:00:00:07"


def lower(host: Host) -> None:
    """A veth, up, to create links on or to move into a container; its peer is unused."""
    host.run("ip", "link", "delete", "up0", check=False)
    host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    for name in ("up0", "up1"):
        host.run("ip", "link", "set", name, "up")


def device(driver: str, ipam: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    """The configuration of a driver that needs a device: ``up0`` is its master or the device."""
    own: dict[str, dict[str, Any]] = {
        "macvlan": {"master": "up0"},
        "ipvlan": {"master": "up0"},
        "vlan": {"master": "up0", "vlanId": 42},
        "host-device": {"device": "up0"},
    }
    return network(driver, pool(SUBNET) if ipam is None else ipam, **own.get(driver, {}), **keys)


def rules(host: Host) -> str:
    return host.run("nft", "list", "ruleset").stdout + host.run("iptables-save", check=False).stdout


def test_defect_17_two_networks_of_one_container_do_not_share_ports(host: Host, cni: Cni) -> None:
    netns = host.container()
    other = bridge(pool("10.81.0.0/24"), bridge="br1", isGateway=True, name="other")
    for conf, number, ifname in ((GATEWAY, 8080, "eth0"), (other, 9090, "eth1")):
        conflist, runtime = published(conf, [port(number, 80)])
        cni.add_list(conflist, netns, runtime, ifname=ifname)
    conflist, runtime = published(GATEWAY, [port(8080, 80)])
    cni.delete_list(conflist, None, netns, runtime, ifname="eth0")
    left = host.run("nft", "list", "ruleset").stdout
    assert re.search(r"\b9090\b", left) and not re.search(r"\b8080\b", left)


def test_defect_17_a_second_add_doubles_nothing(host: Host, cni: Cni) -> None:
    netns = host.container()
    conflist, runtime = published(GATEWAY, [port(8080, 80)])
    result = cni.add_list(conflist, netns, runtime)
    before = host.snapshot()
    again = {**cni._members(conflist, runtime)[1], "prevResult": result}
    assert cni.add(again, netns) == result
    assert host.changes(before) == []
    cni.check_list(conflist, result, netns, runtime)
    host.serve_tcp("c1", 80)
    assert host.fetch(None, "10.80.0.1", 8080) is not None
    cni.delete_list(conflist, None, netns, runtime)
    assert not re.search(r"\b8080\b", rules(host))


def test_defect_17_conditions_are_for_their_own_network(host: Host, cni: Cni) -> None:
    """A port with a source condition keeps it while another network publishes without any."""
    lan = host.lan()
    first, other = (
        bridge(pool(subnet, routes=[DEFAULT4]), bridge=name, isGateway=True, name=name)
        for name, subnet in (("br0", SUBNET), ("br1", "10.81.0.0/24"))
    )
    closed = published(first, [port(8080, 80)], conditionsV4=["!", "-s", lan.outside])
    opened = published(other, [port(9090, 80)])
    for name, (conflist, runtime) in (("c1", closed), ("c2", opened)):
        cni.add_list(conflist, host.container(name), runtime, container=name)
        host.serve_tcp(name, 80)
    assert host.fetch(lan.name, lan.host, 8080, timeout=0.4) is None
    assert host.fetch(lan.name, lan.host, 9090) == lan.outside
    cni.delete_list(opened[0], None, "/run/netns/c2", opened[1], container="c2")
    assert host.fetch(lan.name, lan.host, 8080, timeout=0.4) is None
    assert host.fetch(None, lan.host, 8080) is not None


@pytest.mark.parametrize("plugin", ["bandwidth", "tuning"])
def test_defect_18_no_trace_in_place_of_an_answer(host: Host, cni: Cni, plugin: str) -> None:
    """bandwidth without rates and prevResult is an error; args.cni alone suffices for tuning."""
    netns = host.container()
    if plugin == "bandwidth":
        problem = seen.problem(cni, "ADD", network("bandwidth"), netns)
        assert problem["code"] == 7 and "prevResult" in problem["msg"]
        return
    conf = network("tuning", args={"cni": {"sysctl": {"net.core.somaxconn": "78"}}})
    result = cni.add(bridge(pool(SUBNET)), netns)
    assert cni.add({**conf, "prevResult": result}, netns) == result
    assert seen.setting(host, "net/core/somaxconn", "c1") == "78"


@pytest.mark.parametrize("end", ["twice", "path gone", "no namespace given", "link gone", "no ipam"])
@pytest.mark.parametrize("driver", ["host-device", "vlan", "ipvlan", "ptp", "dummy"])
def test_defect_19_del_of_a_driver_whatever_has_gone(host: Host, driver: str, end: str) -> None:
    require(KINDS.get(driver, ""))
    weft, netns = Weft(), host.container()
    lower(host)
    conf = device(driver)
    weft.add(conf, netns)
    assert leases("net") == {"10.80.0.2": "c1 eth0"}
    if end == "path gone":
        host.remove_container()
    elif end == "link gone":
        # If one end of a veth is deleted, or a link's master, the kernel deletes the other as well.
        host.run("ip", "link", "delete", "up1", check=False)
        host.inside("c1", "ip", "link", "delete", "eth0", check=False)
    given = {key: value for key, value in conf.items() if end != "no ipam" or key not in ("ipam", "master")}
    for _ in range(2):
        weft.delete(given, "" if end == "no namespace given" else netns)
    assert leases("net") == {}
    assert end == "path gone" or seen.links(host, "c1") == ["lo"]
    if driver == "host-device" and end not in ("link gone", "path gone"):
        assert "up0" in seen.links(host)
    assert [name for name in seen.links(host) if name.startswith("veth")] == []


@pytest.mark.parametrize("end", ["twice", "path gone", "no namespace given", "link gone"])
@pytest.mark.parametrize("plugin", ["sbr", "vrf"])
def test_defect_19_del_of_a_chained_plugin_whatever_has_gone(host: Host, plugin: str, end: str) -> None:
    require(KINDS.get(plugin, ""))
    weft, netns = Weft(), host.container()
    driver = bridge(pool(SUBNET, routes=[DEFAULT4]), isGateway=True)
    result = weft.add(driver, netns)
    before = seen.inner(netns)
    conf = network(plugin, **({"vrfname": "red"} if plugin == "vrf" else {}))
    weft.add({**conf, "prevResult": result}, netns)
    assert seen.inner(netns) != before
    if end == "path gone":
        host.remove_container()
    elif end == "link gone":
        host.inside("c1", "ip", "link", "delete", "eth0")
    for one in (conf, conf, driver, driver):
        weft.delete(one, "" if end == "no namespace given" else netns)
    assert leases("net") == {}
    if end != "path gone":
        assert seen.links(host, "c1") == ["lo"]
        assert "10.80.0.2" not in host.inside("c1", "ip", "rule").stdout


@pytest.mark.parametrize("end", ["path gone", "no namespace given", "link gone"])
def test_defect_19_del_of_a_dhcp_lease_without_its_daemon(host: Host, cni: Cni, tmp_path: Path, end: str) -> None:
    require("macvlan")
    lan = host.lan()
    Dnsmasq(host, lan, tmp_path)
    conf, netns = network("macvlan", {"type": "dhcp"}, master=lan.link), host.container()
    try:
        cni.delete(conf, netns)
        cni.add(conf, netns)
        [folder] = Path("/run/weft").glob("*/dhcp")
        assert len(list(folder.glob("*.json"))) == 1
        os.kill(int((folder / "keeper.lock").read_text()), signal.SIGKILL)
        if end == "path gone":
            host.remove_container()
        elif end == "link gone":
            host.inside("c1", "ip", "link", "delete", "eth0")
        for _ in range(2):
            cni.delete(conf, "" if end == "no namespace given" else netns)
        assert list(folder.glob("*.json")) == []
    finally:
        end_keepers()


LIMITS = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}
CHAINED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "portmap": (network("portmap"), {"runtimeConfig": {"portMappings": [port(8080, 80), port(5353, 53, "udp")]}}),
    "firewall": (network("firewall", ingressPolicy="isolated"), {}),
    "firewall by iptables": (network("firewall", backend="iptables"), {}),
    "bandwidth": (network("bandwidth"), {"runtimeConfig": {"bandwidth": LIMITS}}),
}


@pytest.mark.parametrize("name", CHAINED)
def test_defect_20_del_needs_neither_the_result_nor_the_runtimes_part(host: Host, cni: Cni, name: str) -> None:
    bare, runtime = CHAINED[name]
    driver = bridge(dual(), isGateway=True)
    netns = host.container()
    result = cni.add(driver, netns)
    veth = result["interfaces"][1]["name"]

    def state() -> tuple[Any, ...]:
        kept = [line for line in rules(host).splitlines() if re.search(r"10\.80\.0\.2|fd80::2|\b8080\b|\b5353\b", line)]
        return sorted(kept), host.run("tc", "qdisc", "show", "dev", veth).stdout.split(), seen.links(host)

    before = state()
    told = cni.add({**bare, **runtime, "prevResult": result}, netns)
    assert state() != before
    cni.check({**bare, **runtime}, told, netns)
    cni.delete(bare, netns)
    assert state() == before
    cni.check(driver, result, netns)


def test_defect_21_a_tap_link_of_owner_and_group_has_its_mtu_and_mac(host: Host) -> None:
    require("tun")
    weft, netns = Weft(), host.container()
    conf = device("tap", owner=70007, group=70008, mtu=1400, mac=MAC)
    result = weft.add(conf, netns)
    link = seen.link(host, "eth0", "c1")
    data = link["linkinfo"]["info_data"]
    assert (link["mtu"], link["address"], data["user"], data["group"]) == (1400, MAC, 70007, 70008)
    assert result["interfaces"] == [{"name": "eth0", "mac": MAC, "mtu": 1400, "sandbox": netns}]
    assert weft.check(conf, result, netns) == ""


def test_defect_22_loopback_at_0_2_0_answers_in_the_shape_of_0_2_0(host: Host, cni: Cni) -> None:
    conf = network("loopback", version="0.2.0", name="lo")
    result = cni.add(conf, host.container(), ifname="lo")
    assert "interfaces" not in result and result["ip4"]["ip"] == "127.0.0.1/8"


def test_defect_23_an_unknown_backend_is_refused(host: Host, cni: Cni) -> None:
    netns = host.container()
    result = cni.add(GATEWAY, netns)
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", network("firewall", backend="ipfw", prevResult=result), netns)
    assert problem["code"] == 7 and "ipfw" in problem["msg"]
    assert host.changes(before) == []


def test_defect_23_isolation_ends_when_the_policy_changes(host: Host, cni: Cni) -> None:
    places = {name: host.container(name) for name in ("c1", "c2")}
    results = {name: cni.add(GATEWAY, netns, container=name) for name, netns in places.items()}
    host.serve_tcp("c2", 80)
    for policy, reached in (("isolated", False), ("same-bridge", True)):
        conf = network("firewall", ingressPolicy=policy)
        for name, netns in places.items():
            cni.add({**conf, "prevResult": results[name]}, netns, container=name)
        assert host.reaches("c1", "10.80.0.3", 80, expected=reached) is reached
        for name, netns in places.items():
            cni.delete({**conf, "prevResult": results[name]}, netns, container=name)


@pytest.mark.parametrize("driver", ["macvlan", "ipvlan", "vlan", "host-device", "tap"])
def test_defect_24_dns_of_ipam_is_kept(host: Host, driver: str) -> None:
    require(KINDS.get(driver, ""))
    weft = Weft()
    dns = {"nameservers": ["192.0.2.53"], "search": ["example.org"]}
    static = {"type": "static", "addresses": [{"address": "10.80.0.9/24"}], "dns": dns}
    given: tuple[tuple[str, dict[str, Any]], ...] = (("c1", {}), ("c2", {"dns": {}}))
    for name, keys in given:
        lower(host)
        netns = host.container(name)
        assert weft.add(device(driver, static, **keys), netns, name)["dns"] == dns
        weft.delete(device(driver, static, **keys), netns, name)
