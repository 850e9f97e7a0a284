"""Leases whose containers are gone, of a node that restarted without a boot of its kernel: freed, but none that
anything holds.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from cni_plugin.service import holders
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.gc import collect_stale, free_leases
from cni_plugin.service.orphans import NO_ORPHANS, orphans, unused_networks
from cni_plugin.service.removal import remove_network
from ipam.ranges import Pool
from lab.calls import Weft
from lab.cases import Conf, conf, pool
from weft import identity
from weft.errors import Busy
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host
from weft.kernel.interface import VethPeer
from weft.kernel.values import Element, Link, Neighbour
from weft.types import Attachment

BOOTED = time.time() - 5000


class Node(Weft):
    """A node of the fake kernel. Its folder has /run, the leases and libcni's cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.restart()

    def restart(self) -> None:
        """Start without a boot of the kernel, as a node that is a container: /run and all links are new."""
        self.kernel = FakeKernel()
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        super().__init__(self.kernel, Host(str(self.folder / "run"), "the boot", BOOTED))

    def network(self, kind: str = "weft") -> Conf:
        """A network for five containers."""
        keys: Conf = {
            "bridge": "b0",
            "isGateway": True,
            "ipam": pool("10.60.0.0/29", dataDir=str(self.folder / "disk")),
        }
        return conf(kind, "red", {"driver": "bridge", **keys} if kind == "weft" else keys)

    def fill(self, network: Conf, age: float = 1000) -> None:
        for number in range(1, 6):
            self.kernel.add(f"/run/netns/c{number}")
            self.add(network, f"/run/netns/c{number}", f"c{number}")
        self.grow_old(age)

    def grow_old(self, age: float = 1000) -> None:
        for path in (self.folder / "disk/red").iterdir():
            os.utime(path, (time.time() - age, time.time() - age))

    def leases(self) -> dict[str, str]:
        files = (self.folder / "disk/red").glob("10.*")
        return {path.name: path.read_text().split()[0] for path in files}

    def cached(self, container: str, *sandboxes: str) -> None:
        """The result that libcni has cached, with these sandboxes."""
        interfaces = [{"name": "b0"}, *({"name": "eth0", "sandbox": one} for one in sandboxes)]
        folder = self.folder / "results"
        folder.mkdir(exist_ok=True)
        names = {"networkName": "red", "containerId": container, "ifName": "eth0"}
        document = {"kind": "cniCacheV1", **names, "result": {"cniVersion": "1.0.0", "interfaces": interfaces}}
        (folder / f"red-{container}-eth0").write_text(json.dumps(document))

    def unheld(self) -> list[str]:
        """What GC frees now, by container."""
        before = self.leases()
        free_leases(self.service(self.kernel), Pool(network="red", directory=str(self.folder / "disk/red"), sets=()))
        return sorted(before[address] for address in before.keys() - self.leases().keys())


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(holders, "RESULTS", str(tmp_path / "results"))
    return Node(tmp_path)


@pytest.mark.parametrize("kind", ["weft", "bridge"])
def test_the_same_container_is_added_again(node: Node, kind: str) -> None:
    network = node.network(kind)
    node.fill(network)
    node.restart()
    node.kernel.add("/run/netns/c1")
    assert node("ADD", network, "/run/netns/c1").ok
    assert list(node.leases().values()) == ["c1"]  # the others' are free as well


def test_a_full_pool_has_room_again(node: Node) -> None:
    network = node.network()
    node.fill(network)
    node.kernel.add("/run/netns/new")
    assert node("ADD", network, "/run/netns/new", "new").code == 100
    node.restart()
    node.kernel.add("/run/netns/new")
    assert node("STATUS", network).ok
    assert node("ADD", network, "/run/netns/new", "new").ok
    assert list(node.leases().values()) == ["new"]


def test_a_requested_address_is_taken_from_a_container_that_is_gone(node: Node) -> None:
    network = node.network()
    node.fill(network)
    node.kernel.add("/run/netns/new")
    refused = node("ADD", network, "/run/netns/new", "new", args="IP=10.60.0.3")
    assert refused.code == 101 and "is leased to c2/eth0" in refused.text
    node.kernel.remove("/run/netns/c2")  # its runtime called no DEL; the others still run
    assert node("ADD", network, "/run/netns/new", "new", args="IP=10.60.0.3").ok
    assert sorted(node.leases().values()) == ["c1", "c3", "c4", "c5", "new"]


def test_recent_leases_and_those_of_attachments_are_held(node: Node) -> None:
    node.fill(node.network())
    assert node.unheld() == []
    node.restart()
    node.grow_old(10)
    assert node.unheld() == []  # an ADD of the real host-local may still run
    node.grow_old(100)
    assert node.unheld() == ["c1", "c2", "c3", "c4", "c5"]


def _link(node: Node) -> None:
    mark = identity.attachment_mark(Attachment("red", "c1", "eth0", "bridge"))
    node.kernel.host.add_link("veth1", "dummy", alias=identity.alias(mark, "c1/eth0 on red"))


def _namespace(node: Node) -> None:
    """One that is not at the path of its ADD any more: its process lives, its mount is gone."""
    inside = node.kernel.add("/proc/77/ns/net")
    inside.add_link("eth0", "dummy")
    inside.add_address("eth0", ip_interface("10.60.0.2/29"))


def _neighbour(node: Node) -> None:
    node.kernel.host.add_link("tap0", "dummy", up=True)
    node.kernel.host.add_neighbour(Neighbour(ip_address("10.60.0.2"), "02:00:00:00:00:09", "tap0"))


def _cached(node: Node) -> None:
    node.kernel.add("/run/netns/other")
    node.cached("c1", "/run/netns/other")


def _cached_without_sandbox(node: Node) -> None:
    node.cached("c1")


def _damaged_cache(node: Node) -> None:
    node.cached("c1")
    (node.folder / "results/red-c1-eth0").write_text("[1")


@pytest.mark.parametrize(
    "hold",
    [_link, _namespace, _neighbour, _cached, _cached_without_sandbox, _damaged_cache],
    ids=lambda one: one.__name__,
)
def test_a_lease_that_anything_holds_stays(node: Node, hold: Callable[[Node], None]) -> None:
    network = node.network()
    node.fill(network)
    node.restart()
    hold(node)
    assert node.unheld() == ["c2", "c3", "c4", "c5"]
    node.kernel.add("/run/netns/new")
    again = node("ADD", network, "/run/netns/new", "c1")
    assert again.code == 101 and "already has 10.60.0.2" in again.text


def test_what_shows_nothing_holds_no_lease(node: Node) -> None:
    """A cached result whose namespace is gone, or is the host's (a reused process id); the address in a namespace
    under another name.
    """
    network = node.network()
    node.fill(network)
    node.restart()
    node.cached("c1", "/run/netns/c1")
    node.cached("c2", node.kernel.host.id.path)
    inside = node.kernel.add("/run/netns/lab")
    inside.add_link("wan0", "dummy")
    inside.add_address("wan0", ip_interface("10.60.0.4/29"))
    assert node.unheld() == ["c1", "c2", "c3", "c4", "c5"]


def test_gc_keeps_an_attachment_whose_namespace_lost_its_mount(node: Node) -> None:
    """The runtime was killed and /run/netns is new, but the container's processes live: containerd's pods."""
    network = node.network()
    node.fill(network)
    for number in (1, 2):
        node.add(conf("loopback", "lo", {}), f"/run/netns/c{number}", f"c{number}", "lo")
    moved = node.kernel._namespaces.pop("/run/netns/c1")
    node.kernel._namespaces["/proc/77/ns/net"] = moved
    node.kernel.remove("/run/netns/c2")
    found = collect_stale(node.service(node.kernel)).attachments
    assert sorted(found) == ["c2/eth0 on red", "c2/lo on lo"]
    assert sorted(node.leases().values()) == ["c1", "c3", "c4", "c5"]


def _host_links(node: Node) -> set[str]:
    return {link.name for link in node.kernel.host.links() if link.name.startswith("veth")}


def _without_records(node: Node) -> tuple[Conf, dict[str, str], ServiceContext]:
    """A network of five running containers, the host's link of each, and what is there without /run/weft."""
    network = node.network() | {"ipMasq": True}
    node.fill(network)
    names = {
        f"c{number}": identity.host_link(Attachment("red", f"c{number}", "eth0", "weft")) for number in range(1, 6)
    }
    assert _host_links(node) == set(names.values())
    shutil.rmtree(node.folder / "run")
    service = node.service(node.kernel)
    service.records.prepare()
    return network, names, service


def test_gc_leaves_running_containers_whose_records_are_lost(node: Node) -> None:
    """The kernel deletes a pair of links with the namespace that one of them is in: while it is there, so is the
    container.
    """
    network, names, service = _without_records(node)
    node.kernel.remove("/run/netns/c2")
    assert orphans(service).unrecorded == tuple(f"c{number}/eth0 on red" for number in (1, 3, 4, 5))
    swept = collect_stale(service)
    assert _host_links(node) == set(names.values()) - {names["c2"]} and not swept.errors
    assert not any(one.startswith(("masquerade", "link")) for one in swept.leftovers)
    assert node.unheld() == ["c2"]
    for number in (1, 3, 4, 5):
        node.delete(network, f"/run/netns/c{number}", f"c{number}")
    assert "link b0" in collect_stale(service).leftovers
    assert node.leases() == {} and orphans(service) == NO_ORPHANS


def test_gc_leaves_a_running_container_that_libcni_knows(node: Node) -> None:
    """Its link may have been deleted by hand: what else is its stays."""
    network, names, service = _without_records(node)
    node.cached("c1", "/run/netns/c1")
    for number in range(2, 6):
        node.kernel.remove(f"/run/netns/c{number}")
    node.kernel.host.delete_link(names["c1"])
    assert orphans(service).unrecorded == ("c1/eth0 on red",)
    assert not any(one.startswith("masquerade") for one in collect_stale(service).leftovers)
    node.delete(network, "/run/netns/c1")
    assert orphans(service).unrecorded == ()


def test_of_a_network_that_a_runtime_collects_it_says_which_run(node: Node) -> None:
    network, names, service = _without_records(node)
    node.collect({**network, "name": "blue"})
    assert _host_links(node) == set(names.values())
    node.collect(network, ("c1", "eth0"))
    assert _host_links(node) == {names["c1"]}
    assert orphans(service).unrecorded == ("c1/eth0 on red",)


def test_a_marked_pair_on_this_host_is_no_containers(node: Node) -> None:
    mark = identity.attachment_mark(Attachment("red", "c1", "eth0", "weft"))
    node.kernel.host.add_link("veth0123456789", "veth", alias=f"{mark}:c1/eth0 on red", peer=VethPeer("eth0"))
    service = node.service(node.kernel)
    service.records.prepare()
    assert collect_stale(service).leftovers == ["link veth0123456789"]


CLOSED = "closed_links"


def _closed(node: Node) -> list[str]:
    return [str(one.key[0]) for one in node.service(node.kernel).kernel.rules.elements(CLOSED)]


@pytest.mark.parametrize("collects", ["weft", "the runtime"])
def test_a_network_of_a_container_whose_record_is_lost_stays_closed(node: Node, collects: str) -> None:
    """Its own record is there; and after another container of it has been attached and detached."""
    network = node.network() | {"isolation": "closed"}
    node.fill(network)
    shutil.rmtree(node.folder / "run/attachments")
    service = node.service(node.kernel)
    service.records.prepare()
    for turn in range(2):
        assert [one.network for one in service.records.networks()] == ["red"]
        if collects == "weft":
            assert not [one for one in collect_stale(service).leftovers if one.startswith((CLOSED, "network"))], turn
        else:
            node.collect(network, *((f"c{number}", "eth0") for number in range(1, 6)))
        assert _closed(node) == ["b0"]
        assert unused_networks(service) == []
        node.delete(network, "/run/netns/c5", "c5")
        node.add(network, "/run/netns/c5", "c5")
        node.delete(network, "/run/netns/c5", "c5")


def test_what_attachments_share_is_theirs_without_the_networks_record(node: Node) -> None:
    network = node.network() | {"isolation": "closed", "ipMasq": True}
    node.fill(network)
    shutil.rmtree(node.folder / "run/networks")
    service = node.service(node.kernel)
    service.records.prepare()
    assert orphans(service) == NO_ORPHANS and _closed(node) == ["b0"]


def test_the_gateway_of_a_vlan_stays_while_its_containers_records_are_lost(node: Node) -> None:
    """A pair of links that are both on the host, which is no attachment's."""
    network = node.network() | {"vlan": 100}
    node.fill(network)
    shutil.rmtree(node.folder / "run")
    service = node.service(node.kernel)
    service.records.prepare()
    assert len(orphans(service).unrecorded) == 5
    collect_stale(service)
    assert node.kernel.host.link("b0.100") is not None


@pytest.mark.parametrize(("network", "container"), [("red", "c" * 240), ("r" * 200, "0123456789abcdef" * 4)])
def test_names_that_an_alias_cuts_are_running_containers(node: Node, network: str, container: str) -> None:
    keys = node.network() | {"isolation": "closed", "name": network}
    node.kernel.add("/run/netns/c1")
    node.add(keys, "/run/netns/c1", container)
    shutil.rmtree(node.folder / "run/attachments")
    service = node.service(node.kernel)
    service.records.prepare()
    before = _host_links(node)
    assert len(orphans(service).unrecorded) == 1
    collect_stale(service)
    node.collect(keys)
    assert _host_links(node) == before and _closed(node) == ["b0"]
    node.kernel.remove("/run/netns/c1")
    collect_stale(service)
    assert node.kernel.host.link("b0") is None and orphans(service) == NO_ORPHANS


def test_what_another_network_shares_stays_while_a_record_is_lost(node: Node) -> None:
    """Of two networks on one bridge; and where an ADD to the network of the lost one fails."""
    red = node.network() | {"isolation": "closed"}
    node.kernel.add("/run/netns/c1")
    node.add(red, "/run/netns/c1", "c1")
    shutil.rmtree(node.folder / "run")
    assert node("ADD", red, "/run/netns/c1", "c9").code, "eth0 is in use"
    assert _closed(node) == ["b0"]
    ranges = [[{"subnet": "10.60.0.0/29", "gateway": "10.60.0.1", "rangeStart": "10.60.0.4"}]]
    blue = red | {"name": "blue", "ipam": red["ipam"] | {"ranges": ranges}}
    node.kernel.add("/run/netns/c2")
    node.add(blue, "/run/netns/c2", "c2")
    node.delete(blue, "/run/netns/c2", "c2")
    service = node.service(node.kernel)
    collect_stale(service)
    node.collect(blue)
    assert _closed(node) == ["b0"]
    with pytest.raises(Busy, match="records of running containers are lost: c1/eth0 on red"):
        remove_network(service, "blue")
    node.kernel.remove("/run/netns/c1")
    collect_stale(service)
    assert node.kernel.host.link("b0") is None and orphans(service) == NO_ORPHANS


def test_elements_of_a_valid_attachment_stay_without_its_record(node: Node) -> None:
    """As of a portmap after another project's bridge, whose links have no mark."""
    network = node.network()
    node.fill(network)
    mark = identity.attachment_mark(Attachment("blue", "c9", "eth0", "portmap"))
    service = node.service(node.kernel)
    service.kernel.rules.add([Element("ports4", ("tcp", 8080), (ip_address("10.60.0.2"), 80), mark)])
    assert [one.mark for one in orphans(service).elements] == [mark]
    assert orphans(service, "blue", frozenset({("c9", "eth0")})).elements == ()
    assert [one.mark for one in orphans(service, "blue", frozenset({("c8", "eth0")})).elements] == [mark]


def test_a_result_that_libcni_has_kept_holds_no_network(node: Node) -> None:
    network = node.network()
    node.fill(network)
    node.cached("c1", "/run/netns/c1")
    for number in range(1, 6):
        node.delete(network, f"/run/netns/c{number}", f"c{number}")
    assert "network red" in collect_stale(node.service(node.kernel)).leftovers
    assert node.kernel.host.link("b0") is None


def test_an_add_meanwhile_is_not_lost(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record is written before its link is made: whoever sees the link finds the record."""
    network = node.network()
    node.kernel.add("/run/netns/c1")
    service = node.service(node.kernel)
    service.records.prepare()
    host, added = node.kernel.host, []
    links = host.links

    def listed() -> tuple[Link, ...]:
        if not added:
            added.append(True)
            node.add(network, "/run/netns/c1")
        return links()

    monkeypatch.setattr(host, "links", listed)
    assert holders.lost_attachments(service) == []
    assert added and any(link.elsewhere for link in links())
