"""Links: here on the fake kernel, in tests/netns/kernel on Linux."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from unit.kernel.topology import Topology

from lab.waiting import PATIENTLY, until
from weft.errors import Exists, KernelLacks, KernelRefused, Missing, NamespaceProblem
from weft.kernel.interface import Namespace, VethPeer
from weft.kernel.snapshot import snapshot
from weft.kernel.values import BridgeVlan

MAC, PEER_MAC, BRIDGE_MAC = "02:00:00:00:00:02", "02:00:00:00:00:03", "02:00:00:00:00:01"


def veth(topology: Topology, name: str = "veth0", peer: str = "eth0", *, up: bool = True, master: str = "") -> None:
    """Create a veth pair between the host and the first container."""
    end = VethPeer(peer, mac=PEER_MAC, mtu=1400, up=up, namespace=topology.container)
    topology.host.add_link(name, "veth", mac=MAC, mtu=1400, alias="weft:1:x", up=up, master=master, peer=end)


def names(namespace: Namespace) -> list[str]:
    return [link.name for link in namespace.links()]


def eventually(true: Callable[[], bool]) -> bool:
    """Whether it becomes true within seconds: the kernel reports carriers with a delay."""
    deadline = time.monotonic() + PATIENTLY
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


def test_a_new_namespace_has_a_loopback_that_is_down(topology: Topology) -> None:
    link = topology.container.link("lo")
    assert link is not None and not link.up and names(topology.container) == ["lo"]
    assert topology.container.addresses("lo") == () and topology.container.routes() == ()
    assert not topology.container.is_loopback_up()
    topology.container.change_link("lo", up=True)
    assert topology.container.is_loopback_up()


def test_ports_are_the_links_of_one_master(topology: Topology) -> None:
    host = topology.host
    for name in ("br0", "br1"):
        host.add_link(name, "bridge")
    assert host.ports("br0") == ()
    for number in range(3):
        peer = VethPeer(f"p{number}", namespace=topology.container)
        host.add_link(f"d{number}", "veth", peer=peer, master="br1" if number else "br0")
    for name in ("br0", "br1"):
        assert host.ports(name) == tuple(link for link in host.links() if link.master == name)
    assert [port.name for port in host.ports("br1")] == ["d1", "d2"]
    with pytest.raises(Missing):
        host.ports("br2")


def test_a_namespace_is_known_by_its_identity(topology: Topology) -> None:
    assert topology.kernel.identify(topology.container_path).same(topology.container.id)
    assert not topology.container.id.same(topology.host.id) and not topology.container.id.same(
        topology.other_container.id
    )
    assert not topology.kernel.identify("/run/netns/none").known
    others = [topology.kernel.identify(path) for path in topology.kernel.others()]
    assert sum(each.same(topology.container.id) for each in others) == 1
    assert not any(each.same(topology.host.id) for each in others)
    with pytest.raises(NamespaceProblem, match="/run/netns/none"):
        topology.kernel.open("/run/netns/none")


def test_a_missing_link_is_none_and_every_verb_raises_missing(topology: Topology) -> None:
    assert topology.host.link("nope") is None
    for verb in (
        lambda: topology.host.delete_link("nope"),
        lambda: topology.host.change_link("nope", up=True),
        lambda: topology.host.change_port("nope", {"brport_mode": 1}),
        lambda: topology.host.is_operational("nope"),
        lambda: topology.host.announce("nope"),
        lambda: topology.host.addresses("nope"),
        lambda: topology.host.vlans("nope"),
        lambda: topology.host.tentative("nope"),
        lambda: topology.host.routes(link="nope"),
        lambda: topology.host.add_link("v", "veth", master="nope", peer=VethPeer("p")),
        lambda: topology.host.add_link("v", "macvlan", parent="nope"),
    ):
        with pytest.raises(Missing, match="nope"):
            verb()
    assert names(topology.host) == ["lo"]


def test_a_veth_pair_has_the_given_attributes_on_both_sides(topology: Topology) -> None:
    topology.host.add_link("br0", "bridge", mac=BRIDGE_MAC, up=True)
    veth(topology, master="br0")
    here, there = topology.host.link("veth0"), topology.container.link("eth0")
    assert here is not None and there is not None
    assert (here.kind, here.mac, here.mtu, here.up, here.alias) == ("veth", MAC, 1400, True, "weft:1:x")
    assert (here.master, here.peer_index, here.carrier) == ("br0", there.index, True)
    assert (there.kind, there.mac, there.mtu, there.up, there.master) == ("veth", PEER_MAC, 1400, True, "")
    assert there.peer_index == here.index


def test_a_pair_without_carrier_while_one_end_is_down(topology: Topology) -> None:
    veth(topology, up=False)
    topology.host.change_link("veth0", up=True)
    here, there = topology.host.link("veth0"), topology.container.link("eth0")
    assert here is not None and here.up and not here.carrier
    assert there is not None and not there.up


def test_deleting_one_end_removes_the_other_with_its_addresses_and_routes(topology: Topology) -> None:
    before = snapshot(topology.host), snapshot(topology.container)
    veth(topology)
    topology.host.delete_link("veth0")
    assert (snapshot(topology.host), snapshot(topology.container)) == before
    with pytest.raises(Missing):
        topology.host.delete_link("veth0")


def test_the_name_is_free_when_delete_link_returns(topology: Topology) -> None:
    for _ in range(5):
        veth(topology)
        topology.host.delete_link("veth0")


def test_a_name_in_use_is_refused_on_either_side_and_nothing_is_left(topology: Topology) -> None:
    veth(topology)
    before = snapshot(topology.host), snapshot(topology.container)
    with pytest.raises(Exists, match="veth0"):
        veth(topology, peer="eth9")
    with pytest.raises(Exists, match="eth0"):
        veth(topology, name="veth9")
    assert (snapshot(topology.host), snapshot(topology.container)) == before


def test_a_link_whose_attributes_are_refused_is_removed(topology: Topology) -> None:
    before = snapshot(topology.host), snapshot(topology.container)
    with pytest.raises(KernelRefused):
        topology.host.add_link("v", "veth", alias="x" * 300, peer=VethPeer("eth0", namespace=topology.container))
    with pytest.raises(KernelRefused):
        topology.host.add_link("v", "veth", mtu=9, peer=VethPeer("eth0", namespace=topology.container))
    topology.host.add_link("dull", "veth", peer=VethPeer("dullpeer"))
    with pytest.raises(KernelRefused):
        topology.host.add_link("v", "veth", master="dull", peer=VethPeer("eth0", namespace=topology.container))
    topology.host.delete_link("dull")
    assert (snapshot(topology.host), snapshot(topology.container)) == before


@pytest.mark.parametrize("name", ["x%d", "", "a/b", "sixteen-bytes-xx", "..", "a b"])
def test_names_that_the_kernel_expands_or_refuses(topology: Topology, name: str) -> None:
    with pytest.raises(KernelRefused):
        topology.host.add_link(name, "bridge")
    with pytest.raises(KernelRefused):
        topology.host.add_link("v", "veth", peer=VethPeer(name))
    assert names(topology.host) == ["lo"]


def test_an_unknown_kind_or_option_is_refused_by_name(topology: Topology) -> None:
    with pytest.raises(KernelLacks, match="nonesuch"):
        topology.host.add_link("x", "nonesuch")
    with pytest.raises(KernelRefused, match="br_nonsense"):
        topology.host.add_link("br0", "bridge", options={"br_nonsense": 1})
    assert names(topology.host) == ["lo"]


def test_a_link_s_own_options_read_back_as_written(topology: Topology) -> None:
    topology.host.add_link("br0", "bridge", mac=BRIDGE_MAC, options={"br_ageing_time": 12300})
    link = topology.host.link("br0")
    assert link is not None and (link.kind, link.mac) == ("bridge", BRIDGE_MAC)
    assert link.options["br_ageing_time"] == 12300
    topology.host.change_link("br0", options={"br_ageing_time": 20000})
    link = topology.host.link("br0")
    assert link is not None and link.options["br_ageing_time"] == 20000 and link.mac == BRIDGE_MAC


def test_port_attributes_read_back_as_written(topology: Topology) -> None:
    topology.host.add_link("br0", "bridge", mac=BRIDGE_MAC)
    veth(topology, master="br0")
    topology.host.change_port("veth0", {"brport_mode": 1, "brport_isolated": 1})
    link = topology.host.link("veth0")
    assert link is not None and link.port["brport_mode"] == 1 and link.port["brport_isolated"] == 1
    assert link.port["brport_learning"] == 1
    topology.host.change_link("veth0", master="")
    link = topology.host.link("veth0")
    assert link is not None and link.master == "" and link.port == {}
    with pytest.raises(KernelRefused):
        topology.host.change_port("veth0", {"brport_mode": 1})
    with pytest.raises(KernelRefused, match="brport_nonsense"):
        topology.host.change_port("veth0", {"brport_nonsense": 1})


def test_a_port_is_operational_once_both_ends_and_the_bridge_are_up(topology: Topology) -> None:
    topology.host.add_link("br0", "bridge", mac=BRIDGE_MAC)
    veth(topology, master="br0")
    topology.host.change_link("veth0", up=True)
    assert not topology.host.is_operational("veth0", "br0")
    topology.container.change_link("eth0", up=True)
    until(lambda: topology.host.is_operational("veth0"))
    assert not topology.host.is_operational("veth0", "br0")
    topology.host.change_link("br0", up=True)
    until(lambda: topology.host.is_operational("veth0", "br0"))
    before = topology.container.link("eth0")
    topology.container.announce("eth0")
    assert topology.container.link("eth0") == before
    topology.container.change_link("eth0", up=False)
    until(lambda: not topology.host.is_operational("veth0", "br0"))


def test_deleting_a_bridge_frees_its_ports(topology: Topology) -> None:
    topology.host.add_link("br0", "bridge", mac=BRIDGE_MAC)
    veth(topology, master="br0")
    topology.host.delete_link("br0")
    link = topology.host.link("veth0")
    assert link is not None and link.master == "" and link.port == {}


def test_change_link_changes_only_the_given_attributes(topology: Topology) -> None:
    veth(topology)
    before = topology.host.link("veth0")
    topology.host.change_link("veth0", mtu=1300, alias="other", promiscuous=True, mac="02:00:00:00:00:09")
    after = topology.host.link("veth0")
    assert before is not None and after is not None
    assert (after.mtu, after.alias, after.promiscuous, after.mac) == (1300, "other", True, "02:00:00:00:00:09")
    assert (after.up, after.master, after.index) == (before.up, before.master, before.index)
    topology.host.change_link("veth0", promiscuous=False, alias="")
    after = topology.host.link("veth0")
    assert after is not None and not after.promiscuous and after.alias == "" and after.mtu == 1300


def test_a_link_moves_to_another_namespace_under_a_new_name(topology: Topology) -> None:
    topology.host.add_link("veth0", "veth", mac=MAC, peer=VethPeer("veth1", mac=PEER_MAC))
    topology.host.change_link("veth1", namespace=topology.container, new_name="eth0", up=True)
    link = topology.container.link("eth0")
    assert link is not None and link.mac == PEER_MAC and link.up
    assert names(topology.host) == ["lo", "veth0"] and names(topology.container) == ["lo", "eth0"]
    with pytest.raises(Exists):
        topology.host.change_link("veth0", namespace=topology.container, new_name="eth0")
    topology.host.change_link("veth0", namespace=topology.other_container)
    assert names(topology.host) == ["lo"] and names(topology.other_container) == ["lo", "veth0"]
    topology.other_container.delete_link("veth0")
    assert names(topology.container) == ["lo"]


def test_renaming_refuses_a_taken_name(topology: Topology) -> None:
    veth(topology, up=False)
    topology.host.change_link("veth0", new_name="blue")
    assert topology.host.link("veth0") is None and topology.host.link("blue") is not None
    with pytest.raises(Exists):
        topology.host.change_link("blue", new_name="lo")
    with pytest.raises(KernelRefused):
        topology.host.change_link("blue", new_name="b%d")


def test_a_macvlan_of_the_host_s_link_in_the_container(topology: Topology) -> None:
    topology.host.add_link("up0", "veth", mac=MAC, mtu=1450, up=True, peer=VethPeer("wire", up=True))
    # The name is in use on the host, which must not matter.
    topology.host.add_link("eth0", "bridge")
    topology.container.add_link(
        "eth0", "macvlan", mac=PEER_MAC, alias="weft:2:x", up=True, parent="up0", parent_namespace=topology.host,
        options={"macvlan_mode": "bridge"},
    )  # fmt: skip
    link = topology.container.link("eth0")
    assert link is not None and (link.kind, link.mac, link.up, link.alias) == ("macvlan", PEER_MAC, True, "weft:2:x")
    assert link.options["macvlan_mode"] == "bridge" and link.mtu == 1450
    assert names(topology.container) == ["lo", "eth0"] and sorted(names(topology.host)) == ["eth0", "lo", "up0", "wire"]
    veth(topology, peer="eth1")
    topology.container.add_link("own", "macvlan", parent="eth1")
    assert {one.name for one in topology.container.links() if one.elsewhere} == {"eth0", "eth1"}
    assert {one.name for one in topology.host.links() if one.elsewhere} == {"veth0"}
    topology.host.delete_link("veth0")
    with pytest.raises(Exists):
        topology.container.add_link("eth0", "macvlan", parent="up0", parent_namespace=topology.host)
    topology.host.delete_link("up0")
    assert names(topology.container) == ["lo"]


def test_a_tap_link_is_persistent_and_has_an_owner(topology: Topology) -> None:
    topology.container.add_link(
        "tap0", "tun", mac=MAC, mtu=1300, alias="x", up=True, options={"tun_type": 2, "tun_owner": 7}
    )
    link = topology.container.link("tap0")
    assert link is not None and (link.kind, link.mac, link.mtu, link.alias, link.up) == ("tun", MAC, 1300, "x", True)
    assert link.options["tun_type"] == 2 and link.options["tun_owner"] == 7
    with pytest.raises(Exists):
        topology.container.add_link("tap0", "tun")
    topology.container.delete_link("tap0")
    assert names(topology.container) == ["lo"]


def test_the_loopback_cannot_be_deleted(topology: Topology) -> None:
    with pytest.raises(KernelRefused, match="lo"):
        topology.host.delete_link("lo")
    assert topology.host.link("lo") is not None


def test_vlans_of_a_bridge_port(topology: Topology) -> None:
    topology.host.add_link("br0", "bridge", mac=BRIDGE_MAC, up=True)
    try:
        topology.host.change_link("br0", options={"br_vlan_filtering": 1})
        topology.host.add_vlans("br0", [BridgeVlan(2)])
    except KernelLacks as error:
        pytest.skip(str(error))
    veth(topology, master="br0")
    assert topology.host.vlans("veth0") == (BridgeVlan(1, pvid=True, untagged=True),)
    topology.host.add_vlans("veth0", [BridgeVlan(5, pvid=True, untagged=True), BridgeVlan(7), BridgeVlan(8)])
    topology.host.delete_vlans("veth0", [1, 8, 99])
    assert topology.host.vlans("veth0") == (BridgeVlan(5, pvid=True, untagged=True), BridgeVlan(7))
    assert BridgeVlan(2) in topology.host.vlans("br0")
    topology.host.delete_vlans("br0", [2])
    assert BridgeVlan(2) not in topology.host.vlans("br0")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("vlan", {"vlan_id": 42}),
        ("ipvlan", {"ipvlan_mode": 0}),
        ("macvlan", {"macvlan_mode": "private", "macvlan_bc_queue_len": 500}),
        ("vxlan", {"vxlan_id": 77, "vxlan_port": 4789, "vxlan_learning": 0}),
        ("vrf", {"vrf_table": 1001}),
        ("dummy", {}),
    ],
)
def test_every_kind_of_link_that_drivers_need(topology: Topology, kind: str, options: dict[str, int | str]) -> None:
    topology.host.add_link("up0", "veth", up=True, peer=VethPeer("wire", up=True))
    parent = "up0" if kind in ("vlan", "ipvlan", "macvlan") else ""
    try:
        topology.host.add_link("x0", kind, parent=parent, options=options, alias="mine", up=True)
    except KernelLacks as error:
        assert kind in str(error) or "8021q" in str(error)
        pytest.skip(str(error))
    link = topology.host.link("x0")
    assert link is not None and (link.kind, link.alias, link.up) == (kind, "mine", True)
    assert {key: link.options[key] for key in options} == options
    topology.host.delete_link("x0")
    assert topology.host.link("x0") is None


def test_sysctls_are_the_namespace_s_own(topology: Topology) -> None:
    veth(topology)
    key = "net/ipv4/conf/eth0/arp_notify"
    assert topology.container.sysctl(key) == "0" and topology.host.sysctl(key) is None
    topology.container.set_sysctl(key, "1")
    assert topology.container.sysctl(key) == "1"
    topology.container.set_sysctl("net/ipv4/ip_forward", "1")
    assert topology.container.sysctl("net/ipv4/conf/eth0/forwarding") == "1"
    assert topology.host.sysctl("net/ipv4/ip_forward") == topology.other_container.sysctl("net/ipv4/ip_forward") == "0"


def test_invalid_sysctls_are_refused(topology: Topology) -> None:
    assert topology.container.sysctl("net/ipv4/nonesuch") is None
    with pytest.raises(Missing, match="nonesuch"):
        topology.container.set_sysctl("net/ipv4/nonesuch", "1")
    with pytest.raises(KernelRefused, match="ip_forward to 'maybe'"):
        topology.container.set_sysctl("net/ipv4/ip_forward", "maybe")
    # ENOENT of write(2), whereas that of open(2) means that there is no such sysctl.
    with pytest.raises(KernelRefused, match="tcp_congestion_control to 'nosuch'") as refused:
        topology.container.set_sysctl("net/ipv4/tcp_congestion_control", "nosuch")
    assert not isinstance(refused.value, Missing) and "this value is not available" in refused.value.hint
    for key in ("kernel/hostname", "net/../kernel/hostname", "/net/ipv4/ip_forward", "net", "net//ipv4", ""):
        with pytest.raises(KernelRefused):
            topology.container.sysctl(key)
        with pytest.raises(KernelRefused):
            topology.container.set_sysctl(key, "1")


def test_a_bridge_takes_the_lowest_mac_address_of_its_ports_until_one_is_set(topology: Topology) -> None:
    host = topology.host
    host.add_link("br0", "bridge", up=True)

    def mac() -> str:
        link = host.link("br0")
        assert link is not None
        return link.mac

    own = mac()
    for name, address in (("a", "06:00:00:00:00:02"), ("b", "06:00:00:00:00:01"), ("c", "06:00:00:00:00:03")):
        host.add_link(name, "veth", mac=address, up=True, master="br0", peer=VethPeer(f"{name}x"))
    assert mac() == "06:00:00:00:00:01" != own
    host.delete_link("b")
    assert mac() == "06:00:00:00:00:02"
    host.change_link("br0", mac=mac())
    host.delete_link("a")
    assert mac() == "06:00:00:00:00:02"
    host.add_link("br1", "bridge", up=True)
    host.change_link("c", master="br1")
    host.change_link("c", master="")
    other = host.link("br1")
    assert other is not None and other.mac == "00:00:00:00:00:00"
