"""LinuxKernel alone: threads, file descriptors, namespaces whose bind mount is gone."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from ipaddress import ip_interface

import pytest
from unit.kernel.test_contract_links import MAC, veth
from unit.kernel.topology import Topology

from lab.host import Host
from weft.errors import Missing, NamespaceProblem
from weft.kernel.interface import VethPeer
from weft.kernel.linux.kernel import LinuxKernel, LinuxNamespace
from weft.kernel.netlink import links
from weft.kernel.values import Link


def test_namespace_handle_is_usable_from_another_thread(topology: Topology) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            veth(topology)
            topology.container.add_address("eth0", ip_interface("10.1.0.5/24"))
            topology.container.set_sysctl("net/ipv4/conf/eth0/arp_notify", "1")
            topology.host.delete_link("veth0")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert failures == [] and topology.host.link("veth0") is None


def test_thread_stays_in_its_namespace(topology: Topology) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    topology.container.sysctl("net/ipv4/ip_forward")
    with pytest.raises(Missing):
        topology.container.set_sysctl("net/ipv4/nonesuch", "1")
    assert os.stat("/proc/thread-self/ns/net").st_ino == before == topology.host.id.inode


@pytest.mark.parametrize("change", ["mtu 1400", "down", "address 02:00:00:00:00:99", "promisc on", "name br1"])
def test_cached_link_is_dropped_when_another_program_changes_it(host: Host, topology: Topology, change: str) -> None:
    """A change by another program is noticed without a request for the link."""
    topology.host.add_link("br0", "bridge", mac=MAC, alias="weft:0011223344556677", up=True)
    first = topology.host.cached_link("br0")
    assert _still(first) == _still(topology.host.link("br0"))
    assert first is topology.host.cached_link("br0")
    host.run("ip", "link", "set", "br0", *change.split())
    assert _still(topology.host.cached_link("br0")) == _still(topology.host.link("br0")) != _still(first)
    host.run("ip", "link", "delete", "br1" if change == "name br1" else "br0")
    assert topology.host.cached_link("br0") is None
    topology.host.add_link("br0", "bridge", mac=MAC)
    assert _still(topology.host.cached_link("br0")) == _still(topology.host.link("br0"))


def _still(link: Link | None) -> Link | None:
    """Without the bridge timers, which change between two reads."""
    if link is None:
        return None
    return replace(link, options={key: value for key, value in link.options.items() if not key.endswith("_timer")})


def test_cached_mac_is_kept_while_the_link_is_unchanged(host: Host, topology: Topology) -> None:
    assert topology.host.cached_mac("veth0") == ""
    veth(topology)
    there = topology.host.link("veth0")
    assert there is not None and topology.host.cached_mac("veth0") == there.mac
    host.run("ip", "link", "set", "veth0", "address", "02:00:00:00:00:99")
    assert topology.host.cached_mac("veth0") == "02:00:00:00:00:99"
    host.run("ip", "link", "delete", "veth0")
    host.run("ip", "link", "add", "veth0", "type", "veth", "peer", "veth1")
    assert topology.host.cached_mac("veth0") == ""


def test_no_file_descriptor_leaks(host: Host) -> None:
    path = host.container()
    LinuxKernel().close()  # closes what an earlier test left open
    before = sorted(os.listdir("/proc/self/fd"))
    kernel = LinuxKernel()
    space = kernel.open(path)
    kernel.host.add_link("veth0", "veth", peer=VethPeer("eth0", namespace=space))
    space.sysctl("net/ipv4/ip_forward")
    kernel.host.delete_link("veth0")
    for bad in ("/dev/zero", "/proc/self/ns/uts", path + "x"):
        with pytest.raises(NamespaceProblem):
            kernel.open(bad)
    space.close()
    space.close()
    kernel.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_an_open_namespace_outlives_its_path(host: Host) -> None:
    kernel = LinuxKernel()
    space = kernel.open(host.container())
    host.remove_container()
    assert space.link("lo") is not None
    space.close()
    kernel.close()


def test_temporary_name_of_a_killed_call_is_reused(topology: Topology) -> None:
    """In its new namespace a macvlan first has a temporary name, which a killed call leaves."""
    topology.host.add_link("up0", "veth", mac=MAC, up=True, peer=VethPeer("wire", up=True))
    change = links.change
    killed: list[str] = []

    def kill(*arguments: object, **values: object) -> None:
        killed.append(str(arguments[1]))
        raise SystemExit

    delete = links.delete
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(links, "change", kill)
        patch.setattr(links, "delete", lambda *_: None)
        with pytest.raises(SystemExit):
            topology.container.add_link("eth0", "macvlan", parent="up0", parent_namespace=topology.host)
    assert links.change is change and links.delete is delete
    assert topology.container.link(killed[0]) is not None
    topology.container.add_link("eth0", "macvlan", parent="up0", parent_namespace=topology.host)
    assert [link.name for link in topology.container.links()] == ["lo", "eth0"]


def test_concurrent_deletions(topology: Topology) -> None:
    for number in range(8):
        veth(topology, f"veth{number}", f"eth{number}")
    failures: list[BaseException] = []

    def remove(number: int) -> None:
        try:
            topology.host.delete_link(f"veth{number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=remove, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert failures == []
    assert [link.name for link in topology.host.links()] == [link.name for link in topology.container.links()] == ["lo"]


def test_bridge_port_removal_is_not_taken_for_link_deletion(topology: Topology) -> None:
    topology.host.add_link("br0", "bridge", up=True)
    for _ in range(5):
        veth(topology, master="br0")
        topology.host.delete_link("veth0")
        assert topology.host.link("veth0") is None
    assert isinstance(topology.host, LinuxNamespace)
