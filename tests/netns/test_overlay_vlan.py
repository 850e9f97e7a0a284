"""A VLAN as a part of an overlay network of mode l2: at its gateway, machines and containers are neighbours."""

from __future__ import annotations

import json

import pytest

from cni_plugin.dataplane import frames
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.ops.overlay_gateway import machines
from lab import namespaces
from lab.abilities import require
from lab.host import Host
from lab.overlay import Cluster, address
from weft import identity
from weft.kernel.linux.kernel import LinuxKernel
from weft.overlay_modes import encoded

BRIDGE = identity.overlay_bridge("a")
VXLAN = identity.overlay_vxlan(BRIDGE)
RANGE, MACHINE = "10.60.250.0/24", "10.60.250.5"
GATEWAY = 2


class Site:
    """Three hosts with network a, and a machine behind eth1 of the second one, with a VLAN tag or without."""

    def __init__(self, host: Host, vlan: int) -> None:
        self.host, self.cluster, self.vlan = host, Cluster(host, ipv6=False), vlan
        self.link, self.port = ("eth0.v", identity.overlay_vlan(BRIDGE)) if vlan else ("eth0", "eth1")
        with namespaces.inside(host.container("m1")):
            lines = ["link set lo up", f"link add eth0 type veth peer name eth1 netns h{GATEWAY}", "link set eth0 up"]
            tagged = [f"link add {self.link} link eth0 type vlan id {vlan}", f"link set {self.link} up"] if vlan else []
            lines += [*tagged, f"address add {MACHINE}/16 dev {self.link}"]
            host.run("ip", "-batch", "-", stdin="\n".join(lines))
        self.cluster.run(GATEWAY, "ip", "link", "set", "eth1", "up")
        at_vlan = {"host": f"h{GATEWAY}", "parent": "eth1", "vlan": vlan, "range": RANGE}
        for number, member in self.cluster.members.items():
            local = {"local": True} if number == GATEWAY else {}
            member.networks["a"] = {"mode": "l2", "vlanGateway": {**at_vlan, **local}}
        self.cluster.members[GATEWAY].vlan = [RANGE]
        self.cluster.write("a")
        self.at: dict[int, str] = {}

    def attach(self) -> None:
        """A container cN on each host, which the other hosts know of."""
        for number, member in self.cluster.members.items():
            found = self.cluster.add("a", number, f"c{number}")
            self.at[number] = address(found)
            mac = next(one["mac"] for one in found["interfaces"] if one.get("sandbox"))
            member.ports = {mac: [self.at[number]]}
        self.publish()

    def publish(self) -> dict[str, list[str]]:
        """What the gateway's agent tells the others of the machines."""
        with namespaces.inside(self.cluster.members[GATEWAY].path):
            kernel = LinuxKernel(TABLES)
            try:
                seen = kernel.rules.elements(frames.VLAN_MACHINES4)
                found = encoded(machines(seen, kernel.host.all_ports_fdb(), self.port))
            finally:
                kernel.close()
        ports = {mac: one for mac, one in self.cluster.members[GATEWAY].ports.items() if one == [self.at[GATEWAY]]}
        self.cluster.members[GATEWAY].ports = ports | found
        self.cluster.write("a")
        self.cluster.reconcile("a")
        return found

    def mac(self, container: str, link: str = "eth0") -> str:
        found = self.host.inside(container, "ip", "-j", "link", "show", link).json
        return str(found[0]["address"])

    def machine(self, *argv: str) -> None:
        self.host.inside("m1", "ip", *argv)

    def sent(self, number: int) -> int:
        """Packets that a host has sent by the VXLAN link."""
        found = json.loads(self.cluster.run(number, "ip", "-s", "-j", "link", "show", VXLAN))
        return int(found[0]["stats64"]["tx"]["packets"])


@pytest.fixture(params=[0, 100], ids=["untagged", "tagged"])
def site(request: pytest.FixtureRequest, host: Host) -> Site:
    require("vxlan", "vlan" if request.param else "")
    return Site(host, request.param)


def test_machines_and_containers_are_neighbours(site: Site) -> None:
    """Also those of other hosts, once the machine has sent anything; and nothing is flooded to these."""
    host = site.host
    site.attach()
    assert host.ping("m1", site.at[GATEWAY]) and host.ping(f"c{GATEWAY}", MACHINE)
    mac = site.mac("m1", site.link)
    assert site.publish() == {mac: [MACHINE]}
    for number in site.cluster.members:
        assert host.ping(f"c{number}", MACHINE), number
        assert host.ping("m1", site.at[number]), number
        assert host.ping(f"h{number}", MACHINE), number
        listed = host.inside(f"c{number}", "ip", "-j", "neigh", "show", MACHINE, "dev", "eth0").json
        assert listed[0]["lladdr"] == mac, "not a router"
    before = {number: site.sent(number) for number in site.cluster.members}
    assert not host.ping("m1", "10.60.77.7", expected=False)
    assert not host.ping("c1", "10.60.250.77", expected=False)
    assert {number: site.sent(number) for number in site.cluster.members} == before
    assert site.cluster.reconcile("a") == []


def test_machines_cannot_take_the_addresses_of_containers(site: Site) -> None:
    """Nor are they routed to other networks, or believed to have a container's MAC address."""
    host, cluster = site.host, site.cluster
    site.attach()
    other = address(cluster.add("b", GATEWAY, "b2"))
    assert host.ping("m1", site.at[GATEWAY])
    site.machine("route", "add", "10.61.0.0/16", "via", "10.60.0.1")
    assert not host.ping("m1", other, expected=False)
    assert not host.ping("b2", MACHINE, expected=False)
    own, forged = site.mac("m1", site.link), site.mac(f"c{GATEWAY}")
    # An address of a container, then one of nobody's.
    for taken in (site.at[1], "10.60.77.7"):
        site.machine("address", "add", f"{taken}/16", "dev", site.link)
        argv = ("ping", "-c1", "-W1", "-I", taken, site.at[GATEWAY])
        assert host.inside("m1", *argv, check=False).code
        listed = host.inside(f"c{GATEWAY}", "ip", "-j", "neigh", "show", taken, "dev", "eth0").stdout
        assert own not in listed
        site.machine("address", "delete", f"{taken}/16", "dev", site.link)
    site.machine("link", "set", site.link, "address", forged)
    host.ping("m1", site.at[GATEWAY], expected=False)
    host.ping("m1", "10.60.0.1", expected=False)
    assert forged not in site.publish()
    assert host.ping("c1", site.at[GATEWAY])
    site.machine("link", "set", site.link, "address", own)
    assert host.ping("m1", site.at[GATEWAY])


def test_more_machines_than_can_be_known(site: Site) -> None:
    """A machine that forges many MAC addresses cuts nobody off: others are neighbours at the gateway still."""
    site.attach()
    macs = [f"06:00:00:00:{number >> 8:02x}:{number & 255:02x}" for number in range(1024)]
    found = ", ".join(f'"{site.port}" . {mac} . 10.60.250.77' for mac in macs)
    site.cluster.run(GATEWAY, "nft", "add", "element", "bridge", "weft", "vlan_machines4", f"{{ {found} }}")
    assert site.host.ping("m1", site.at[GATEWAY])
    assert MACHINE not in str(site.publish())


def test_the_vlan_comes_and_goes_with_the_network(site: Site) -> None:
    host, cluster = site.host, site.cluster
    cluster.run(GATEWAY, "ip", "link", "set", "eth1", "down")
    before = cluster.snapshots()
    if not site.vlan:
        cluster.run(GATEWAY, "ip", "address", "add", "198.51.100.9/24", "dev", "eth1")
        host.container(f"c{GATEWAY}")
        refused = cluster.call("ADD", "a", GATEWAY, f"c{GATEWAY}")
        assert not refused.ok and "has the address 198.51.100.9/24" in str(refused)
        cluster.run(GATEWAY, "ip", "address", "delete", "198.51.100.9/24", "dev", "eth1")
    cluster.run(GATEWAY, "ip", "link", "set", "eth1", "up")
    site.attach()
    assert host.ping("m1", site.at[GATEWAY])
    cluster.run(GATEWAY, "ip", "link", "set", site.port, "nomaster")
    (said,) = cluster.reconcile("a", GATEWAY)
    assert f"{site.port} is no port of {BRIDGE}" in said
    assert host.ping("m1", site.at[GATEWAY])
    for number in cluster.members:
        cluster.delete("a", number, f"c{number}")
        cluster.collect("a", number)
    found = json.loads(cluster.run(GATEWAY, "ip", "-j", "link", "show"))
    assert not any(one.get("master") for one in found)
    cluster.run(GATEWAY, "ip", "link", "set", "eth1", "down")
    assert cluster.left(before) == []
