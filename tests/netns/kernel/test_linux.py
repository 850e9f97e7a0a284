"""What only the real kernel has: threads, descriptors, namespaces whose files are gone."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from ipaddress import ip_interface

import pytest
from unit.kernel.place import Place
from unit.kernel.test_contract_links import MAC, veth

from lab.host import Host
from weft.errors import Missing, NamespaceProblem
from weft.kernel.interface import Link, VethPeer
from weft.kernel.linux.kernel import LinuxKernel, LinuxNamespace
from weft.kernel.netlink import links


def test_a_namespace_opened_here_is_used_from_another_thread(place: Place) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            veth(place)
            place.box.add_address("eth0", ip_interface("10.1.0.5/24"))
            place.box.set_sysctl("net/ipv4/conf/eth0/arp_notify", "1")
            place.host.delete_link("veth0")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert failures == [] and place.host.link("veth0") is None


def test_the_thread_stays_where_it_was(place: Place) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    place.box.sysctl("net/ipv4/ip_forward")
    with pytest.raises(Missing):
        place.box.set_sysctl("net/ipv4/nonesuch", "1")
    assert os.stat("/proc/thread-self/ns/net").st_ino == before == place.host.id.inode


@pytest.mark.parametrize("change", ["mtu 1400", "down", "address 02:00:00:00:00:99", "promisc on", "name br1"])
def test_a_link_that_was_looked_at_is_believed_only_as_it_is(host: Host, place: Place, change: str) -> None:
    """What is remembered is told from what somebody has changed meanwhile, without asking for the link."""
    place.host.add_link("br0", "bridge", mac=MAC, alias="weft:0011223344556677", up=True)
    first = place.host.cached_link("br0")
    assert _still(first) == _still(place.host.link("br0"))
    assert first is place.host.cached_link("br0")
    host.run("ip", "link", "set", "br0", *change.split())
    assert _still(place.host.cached_link("br0")) == _still(place.host.link("br0")) != _still(first)
    host.run("ip", "link", "delete", "br1" if change == "name br1" else "br0")
    assert place.host.cached_link("br0") is None
    place.host.add_link("br0", "bridge", mac=MAC)
    assert _still(place.host.cached_link("br0")) == _still(place.host.link("br0"))


def _still(link: Link | None) -> Link | None:
    """Without a bridge's timers, which run between two looks."""
    if link is None:
        return None
    return replace(link, options={key: value for key, value in link.options.items() if not key.endswith("_timer")})


def test_the_mac_of_a_link_is_known_while_the_link_is_the_same(host: Host, place: Place) -> None:
    assert place.host.cached_mac("veth0") == ""
    veth(place)
    there = place.host.link("veth0")
    assert there is not None and place.host.cached_mac("veth0") == there.mac
    host.run("ip", "link", "set", "veth0", "address", "02:00:00:00:00:99")
    assert place.host.cached_mac("veth0") == "02:00:00:00:00:99"
    host.run("ip", "link", "delete", "veth0")
    host.run("ip", "link", "add", "veth0", "type", "veth", "peer", "veth1")
    assert place.host.cached_mac("veth0") == ""


def test_nothing_stays_open(host: Host) -> None:
    path = host.container()
    LinuxKernel().close()  # what is loaded once
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


def test_a_name_left_by_a_killed_call_is_no_obstacle(place: Place) -> None:
    """A macvlan gets a passing name in its new namespace first; a killed call leaves that."""
    place.host.add_link("up0", "veth", mac=MAC, up=True, peer=VethPeer("wire", up=True))
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
            place.box.add_link("eth0", "macvlan", parent="up0", parent_namespace=place.host)
    assert links.change is change and links.delete is delete
    assert place.box.link(killed[0]) is not None
    place.box.add_link("eth0", "macvlan", parent="up0", parent_namespace=place.host)
    assert [link.name for link in place.box.links()] == ["lo", "eth0"]


def test_many_deletions_at_once(place: Place) -> None:
    for number in range(8):
        veth(place, f"veth{number}", f"eth{number}")
    failures: list[BaseException] = []

    def remove(number: int) -> None:
        try:
            place.host.delete_link(f"veth{number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=remove, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert failures == []
    assert [link.name for link in place.host.links()] == [link.name for link in place.box.links()] == ["lo"]


def test_a_port_that_leaves_its_bridge_is_not_taken_for_a_deleted_link(place: Place) -> None:
    place.host.add_link("br0", "bridge", up=True)
    for _ in range(5):
        veth(place, master="br0")
        place.host.delete_link("veth0")
        assert place.host.link("veth0") is None
    assert isinstance(place.host, LinuxNamespace)
