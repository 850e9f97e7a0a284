"""A LAN neighbour and a container reach the published ports of a host and nothing else."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from typing import Any

import pytest

from cni_plugin.dataplane import nat
from lab import frames, namespaces, seen
from lab.calls import Weft
from lab.confs import DEFAULT4, DEFAULT6, bridge, pool, port, ptp
from lab.frames import UDP
from lab.host import Host, Lan
from lab.waiting import BRIEFLY, PATIENTLY

SERVER, SERVER6 = "10.81.0.2", "fd00:81::2"
EVERYWHERE, LOCAL, INNER, UNPUBLISHED, INDOORS = 8080, 8081, 80, 90, 7000
DRIVERS = pytest.mark.parametrize("driver", ["bridge", "ptp"])


class Topology:
    """A container with a port on all addresses and one on 127.0.0.1; a neighbour with routes."""

    def __init__(self, host: Host, driver: str, *, weft: bool = True, **keys: Any) -> None:
        self.host, self.weft = host, Weft()
        seen.hurry(host)
        self.lan: Lan = host.lan(default_route=True)
        ipam = pool("10.81.0.0/24", "fd00:81::/64", routes=[DEFAULT4, DEFAULT6])
        made = bridge(ipam, name="shop", isGateway=True) if driver == "bridge" else ptp(ipam, name="shop")
        made = {**made, "ipMasq": True, "hairpinMode": True} if driver == "bridge" else {**made, "ipMasq": True}
        runtime = {"portMappings": [port(EVERYWHERE, INNER), port(LOCAL, 81, address="127.0.0.1")]}
        self.path = host.container("shop")
        if weft:
            self.conf = {**made, "type": "weft", "driver": driver, "portmap": {}, "runtimeConfig": runtime, **keys}
            self.result = self.weft.add(self.conf, self.path, "shop")
        else:
            self.conf = {**made, **keys}
            self.result = self.weft.add(self.conf, self.path, "shop")
            chained = {"cniVersion": "1.1.0", "name": "shop", "type": "portmap", "runtimeConfig": runtime}
            self.weft.add({**chained, "prevResult": self.result}, self.path, "shop")
        for number in (INNER, 81, UNPUBLISHED):
            host.serve_tcp("shop", number)
        host.serve_tcp(None, INDOORS, "127.0.0.1")
        assert host.ping(None, self.lan.outside6)

    def neighbour_reaches(self, address: str, number: int) -> bool:
        """Whether the neighbour gets a response, where one is expected."""
        return self.host.reaches(self.lan.name, address, number)

    def neighbour_blocked(self, address: str, number: int) -> bool:
        """Whether the neighbour gets no response, where none is expected."""
        return not self.host.reaches(self.lan.name, address, number, expected=False)


@DRIVERS
def test_published_ports_are_reachable_and_nothing_else_is(host: Host, driver: str) -> None:
    topology = Topology(host, driver)
    assert topology.neighbour_reaches(topology.lan.host, EVERYWHERE)
    assert topology.neighbour_reaches(topology.lan.host6, EVERYWHERE)
    for address in (SERVER, SERVER6):
        for number in (INNER, 81, UNPUBLISHED, EVERYWHERE):
            assert topology.neighbour_blocked(address, number), (address, number)
    for address in (topology.lan.host, topology.lan.host6, "10.81.0.1", "fd00:81::1"):
        for number in (LOCAL, UNPUBLISHED, INDOORS):
            assert topology.neighbour_blocked(address, number), (address, number)
    assert host.fetch(None, "127.0.0.1", LOCAL) is not None
    assert host.fetch(None, "127.0.0.1", EVERYWHERE) is not None
    assert topology.weft.check(topology.conf, topology.result, topology.path, "shop") == ""


@DRIVERS
def test_open_networks_are_reachable(host: Host, driver: str) -> None:
    """Under the reference's type names; 127.0.0.1 stays closed.

    Proves that the test above can fail.
    """
    topology = Topology(host, driver, weft=False)
    assert topology.neighbour_reaches(topology.lan.host, EVERYWHERE)
    for address in (SERVER, SERVER6):
        for number in (INNER, 81, UNPUBLISHED):
            assert topology.neighbour_reaches(address, number), (address, number)
    assert topology.neighbour_blocked(topology.lan.host, LOCAL)


@DRIVERS
def test_a_routed_network_is_reached_by_address(host: Host, driver: str) -> None:
    topology = Topology(host, driver, isolation="routed")
    assert topology.neighbour_reaches(SERVER, UNPUBLISHED)
    assert topology.neighbour_reaches(SERVER6, UNPUBLISHED)
    assert topology.neighbour_blocked(topology.lan.host, LOCAL)


@DRIVERS
@pytest.mark.parametrize("weft", [True, False])
@pytest.mark.parametrize("guarded", [True, False])
def test_packets_to_loopback_on_the_wire_are_dropped(host: Host, driver: str, weft: bool, guarded: bool) -> None:
    """Packets to 127.0.0.1 on the wire, as a neighbour or a container can send them
    (CVE-2020-8558).

    With route_localnet, which weft sets nowhere, only the rule in raw_prerouting drops them:
    without it (``guarded`` is False) they arrive.
    """
    topology = Topology(host, driver, weft=weft, **({"ipspoofchk": False} if weft else {}))
    host.run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
    if not guarded:
        host.run("nft", "flush", "chain", "inet", "weft", "raw_prerouting")
    outer = next(one for one in topology.result["interfaces"] if not one.get("sandbox"))
    mac = seen.link(host, "eth0", "shop")["address"]
    far, near = seen.link(host, "eth0", topology.lan.name)["address"], seen.link(host, topology.lan.link)["address"]
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 7001))
    listener.settimeout(BRIEFLY if guarded else PATIENTLY)
    heard = []
    for path, source, address, to in (
        (topology.path, mac, SERVER, outer["mac"]),
        (f"{namespaces.FOLDER}/{topology.lan.name}", far, topology.lan.outside, near),
    ):
        packet = frames.ip(address, "127.0.0.1", UDP, frames.udp(4000, 7001, b"in"))
        frames.send(path, [frames.frame(source, *packet, to)])
        try:
            heard.append(listener.recv(100))
        except TimeoutError:
            heard.append(b"")
    listener.close()
    assert heard == ([b"", b""] if guarded else [b"in", b"in"])


@DRIVERS
def test_containers_of_other_networks_reach_published_ports_alone(host: Host, driver: str) -> None:
    topology = Topology(host, driver)
    ipam = pool("10.82.0.0/24", "fd00:82::/64", routes=[DEFAULT4, DEFAULT6])
    topology.weft.add({**bridge(ipam, name="next", bridge="b-next", isGateway=True), "type": "weft",
                       "driver": "bridge"}, host.container("next"), "next")  # fmt: skip
    for address in (topology.lan.host, topology.lan.host6, "10.82.0.1"):
        assert host.fetch("next", address, EVERYWHERE) is not None, address
    for address in (SERVER, SERVER6):
        for number in (INNER, UNPUBLISHED, EVERYWHERE):
            assert host.fetch("next", address, number, timeout=BRIEFLY) is None
    for address in (topology.lan.host, "10.82.0.1"):
        assert host.fetch("next", address, LOCAL, timeout=BRIEFLY) is None


@DRIVERS
def test_established_connections_outlive_the_removal_of_a_neighbour(host: Host, driver: str) -> None:
    """An established connection survives ADDs and DELs of other attachments."""
    topology = Topology(host, driver)
    with namespaces.inside(f"{namespaces.FOLDER}/{topology.lan.name}"):
        client = socket.create_connection((topology.lan.host, EVERYWHERE), timeout=PATIENTLY)
    path = host.container("beside")
    beside = {**topology.conf, "runtimeConfig": {}}
    topology.weft.add(beside, path, "beside")
    topology.weft.delete(beside, path, "beside")
    client.sendall(b"still here")
    assert client.recv(100).endswith(b"still here")
    client.close()


def test_sysctls_are_set_per_link_only(host: Host) -> None:
    """ADD changes nothing in net.*.conf.all but forwarding, and sets route_localnet on no link."""
    words = ("route_localnet", "accept_local", "rp_filter", "accept_ra", "accept_redirects", "arp_ignore")
    keys = [f"net/ipv4/conf/all/{word}" for word in words[:3]] + ["net/ipv6/conf/all/accept_ra"]
    before = [seen.setting(host, key) for key in keys]
    Topology(host, "bridge")
    assert [seen.setting(host, key) for key in keys] == before
    settings = host.run("sysctl", "-a", "-r", "route_localnet").stdout.split("\n")
    assert [line for line in settings if line.endswith("= 1")] == []


@DRIVERS
def test_a_neighbour_does_not_appear_as_this_host(host: Host, driver: str) -> None:
    """With the source that this host's processes at 127.0.0.1 and ::1 have between two hooks."""
    weft, lan = Weft(), host.lan(default_route=True)
    ipam = pool("10.81.0.0/24", "fd00:81::/64", routes=[DEFAULT4, DEFAULT6])
    made = bridge(ipam, name="shop", isGateway=True) if driver == "bridge" else ptp(ipam, name="shop")
    runtime = {"portMappings": [port(EVERYWHERE, INNER, "udp")]}
    conf = {**made, "type": "weft", "driver": driver, "portmap": {}, "runtimeConfig": runtime}
    path = host.container("shop")
    weft.add(conf, path, "shop")
    assert host.ping("shop", lan.outside) and host.ping("shop", lan.outside6)
    far, near = seen.link(host, "eth0", lan.name)["address"], seen.link(host, lan.link)["address"]
    with namespaces.inside(path):
        server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.bind(("::", INNER))
    server.settimeout(PATIENTLY)
    with server:
        for source, to in ((nat.LOOPBACK_SOURCE4, lan.host), (nat.LOOPBACK_SOURCE6, lan.host6)):
            content = frames.udp(4000, EVERYWHERE, b"in")
            if ":" in to:  # a checksum is required
                ends = ip_address(source).packed + ip_address(to).packed
                over = frames._sum(ends + struct.pack("!II", len(content), UDP) + content)
                content = content[:6] + struct.pack("!H", over) + content[8:]
            packet = frames.ip(source, to, UDP, content)
            frames.send(f"{namespaces.FOLDER}/{lan.name}", [frames.frame(far, *packet, near)])
            client = server.recvfrom(100)[1][0]
            assert client.removeprefix("::ffff:") == source
