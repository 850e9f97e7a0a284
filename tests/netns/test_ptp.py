"""The ptp driver with real containers: routed veth pairs, its result, and what DEL leaves."""

from __future__ import annotations

import pytest

from lab import seen
from lab.confs import DEFAULT4, SUBNET, SUBNET6, dual, network, pool, ptp
from lab.host import Host
from lab.plugins import Cni
from lab.snapshot import difference


def test_containers_reach_each_other_and_the_host(host: Host, cni: Cni) -> None:
    """Both families, routed without NAT, CHECK, and nothing left after two DELs and a GC."""
    seen.forward(host)
    conf = ptp(dual())
    one, two = host.container("c1"), host.container("c2")
    before, inner = host.snapshot(), seen.inner(one)
    first, second = cni.add(conf, one), cni.add(conf, two, container="c2")
    seen.agrees(host, first, one)
    seen.agrees(host, second, two, "c2")
    assert [ip["address"] for ip in first["ips"]] == ["10.80.0.2/24", "fd80::2/64"]
    assert [ip["gateway"] for ip in first["ips"]] == ["10.80.0.1", "fd80::1"]
    assert [ip["interface"] for ip in first["ips"]] == [1, 1]
    assert [one["name"] for one in first["interfaces"]] == [seen.links(host)[-2], "eth0"]
    host.serve_tcp("c2", 80)
    host.serve_udp("c2", 53)
    host.serve_tcp(None, 81)
    assert host.fetch("c1", "10.80.0.3", 80) == "10.80.0.2"
    assert host.fetch("c1", "fd80::3", 80) == "fd80::2"
    assert host.fetch("c1", "10.80.0.3", 53, "udp") == "10.80.0.2"
    assert host.fetch("c1", "10.80.0.1", 81) == "10.80.0.2"
    assert host.fetch("c1", "fd80::1", 81) == "fd80::2"
    assert host.fetch(None, "10.80.0.3", 80) == "10.80.0.1"
    assert host.fetch(None, "fd80::3", 80) == "fd80::1"
    cni.check(conf, first, one)
    cni.delete({**conf, "prevResult": first}, one)
    cni.check(conf, second, two, container="c2")
    cni.delete(conf, one)
    assert difference(inner, seen.inner(one)) == []
    assert host.fetch(None, "10.80.0.3", 80) == "10.80.0.1"
    cni.delete(conf, two, container="c2")
    seen.collect(cni, conf)
    assert host.changes(before) == []


def test_the_outside_reaches_a_container_by_its_address(host: Host, cni: Cni) -> None:
    lan = host.lan(default_route=True)
    cni.add(ptp(dual()), host.container())
    host.serve_tcp("c1", 80)
    assert host.fetch(lan.name, "10.80.0.2", 80) == lan.outside
    assert host.fetch(lan.name, "fd80::2", 80) == lan.outside6


def test_all_of_the_subnet_is_behind_the_gateway(host: Host, cni: Cni) -> None:
    """Routes as of the reference's ptp: /32 and /128 on both sides, no on-link subnet route."""
    result = cni.add(ptp(dual()), host.container())
    outer = result["interfaces"][0]["name"]
    near, behind = seen.route(host, "10.80.0.1/32", "c1"), seen.route(host, SUBNET, "c1")
    assert (near["dev"], near["scope"], near["prefsrc"]) == ("eth0", "link", "10.80.0.2")
    assert (behind["gateway"], behind["prefsrc"]) == ("10.80.0.1", "10.80.0.2")
    assert seen.route(host, "fd80::1/128", "c1")["dev"] == "eth0"
    assert seen.route(host, SUBNET6, "c1")["gateway"] == "fd80::1"
    assert seen.addresses(host, outer) == ["10.80.0.1/32", "fd80::1/128"]
    assert seen.route(host, "10.80.0.2/32")["dev"] == outer
    assert seen.route(host, "fd80::2/128")["dev"] == outer
    assert [one["dst"] for one in seen.routes(host) if one["dst"] in (SUBNET, SUBNET6)] == []


def test_forwarding_is_switched_on_for_the_families_in_use_alone(host: Host, cni: Cni) -> None:
    cni.add(ptp(pool(SUBNET)), host.container())
    assert seen.setting(host, "net/ipv4/ip_forward") == "1"
    assert seen.setting(host, "net/ipv6/conf/all/forwarding") == "0"
    cni.add(ptp(pool(SUBNET6), name="six"), host.container("c2"), container="c2")
    assert seen.setting(host, "net/ipv6/conf/all/forwarding") == "1"


def test_two_subnets_of_one_family(host: Host, cni: Cni) -> None:
    netns = host.container()
    conf = ptp(pool(SUBNET, "10.81.0.0/24", routes=[DEFAULT4]))
    result = cni.add(conf, netns)
    assert host.ping("c1", "10.80.0.1") and host.ping("c1", "10.81.0.1")
    assert host.ping(None, "10.80.0.2") and host.ping(None, "10.81.0.2")
    cni.check(conf, result, netns)


def test_mtu_holds_for_both_ends(host: Host, cni: Cni) -> None:
    netns = host.container()
    conf = ptp(mtu=1400)
    result = cni.add(conf, netns)
    assert [one["mtu"] for one in result["interfaces"]] == [1400, 1400]
    seen.agrees(host, result, netns)
    ping = ("ping", "-nq", "-c1", "-M", "do", "10.80.0.1")
    assert host.inside("c1", *ping, "-w10", "-s1372", check=False).code == 0
    assert host.inside("c1", *ping, "-W1", "-s1373", check=False).code != 0


def test_static_addresses(host: Host, cni: Cni) -> None:
    addresses = [{"address": "10.80.0.5/24", "gateway": "10.80.0.1"}]
    conf = ptp({"type": "static", "addresses": addresses, "routes": [DEFAULT4]})
    netns = host.container()
    result = cni.add(conf, netns)
    seen.agrees(host, result, netns)
    assert host.ping("c1", "10.80.0.1")
    cni.check(conf, result, netns)
    cni.delete(conf, netns)
    assert seen.links(host, "c1") == ["lo"]


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        (network("ptp"), "ipam.type is missing"),
        (ptp({"type": "static"}), "no address"),
        (ptp({"type": "static", "addresses": [{"address": "10.80.0.5/24"}]}), "10.80.0.5/24 without a gateway"),
        (ptp(mtu=70000), "mtu 70000"),
        (ptp(mtu="big"), 'mtu "big"'),
    ],
)
def test_invalid_configuration_is_refused_before_any_change(
    host: Host, cni: Cni, conf: dict[str, object], words: str
) -> None:
    before = host.snapshot()
    netns = host.container()
    problem = seen.problem(cni, "ADD", conf, netns)
    assert problem["code"] == 7 and words in problem["msg"]
    assert host.changes(before) == []
    assert seen.links(host, "c1") == ["lo"]
    cni.delete(conf, netns)


def test_check_names_what_is_missing(host: Host, cni: Cni) -> None:
    netns = host.container()
    conf = ptp()
    result = cni.add(conf, netns)
    outer = result["interfaces"][0]["name"]
    for undo, words in (
        (("ip", "route", "delete", "10.80.0.2/32"), "10.80.0.2/32"),
        (("ip", "address", "delete", "10.80.0.1/32", "dev", outer), "10.80.0.1/32"),
        (("nsenter", f"--net={netns}", "ip", "route", "delete", "default"), "0.0.0.0/0"),
        (("nsenter", f"--net={netns}", "ip", "route", "delete", SUBNET), SUBNET),
    ):
        host.run(*undo)
        problem = seen.problem(cni, "CHECK", {**conf, "prevResult": result}, netns)
        assert problem["code"] == 104 and words in problem["msg"]
