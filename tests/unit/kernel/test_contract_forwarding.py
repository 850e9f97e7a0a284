"""Neighbours, FDB entries and nexthops: here on the fake kernel, in tests/netns/kernel on Linux."""

from __future__ import annotations

import base64
from dataclasses import replace
from ipaddress import IPv6Network, ip_address, ip_interface, ip_network

import pytest
from unit.kernel.test_contract_links import MAC, eventually, veth
from unit.kernel.topology import Topology

from weft.errors import Exists, KernelLacks, KernelRefused, Missing
from weft.kernel.canonical import canonical
from weft.kernel.interface import Namespace, VethPeer
from weft.kernel.values import (
    EspPolicy,
    EspRow,
    EspState,
    FdbEntry,
    KernelRoute,
    Neighbour,
    Nexthop,
    Row,
    WireGuard,
    WireGuardPeer,
)
from weft.types import Route

ONE, TWO, THREE = (ip_address(f"10.1.0.{number}") for number in (1, 2, 3))
FAR, FAR6 = ip_address("192.0.2.1"), ip_address("2001:db8::1")
MAC1, MAC2, EVERY = "02:00:00:00:01:01", "02:00:00:00:01:02", "00:00:00:00:00:00"


def addressed(topology: Topology) -> Namespace:
    """The container; eth0 has a carrier and addresses of both families."""
    veth(topology)
    topology.container.add_address("eth0", ip_interface("10.1.0.5/24"))
    topology.container.add_address("eth0", ip_interface("fd00:1::5/64"))
    assert eventually(lambda: any(cidr.is_link_local for cidr in topology.container.addresses("eth0")))
    return topology.container


def permanent(container: Namespace, link: str = "", version: int = 0) -> set[Neighbour]:
    """Permanent entries, without those that the kernel learned."""
    return {one for one in container.neighbours(link, version) if one.permanent}


# Neighbours


@pytest.mark.parametrize("address", ["10.1.0.9", "fd00:1::9", "192.0.2.9"])
def test_neighbours_are_added_replaced_and_deleted(topology: Topology, address: str) -> None:
    container = addressed(topology)
    first = Neighbour(ip_address(address), MAC1, "eth0")
    second = replace(first, mac=MAC2)
    container.add_neighbour(first)
    assert permanent(container) == permanent(container, "eth0") == {first}
    assert permanent(container, "eth0", first.address.version) == {first}
    assert permanent(container, "eth0", 10 - first.address.version) == permanent(container, "lo") == set()
    with pytest.raises(Exists, match=address):
        container.add_neighbour(second)
    container.add_neighbour(second, replace=True)
    assert permanent(container) == {second} and permanent(topology.host) == set()
    container.delete_neighbour("eth0", first.address)
    assert permanent(container) == set()
    with pytest.raises(Missing, match=address):
        container.delete_neighbour("eth0", first.address)
    container.add_neighbour(first, replace=True)
    assert permanent(container) == {first}


def test_neighbours_are_flushed_when_the_link_goes_down(topology: Topology) -> None:
    container = addressed(topology)
    container.add_neighbour(Neighbour(ONE, MAC1, "eth0"))
    topology.host.change_link("veth0", up=False)  # losing the carrier keeps them
    assert permanent(container) == {Neighbour(ONE, MAC1, "eth0")}
    container.change_link("eth0", up=False)
    assert permanent(container) == set()
    container.add_neighbour(Neighbour(ONE, MAC1, "eth0"))
    container.change_link("eth0", up=True)
    assert permanent(container) == {Neighbour(ONE, MAC1, "eth0")}
    topology.host.delete_link("veth0")
    assert permanent(container) == set()


def test_invalid_neighbours_are_refused(topology: Topology) -> None:
    container = addressed(topology)
    for verb in (
        lambda: container.neighbours("nope"),
        lambda: container.add_neighbour(Neighbour(ONE, MAC1, "nope")),
        lambda: container.delete_neighbour("nope", ONE),
    ):
        with pytest.raises(Missing, match="nope"):
            verb()
    with pytest.raises(KernelRefused):
        container.add_neighbour(Neighbour(ONE, "no mac", "eth0"))
    container.set_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
    with pytest.raises(KernelRefused, match="IPv6 is disabled"):
        container.add_neighbour(Neighbour(FAR6, MAC1, "eth0"))
    assert permanent(container) == set()


# The forwarding database of a VXLAN link


def vxlan(topology: Topology) -> Namespace:
    container = addressed(topology)
    options = {"vxlan_id": 77, "vxlan_port": 4789, "vxlan_local": "10.1.0.5", "vxlan_learning": 0}
    container.add_link("vx0", "vxlan", up=True, options=options)
    assert container.fdb("vx0") == ()
    return container


@pytest.mark.parametrize(
    "entry",
    [
        FdbEntry(MAC1, ONE),
        FdbEntry(MAC1, ONE, vni=5, port=99),
        FdbEntry(MAC1, ONE, state="static"),
        FdbEntry(MAC1, ONE, state="dynamic"),
        FdbEntry(EVERY, ONE),
        FdbEntry("01:00:5e:00:00:09", ONE),
    ],
    ids=str,
)
def test_vxlan_fdb_entries_are_added_and_deleted(topology: Topology, entry: FdbEntry) -> None:
    container = vxlan(topology)
    container.add_fdb("vx0", entry)
    assert container.fdb("vx0") == (entry,) and container.fdb("eth0") == ()
    for other in (entry, replace(entry, destination=TWO)):
        with pytest.raises(Exists, match=entry.mac):
            container.add_fdb("vx0", other)
    # Another destination than that of the entry.
    container.delete_fdb("vx0", replace(entry, destination=TWO))
    assert container.fdb("vx0") == (entry,)
    container.delete_fdb("vx0", entry)
    assert container.fdb("vx0") == ()
    with pytest.raises(Missing, match=entry.mac):
        container.delete_fdb("vx0", entry)


def test_the_default_fdb_entry_may_have_several_destinations(topology: Topology) -> None:
    container = vxlan(topology)
    rows = [FdbEntry(EVERY, address) for address in (ONE, TWO, THREE)]
    for row in (*rows, rows[1]):
        container.add_fdb("vx0", row, append=True)
    assert sorted(container.fdb("vx0"), key=str) == rows
    with pytest.raises(KernelRefused, match="Cannot replace non-unicast"):
        container.add_fdb("vx0", rows[0], replace=True)
    container.delete_fdb("vx0", rows[1])
    assert sorted(container.fdb("vx0"), key=str) == [rows[0], rows[2]]
    container.delete_fdb("vx0", FdbEntry(EVERY))
    assert container.fdb("vx0") == ()


def test_a_unicast_fdb_entry_has_one_destination(topology: Topology) -> None:
    container = vxlan(topology)
    first, second = FdbEntry(MAC1, ONE), FdbEntry(MAC1, TWO)
    container.add_fdb("vx0", first, replace=True)
    container.add_fdb("vx0", second, append=True)  # ignored by the kernel
    assert container.fdb("vx0") == (first,)
    container.add_fdb("vx0", second, replace=True)
    assert container.fdb("vx0") == (second,)


def test_only_dynamic_vxlan_fdb_entries_are_flushed_when_the_link_goes_down(topology: Topology) -> None:
    container = vxlan(topology)
    container.add_fdb("vx0", FdbEntry(MAC1, ONE, state="dynamic"))
    container.add_fdb("vx0", FdbEntry(MAC2, ONE))
    container.change_link("vx0", up=False)
    assert container.fdb("vx0") == (FdbEntry(MAC2, ONE),)
    container.add_fdb("vx0", FdbEntry(MAC1, TWO))
    assert set(container.fdb("vx0")) == {FdbEntry(MAC2, ONE), FdbEntry(MAC1, TWO)}


def test_invalid_vxlan_fdb_entries_are_refused(topology: Topology) -> None:
    container = vxlan(topology)
    for entry in (
        FdbEntry(MAC1),
        FdbEntry(MAC1, FAR6),
        FdbEntry(MAC1, ONE, state="lasting"),
        FdbEntry(MAC1, nexthop=99),
        FdbEntry("no mac", ONE),
    ):
        with pytest.raises(KernelRefused):
            container.add_fdb("vx0", entry)
    with pytest.raises(KernelRefused, match="eth0 is no VXLAN link"):
        container.add_fdb("eth0", FdbEntry(MAC1, ONE))
    for verb in (
        lambda: container.fdb("nope"),
        lambda: container.add_fdb("nope", FdbEntry(MAC1, ONE)),
        lambda: container.delete_fdb("nope", FdbEntry(MAC1, ONE)),
    ):
        with pytest.raises(Missing, match="nope"):
            verb()
    assert container.fdb("vx0") == ()


# The forwarding database of a bridge


def port_rows(topology: Topology) -> set[FdbEntry]:
    """FDB entries of the port, without those the kernel makes of it: its own address, and that of
    the other end, which a bridge learns from the first frame.
    """
    eth0 = topology.container.link("eth0")
    ends = (MAC, eth0.mac if eth0 is not None else "")
    return {entry for entry in topology.host.fdb("veth0") if entry.mac not in ends}


@pytest.mark.parametrize("state", ["permanent", "static", "dynamic"])
def test_bridge_fdb_entries_are_added_replaced_and_deleted(topology: Topology, state: str) -> None:
    topology.host.add_link("br0", "bridge", up=True)
    veth(topology, master="br0")
    assert FdbEntry(MAC, master=True) in topology.host.fdb("veth0")
    entry = FdbEntry(MAC1, master=True, state=state)
    topology.host.add_fdb("veth0", entry)
    assert port_rows(topology) == {entry}
    with pytest.raises(Exists, match=MAC1):
        topology.host.add_fdb("veth0", entry)
    static = replace(entry, state="static")
    topology.host.add_fdb("veth0", static, replace=True)
    assert port_rows(topology) == {static}
    topology.host.delete_fdb("veth0", entry)
    assert port_rows(topology) == set()
    with pytest.raises(Missing, match=MAC1):
        topology.host.delete_fdb("veth0", entry)


def test_bridge_fdb_entries_are_removed_with_the_port(topology: Topology) -> None:
    topology.host.add_link("br0", "bridge", up=True)
    veth(topology, master="br0")
    static = FdbEntry(MAC1, master=True, state="static")
    topology.host.add_fdb("veth0", static)
    topology.host.add_fdb("veth0", FdbEntry(MAC2, master=True, state="dynamic"))
    topology.host.change_link("veth0", up=False)
    assert port_rows(topology) == {static}
    topology.host.change_link("veth0", master="")
    assert topology.host.fdb("veth0") == ()
    with pytest.raises(KernelRefused, match="veth0 is no bridge port"):
        topology.host.add_fdb("veth0", static)


def test_invalid_bridge_fdb_entries_are_refused(topology: Topology) -> None:
    topology.host.add_link("br0", "bridge", up=True)
    veth(topology, master="br0")
    for entry in (FdbEntry(EVERY, master=True), FdbEntry(MAC1, master=True, vlan=5)):
        with pytest.raises(KernelRefused):
            topology.host.add_fdb("veth0", entry)
    assert port_rows(topology) == set()


# Nexthops


@pytest.mark.parametrize(
    "nexthop",
    [
        Nexthop(1, ONE, "eth0"),
        Nexthop(1, ONE, "eth0", protocol=119),
        Nexthop(1, FAR, "eth0", onlink=True),
        Nexthop(1, ip_address("fd00:1::1"), "eth0"),
        Nexthop(1, ip_address("fe80::1"), "eth0"),
        Nexthop(1, link="eth0"),
        Nexthop(1, FAR, fdb=True),
        Nexthop(1 << 31, ONE, "eth0"),
    ],
    ids=str,
)
def test_nexthops_are_added_and_deleted(topology: Topology, nexthop: Nexthop) -> None:
    container = addressed(topology)
    assert container.nexthops() == ()
    container.add_nexthop(nexthop)
    assert container.nexthops() == (nexthop,) and topology.host.nexthops() == ()
    with pytest.raises(Exists, match=str(nexthop.id)):
        container.add_nexthop(nexthop)
    container.add_nexthop(nexthop, replace=True)
    container.delete_nexthop(nexthop.id)
    assert container.nexthops() == ()
    with pytest.raises(Missing, match=str(nexthop.id)):
        container.delete_nexthop(nexthop.id)


def test_a_nexthop_group_is_removed_with_its_last_member(topology: Topology) -> None:
    container = addressed(topology)
    one, two = Nexthop(1, ONE, "eth0"), Nexthop(2, TWO, "eth0")
    group = Nexthop(9, group=((1, 3), (2, 256)))
    for nexthop in (one, two, group):
        container.add_nexthop(nexthop)
    assert container.nexthops() == (one, two, group)
    changed = replace(group, group=((1, 1), (2, 1)))
    container.add_nexthop(changed, replace=True)
    moved = replace(one, gateway=THREE)
    container.add_nexthop(moved, replace=True)
    assert container.nexthops() == (moved, two, changed)
    container.delete_nexthop(1)
    assert container.nexthops() == (two, replace(group, group=((2, 1),)))
    container.delete_nexthop(2)
    assert container.nexthops() == ()


def test_nexthops_are_flushed_when_the_carrier_is_lost(topology: Topology) -> None:
    container = addressed(topology)
    far = Nexthop(2, FAR, fdb=True)
    for nexthop in (Nexthop(1, ONE, "eth0"), far, Nexthop(3, group=((1, 1),))):
        container.add_nexthop(nexthop)
    topology.host.change_link("veth0", up=False)
    assert eventually(lambda: container.nexthops() == (far,))
    with pytest.raises(KernelRefused, match="Carrier for nexthop device is down"):
        container.add_nexthop(Nexthop(1, ONE, "eth0"))
    topology.host.change_link("veth0", up=True)
    assert eventually(lambda: _added(container, Nexthop(1, ONE, "eth0")))
    container.change_link("eth0", up=False)
    assert container.nexthops() == (far,)
    with pytest.raises(KernelRefused, match="Nexthop device is not up"):
        container.add_nexthop(Nexthop(1, ONE, "eth0"))


def _added(container: Namespace, nexthop: Nexthop) -> bool:
    try:
        container.add_nexthop(nexthop, replace=True)
    except KernelRefused:
        return False
    return True


def test_invalid_nexthops_are_refused(topology: Topology) -> None:
    container = addressed(topology)
    there = (Nexthop(1, ONE, "eth0"), Nexthop(2, FAR, fdb=True), Nexthop(3, group=((1, 1),)))
    for nexthop in there:
        container.add_nexthop(nexthop)
    for nexthop in (
        Nexthop(0, ONE, "eth0"),
        Nexthop(9),
        Nexthop(9, ONE),
        Nexthop(9, FAR, "eth0"),
        Nexthop(9, FAR6, "eth0"),
        Nexthop(9, FAR, "eth0", fdb=True),
        Nexthop(9, fdb=True),
        Nexthop(9, group=((99, 1),)),
        Nexthop(9, group=((1, 1), (1, 1))),
        Nexthop(9, group=((1, 0),)),
        Nexthop(9, group=((1, 257),)),
        Nexthop(9, group=((1, 1), (2, 1))),
        Nexthop(9, group=((1, 1),), fdb=True),
        Nexthop(9, group=((3, 1),)),
    ):
        with pytest.raises(KernelRefused):
            container.add_nexthop(nexthop)
    for nexthop in (Nexthop(1, group=((2, 1),), fdb=True), Nexthop(3, ONE, "eth0")):
        with pytest.raises(KernelRefused, match="Can not replace"):
            container.add_nexthop(nexthop, replace=True)
    with pytest.raises(Missing, match="nope"):
        container.add_nexthop(Nexthop(9, ONE, "nope"))
    assert container.nexthops() == there


def by_nexthop(destination: str, number: int) -> KernelRoute:
    return KernelRoute(Route(ip_network(destination)), protocol=119, nexthop=number)


@pytest.mark.parametrize(
    ("destination", "nexthop"),
    [
        ("10.9.0.0/16", Nexthop(1, ONE, "eth0")),
        ("10.9.0.0/16", Nexthop(1, ip_address("fe80::1"), "eth0")),
        ("fd00:9::/48", Nexthop(1, ip_address("fd00:1::1"), "eth0")),
    ],
)
def test_routes_by_nexthop_id_are_added_and_deleted(topology: Topology, destination: str, nexthop: Nexthop) -> None:
    container = addressed(topology)
    other = replace(nexthop, id=2)
    container.add_nexthop(nexthop)
    container.add_nexthop(other)
    before = container.routes()
    route = by_nexthop(destination, 1)
    container.add_route(route)
    assert canonical(route) in container.routes() and len(container.routes()) == len(before) + 1
    assert canonical(route) in container.routes(link="eth0", table=254)
    assert canonical(route) not in container.routes(link="lo") + container.routes(table=4000)
    with pytest.raises(Exists, match=destination):
        container.add_route(route)
    with pytest.raises(Missing, match=destination):
        container.delete_route(replace(route, nexthop=2))
    container.add_route(replace(route, nexthop=2), replace=True)
    assert canonical(replace(route, nexthop=2)) in container.routes() and canonical(route) not in container.routes()
    container.delete_route(replace(route, nexthop=2))
    assert container.routes() == before
    with pytest.raises(Missing, match=destination):
        container.delete_route(route)


def test_routes_are_removed_with_their_nexthop(topology: Topology) -> None:
    container = addressed(topology)
    for nexthop in (Nexthop(1, ONE, "eth0"), Nexthop(2, TWO, "eth0"), Nexthop(9, group=((1, 1), (2, 1)))):
        container.add_nexthop(nexthop)
    before = container.routes()
    single, several = by_nexthop("10.8.0.0/16", 1), by_nexthop("10.9.0.0/16", 9)
    container.add_route(single)
    container.add_route(several)
    assert {single, several} <= set(container.routes()) and several in container.routes(link="eth0")
    container.delete_nexthop(1)
    assert single not in container.routes() and several in container.routes()
    container.delete_nexthop(2)
    assert container.routes() == before


def test_invalid_routes_by_nexthop_id_are_refused(topology: Topology) -> None:
    container = addressed(topology)
    container.add_nexthop(Nexthop(1, ONE, "eth0"))
    container.add_nexthop(Nexthop(2, FAR, fdb=True))
    container.add_nexthop(Nexthop(3, group=((1, 1),)))
    before = container.routes()
    for route, said in (
        (by_nexthop("10.9.0.0/16", 99), "Nexthop id does not exist"),
        (by_nexthop("10.9.0.0/16", 2), "Route cannot point to a fdb nexthop"),
        (by_nexthop("fd00:9::/48", 1), "IPv6 routes can not use an IPv4 nexthop"),
        (by_nexthop("fd00:9::/48", 3), "IPv6 routes can not use an IPv4 nexthop"),
        (replace(by_nexthop("10.9.0.0/16", 1), link="eth0"), "mutually exclusive"),
    ):
        with pytest.raises(KernelRefused, match=said):
            container.add_route(route)
    assert container.routes() == before


def test_vxlan_fdb_entries_by_nexthop_group(topology: Topology) -> None:
    container = vxlan(topology)
    for nexthop in (Nexthop(1, ONE, fdb=True), Nexthop(2, TWO, fdb=True), Nexthop(9, group=((1, 1), (2, 1)), fdb=True)):
        container.add_nexthop(nexthop)
    entry = FdbEntry(MAC1, nexthop=9)
    container.add_fdb("vx0", entry)
    assert container.fdb("vx0") == (entry,)
    for bad in (FdbEntry(MAC2, nexthop=1), FdbEntry(MAC2, ONE, nexthop=9)):
        with pytest.raises(KernelRefused):
            container.add_fdb("vx0", bad)
    container.delete_nexthop(9)
    assert container.fdb("vx0") == ()


def test_a_nexthop_needs_a_link_in_its_namespace(topology: Topology) -> None:
    topology.host.add_link("up0", "veth", up=True, peer=VethPeer("wire", up=True))
    with pytest.raises(Missing, match="up0"):
        topology.container.add_nexthop(Nexthop(1, ONE, "up0"))


def test_many_rows_are_added_replaced_and_deleted(topology: Topology) -> None:
    """In the order that they depend on each other; a refusal does not stop the others."""
    container = vxlan(topology)
    near = ip_address("fe80::77:1")
    route = KernelRoute(Route(ip_network("10.9.1.0/24"), mtu=1400), protocol=119, nexthop=0x77000001)
    rows: list[Row] = [
        Neighbour(near, MAC1, "vx0"),
        FdbEntry(MAC1, ONE),
        Nexthop(0x77000001, near, "vx0", protocol=119),
        route,
    ]
    container.add_rows("vx0", rows)
    container.add_rows("vx0", [FdbEntry(MAC1, TWO), *rows[2:]])
    assert permanent(container, "vx0") == {rows[0]}
    assert container.fdb("vx0") == (FdbEntry(MAC1, TWO),)
    assert container.nexthops() == (rows[2],)
    assert canonical(route) in container.routes(link="vx0")
    with pytest.raises(KernelRefused, match=EVERY[:5]):
        container.add_rows("vx0", [FdbEntry("00:00:00:00:09:09"), FdbEntry(MAC2, ONE)])
    assert {one.mac for one in container.fdb("vx0")} == {MAC1, MAC2}
    container.delete_rows("vx0", [route, rows[2], FdbEntry(MAC1), FdbEntry(MAC2), rows[0]])
    container.delete_rows("vx0", [route, rows[2], FdbEntry(MAC1), rows[0]])
    assert container.nexthops() == () and container.fdb("vx0") == ()
    assert canonical(route) not in container.routes(link="vx0")
    with pytest.raises(Missing, match="nope"):
        container.add_rows("nope", [FdbEntry(MAC1, ONE)])


def test_a_wireguard_link_has_a_key_and_peers(topology: Topology) -> None:
    """Of the kernel's module, or of wireguard-go where it has none."""
    container = topology.container
    try:
        container.add_link("wgtest0", "wireguard", mtu=1420)
    except KernelLacks as error:
        pytest.skip(str(error))
    try:
        keys = [base64.b64encode(bytes([number] * 31 + [64])).decode() for number in (8, 16, 24)]
        allowed = (IPv6Network("fd77:6600::1/128"),)
        peers = [WireGuardPeer(keys[1], FAR, 5000, allowed), WireGuardPeer(keys[2], FAR6, 5001, ())]
        for wanted in (WireGuard(keys[0], 5002, tuple(peers)), WireGuard(keys[0], 5003, (peers[1],))):
            container.set_wireguard("wgtest0", wanted)
            container.set_wireguard("wgtest0", wanted)
            assert container.wireguard("wgtest0") == wanted
        moved = replace(wanted, peers=(replace(peers[1], endpoint=FAR, allowed=allowed),))
        container.set_wireguard("wgtest0", moved)
        assert container.wireguard("wgtest0") == moved and keys[0] not in repr(moved)
    finally:
        container.delete_link("wgtest0")
    with pytest.raises(Missing, match="wgtest0"):
        container.wireguard("wgtest0")


@pytest.mark.parametrize("ends", [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")], ids=["IPv4", "IPv6"])
def test_states_and_policies_of_ipsec(topology: Topology, ends: tuple[str, str]) -> None:
    container = topology.container
    here, there = map(ip_address, ends)
    states = [
        EspState(here, there, 4790, 0x77000064, 0x80000001, b"k" * 36),
        EspState(there, here, 4790, 0x77000064, 0x80000002, b"l" * 36),
    ]
    policies = [
        EspPolicy(here, there, 4790, 0x77000064, 0x80000001, out=True),
        EspPolicy(there, here, 4790, 0x77000064, 0, out=False),
    ]
    rows: list[EspRow] = [*states, *policies]
    try:
        container.add_esp(rows)
    except KernelLacks as error:
        pytest.skip(str(error))
    found = container.esp(0x77000064)
    assert set(found) == set(rows) and not any(one.key for one in found if isinstance(one, EspState))
    assert container.esp(0x77000065) == ()
    with pytest.raises(Exists):
        container.add_esp([replace(states[0], reqid=0x77000065), replace(policies[0], reqid=0x77000065)])
    container.add_esp([replace(policies[0], spi=1)])
    assert set(container.esp(0x77000064)) == {*states, replace(policies[0], spi=1), policies[1]}
    container.delete_esp(rows)
    container.delete_esp(rows)
    assert container.esp(0x77000064) == container.esp(0x77000065) == ()
