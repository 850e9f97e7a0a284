"""A container on several networks: what an address sends leaves by its own link, in any order of events."""

from __future__ import annotations

from typing import Any

import pytest

from lab import seen
from lab.confs import DEFAULT4, DEFAULT6, bridge, network, pool, port, ptp
from lab.host import Host, Lan
from lab.plugins import Cni
from lab.snapshot import difference

FAR, FAR6 = "198.51.100.1", "2001:db8:51::1"
"""Addresses beyond the LAN, so that every answer needs a default route."""


@pytest.fixture
def lan(host: Host) -> Lan:
    found = host.lan()
    host.inside(found.name, "ip", "address", "add", f"{FAR}/32", "dev", "lo")
    host.inside(found.name, "ip", "address", "add", f"{FAR6}/128", "dev", "lo", "nodad")
    return found


def conf(driver: str, name: str, number: int) -> dict[str, Any]:
    """A network of weft, whose checks drop packets with the addresses of another one."""
    ipam = pool(f"10.{number}.0.0/24", f"fd00:{number}::/64", routes=[DEFAULT4, DEFAULT6])
    made = ptp(ipam) if driver == "ptp" else bridge(ipam, bridge=f"b-{name}", isGateway=True)
    return {
        **made, "name": name, "type": "weft", "driver": driver, "ipMasq": True, "portmap": {},
        "runtimeConfig": {"portMappings": [port(8000 + number, 80)]},
    }  # fmt: skip


class Topology:
    """A container, its networks with their interfaces, and what each must do."""

    def __init__(self, host: Host, cni: Cni, lan: Lan, driver: str) -> None:
        self.host, self.cni, self.lan = host, cni, lan
        self.netns = host.container()
        self.confs = {f"eth{at}": conf(driver, name, at + 1) for at, name in enumerate(("red", "blue", "green"))}
        self.results: dict[str, Any] = {}
        self.empty = seen.inner(self.netns)

    def connect(self, *links: str) -> None:
        for link in links:
            self.results[link] = self.cni.add(self.confs[link], self.netns, ifname=link)

    def disconnect(self, *links: str) -> None:
        for link in links:
            self.cni.delete(self.confs[link], self.netns, ifname=link)
            del self.results[link]

    def works(self, first: str) -> None:
        """Ports of all networks answer, all addresses reach the outside; ``first`` is for the rest."""
        for link, result in self.results.items():
            self.cni.check(self.confs[link], result, self.netns, ifname=link)
            number = int(link[3:]) + 1
            for near, far in ((self.lan.host, FAR), (self.lan.host6, FAR6)):
                # The client is beyond the LAN, too.
                assert self.host.fetch(self.lan.name, near, 8000 + number, source=far) == far, (link, near)
            for ip, far in zip(result["ips"], (FAR, FAR6), strict=True):
                own = ip["address"].split("/")[0]
                (way,) = self.host.inside("c1", "ip", "-j", "route", "get", far, "from", own).json
                assert (way["dev"], way["gateway"]) == (link, ip["gateway"])
                assert self.host.fetch("c1", far, 80, source=own) in (self.lan.host, self.lan.host6)
        for far in (FAR, FAR6):
            (way,) = self.host.inside("c1", "ip", "-j", "route", "get", far).json
            assert way["dev"] == first


@pytest.mark.parametrize("driver", ["bridge", "ptp"])
def test_what_an_address_sends_leaves_by_its_own_link(host: Host, cni: Cni, lan: Lan, driver: str) -> None:
    """As ``podman network connect`` and ``disconnect`` do it, in any order."""
    host.serve_tcp(lan.name, 80)
    topology = Topology(host, cni, lan, driver)
    topology.connect("eth0")
    alone = seen.inner(topology.netns)
    host.serve_tcp("c1", 80)
    topology.connect("eth1")
    topology.works(first="eth0")
    topology.disconnect("eth1")
    assert difference(alone, seen.inner(topology.netns)) == []
    topology.connect("eth1", "eth2")
    topology.disconnect("eth1")
    topology.works(first="eth0")
    topology.disconnect("eth0")
    topology.works(first="eth2")
    # The order is that of their coming, so the one that comes back is the last.
    topology.connect("eth0")
    topology.works(first="eth2")
    topology.disconnect("eth2")
    topology.works(first="eth0")
    topology.disconnect("eth0")
    assert difference(topology.empty, seen.inner(topology.netns)) == []


def test_what_comes_from_the_other_subnet_is_answered_by_the_link_that_it_came_by(
    host: Host, cni: Cni, lan: Lan
) -> None:
    """The address of one network, asked from the other's subnet: to its gateway, not to the neighbour."""
    red = {**conf("bridge", "red", 1), "isolation": "open", "ipMasq": False}
    blue = {**conf("bridge", "blue", 2), "isolation": "open", "ipMasq": False}
    netns = host.container()
    cni.add(red, netns)
    cni.add(blue, netns, ifname="eth1")
    cni.add({**blue, "portmap": {}, "runtimeConfig": {}}, host.container("c2"), container="c2")
    host.serve_tcp("c1", 80)
    # c2 is on blue, and asks c1 by its address on red.
    for address in ("10.1.0.2", "fd00:1::2"):
        assert host.fetch("c2", address, 80) is not None, address


def test_a_network_on_the_lan_beside_one_behind_the_host(host: Host, cni: Cni, lan: Lan) -> None:
    """macvlan: the router of the LAN gets what has the LAN's address, and nothing else."""
    ipam = pool("192.0.2.0/24", routes=[DEFAULT4])
    ipam["ranges"][0][0].update(rangeStart="192.0.2.100", gateway=lan.outside)
    netns = host.container()
    on_lan = network("macvlan", ipam, name="lan", master=lan.link)
    host.serve_tcp(lan.name, 80)
    for first, second in (("lan", "red"), ("red", "lan")):
        confs = {"lan": on_lan, "red": conf("bridge", "red", 1)}
        results = {name: cni.add(confs[name], netns, ifname=link) for name, link in ((first, "eth0"), (second, "eth1"))}
        own = {name: results[name]["ips"][0]["address"].split("/")[0] for name in confs}
        assert host.fetch("c1", FAR, 80, source=own["lan"]) == own["lan"]
        assert host.fetch("c1", FAR, 80, source=own["red"]) == lan.host
        for name, link in ((first, "eth0"), (second, "eth1")):
            cni.check(confs[name], results[name], netns, ifname=link)
        for name, link in ((first, "eth0"), (second, "eth1")):
            cni.delete(confs[name], netns, ifname=link)
        rules = host.inside("c1", "ip", "rule").stdout + host.inside("c1", "ip", "-6", "rule").stdout
        assert not [line for line in rules.splitlines() if "from all" not in line], rules


@pytest.mark.parametrize("order", [("inner", "red"), ("red", "inner")], ids=["internal first", "internal last"])
def test_an_internal_network_is_never_the_way_out(host: Host, cni: Cni, lan: Lan, order: tuple[str, str]) -> None:
    """podman#16233: with a default route of the internal network, the outside was a matter of luck."""
    inner = bridge(pool("10.3.0.0/24", "fd00:3::/64"), bridge="b-inner", name="inner")
    confs = {"red": conf("bridge", "red", 1), "inner": {**inner, "type": "weft", "driver": "bridge", "internal": True}}
    netns = host.container()
    for number, name in enumerate(order):
        cni.check(confs[name], cni.add(confs[name], netns, ifname=f"eth{number}"), netns, ifname=f"eth{number}")
    cni.add(confs["inner"], host.container("c2"), container="c2")
    host.serve_tcp(lan.name, 80)
    host.serve_tcp("c2", 80)
    for address, client in ((FAR, lan.host), (FAR6, lan.host6), ("10.3.0.3", "10.3.0.2"), ("fd00:3::3", "fd00:3::2")):
        assert host.fetch("c1", address, 80) == client
