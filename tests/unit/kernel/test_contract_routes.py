"""What addresses and routes do on every kernel: the fake here, the real one in tests/netns/kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from unit.kernel.place import Place
from unit.kernel.test_contract_links import eventually, veth

from weft.errors import Exists, KernelRefused, Missing
from weft.kernel.canonical import canonical
from weft.kernel.interface import KernelRoute
from weft.kernel.snapshot import snapshot
from weft.types import Route

FOUR, SIX = ip_interface("10.1.0.5/24"), ip_interface("fd00:1::5/64")
DEFAULT = KernelRoute(Route(ip_network("0.0.0.0/0"), ip_address("10.1.0.1")), "eth0", protocol=119)
DEFAULT6 = KernelRoute(Route(ip_network("::/0"), ip_address("fd00:1::1")), "eth0", protocol=119)


def fit(place: Place) -> None:
    """eth0 in the container, up, with an address of each family and no waiting for them."""
    veth(place, up=False)
    place.box.set_sysctl("net/ipv6/conf/eth0/accept_dad", "0")
    place.host.change_link("veth0", up=True)
    place.box.change_link("eth0", up=True)
    place.box.add_address("eth0", FOUR)
    place.box.add_address("eth0", SIX)


def test_addresses_read_back_as_added(place: Place) -> None:
    fit(place)
    assert [cidr for cidr in place.box.addresses("eth0") if not cidr.is_link_local] == [FOUR, SIX]
    assert place.box.tentative("eth0") == (False, False)
    for address in (FOUR, SIX):
        with pytest.raises(Exists, match=str(address)):
            place.box.add_address("eth0", address)
        place.box.delete_address("eth0", address)
        with pytest.raises(Missing, match=str(address)):
            place.box.delete_address("eth0", address)
    assert [cidr for cidr in place.box.addresses("eth0") if not cidr.is_link_local] == []
    with pytest.raises(Missing, match="nope"):
        place.box.add_address("nope", FOUR)
    with pytest.raises(Missing, match="nope"):
        place.box.delete_address("nope", FOUR)


def test_a_link_with_a_carrier_gets_its_link_local_address(place: Place) -> None:
    veth(place, up=False)
    place.box.change_link("eth0", up=True)
    assert place.box.addresses("eth0") == ()
    place.host.change_link("veth0", up=True)
    assert eventually(lambda: ip_interface("fe80::ff:fe00:3/64") in place.box.addresses("eth0"))


def test_ipv6_off_means_no_ipv6_address(place: Place) -> None:
    fit(place)
    place.box.set_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
    assert place.box.addresses("eth0") == (FOUR,)
    with pytest.raises(KernelRefused, match="fd00:1::5/64"):
        place.box.add_address("eth0", SIX)


def test_the_loopback_gets_its_addresses_when_it_comes_up(place: Place) -> None:
    place.box.change_link("lo", up=True)
    assert place.box.addresses("lo") == (ip_interface("127.0.0.1/8"), ip_interface("::1/128"))
    assert place.box.routes(family=4) == ()
    place.box.change_link("lo", up=False)
    assert place.box.addresses("lo") == (ip_interface("127.0.0.1/8"),)


def test_an_address_brings_the_route_of_its_subnet_and_takes_it_along(place: Place) -> None:
    fit(place)
    four = KernelRoute(Route(FOUR.network), "eth0", source=FOUR.ip, protocol=2)
    six = KernelRoute(Route(SIX.network, priority=256), "eth0", protocol=2)
    assert place.box.routes(family=4) == (four,)
    assert six in place.box.routes(link="eth0", family=6)
    place.box.delete_address("eth0", FOUR)
    place.box.delete_address("eth0", SIX)
    assert place.box.routes(family=4) == () and six not in place.box.routes()


def test_an_address_without_its_subnet_s_route(place: Place) -> None:
    veth(place)
    place.box.add_address("eth0", FOUR, prefix_route=False)
    place.box.add_address("eth0", SIX, prefix_route=False)
    assert not any(route.route.destination in (FOUR.network, SIX.network) for route in place.box.routes())
    assert FOUR in place.box.addresses("eth0") and SIX in place.box.addresses("eth0")


def test_the_first_address_of_an_ipv4_subnet_takes_the_others_along(place: Place) -> None:
    fit(place)
    second, elsewhere = ip_interface("10.1.0.6/24"), ip_interface("10.2.0.6/24")
    place.box.add_address("eth0", second)
    place.box.add_address("eth0", elsewhere)
    place.box.delete_address("eth0", FOUR)
    assert [cidr for cidr in place.box.addresses("eth0") if cidr.version == 4] == [elsewhere]


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
def test_a_route_reads_back_as_added_has_no_twin_and_goes(place: Place, route: KernelRoute) -> None:
    fit(place)
    before = snapshot(place.box)
    place.box.add_route(route)
    table = route.route.table or 254
    assert canonical(route) in place.box.routes()
    assert canonical(route) in place.box.routes(link="eth0", family=route.route.destination.version, table=table)
    assert canonical(route) not in place.box.routes(family=10 - route.route.destination.version)
    assert canonical(route) not in place.box.routes(table=4000)
    with pytest.raises(Exists, match=str(route.route.destination)):
        place.box.add_route(route)
    place.box.delete_route(route)
    assert snapshot(place.box) == before
    with pytest.raises(Missing, match=str(route.route.destination)):
        place.box.delete_route(route)


@pytest.mark.parametrize(("one", "gateway"), [(DEFAULT, "10.1.0.2"), (DEFAULT6, "fd00:1::2")])
def test_a_second_way_to_the_same_place_is_kept_beside_the_first(place: Place, one: KernelRoute, gateway: str) -> None:
    fit(place)
    two = replace(one, route=replace(one.route, gateway=ip_address(gateway)))
    place.box.add_route(one)
    place.box.add_route(two)
    family = one.route.destination.version
    assert [route for route in place.box.routes(family=family) if route.route.gateway] == [one, two]
    place.box.delete_route(one)
    assert [route for route in place.box.routes(family=family) if route.route.gateway] == [two]


@pytest.mark.parametrize(("one", "gateway"), [(DEFAULT, "10.1.0.2"), (DEFAULT6, "fd00:1::2")])
def test_replacing_leaves_one_route(place: Place, one: KernelRoute, gateway: str) -> None:
    fit(place)
    two = replace(one, route=replace(one.route, gateway=ip_address(gateway)))
    place.box.add_route(one)
    place.box.add_route(two, replace=True)
    place.box.add_route(two, replace=True)
    family = one.route.destination.version
    assert [route for route in place.box.routes(family=family) if route.route.gateway] == [two]


def test_a_route_needs_a_way_to_its_gateway(place: Place) -> None:
    fit(place)
    before = snapshot(place.box)
    far = replace(DEFAULT, route=replace(DEFAULT.route, gateway=ip_address("192.0.2.1")))
    with pytest.raises(KernelRefused, match=r"0.0.0.0/0 via 192.0.2.1 dev eth0"):
        place.box.add_route(far)
    with pytest.raises(KernelRefused):
        place.box.add_route(replace(DEFAULT, source=ip_address("10.1.0.77")))
    with pytest.raises(Missing, match="nope"):
        place.box.add_route(replace(DEFAULT, link="nope"))
    place.box.change_link("eth0", up=False)
    with pytest.raises(KernelRefused):
        place.box.add_route(DEFAULT)
    place.box.change_link("eth0", up=True)
    place.box.add_address("eth0", SIX)
    assert snapshot(place.box) == before


def test_a_route_without_a_link_finds_its_own(place: Place) -> None:
    fit(place)
    place.box.add_route(replace(DEFAULT, link=""))
    assert DEFAULT in place.box.routes()


def test_a_link_set_down_loses_its_routes_and_its_ipv6_addresses(place: Place) -> None:
    fit(place)
    place.box.add_route(DEFAULT)
    place.box.add_route(DEFAULT6)
    place.box.change_link("eth0", up=False)
    assert place.box.routes(link="eth0") == ()
    assert place.box.addresses("eth0") == (FOUR,)
    place.box.change_link("eth0", up=True)
    assert place.box.routes(family=4) == (KernelRoute(Route(FOUR.network), "eth0", source=FOUR.ip, protocol=2),)


def test_an_ipv6_address_may_outlive_the_link_s_being_down(place: Place) -> None:
    fit(place)
    place.box.set_sysctl("net/ipv6/conf/eth0/keep_addr_on_down", "1")
    place.box.change_link("eth0", up=False)
    assert SIX in place.box.addresses("eth0")


def test_deleting_the_link_takes_addresses_and_routes(place: Place) -> None:
    before = snapshot(place.box)
    fit(place)
    place.box.add_route(DEFAULT)
    assert snapshot(place.box) != before
    place.host.delete_link("veth0")
    assert snapshot(place.box) == before and place.box.routes() == ()
    with pytest.raises(Missing):
        place.box.delete_route(DEFAULT)


def test_removing_an_address_takes_the_routes_that_need_it(place: Place) -> None:
    fit(place)
    place.box.add_address("eth0", ip_interface("10.2.0.5/24"))
    needing = KernelRoute(Route(ip_network("10.9.0.0/16")), "eth0", source=FOUR.ip, protocol=119)
    place.box.add_route(needing)
    place.box.delete_address("eth0", FOUR)
    assert needing not in place.box.routes()
