"""The plan of each driver and feature, compared as a list of operations.

Nothing is applied or mocked.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.ops import (
    Bridge,
    Forwarding6,
    Gateways,
    LinkAddress,
    LinkRoute,
    Port,
    Promiscuous,
    Reachable,
    Setting,
    Up,
    Veth,
    links,
)
from cni_plugin.ops.operation import Operation
from cni_plugin.plan.facts import KernelFacts
from cni_plugin.plan.plan import Context, Plan
from cni_plugin.service import assemble
from cni_plugin.service.planner import attachment_of
from lab.calls import Weft
from lab.cases import Conf, conf
from weft import identity
from weft.errors import ConfigProblem, NamespaceProblem
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.values import Element, KernelRoute
from weft.types import Attachment, Result, Route, Side

HOST, INSIDE = Side.HOST, Side.CONTAINER
FOUR: Conf = {"address": "10.23.0.9/24", "gateway": "10.23.0.1"}
SIX: Conf = {"address": "fd00:23::9/64", "gateway": "fd00:23::1"}
BRIDGE_MAC = identity.mac("host", "bridge", "wbr0")
VETH = identity.host_link(Attachment("red", "c1", "eth0", "bridge"))


def planned(plugin: str, *addresses: Conf, kernel: FakeKernel | None = None, part: int = 0, **keys: Any) -> Plan:
    """The plan of one part (0: the driver) alone, for the container c1 on the network red."""
    kernel = kernel or FakeKernel()
    container = kernel.add("/c1")
    ipam = {"ipam": {"type": "static", "addresses": list(addresses), **keys.pop("ipam", {})}} if addresses else {}
    request = Weft().request("ADD", conf(plugin, "red", {**ipam, **keys}), "/c1")
    assembly = assemble.read(request)
    request.config.keys.problems.raise_any()
    result = request.config.previous if not assembly.driver and request.config.previous else assembly.answer
    look = KernelFacts(kernel.host, container)
    context = Context(attachment_of(request), container.id, "host", request.config, result, look)
    plan = assembly.parts[0].plan(context)
    for each in assembly.parts[1 : part + 1]:
        plan = each.plan(replace(context, result=plan.result))
    return plan


def at(plan: Plan, *kinds: type[Operation]) -> list[Operation]:
    """The attachment's operations of these classes, in order."""
    return [operation for operation in plan.operations if isinstance(operation, kinds)]


def of(plan: Plan, collection: str) -> list[tuple[object, ...]]:
    """Keys and data of the attachment's elements in a set or map."""
    return [(*one.key, *one.data) for one in (*plan.guards, *plan.elements) if one.collection == collection]


def route(side: Side, link: str, to: str, via: str = "", source: str = "", scope: int | None = None) -> LinkRoute:
    gateway = ip_address(via) if via else None
    there = Route(ip_network(to), gateway, scope=scope)
    return LinkRoute(
        side, KernelRoute(there, link, ip_address(source) if source else None, protocol=identity.ROUTE_PROTOCOL)
    )


def bridge(*addresses: Conf, **keys: Any) -> Plan:
    return planned("bridge", *addresses, bridge="wbr0", **keys)


# bridge


def test_bridge_on_layer_2() -> None:
    plan = bridge()
    assert [type(one) for one in plan.shared] == [Bridge, Setting, Setting]
    assert plan.shared[0] == Bridge("wbr0", plan.shared[0].alias, BRIDGE_MAC, 1500)  # type: ignore[attr-defined]
    assert identity.mark_digest(plan.shared[0].alias)  # type: ignore[attr-defined]
    assert at(plan, Up, LinkAddress, LinkRoute) == [Up(INSIDE, "eth0")]
    assert [one.name for one in plan.result.interfaces] == ["wbr0", VETH, "eth0"]
    assert plan.result.ips == ()
    assert plan.shared_elements == ()


def test_bridge_creates_the_veth_pair_first_with_names_and_macs_given() -> None:
    (pair,) = at(bridge(FOUR), Veth)
    assert isinstance(pair, Veth)
    assert (pair.host, pair.container, pair.bridge, pair.mtu) == (VETH, "eth0", "wbr0", 1500)
    assert pair.mac == identity.mac("host", "container", "red", "c1", "eth0")
    assert pair.host_mac == identity.mac("host", "host", "red", "c1", "eth0")


def test_a_container_is_reachable_once_the_rules_let_its_announcement_pass() -> None:
    assert bridge(FOUR).after == (Reachable("eth0", VETH, "wbr0"),)
    assert bridge(disableContainerInterface=True).after == ()
    assert [type(one) for one in planned("ptp", FOUR).after] == [Reachable]


def test_a_port_that_is_not_in_operation_delays_an_add_and_does_not_fail_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(links, "_LONGEST_WAIT", 0.0)
    kernel = FakeKernel()
    kernel.add("/c1")
    monkeypatch.setattr(type(kernel.host), "is_operational", lambda *_: False)
    weft = Weft(kernel, Host(str(tmp_path), "boot", 0.0))
    weft.add(conf("bridge", "red", {"bridge": "wbr0"}), "/c1")
    assert kernel.calls.count("announce") == 1
    assert f"{VETH} on wbr0 is not in operation after" in capfd.readouterr().err


def test_a_link_that_processes_of_the_container_rename_fails_no_add(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its addresses cannot be announced then."""
    kernel = FakeKernel()
    container = kernel.add("/c1")

    def rename(*_: object) -> bool:
        container.change_link("eth0", new_name="other0")
        return True

    monkeypatch.setattr(type(kernel.host), "is_operational", rename)
    Weft(kernel, Host(str(tmp_path), "boot", 0.0)).add(conf("bridge", "red", {"bridge": "wbr0"}), "/c1")
    assert container.link("other0") is not None
    assert "the addresses of eth0 are not announced: " in capfd.readouterr().err


@pytest.mark.parametrize("change", [{"up": False}, {"new_name": "other0"}], ids=str)
def test_a_link_that_processes_of_the_container_set_down_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(links, "_LONGEST_WAIT", 3600.0)
    kernel = FakeKernel()
    container = kernel.add("/c1")
    looks = []

    def look(*_: object) -> bool:
        looks.append(1)
        assert len(looks) <= 2, "it is waited for"
        if len(looks) == 2:  # also while it is waited for
            container.change_link("eth0", **change)
        return False

    monkeypatch.setattr(type(kernel.host), "is_operational", look)
    Weft(kernel, Host(str(tmp_path), "boot", 0.0)).add(conf("bridge", "red", {"bridge": "wbr0"}), "/c1")
    assert len(looks) == 2


def test_bridge_with_an_address_but_no_gateway() -> None:
    plan = bridge(FOUR)
    assert at(plan, LinkAddress, Up, LinkRoute) == [
        LinkAddress(INSIDE, "eth0", ip_interface("10.23.0.9/24")),
        Up(INSIDE, "eth0"),
    ]
    assert not [one for one in plan.shared if isinstance(one, Gateways)]
    assert not [one for one in plan.shared if isinstance(one, Setting) and "forward" in one.key]


def test_bridge_with_a_gateway() -> None:
    (gateways,) = [one for one in bridge(FOUR, isGateway=True).shared if isinstance(one, Gateways)]
    assert (gateways.link, gateways.addresses) == ("wbr0", (ip_interface("10.23.0.1/24"),))
    assert Setting(HOST, "net/ipv4/ip_forward", "1") in bridge(FOUR, isGateway=True).shared


def test_bridge_derives_a_gateway_that_ipam_does_not_give() -> None:
    plan = bridge({"address": "10.23.0.9/24"}, isGateway=True)
    assert plan.result.ips[0].gateway == ip_address("10.23.0.1")


def test_bridge_with_a_default_gateway_in_two_families() -> None:
    plan = bridge(FOUR, SIX, isDefaultGateway=True)
    assert at(plan, LinkAddress, LinkRoute) == [
        LinkAddress(INSIDE, "eth0", ip_interface("10.23.0.9/24")),
        LinkAddress(INSIDE, "eth0", ip_interface("fd00:23::9/64")),
        route(INSIDE, "eth0", "0.0.0.0/0", "10.23.0.1"),
        route(INSIDE, "eth0", "::/0", "fd00:23::1"),
    ]
    forwarding = [one for one in plan.shared if isinstance(one, Forwarding6 | Setting) and not one.on_link]
    assert forwarding == [Setting(HOST, "net/ipv4/ip_forward", "1"), Forwarding6()]
    assert [one.interface for one in plan.result.ips] == [2, 2]


def test_bridge_keeps_the_default_route_that_ipam_gives() -> None:
    plan = bridge(FOUR, isDefaultGateway=True, ipam={"routes": [{"dst": "0.0.0.0/0", "gw": "10.23.0.77"}]})
    assert at(plan, LinkRoute) == [route(INSIDE, "eth0", "0.0.0.0/0", "10.23.0.77")]


def test_bridge_ports() -> None:
    assert at(bridge(FOUR), Port) == [Port(VETH, reserved=True)]
    assert at(bridge(FOUR, hairpinMode=True), Port) == [Port(VETH, hairpin=True, reserved=True)]
    assert at(bridge(FOUR, portIsolation=True), Port) == [Port(VETH, isolated=True, reserved=True)]
    assert at(bridge(FOUR, portIsolation=True, hairpinMode=True), Port) == [Port(VETH, True, True, True)]


def test_bridge_promiscuous() -> None:
    assert Promiscuous("wbr0") in bridge(FOUR, promiscMode=True).shared
    assert Promiscuous("wbr0") not in bridge(FOUR).shared


def test_bridge_with_its_link_left_down() -> None:
    assert at(bridge(disableContainerInterface=True), Up, LinkAddress) == []


def test_an_existing_bridge_is_not_created() -> None:
    kernel = FakeKernel()
    kernel.host.add_link("wbr0", "bridge", mac="02:00:00:00:00:77")
    plan = bridge(FOUR, kernel=kernel)
    assert plan.shared[0].creates == ()
    assert plan.result.interfaces[0].mac == "02:00:00:00:00:77"


def test_a_half_created_bridge_of_a_killed_call_is_completed() -> None:
    kernel = FakeKernel()
    kernel.host.add_link("wbr0", "bridge", mac=BRIDGE_MAC)
    assert bridge(FOUR, kernel=kernel).shared[0] == bridge(FOUR).shared[0]


@pytest.mark.parametrize("asked", [{"runtimeConfig": {"mac": "02:00:00:00:00:05"}},
                                   {"args": {"cni": {"mac": "0200.0000.0005"}}}])  # fmt: skip
def test_bridge_with_a_requested_mac_address(asked: Conf) -> None:
    (pair,) = at(bridge(FOUR, **asked), Veth)
    assert isinstance(pair, Veth)
    assert pair.mac == "02:00:00:00:00:05"


def test_bridge_needs_an_address_from_ipam() -> None:
    with pytest.raises(ConfigProblem, match="IP"):
        planned("bridge", bridge="wbr0", ipam={"type": "static"})


# ptp and loopback


def test_ptp() -> None:
    plan = planned("ptp", FOUR, mtu=1400)
    link = at(plan, Veth)[0].creates[0][1]
    assert at(plan, LinkAddress, LinkRoute, Up) == [
        LinkAddress(HOST, link, ip_interface("10.23.0.1/32")),
        route(HOST, link, "10.23.0.9/32", scope=253),
        LinkAddress(INSIDE, "eth0", ip_interface("10.23.0.9/24"), prefix_route=False),
        Up(INSIDE, "eth0"),
        route(INSIDE, "eth0", "10.23.0.1/32", source="10.23.0.9", scope=253),
        route(INSIDE, "eth0", "10.23.0.0/24", "10.23.0.1", source="10.23.0.9"),
    ]
    assert Setting(HOST, "net/ipv4/ip_forward", "1") in plan.shared
    assert [one.mtu for one in plan.result.interfaces] == [1400, 1400]


def test_ptp_in_two_families() -> None:
    plan = planned("ptp", FOUR, SIX, ipam={"routes": [{"dst": "::/0"}]})
    assert at(plan, LinkRoute)[-1] == route(INSIDE, "eth0", "::/0", "fd00:23::1")
    hosts = [one for one in at(plan, LinkAddress) if isinstance(one, LinkAddress) and one.side is HOST]
    assert [str(one.address) for one in hosts if isinstance(one, LinkAddress)] == ["10.23.0.1/32", "fd00:23::1/128"]


def test_ptp_needs_a_gateway() -> None:
    with pytest.raises(ConfigProblem, match="gateway"):
        planned("ptp", {"address": "10.23.0.9/24"})


@pytest.mark.parametrize("up", (True, False))
def test_loopback_records_whether_lo_was_up(up: bool) -> None:
    kernel = FakeKernel()
    space = kernel.add("/c1")
    if up:
        space.change_link("lo", up=True)
    request = Weft().request("ADD", conf("loopback", "red", {}), "/c1")
    look = KernelFacts(kernel.host, space)
    context = Context(attachment_of(request), space.id, "host", request.config, Result(), look)
    plan = assemble.read(request).parts[0].plan(context)
    assert plan.operations == (Up(INSIDE, "lo", was=up),)
    assert str(plan.result.ips[0].address) == "127.0.0.1/8"


def test_loopback_refuses_the_hosts_own_namespace() -> None:
    kernel = FakeKernel()
    space = kernel.add("/c1")
    space.add_address("lo", ip_interface("192.0.2.7/32"))
    request = Weft().request("ADD", conf("loopback", "red", {}), "/c1")
    facts = KernelFacts(kernel.host, space)
    context = Context(attachment_of(request), space.id, "host", request.config, Result(), facts)
    with pytest.raises(NamespaceProblem, match=r"192\.0\.2\.7"):
        assemble.read(request).parts[0].plan(context)


# portmap, after another plugin

PREVIOUS: Conf = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "wbr0"}, {"name": "vethx"}, {"name": "eth0", "sandbox": "/c1"}],
    "ips": [{"address": "10.23.0.9/24", "interface": 2}, {"address": "fd00:23::9/64", "interface": 2}],
}
TCP: Conf = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}


def portmap(*mappings: Conf, previous: Conf = PREVIOUS, **keys: Any) -> Plan:
    return planned("portmap", prevResult=previous, runtimeConfig={"portMappings": list(mappings)}, **keys)


def test_portmap_without_ports_plans_nothing() -> None:
    assert portmap().operations == portmap().elements == ()


def test_portmap_on_all_addresses() -> None:
    plan = portmap(TCP)
    assert of(plan, "ports4") == [("tcp", 8080, ip_address("10.23.0.9"), 80)]
    assert of(plan, "ports6") == [("tcp", 8080, ip_address("fd00:23::9"), 80)]
    assert of(plan, "ports4_at") == of(plan, "ports6_at") == []
    assert of(plan, "loopback_ports4") == of(plan, "loopback_ports6") == [("tcp", 8080)]
    assert of(plan, "hairpin4") == [("wbr0", ip_address("10.23.0.9"))]
    assert at(plan, Setting) == []


@pytest.mark.parametrize(("host", "four", "six"), [("0.0.0.0", 1, 0), ("::", 0, 1), ("", 1, 1)])
def test_portmap_on_one_family(host: str, four: int, six: int) -> None:
    plan = portmap({**TCP, "hostIP": host})
    assert (len(of(plan, "ports4")), len(of(plan, "ports6"))) == (four, six)


@pytest.mark.parametrize(("host", "family"), [("0.0.0.0", 6), ("::", 4)])
def test_portmap_on_a_family_that_the_container_lacks(host: str, family: int) -> None:
    """nerdctl passes 0.0.0.0 where its user gave no address. Another mapping of the port takes precedence."""
    only = {**PREVIOUS, "ips": [one for one in PREVIOUS["ips"] if (":" in one["address"]) == (family == 6)]}
    target = ip_address("10.23.0.9" if family == 4 else "fd00:23::9")
    assert of(portmap({**TCP, "hostIP": host}, previous=only), f"ports{family}") == [("tcp", 8080, target, 80)]
    both = ({**TCP, "hostIP": "0.0.0.0"}, {**TCP, "hostIP": "::"})
    assert of(portmap(*both, previous=only), f"ports{family}") == [("tcp", 8080, target, 80)]
    own = {**TCP, "containerPort": 81, "hostIP": "0.0.0.0" if family == 4 else "::"}
    plan = portmap({**TCP, "hostIP": host}, own, previous=only)
    assert of(plan, f"ports{family}") == [("tcp", 8080, target, 81)]
    assert of(plan, f"ports{10 - family}") == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_portmap_at_127_0_0_1(host: str) -> None:
    plan = portmap({**TCP, "hostIP": host})
    address = ip_address(host)
    assert of(plan, f"loopback_ports{address.version}_at") == [(address, "tcp", 8080)]
    assert of(plan, "loopback_ports4") == of(plan, "loopback_ports6") == []


def test_portmap_without_a_link_on_the_host() -> None:
    """The host cannot reach a macvlan container, so no port is published at 127.0.0.1."""
    plan = portmap(TCP, previous={**PREVIOUS, "interfaces": [{"name": "eth0", "sandbox": "/c1"}], "ips": [
        {"address": "10.23.0.9/24", "interface": 0}]})  # fmt: skip
    assert of(plan, "ports4") and of(plan, "loopback_ports4") == of(plan, "hairpin4") == []


def test_portmap_behind_one_vlan_of_a_bridge() -> None:
    """The link with the gateway's address, not the bridge, is the one that packets pass."""
    interfaces = [*PREVIOUS["interfaces"], {"name": "wbr0.5"}]
    plan = portmap(TCP, previous={**PREVIOUS, "interfaces": interfaces})
    assert [link for link, _ in of(plan, "hairpin4")] == ["wbr0", "wbr0.5"]


def test_portmap_with_a_host_ip() -> None:
    plan = portmap({**TCP, "hostIP": "192.0.2.1", "protocol": "udp"})
    assert of(plan, "ports4_at") == [(ip_address("192.0.2.1"), "udp", 8080, ip_address("10.23.0.9"), 80)]
    assert of(plan, "ports4") == of(plan, "ports6") == []


def test_portmap_without_source_translation() -> None:
    plan = portmap(TCP, snat=False)
    assert not [one for one in plan.elements if one.collection.startswith(("loopback", "hairpin", "self"))]
    assert at(plan, Setting) == []


def test_portmap_masquerading_all() -> None:
    assert of(portmap(TCP, masqAll=True), "masquerade_all4") == [(ip_address("10.23.0.9"),)]
    assert of(portmap(TCP), "masquerade_all4") == []


def test_portmap_elements_have_the_mark_of_the_attachment() -> None:
    mark = identity.attachment_mark(Attachment("red", "c1", "eth0", "portmap"))
    assert {one.mark for one in portmap(TCP).elements} == {mark}


@pytest.mark.parametrize(
    ("mappings", "word"),
    [
        ([{**TCP, "hostIP": "fd00::1"}], "IPv6"),
        ([{**TCP, "hostIP": "fe80::1"}], "forwards no packets of link-local clients: use another address"),
        ([{**TCP, "hostIP": "fe80::1%eth0"}], 'hostIP "fe80::1%eth0" is link-local'),
        ([TCP, {**TCP, "containerPort": 81}], "twice"),
        ([{"hostPort": 1}], "protocol"),
    ],
)
def test_invalid_port_mappings_are_refused(mappings: list[Conf], word: str) -> None:
    only4 = {**PREVIOUS, "ips": PREVIOUS["ips"][:1]}
    with pytest.raises(ConfigProblem, match=word):
        portmap(*mappings, previous=only4)


# masquerade


def test_masquerade() -> None:
    plan = planned("bridge", FOUR, SIX, bridge="wbr0", ipMasq=True, part=1)
    assert of(plan, "masquerade4") == [(ip_address("10.23.0.9"),)]
    assert of(plan, "masquerade6") == [(ip_address("fd00:23::9"),)]
    # Until the link is gone: its last packets must not leave with the container's address.
    assert {one.collection for one in plan.guards} == {"masquerade4", "masquerade6"} and not plan.elements
    local = [one for one in (*plan.shared_elements, *plan.elements) if one.collection == "masquerade_exempt4"]
    assert [one.key[-1] for one in local] == [ip_network("10.23.0.0/24")]


def test_masquerade_only_if_configured() -> None:
    request = Weft().request("ADD", conf("bridge", "red", {"ipMasq": False}), "/c1")
    assert not [one for one in assemble.read(request).parts if type(one).__name__ == "Masquerade"]


def test_equal_elements_are_equal_values() -> None:
    """Plans are compared, so equal plans must be equal values."""
    assert bridge(FOUR, isDefaultGateway=True) == bridge(FOUR, isDefaultGateway=True)
    assert portmap(TCP) == portmap(TCP)
    assert Element("a", (1,)) != Element("a", (2,))
