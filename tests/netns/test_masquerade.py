"""ipMasq with real traffic: packets that leave the network are masqueraded, and only those."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab import seen
from lab.confs import DEFAULT4, SUBNET, bridge, dual, pool, ptp
from lab.host import Host
from lab.plugins import Cni

DRIVERS = [bridge(dual(), isGateway=True, ipMasq=True), ptp(dual(), ipMasq=True)]


def named(conf: dict[str, Any]) -> str:
    return str(conf["type"])


def masqueraded(host: Host) -> str:
    """The host's ruleset as text, to search for addresses."""
    return host.run("nft", "-j", "list", "ruleset").stdout


@pytest.mark.parametrize("conf", DRIVERS, ids=named)
def test_the_outside_sees_the_host(host: Host, cni: Cni, conf: dict[str, Any]) -> None:
    lan = host.lan()
    netns = host.container()
    result = cni.add(conf, netns)
    host.serve_tcp(lan.name, 80)
    host.serve_udp(lan.name, 53)
    assert host.fetch("c1", lan.outside, 80) == lan.host
    assert host.fetch("c1", lan.outside6, 80) == lan.host6
    assert host.fetch("c1", lan.outside, 53, "udp") == lan.host
    assert host.ping("c1", lan.outside)
    cni.check(conf, result, netns)


@pytest.mark.parametrize("conf", DRIVERS, ids=named)
def test_without_ipmasq_the_outside_sees_the_container(host: Host, cni: Cni, conf: dict[str, Any]) -> None:
    seen.hurry(host)
    lan = host.lan(default_route=True)
    cni.add({**conf, "ipMasq": False}, host.container())
    host.serve_tcp(lan.name, 80)
    assert host.fetch("c1", lan.outside, 80) == "10.80.0.2"
    assert host.fetch("c1", lan.outside6, 80) == "fd80::2"


@pytest.mark.parametrize("conf", DRIVERS, ids=named)
def test_within_the_subnet_and_to_the_host_nothing_changes(host: Host, cni: Cni, conf: dict[str, Any]) -> None:
    for name in ("c1", "c2"):
        cni.add(conf, host.container(name), container=name)
    host.serve_tcp("c2", 80)
    host.serve_tcp(None, 81)
    assert host.fetch("c1", "10.80.0.3", 80) == "10.80.0.2"
    assert host.fetch("c1", "fd80::3", 80) == "fd80::2"
    assert host.fetch("c1", "10.80.0.1", 81) == "10.80.0.2"


def test_another_network_of_the_host_is_outside(host: Host, cni: Cni) -> None:
    cni.add(DRIVERS[0], host.container())
    other = bridge(pool("10.81.0.0/24", routes=[DEFAULT4]), bridge="br1", isGateway=True, name="other")
    cni.add(other, host.container("c2"), container="c2")
    host.serve_tcp("c2", 80)
    assert host.fetch("c1", "10.81.0.2", 80) == "10.81.0.1"


def test_networks_that_share_a_subnet(host: Host, cni: Cni) -> None:
    """DEL of one network removes no rule that the other one needs."""
    lan = host.lan()
    halves = []
    for name, first, last in (("low", 2, 100), ("high", 101, 200)):
        ranges = [[{"subnet": SUBNET, "rangeStart": f"10.80.0.{first}", "rangeEnd": f"10.80.0.{last}"}]]
        ipam = {"type": "host-local", "ranges": ranges, "routes": [DEFAULT4]}
        halves.append(bridge(ipam, isGateway=True, ipMasq=True, name=name))
        cni.add(halves[-1], host.container(name), container=name)
    for name in ("low", "high"):
        host.serve_tcp(name, 80)
    assert host.fetch("low", "10.80.0.101", 80) == "10.80.0.2"
    cni.delete(halves[0], "/run/netns/low", container="low")
    seen.collect(cni, halves[0])
    host.serve_tcp(lan.name, 80)
    assert host.fetch("high", lan.outside, 80) == lan.host
    cni.add({**halves[0], "ipMasq": False}, "/run/netns/low", container="low")
    assert host.fetch("high", "10.80.0.3", 80) == "10.80.0.101"


def test_multicast_keeps_its_source(host: Host, cni: Cni) -> None:
    """Checked by the order of the rules: no multicast router is available to send traffic."""
    cni.add(DRIVERS[0], host.container())
    rules = host.run("nft", "list", "chain", "inet", "weft", "masquerade_outgoing").stdout.splitlines()
    order = [line.partition(" comment ")[0].strip() for line in rules]
    assert order.index("ip daddr 224.0.0.0/4 return") < order.index("masquerade")
    assert order.index("ip6 daddr ff00::/8 return") < order.index("masquerade")


@pytest.mark.parametrize("conf", DRIVERS, ids=named)
@pytest.mark.parametrize("end", ["whole", "empty", "vanished", "unlinked"])
def test_del_removes_all_rules(host: Host, cni: Cni, conf: dict[str, Any], end: str) -> None:
    """The namespace exists, is not passed to DEL, is gone, or its link is gone."""
    seen.forward(host)
    before = host.snapshot()
    netns = host.container()
    cni.add(conf, netns)
    assert "10.80.0.2" in masqueraded(host) and "fd80::2" in masqueraded(host)
    if end == "vanished":
        host.remove_container()
    if end == "unlinked":
        host.inside("c1", "ip", "link", "delete", "eth0")
    cni.delete(conf, "" if end == "empty" else netns)
    assert "10.80.0.2" not in masqueraded(host) and "fd80::2" not in masqueraded(host)
    seen.collect(cni, conf)
    assert host.changes(before) == []


@pytest.mark.parametrize("backend", ["iptables", "nftables", None])
def test_either_backend_is_accepted_and_is_nftables(host: Host, cni: Cni, backend: str | None) -> None:
    lan = host.lan()
    cni.add({**DRIVERS[0], "ipMasqBackend": backend}, host.container())
    host.serve_tcp(lan.name, 80)
    assert host.fetch("c1", lan.outside, 80) == lan.host


def test_an_unknown_backend_is_refused_before_anything_is_done(host: Host, cni: Cni) -> None:
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", {**DRIVERS[0], "ipMasqBackend": "magic"}, host.container())
    assert problem["code"] == 7 and 'ipMasqBackend "magic"' in problem["msg"]
    assert host.changes(before) == []


def test_flushed_rules_are_restored_by_the_next_add(host: Host, cni: Cni) -> None:
    """CHECK reports it, and the next ADD on the host restores the rules for all attachments."""
    lan = host.lan()
    netns = host.container()
    result = cni.add(DRIVERS[0], netns)
    host.run("nft", "flush", "ruleset")
    problem = seen.problem(cni, "CHECK", {**DRIVERS[0], "prevResult": result}, netns)
    assert problem["code"] == 104 and "inet weft" in problem["msg"]
    cni.add(DRIVERS[0], host.container("c2"), container="c2")
    cni.check(DRIVERS[0], result, netns)
    host.serve_tcp(lan.name, 80)
    assert host.fetch("c1", lan.outside, 80) == lan.host


def test_the_rules_do_not_grow_with_containers(host: Host, cni: Cni) -> None:
    def rules() -> int:
        found = json.loads(masqueraded(host))["nftables"]
        return sum("rule" in one for one in found)

    counts = []
    for index in range(3):
        cni.add(DRIVERS[0], host.container(f"n{index}"), container=f"n{index}")
        counts.append(rules())
    assert len(set(counts)) == 1 and counts[0] > 0


def test_weft_as_one_plugin_masquerades_too(host: Host, cni: Cni) -> None:
    lan = host.lan()
    cni.add({**DRIVERS[0], "type": "weft", "driver": "bridge"}, host.container())
    host.serve_tcp(lan.name, 80)
    assert host.fetch("c1", lan.outside, 80) == lan.host
