"""Plans of isolation and anti-spoofing: the nftables elements, and that they precede the link."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from cni_plugin.dataplane import frames, guard, limits, packets
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.ops import Elements
from cni_plugin.plan.facts import KernelFacts
from cni_plugin.plan.plan import Context, Plan, compose
from cni_plugin.service import assemble
from cni_plugin.service.planner import attachment_of, own_operations, shared_operations
from discovery.balancer import settings
from lab.calls import Weft
from lab.cases import conf
from weft import identity
from weft.errors import ConfigProblem
from weft.identity import link_local
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.values import Element
from weft.types import Attachment

FOUR = {"address": "10.23.0.9/24", "gateway": "10.23.0.1"}
SIX = {"address": "fd00:23::9/64", "gateway": "fd00:23::1"}
MAC = "02:00:00:00:00:09"
LIMITED4 = (limits.DNS_QUERIES4, limits.NEW_CONNECTIONS4, limits.NEW_NEXTHOPS4, limits.CONNECTIONS_SAMPLED4)
LIMITED6 = (limits.DNS_QUERIES6, limits.NEW_CONNECTIONS6, limits.NEW_NEXTHOPS6, limits.CONNECTIONS_SAMPLED6)


def planned(plugin: str, *addresses: dict[str, str], kernel: FakeKernel | None = None, **keys: Any) -> Plan:
    """The whole plan for the container c1 on the network red."""
    kernel = kernel or FakeKernel()
    container = kernel.add("/c1")
    ipam = {"ipam": {"type": "static", "addresses": list(addresses)}} if addresses else {}
    named = {"bridge": "wbr0", "isGateway": True} if "bridge" in (plugin, keys.get("driver")) else {}
    request = Weft().request(
        "ADD", conf(plugin, "red", {**named, **ipam, "args": {"cni": {"mac": MAC}}, **keys}), "/c1"
    )
    assembly = assemble.read(request)
    request.config.keys.problems.raise_any()
    look = KernelFacts(kernel.host, container)
    context = Context(attachment_of(request), container.id, "host", request.config, assembly.answer, look)
    return compose(context, assembly.parts)


def keys_of(elements: tuple[Element, ...]) -> dict[str, list[tuple[object, ...]]]:
    found: dict[str, list[tuple[object, ...]]] = {}
    for element in elements:
        found.setdefault(element.collection, []).append(element.key)
    return found


def port(plugin: str) -> str:
    return identity.host_link(Attachment("red", "c1", "eth0", plugin))


def test_called_as_a_reference_plugin_only_router_advertisements_are_blocked() -> None:
    plan = planned("bridge", FOUR)
    assert keys_of(plan.guards) == {frames.NO_ROUTER_PORTS: [(port("bridge"),)]}
    assert plan.shared_elements == ()
    assert planned("bridge", FOUR, routerAdvertisements=True).guards == ()
    assert planned("ptp", FOUR).guards == ()


def test_called_as_weft_the_bridge_is_isolated_and_its_port_checked() -> None:
    plan = planned("weft", FOUR, SIX, driver="bridge")
    host, local = port("weft"), link_local(MAC)
    assert keys_of(plan.shared_elements) == {
        packets.CLOSED_LINKS: [("wbr0",)],
        packets.CLOSED_OR_ROUTED_LINKS: [("wbr0",)],
        packets.INTRA_NETWORK_LINKS: [("wbr0", "wbr0")],
        packets.NO_METADATA_LINKS: [("wbr0",)],
        limits.LIMITED_LINKS: [("wbr0",)],
    }
    six = [IPv6Address("fd00:23::9"), local]
    assert keys_of(plan.guards) == {
        frames.NO_ROUTER_PORTS: [(host,)],
        frames.MAC_CHECKED_PORTS: [(host,)],
        frames.PORT_MACS: [(host, MAC)],
        frames.IP_CHECKED_PORTS: [(host,)],
        frames.ND_LINK_ADDRESSES: [(host, 0x020000000009)],
        frames.PORT_MAC_IP4: [(host, MAC, ip_address("10.23.0.9"))],
        frames.PORT_MAC_IP6: [(host, MAC, one) for one in six],
        frames.ND_TARGETS6: [(host, int(one)) for one in six],
        **{name: [("wbr0", ip_address("10.23.0.9"))] for name in LIMITED4},
        **{name: [("wbr0", one) for one in six] for name in LIMITED6},
    }


def test_parts_of_packets_are_hexadecimal_in_commands() -> None:
    """As nft prints them: MAC and IPv6 addresses remain legible."""
    plan = planned("weft", SIX, driver="bridge")
    commands = "\n".join(Elements(plan.guards).commands(""))
    assert f'"{port("weft")}" . 0x20000000009 comment' in commands
    assert f'"{port("weft")}" . {int(ip_address("fd00:23::9")):#x} comment' in commands


def test_a_trunk_port_may_send_tagged_frames() -> None:
    assert frames.TRUNK_PORTS not in keys_of(planned("weft", FOUR, driver="bridge", vlan=5).guards)
    trunk = keys_of(planned("weft", FOUR, driver="bridge", vlanTrunk=[{"id": 7}]).guards)
    assert trunk[frames.TRUNK_PORTS] == [(port("weft"),)]


@pytest.mark.parametrize(
    ("keys", "vids"),
    [({}, [0, 1]), ({"vlan": 5}, [0, 5]), ({"vlan": 5, "preserveDefaultVlan": True}, [0, 5, 1])],
)
def test_a_trunk_port_sends_no_tag_that_the_bridge_removes(keys: dict[str, object], vids: list[int]) -> None:
    trunk = keys_of(planned("weft", FOUR, driver="bridge", vlanTrunk=[{"id": 7}], **keys).guards)
    assert trunk[frames.NATIVE_VLANS] == [(port("weft"), vid) for vid in vids]


def test_with_a_vlan_its_link_is_isolated_instead_of_the_bridge() -> None:
    shared = keys_of(planned("weft", FOUR, driver="bridge", vlan=5).shared_elements)
    assert shared[packets.CLOSED_LINKS] == [("wbr0.5",)]


def test_the_ifb_link_of_bandwidth_is_not_isolated() -> None:
    """bandwidth adds a link of the host to the result."""
    rates = {"ingressRate": 1000, "ingressBurst": 1000, "egressRate": 1000, "egressBurst": 1000}
    plan = planned("weft", FOUR, driver="bridge", bandwidth=rates)
    assert len([one for one in plan.result.interfaces if not one.sandbox]) == 3
    assert keys_of(plan.shared_elements)[packets.CLOSED_LINKS] == [("wbr0",)]
    assert keys_of(plan.guards)[frames.MAC_CHECKED_PORTS] == [(port("weft"),)]


def test_each_ptp_link_is_isolated() -> None:
    plan = planned("weft", FOUR, driver="ptp", internal=True)
    host = port("weft")
    assert plan.shared_elements == ()
    guards = keys_of(plan.guards)
    assert guards[packets.INTRA_NETWORK4] == [(host, ip_network("10.23.0.0/24"))]
    assert guards[packets.LINK_SOURCES4] == [(host, ip_address("10.23.0.9"))]
    closed = {packets.CLOSED_LINKS, packets.INTERNAL_LINKS, packets.DNS_ONLY_LINKS, packets.NO_METADATA_LINKS}
    assert closed | {packets.SOURCE_CHECKED_LINKS} <= set(guards)


@pytest.mark.parametrize("alias", ["", "somebody's"])
def test_a_foreign_bridge_is_isolated_only_on_request(alias: str) -> None:
    kernel = FakeKernel()
    kernel.host.add_link("wbr0", "bridge", mac="02:00:00:00:00:17", alias=alias, up=True)
    assert keys_of(planned("weft", FOUR, driver="bridge", kernel=kernel).shared_elements) == {
        limits.LIMITED_LINKS: [("wbr0",)]
    }
    asked = planned("weft", FOUR, driver="bridge", kernel=kernel, isolation="closed")
    assert packets.CLOSED_LINKS in keys_of(asked.shared_elements)


def limited(plugin: str, **given: Any) -> dict[str, tuple[int, ...]]:
    guards = planned(plugin, FOUR, driver="bridge", **given).guards
    return {element.collection: element.limit for element in guards if element.limit}


def test_limits_have_defaults_for_weft_s_own_networks_and_zero_removes_one() -> None:
    usual = {
        limits.DNS_QUERIES4: (1000, 2000),
        limits.NEW_CONNECTIONS4: (50000, 50000),
        limits.NEW_NEXTHOPS4: (50, 256),
        limits.CONNECTIONS_SAMPLED4: (1024,),
    }
    assert limited("weft") == usual
    assert limited("bridge") == {}
    given = {"dnsQueries": 5, "newConnections": 0, "connections": 100}
    assert limited("bridge", limits=given) == {limits.DNS_QUERIES4: (5, 10), limits.CONNECTIONS4: (100,)}
    assert limited("weft", limits={**given, "newNeighbours": 300}) == {
        limits.DNS_QUERIES4: (5, 10),
        limits.CONNECTIONS4: (100,),
        limits.NEW_NEXTHOPS4: (300, 300),
    }
    kernel = FakeKernel()
    kernel.host.set_sysctl("net/netfilter/nf_conntrack_max", "8000")
    guards = planned("weft", FOUR, driver="bridge", kernel=kernel).guards
    assert next(one.limit for one in guards if one.collection == limits.CONNECTIONS4) == (2000,)
    none = dict.fromkeys(("dnsQueries", "newConnections", "connections", "newNeighbours"), 0)
    assert limited("weft", limits=none) == {}
    for wrong in (-1, "many", True):
        with pytest.raises(ConfigProblem, match=r"limits\.dnsQueries"):
            planned("weft", FOUR, driver="bridge", limits={"dnsQueries": wrong})


def test_elements_precede_the_link_and_require_the_base_rules() -> None:
    plan = planned("bridge", FOUR)
    assert [type(one).__name__ for one in own_operations(plan)][:2] == ["Elements", "Veth"]
    assert "BaseRules" in [type(one).__name__ for one in shared_operations(plan)]


def test_the_link_local_address_is_the_one_that_the_kernel_derives() -> None:
    assert link_local("52:74:f2:b1:a8:7f") == IPv6Address("fe80::5074:f2ff:feb1:a87f")


def test_metadata_services_are_the_same_in_all_tables_and_for_services() -> None:
    """Packets are closed by the rules and by those that survive a flush, and no service may have their addresses."""
    for owner in guard.Owner:
        [kept] = (one for one in guard.TABLES[owner].chains if one.name == "block_metadata")
        [usual] = (one for each in TABLES.tables for one in each.chains if one.name == "block_metadata")
        found = [
            {text for rule in chain.rules for text in _ADDRESSES.findall(rule.text)} - {"169.254.0.0"}
            for chain in (kept, usual)
        ]
        refused = {str(one.network_address) for one in settings._METADATA}
        assert found == [refused, refused]
        assert len(refused) >= 5


_ADDRESSES = re.compile(r"\d+\.\d+\.\d+\.\d+|[0-9a-f]+:[0-9a-f:]+")
