"""Qdiscs, routing rules and iptables: here on the fake kernel, in tests/netns/kernel on Linux."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from unit.kernel.topology import Topology

from weft.errors import Exists, KernelRefused, Missing
from weft.kernel.firewall_chains import OWN_CHAIN, RETURN, USER_CHAINS, UserChain
from weft.kernel.interface import VethPeer
from weft.kernel.values import Limit, RoutingRule, TrafficClass


def pair(topology: Topology) -> None:
    topology.host.add_link("veth0", "veth", up=True, peer=VethPeer("eth0", up=True, namespace=topology.container))


LIMITS = (
    Limit(500_000, 20_000, 32_500),
    Limit(125_000_000, 1_000_000, 4_125_000),
    Limit(10_000_000_000, 100_000_000, 350_000_000),
    Limit(125, 3_000, 4_000),
)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_reads_back_as_written(topology: Topology, limit: Limit) -> None:
    pair(topology)
    assert topology.host.limit("veth0") is None
    topology.host.set_limit("veth0", limit)
    there = topology.host.limit("veth0")
    assert there is not None
    assert (there.rate, there.queue) == (limit.rate, limit.queue)
    assert there.burst == pytest.approx(limit.burst, rel=0.001)


def test_a_limit_is_replaced_and_deleted(topology: Topology) -> None:
    pair(topology)
    for limit in (*LIMITS, LIMITS[0]):
        topology.host.set_limit("veth0", limit)
    there = topology.host.limit("veth0")
    assert there is not None and there.rate == LIMITS[0].rate
    for _ in range(2):
        topology.host.set_limit("veth0", None)
        assert topology.host.limit("veth0") is None


def test_ingress_is_redirected_and_the_redirection_removed(topology: Topology) -> None:
    pair(topology)
    for name in ("ifb0", "ifb1"):
        topology.host.add_link(name, "ifb", up=True)
    assert topology.host.redirect("veth0") == ""
    for target in ("ifb0", "ifb0", "ifb1"):
        topology.host.set_redirect("veth0", target)
        assert topology.host.redirect("veth0") == target
    for _ in range(2):
        topology.host.set_redirect("veth0", "")
        assert topology.host.redirect("veth0") == ""
    topology.host.set_redirect("veth0", "ifb0")
    assert topology.host.redirect("veth0") == "ifb0"
    topology.host.delete_link("ifb0")
    assert topology.host.redirect("veth0") == ""
    topology.host.set_redirect("veth0", "")


def test_egress_is_redirected_beside_ingress(topology: Topology) -> None:
    pair(topology)
    for name in ("ifb0", "ifb1"):
        topology.host.add_link(name, "ifb", up=True)
    topology.host.set_redirect("veth0", "ifb1", egress=True)
    assert topology.host.redirect("veth0", egress=True) == "ifb1"
    assert topology.host.redirect("veth0") == ""
    topology.host.set_redirect("veth0", "ifb0")
    assert (topology.host.redirect("veth0"), topology.host.redirect("veth0", egress=True)) == ("ifb0", "ifb1")
    topology.host.set_redirect("veth0", "", egress=True)
    assert (topology.host.redirect("veth0"), topology.host.redirect("veth0", egress=True)) == ("ifb0", "")
    topology.host.set_redirect("veth0", "")


_ROOT = TrafficClass(1, 0, 3_000_000, 3_000_000, 10_000, 0)
_INNER = TrafficClass(16, 1, 1_000, 3_000_000, 20_000, 4)
_LEAF = TrafficClass(17, 16, 500_000, 6_000_000_000, 60_000, 7)


def test_classes_read_back_as_written(topology: Topology) -> None:
    pair(topology)
    host = topology.host
    assert (host.root_qdisc("veth0"), host.classes("veth0"), host.class_traffic("veth0")) == ("", (), ())
    host.add_scheduler("veth0", 0x7765, 17)
    assert host.root_qdisc("veth0") == "htb 7765:"
    with pytest.raises(Exists):
        host.add_scheduler("veth0", 0x7765, 17)
    for one in (_ROOT, _INNER, _LEAF):
        host.set_class("veth0", 0x7765, one, leaf=one is _LEAF)
    assert host.classes("veth0") == (_ROOT, _INNER, _LEAF)
    assert [one.number for one in host.class_traffic("veth0")] == [17]
    for slower in (replace(_LEAF, ceil=2_000_000, priority=0), replace(_LEAF, rate=9_000, quantum=1_600)):
        host.set_class("veth0", 0x7765, slower, leaf=True)
        assert host.classes("veth0") == (_ROOT, _INNER, slower)
    with pytest.raises(KernelRefused, match="in use"):
        host.delete_class("veth0", 0x7765, 16)
    for number in (17, 17, 16):
        host.delete_class("veth0", 0x7765, number)
    assert host.classes("veth0") == (_ROOT,)
    host.delete_scheduler("veth0", 0x7766)
    assert host.root_qdisc("veth0") == "htb 7765:"
    for _ in range(2):
        host.delete_scheduler("veth0", 0x7765)
        assert host.root_qdisc("veth0") == ""


def test_a_class_needs_its_scheduler(topology: Topology) -> None:
    pair(topology)
    with pytest.raises(Missing):
        topology.host.set_class("veth0", 0x7765, _ROOT, leaf=False)
    topology.host.set_limit("veth0", LIMITS[0])
    assert topology.host.root_qdisc("veth0").startswith("tbf ")
    with pytest.raises(Exists):
        topology.host.add_scheduler("veth0", 0x7765, 0)
    topology.host.set_limit("veth0", None)
    topology.host.add_scheduler("veth0", 0x7765, 0)
    topology.host.set_class("veth0", 0x7765, _LEAF, leaf=True)
    assert topology.host.classes("veth0") == (replace(_LEAF, parent=0),)


def test_limits_and_redirections_of_missing_links(topology: Topology) -> None:
    pair(topology)
    for verb in (
        lambda: topology.host.limit("nope"),
        lambda: topology.host.set_limit("nope", LIMITS[0]),
        lambda: topology.host.redirect("nope"),
        lambda: topology.host.set_redirect("nope", "veth0"),
        lambda: topology.host.set_redirect("veth0", "nope"),
    ):
        with pytest.raises(Missing, match="nope"):
            verb()


def test_allmulticast_txqueuelen_and_group_read_back(topology: Topology) -> None:
    pair(topology)
    topology.host.change_link("veth0", all_multicast=True, queue_length=333, group=0x77660003)
    link = topology.host.link("veth0")
    assert link is not None and (link.all_multicast, link.queue_length, link.group) == (True, 333, 0x77660003)
    topology.host.change_link("veth0", all_multicast=False)
    link = topology.host.link("veth0")
    assert link is not None and not link.all_multicast and link.queue_length == 333


def rule(source: str, table: int, protocol: int = 119) -> RoutingRule:
    return RoutingRule(ip_network(source), table, protocol)


def test_routing_rules_of_both_families(topology: Topology) -> None:
    wanted = (rule("10.1.0.5/32", 100), rule("10.1.0.0/24", 70000), rule("fd00::5/128", 101))
    assert topology.container.routing_rules() == ()
    for one in wanted:
        topology.container.add_routing_rule(one)
        with pytest.raises(Exists):
            topology.container.add_routing_rule(one)
    assert set(topology.container.routing_rules()) == set(wanted) and topology.host.routing_rules() == ()
    assert [one.source.version for one in topology.container.routing_rules()] == [4, 4, 6]
    with pytest.raises(Missing):
        topology.container.delete_routing_rule(rule("10.1.0.5/32", 100, protocol=3))
    topology.container.delete_routing_rule(rule("10.1.0.5/32", 100, protocol=0))
    topology.container.delete_routing_rule(wanted[2])
    with pytest.raises(Missing):
        topology.container.delete_routing_rule(wanted[2])
    assert topology.container.routing_rules() == (wanted[1],)


@pytest.mark.parametrize("version", [4, 6])
def test_iptables_restores_all_lines_or_none(topology: Topology, version: int) -> None:
    host = topology.host
    host.change_iptables(version, "filter", ["-N WEFT-TEST", "-A WEFT-TEST -j ACCEPT", "-I FORWARD 1 -j WEFT-TEST"])
    lines = host.iptables(version, "filter")
    assert {":WEFT-TEST - [0:0]", "-A WEFT-TEST -j ACCEPT", "-A FORWARD -j WEFT-TEST"} <= set(lines)
    for bad in (
        ["-N WEFT-TEST"],
        ["-A WEFT-TEST -j DROP", "-D WEFT-TEST -j REJECT"],
        ["-X WEFT-TEST"],
        ["-A NONE -j DROP"],
    ):
        with pytest.raises(KernelRefused):
            host.change_iptables(version, "filter", bad)
        assert host.iptables(version, "filter") == lines
    host.change_iptables(version, "filter", ["-D FORWARD -j WEFT-TEST", "-D WEFT-TEST -j ACCEPT", "-X WEFT-TEST"])
    assert not any("WEFT-TEST" in line for line in host.iptables(version, "filter"))
    assert not any("WEFT-TEST" in line for line in topology.container.iptables(version, "filter"))


@pytest.mark.parametrize("version", [4, 6])
def test_chains_for_administrators_and_the_marks_in_them(topology: Topology, version: int) -> None:
    host, (forward, _, received) = topology.host, USER_CHAINS[version]
    assert host.firewalls().user_chains == ()
    mark = "weft:0123456789abcdef"
    rules = [f'-A {forward} {way} blue0 -m comment --comment "{mark}" -j ACCEPT' for way in ("-i", "-o")]
    own = f'-A {OWN_CHAIN} -i lan0 -m comment --comment "{mark}" -j RETURN'
    lines = [f"-N {forward}", *rules, f"-N {received}", f"-A {received} -j RETURN", f"-N {OWN_CHAIN}"]
    lines += [own, f"-A {OWN_CHAIN} -i lan0 -j RETURN", f"-A {OWN_CHAIN} -j ACCEPT"]
    host.change_iptables(version, "filter", lines)
    assert set(host.firewalls().user_chains) == {
        UserChain(version, forward, (mark, mark), drops=False),
        UserChain(version, received, (RETURN,), drops=False),
    }
    assert host.firewalls().own_chains == (UserChain(version, OWN_CHAIN, (mark, "", ""), drops=False),)
    assert lines[1] in host.iptables(version, "filter")
    assert topology.container.firewalls().user_chains == () and not host.firewalls().firewalld
    assert {chain.name for chain in host.base_chains()} >= {"FORWARD"}
    host.change_iptables(
        version, "filter", [f"-{verb} {chain}" for chain in (forward, received, OWN_CHAIN) for verb in "FX"]
    )
    assert host.firewalls().user_chains == host.firewalls().own_chains == ()


def test_a_new_namespace_has_no_listeners_and_no_conntrack_entries(topology: Topology) -> None:
    assert topology.host.listeners("tcp", [80]) == () and topology.host.listeners("sctp", [80]) == ()
    assert topology.host.flows({("udp", 53)}) == ()
    topology.host.delete_flows(())
    assert not topology.host.drops_forwarded(4) and not topology.host.drops_forwarded(6)
