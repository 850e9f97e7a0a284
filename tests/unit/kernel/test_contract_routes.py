"""Addresses and routes: here on the fake kernel, in tests/netns/kernel on Linux."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from unit.kernel.test_contract_links import eventually, veth
from unit.kernel.topology import Topology

from weft.errors import Exists, KernelLacks, KernelRefused, Missing
from weft.kernel.canonical import canonical
from weft.kernel.interface import VethPeer
from weft.kernel.route_lookup import RouteQuestion, RouteType
from weft.kernel.snapshot import snapshot
from weft.kernel.values import KernelRoute
from weft.types import Route

FOUR, SIX = ip_interface("10.1.0.5/24"), ip_interface("fd00:1::5/64")
DEFAULT = KernelRoute(Route(ip_network("0.0.0.0/0"), ip_address("10.1.0.1")), "eth0", protocol=119)
DEFAULT6 = KernelRoute(Route(ip_network("::/0"), ip_address("fd00:1::1")), "eth0", protocol=119)


def fit(topology: Topology) -> None:
    """Bring eth0 of the container up, with an address of each family, without DAD."""
    veth(topology, up=False)
    topology.container.set_sysctl("net/ipv6/conf/eth0/accept_dad", "0")
    topology.host.change_link("veth0", up=True)
    topology.container.change_link("eth0", up=True)
    topology.container.add_address("eth0", FOUR)
    topology.container.add_address("eth0", SIX)


def test_addresses_read_back_as_added(topology: Topology) -> None:
    fit(topology)
    assert [cidr for cidr in topology.container.addresses("eth0") if not cidr.is_link_local] == [FOUR, SIX]
    # Even without DAD the kernel clears IFA_F_TENTATIVE in a work queue, a moment later.
    assert eventually(lambda: topology.container.tentative("eth0") == (False, False))
    for address in (FOUR, SIX):
        with pytest.raises(Exists, match=str(address)):
            topology.container.add_address("eth0", address)
        topology.container.delete_address("eth0", address)
        with pytest.raises(Missing, match=str(address)):
            topology.container.delete_address("eth0", address)
    assert [cidr for cidr in topology.container.addresses("eth0") if not cidr.is_link_local] == []
    with pytest.raises(Missing, match="nope"):
        topology.container.add_address("nope", FOUR)
    with pytest.raises(Missing, match="nope"):
        topology.container.delete_address("nope", FOUR)


def test_a_link_with_a_carrier_gets_its_link_local_address(topology: Topology) -> None:
    veth(topology, up=False)
    topology.container.change_link("eth0", up=True)
    assert topology.container.addresses("eth0") == ()
    topology.host.change_link("veth0", up=True)
    assert eventually(lambda: ip_interface("fe80::ff:fe00:3/64") in topology.container.addresses("eth0"))


def test_disable_ipv6_removes_and_refuses_ipv6_addresses(topology: Topology) -> None:
    fit(topology)
    topology.container.set_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
    assert topology.container.addresses("eth0") == (FOUR,)
    with pytest.raises(KernelRefused, match="fd00:1::5/64"):
        topology.container.add_address("eth0", SIX)


def test_the_loopback_gets_its_addresses_when_it_comes_up(topology: Topology) -> None:
    topology.container.change_link("lo", up=True)
    assert topology.container.addresses("lo") == (ip_interface("127.0.0.1/8"), ip_interface("::1/128"))
    assert topology.container.routes(family=4) == ()
    topology.container.change_link("lo", up=False)
    assert topology.container.addresses("lo") == (ip_interface("127.0.0.1/8"),)


def test_the_route_of_a_subnet_is_added_and_removed_with_the_address(topology: Topology) -> None:
    fit(topology)
    four = KernelRoute(Route(FOUR.network), "eth0", source=FOUR.ip, protocol=2)
    six = KernelRoute(Route(SIX.network, priority=256), "eth0", protocol=2)
    assert topology.container.routes(family=4) == (four,)
    assert six in topology.container.routes(link="eth0", family=6)
    topology.container.delete_address("eth0", FOUR)
    topology.container.delete_address("eth0", SIX)
    assert topology.container.routes(family=4) == () and six not in topology.container.routes()


def test_an_address_without_its_subnet_s_route(topology: Topology) -> None:
    veth(topology)
    topology.container.add_address("eth0", FOUR, prefix_route=False)
    topology.container.add_address("eth0", SIX, prefix_route=False)
    assert not any(route.route.destination in (FOUR.network, SIX.network) for route in topology.container.routes())
    assert FOUR in topology.container.addresses("eth0") and SIX in topology.container.addresses("eth0")


def test_removing_the_primary_ipv4_address_removes_the_secondary_ones(topology: Topology) -> None:
    fit(topology)
    second, elsewhere = ip_interface("10.1.0.6/24"), ip_interface("10.2.0.6/24")
    topology.container.add_address("eth0", second)
    topology.container.add_address("eth0", elsewhere)
    topology.container.delete_address("eth0", FOUR)
    assert [cidr for cidr in topology.container.addresses("eth0") if cidr.version == 4] == [elsewhere]


def way(destination: str, gateway: str = "", *, protocol: int = 119, onlink: bool = False, **rest: int) -> KernelRoute:
    through = ip_address(gateway) if gateway else None
    return KernelRoute(Route(ip_network(destination), through, **rest), "eth0", protocol=protocol, onlink=onlink)


@pytest.mark.parametrize(
    "route",
    [
        DEFAULT,
        DEFAULT6,
        way("10.9.0.0/16", "10.1.0.1", mtu=1300, advmss=1200),
        way("fd00:9::/48", "fd00:1::1", mtu=1300, advmss=1200, protocol=4),
        way("10.9.0.0/16", "10.1.0.1", priority=50, table=5000),
        way("fd00:9::/48", "fd00:1::1", priority=50, table=7),
        replace(way("10.1.0.1/32", scope=253), source=FOUR.ip),
        way("10.1.0.1/32", scope=254),
        way("10.9.0.0/16", table=254, priority=0, scope=0, protocol=0),
        replace(way("fd00:9::/48", scope=253, priority=1024, protocol=0), source=SIX.ip),
        way("10.9.0.0/16", "192.0.2.1", onlink=True),
        way("10.9.0.0/16", "fd00:1::1"),
    ],
    ids=lambda route: f"{route.route.destination}-{route.route.gateway}-{route.route.table}-{route.route.scope}",
)
def test_a_route_is_added_once_and_deleted(topology: Topology, route: KernelRoute) -> None:
    fit(topology)
    before = snapshot(topology.container)
    topology.container.add_route(route)
    table = route.route.table or 254
    assert canonical(route) in topology.container.routes()
    assert canonical(route) in topology.container.routes(
        link="eth0", family=route.route.destination.version, table=table
    )
    assert canonical(route) not in topology.container.routes(family=10 - route.route.destination.version)
    assert canonical(route) not in topology.container.routes(table=4000)
    with pytest.raises(Exists, match=str(route.route.destination)):
        topology.container.add_route(route)
    topology.container.delete_route(route)
    assert snapshot(topology.container) == before
    with pytest.raises(Missing, match=str(route.route.destination)):
        topology.container.delete_route(route)


@pytest.mark.parametrize(("one", "gateway"), [(DEFAULT, "10.1.0.2"), (DEFAULT6, "fd00:1::2")])
def test_a_second_route_to_the_same_destination_is_kept_beside_the_first(
    topology: Topology, one: KernelRoute, gateway: str
) -> None:
    fit(topology)
    two = replace(one, route=replace(one.route, gateway=ip_address(gateway)))
    topology.container.add_route(one)
    topology.container.add_route(two)
    family = one.route.destination.version
    assert [route for route in topology.container.routes(family=family) if route.route.gateway] == [one, two]
    topology.container.delete_route(one)
    assert [route for route in topology.container.routes(family=family) if route.route.gateway] == [two]


@pytest.mark.parametrize(("one", "gateway"), [(DEFAULT, "10.1.0.2"), (DEFAULT6, "fd00:1::2")])
def test_replacing_leaves_one_route(topology: Topology, one: KernelRoute, gateway: str) -> None:
    fit(topology)
    two = replace(one, route=replace(one.route, gateway=ip_address(gateway)))
    topology.container.add_route(one)
    topology.container.add_route(two, replace=True)
    topology.container.add_route(two, replace=True)
    family = one.route.destination.version
    assert [route for route in topology.container.routes(family=family) if route.route.gateway] == [two]


def test_a_route_needs_a_reachable_gateway(topology: Topology) -> None:
    fit(topology)
    before = snapshot(topology.container)
    far = replace(DEFAULT, route=replace(DEFAULT.route, gateway=ip_address("192.0.2.1")))
    with pytest.raises(KernelRefused, match=r"0.0.0.0/0 via 192.0.2.1 dev eth0"):
        topology.container.add_route(far)
    with pytest.raises(KernelRefused):
        topology.container.add_route(replace(DEFAULT, source=ip_address("10.1.0.77")))
    with pytest.raises(Missing, match="nope"):
        topology.container.add_route(replace(DEFAULT, link="nope"))
    topology.container.change_link("eth0", up=False)
    with pytest.raises(KernelRefused):
        topology.container.add_route(DEFAULT)
    topology.container.change_link("eth0", up=True)
    topology.container.add_address("eth0", SIX)
    assert snapshot(topology.container) == before


@pytest.mark.parametrize(
    ("destination", "found"),
    [
        ("10.1.0.5", (RouteType.LOCAL, "lo", None, None)),
        ("10.1.0.9", (RouteType.UNICAST, "eth0", None, "10.1.0.5")),
        ("192.0.2.1", (RouteType.UNICAST, "eth0", "10.1.0.1", "10.1.0.5")),
        ("fd00:1::9", (RouteType.UNICAST, "eth0", None, "fd00:1::5")),
        ("2001:db8::1", (RouteType.UNICAST, "eth0", "fd00:1::1", "fd00:1::5")),
    ],
)
def test_the_route_of_one_packet(
    topology: Topology, destination: str, found: tuple[RouteType, str, str | None, str | None]
) -> None:
    fit(topology)
    assert topology.container.find_route(RouteQuestion(ip_address("192.0.2.1"))).type is RouteType.NONE
    topology.container.add_route(DEFAULT)
    topology.container.add_route(DEFAULT6)
    route = topology.container.find_route(RouteQuestion(ip_address(destination)))
    kind, link, gateway, source = found
    assert (route.type, route.link, route.gateway and str(route.gateway)) == (kind, link, gateway)
    assert source is None or str(route.source) == source


def test_a_route_without_a_link_uses_that_of_its_gateway(topology: Topology) -> None:
    fit(topology)
    topology.container.add_route(replace(DEFAULT, link=""))
    assert DEFAULT in topology.container.routes()


def test_a_link_set_down_loses_its_routes_and_its_ipv6_addresses(topology: Topology) -> None:
    fit(topology)
    topology.container.add_route(DEFAULT)
    topology.container.add_route(DEFAULT6)
    topology.container.change_link("eth0", up=False)
    assert topology.container.routes(link="eth0") == ()
    assert topology.container.addresses("eth0") == (FOUR,)
    topology.container.change_link("eth0", up=True)
    assert topology.container.routes(family=4) == (
        KernelRoute(Route(FOUR.network), "eth0", source=FOUR.ip, protocol=2),
    )


def test_keep_addr_on_down_keeps_ipv6_addresses(topology: Topology) -> None:
    fit(topology)
    topology.container.set_sysctl("net/ipv6/conf/eth0/keep_addr_on_down", "1")
    topology.container.change_link("eth0", up=False)
    assert SIX in topology.container.addresses("eth0")


def test_deleting_the_link_removes_its_addresses_and_routes(topology: Topology) -> None:
    before = snapshot(topology.container)
    fit(topology)
    topology.container.add_route(DEFAULT)
    assert snapshot(topology.container) != before
    topology.host.delete_link("veth0")
    assert snapshot(topology.container) == before and topology.container.routes() == ()
    with pytest.raises(Missing):
        topology.container.delete_route(DEFAULT)


def test_removing_an_address_removes_the_routes_that_need_it(topology: Topology) -> None:
    fit(topology)
    topology.container.add_address("eth0", ip_interface("10.2.0.5/24"))
    needing = KernelRoute(Route(ip_network("10.9.0.0/16")), "eth0", source=FOUR.ip, protocol=119)
    topology.container.add_route(needing)
    topology.container.delete_address("eth0", FOUR)
    assert needing not in topology.container.routes()


def test_a_vrf_takes_ipv6_addresses_and_leaves_next_hops(topology: Topology) -> None:
    """Entering a VRF sets a link down and up: IPv6 addresses and routes go, but not its next hop of an IPv6 route
    that another link has, too.
    """
    inside = topology.container
    try:
        inside.add_link("red", "vrf", up=True, options={"vrf_table": 1001})
    except KernelLacks as error:
        pytest.skip(str(error))
    for number in (1, 2):
        peer = VethPeer(f"eth{number}", up=True, namespace=inside)
        topology.host.add_link(f"veth{number}", "veth", up=True, peer=peer)
        inside.set_sysctl(f"net/ipv6/conf/eth{number}/accept_dad", "0")
        inside.add_address(f"eth{number}", ip_interface(f"10.{number}.0.2/24"))
        inside.add_address(f"eth{number}", ip_interface(f"fd0{number}::2/64"))
        for destination, gateway in (("0.0.0.0/0", f"10.{number}.0.1"), ("::/0", f"fd0{number}::1")):
            route = Route(ip_network(destination), ip_address(gateway))
            inside.add_route(KernelRoute(route, f"eth{number}", protocol=119))
    inside.change_link("eth1", master="red")
    assert [str(one) for one in inside.addresses("eth1") if not one.is_link_local] == ["10.1.0.2/24"]
    assert [str(one.route.destination) for one in inside.routes(link="eth1", table=1001, family=4)] == ["10.1.0.0/24"]
    there = [(str(one.route.destination), one.link) for one in inside.routes(table=254, family=6) if one.route.gateway]
    assert sorted(there) == [("::/0", "eth1"), ("::/0", "eth2")]
    assert [one.link for one in inside.routes(table=254, family=4) if one.route.gateway] == ["eth2"]
    inside.delete_link("red")
    link = inside.link("eth1")
    assert link is not None and (link.master, link.up) == ("", True)
    assert [str(one.route.destination) for one in inside.routes(link="eth1", family=4)] == ["10.1.0.0/24"]


@pytest.mark.parametrize("subnet", ["10.9.0.0/16", "fd00:9::/48"])
def test_unreachable_routes_are_added_and_deleted(topology: Topology, subnet: str) -> None:
    fit(topology)
    container = topology.container
    route = KernelRoute(Route(ip_network(subnet), priority=9999), protocol=119, unreachable=True)
    before = container.routes()
    container.add_route(route)
    assert container.unreachable_routes() == (route,) and container.routes() == before
    with pytest.raises(Exists, match="unreachable"):
        container.add_route(route)
    container.add_route(route, replace=True)
    assert container.unreachable_routes() == (route,)
    container.delete_route(route)
    assert container.unreachable_routes() == ()
    with pytest.raises(Missing, match="unreachable"):
        container.delete_route(route)


def test_an_address_of_link_scope(topology: Topology) -> None:
    fit(topology)
    topology.container.add_address("eth0", ip_interface("10.1.9.1/32"), link_scope=True)
    assert ip_interface("10.1.9.1/32") in topology.container.addresses("eth0")
