"""Overlay networks over hosts: reachability, isolation, forged VXLAN packets, peers that come and go."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.networks import findings
from discovery.balancer.balancer import Balancer
from lab import frames, namespaces
from lab.abilities import require
from lab.host import Host
from lab.overlay import VNIS, Cluster, address, replace_file
from lab.services import Book, Greeters, instance, picks, run, virtual
from lab.waiting import BRIEFLY, until
from weft import identity
from weft.errors import StateDamaged
from weft.kernel.linux.kernel import LinuxKernel

BRIDGE, LINK = identity.overlay_bridge("a"), identity.overlay_vxlan(identity.overlay_bridge("a"))
VIP = "10.79.0.10"


@pytest.fixture
def cluster(host: Host) -> Iterator[Cluster]:
    require("vxlan")
    yield Cluster(host)


def test_all_pairs_reach_each_other_with_their_own_addresses(cluster: Cluster) -> None:
    """Also the gateway on each host, and the hosts' own addresses; nothing else of the subnet."""
    host = cluster.host
    found = {number: cluster.add("a", number, f"a{number}", ipMasq=True) for number in cluster.members}
    for number in cluster.members:
        host.serve_tcp(f"a{number}", 80)
    for version in (4, 6):
        for client, server in permutations(cluster.members, 2):
            seen = host.fetch(f"a{client}", address(found[server], version), 80)
            assert (seen or "").removeprefix("::ffff:") == address(found[client], version), (client, server)
    for number in cluster.members:
        assert host.ping(f"a{number}", "10.60.0.1") and host.ping(f"a{number}", "fe80::1%eth0")
        assert host.ping(f"h{number}", address(found[1 if number != 1 else 2]))
    for own in ("10.60.2.1", "fd00:60:0:2::1"):
        assert host.ping("a1", own)
    macs = {
        json.loads(cluster.run(number, "ip", "-j", "link", "show", BRIDGE))[0]["address"] for number in cluster.members
    }
    assert len(macs) == 1
    for nobody in ("10.60.9.9", "fd00:60:0:9::9"):
        assert not host.ping("a1", nobody, expected=False)
        assert host.inside("h1", "ip", "route", "get", nobody, check=False).code  # and not by the default route


def test_networks_are_isolated_over_hosts(cluster: Cluster) -> None:
    """As within one host: closed in both directions, on the same host and on another one."""
    host = cluster.host
    there: dict[int, dict[str, Any]] = {}
    for number in (1, 2):
        for network in VNIS:
            found = cluster.add(network, number, f"{network}{number}")
            host.serve_tcp(f"{network}{number}", 80)
            there.setdefault(number, {})[network] = found
    for version in (4, 6):
        assert host.reaches("a1", address(there[2]["a"], version), 80)
        assert host.reaches("b1", address(there[2]["b"], version), 80)
        for client, server in (("a1", 2), ("a1", 1), ("a2", 1)):
            assert not host.reaches(client, address(there[server]["b"], version), 80, expected=False)
        # From a host that is a peer, but by the other network's VXLAN link: it may enter its own bridge alone.
        assert not host.reaches("b1", address(there[2]["a"], version), 80, expected=False)
    route = f"{address(there[2]['b'])}/32 nhid {_nexthop(cluster, 1)} src 10.60.1.1"
    cluster.run(1, "ip", "route", "replace", *route.split())
    assert not host.reaches("h1", address(there[2]["b"]), 80, expected=False)


def _nexthop(cluster: Cluster, member: int, network: str = "a", peer: int = 2) -> int:
    gateway = identity.link_local(cluster.network(network, cluster.members[peer])["mac"])
    listed = json.loads(cluster.run(member, "ip", "-j", "nexthop"))
    return next(int(one["id"]) for one in listed if one.get("gateway") == str(gateway))


@pytest.mark.parametrize("masquerade", [False, True], ids=["own address", "masqueraded"])
def test_a_virtual_address_leads_to_another_network_on_another_host(cluster: Cluster, masquerade: bool) -> None:
    host, book = cluster.host, Book()
    found = {}
    for number in (1, 2):
        # Strict reverse path filters: the answer comes in by the VXLAN link of the client's network.
        cluster.run(number, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
        for network in VNIS:
            found[network, number] = cluster.add(network, number, f"{network}{number}", ipMasq=masquerade)
    server = Greeters("/run/netns/b2", {"b2": ("::", 80)})
    book.put(instance("web", address(found["b", 2])), virtual("web", VIP))

    async def work(balancer: Balancer) -> None:
        assert picks("/run/netns/a1", VIP, 80, 4) == {"b2": 4}
        seen = {one.removeprefix("::ffff:") for one in server.clients["b2"]}
        assert seen == ({"10.61.1.1"} if masquerade else {address(found["a", 1])})
        assert not host.reaches("a1", address(found["b", 2]), 80, expected=False)

    try:
        with namespaces.inside(cluster.members[1].path):
            run(work, book)
    finally:
        server.close()


def _forged(cluster: Cluster, network: str, to: str, port: int) -> bytes:
    """What a UDP socket sends to host 1 to have a packet in the network: a VXLAN header and a frame."""
    sender, receiver = cluster.members[2], cluster.members[1]
    packet = frames.ip("10.60.2.77", to, frames.UDP, frames.udp(5000, port, b"forged"))
    macs = [cluster.network(network, one)["mac"] for one in (sender, receiver)]
    inner = frames.frame(macs[0], *packet, macs[1])
    return struct.pack("!II", 0x08000000, VNIS[network] << 8) + inner


def _delivered(
    cluster: Cluster, sender: str, container: str, to: str, payload: bytes, target: str = "192.0.2.1"
) -> bool:
    """Whether the frame reaches a UDP socket of the container."""
    with namespaces.inside(f"/run/netns/{container}"):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, namespaces.inside(f"/run/netns/{sender}"):
        receiver.bind((to, 7777))
        receiver.settimeout(BRIEFLY)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outgoing:
            for _ in range(3):
                outgoing.sendto(payload, (target, 4789))
        try:
            return receiver.recv(100) == b"forged"
        except TimeoutError:
            return False


def test_forged_vxlan_packets_are_dropped(cluster: Cluster) -> None:
    """From an unknown address, from host 1 itself over lo, and from containers, which host 2 would masquerade."""
    to = address(cluster.add("a", 1, "a1"))
    for number in (1, 2):
        cluster.add("a", number, f"other{number}", ipMasq=True, hostAccess="open")
        cluster.add("b", number, f"b{number}", ipMasq=True, isolation="open")
    payload = _forged(cluster, "a", to, 7777)
    assert _delivered(cluster, "h2", "a1", to, payload)  # a peer may: hosts trust each other
    cluster.host.inside("fab", "ip", "address", "add", "192.0.2.99/24", "dev", "f0")
    for sender, target in (
        ("fab", "192.0.2.1"), ("h1", "192.0.2.1"), ("h1", "127.0.0.1"), ("a1", "192.0.2.1"), ("b1", "192.0.2.1"),
        ("b2", "192.0.2.1"), ("other2", "192.0.2.1"), ("other2", "10.60.1.1"), ("b2", "10.61.1.1"),
    ):  # fmt: skip
        assert not _delivered(cluster, sender, "a1", to, payload, target), (sender, target)
    # The check is what drops them: without it, the same packet from the unknown address arrives.
    cluster.run(1, "nft", "flush", "chain", "inet", "weft", "overlay_outer")
    assert _delivered(cluster, "fab", "a1", to, payload)


class Pinging:
    """A container that pings another one twenty times a second."""

    def __init__(self, host: Host, name: str, to: str) -> None:
        self._process = host.start("ping", "-n", "-i", "0.05", "-w", "300", to, name=name)

    def lost(self) -> set[int]:
        """The numbers of the requests without an answer, of all up to one that is sent after this call."""
        out = self._process.stdout
        assert out is not None
        os.set_blocking(out.fileno(), False)
        said = out.read() or b""
        os.set_blocking(out.fileno(), True)
        # Others are still under way when it ends.
        said += out.readline() + out.readline()
        self._process.send_signal(signal.SIGINT)
        said += self._process.communicate()[0]
        seen = {int(one) for one in re.findall(rb"icmp_seq=(\d+) ttl", said)}
        assert len(seen) > 5, said
        return set(range(1, max(seen))) - seen


def test_peers_come_go_and_move_without_loss_to_others(cluster: Cluster) -> None:
    host = cluster.host
    del cluster.blocks["a"][3]
    cluster.write("a")
    found = {number: cluster.add("a", number, f"a{number}") for number in (1, 2)}
    assert host.ping("a1", address(found[2]))
    pinging = Pinging(host, "a1", address(found[2]))
    cluster.blocks["a"][3] = ["10.60.3.0/24", "fd00:60:0:3::/64"]
    cluster.write("a")
    found[3] = cluster.add("a", 3, "a3")
    changed = cluster.reconcile("a", 1, 2)
    assert any("192.0.2.3" in one for one in changed), changed
    assert host.ping("a1", address(found[3])) and host.ping("a2", address(found[3], 6))
    # Host 3 gets another underlay address, and then another MAC address and a second block.
    cluster.run(3, "sysctl", "-qw", "net.ipv4.conf.eth0.promote_secondaries=1")
    cluster.run(3, "ip", "address", "add", "192.0.2.33/24", "dev", "eth0")
    cluster.members[3].underlay = "192.0.2.33"
    cluster.write("a")
    cluster.reconcile("a")
    cluster.run(3, "ip", "address", "delete", "192.0.2.3/24", "dev", "eth0")
    assert host.ping("a1", address(found[3])) and host.ping("a3", address(found[2]))
    cluster.members[3].networks["a"] = {"mac": "02:77:00:00:99:03"}
    cluster.blocks["a"][3] += ["10.60.4.0/28"]
    cluster.write("a")
    cluster.reconcile("a")
    assert host.ping("a1", address(found[3])) and host.ping("a2", address(found[3], 6))
    assert "10.60.4.0/28 nhid" in cluster.run(1, "ip", "route")
    assert cluster.reconcile("a") == []
    cluster.delete("a", 3, "a3")
    gone = cluster.blocks["a"].pop(3)
    cluster.write("a")
    cluster.reconcile("a", 1, 2)
    routes = cluster.run(1, "ip", "route") + cluster.run(1, "ip", "-6", "route")
    assert not any(block in routes for block in gone)
    assert len(json.loads(cluster.run(1, "ip", "-j", "nexthop"))) == 1
    assert "192.0.2.33" not in cluster.run(1, "bridge", "fdb", "show", "dev", LINK) + cluster.run(
        1, "nft", "list", "set", "inet", "weft", "overlay_peers4"
    )
    assert pinging.lost() == set()


def test_the_port_of_a_network_can_change(cluster: Cluster) -> None:
    """Its VXLAN link is made anew; another network's rows stay."""
    found = {number: cluster.add("a", number, f"a{number}") for number in (1, 2)}
    other = {number: cluster.add("b", number, f"b{number}") for number in (1, 2)}
    for number in (1, 2):
        cluster.members[number].networks["a"] = {"port": 4790}
    cluster.write("a")
    for number in (1, 2):
        cluster.add("a", number, f"more{number}")
    for version in (4, 6):
        assert cluster.host.ping("a1", address(found[2], version)), version
        assert cluster.host.ping("b1", address(other[2], version)), version
    assert "dstport 4790" in cluster.run(1, "ip", "-d", "link", "show", LINK)


def test_a_damaged_file_changes_nothing(cluster: Cluster) -> None:
    found = {number: cluster.add("a", number, f"a{number}") for number in (1, 2)}
    path = cluster.members[1].file("a").with_name("a.peers.json")
    good = json.loads(path.read_text())
    twice = {**good, "peers": [*good["peers"], {**good["peers"][0], "name": "again"}]}
    for bad in ({**good, "peers": "none"}, twice, {**good, "format": 2}, {**good, "network": "b"}):
        replace_file(path, bad)
        with pytest.raises(StateDamaged, match=r"a\.peers\.json"):
            cluster.reconcile("a", 1)
        assert cluster.host.ping("a1", address(found[2]))
    path.unlink()
    cluster.add("a", 1, "new")
    assert cluster.host.ping("new", address(found[2]))
    replace_file(path, {**good, "peers": []})
    assert cluster.reconcile("a", 1)
    assert not cluster.host.ping("a1", address(found[2]), expected=False)


def test_routes_have_the_mtu_that_was_probed(cluster: Cluster) -> None:
    """A container learns of it by an ICMP error of its own host."""
    found = {number: cluster.add("a", number, f"a{number}") for number in (1, 2)}
    cluster.mtus[2] = 1350
    cluster.write("a")
    cluster.reconcile("a", 1)
    for version, option in ((4, "-4"), (6, "-6")):
        block = cluster.blocks["a"][2][0 if version == 4 else 1]
        assert "mtu 1350" in cluster.run(1, "ip", option, "route", "show", block)
        size = 1350 - (28 if version == 4 else 48)
        ping = ("ping", "-c", "1", "-w", "10", "-M", "do", "-s")
        assert cluster.host.inside("a1", *ping, str(size), address(found[2], version)).code == 0
        for _ in range(2):
            over = cluster.host.inside("a1", *ping, str(size + 1), address(found[2], version), check=False)
        assert over.code and "1350" in over.stdout + over.stderr


def test_another_program_may_use_the_port_with_another_vni(cluster: Cluster) -> None:
    """As Docker Swarm and Calico do, with learning and without being known to weft."""
    host = cluster.host
    for number in (1, 2):
        other = 3 - number
        link = f"link add swarm0 type vxlan id 4097 local 192.0.2.{number} dstport 4789 remote 192.0.2.{other}"
        cluster.run(number, "ip", *link.split())
        cluster.run(number, "ip", "address", "add", f"10.99.0.{number}/24", "dev", "swarm0")
        cluster.run(number, "ip", "link", "set", "swarm0", "up")
    assert host.ping("h1", "10.99.0.2")
    found = {number: cluster.add("a", number, f"a{number}") for number in (1, 2)}
    assert host.ping("h1", "10.99.0.2") and host.ping("a1", address(found[2]))
    for number in (1, 2):
        cluster.delete("a", number, f"a{number}")
        cluster.collect("a", number)
    assert host.ping("h1", "10.99.0.2")


def test_flannel_beside_weft(cluster: Cluster) -> None:
    """Flannel's layout with the same UDP port: each leaves the other's rows, routes and packets alone."""
    host = cluster.host
    macs = {number: f"02:f1:00:00:00:{number:02x}" for number in (1, 2)}
    for number in (1, 2):
        other = 3 - number
        for line in (
            f"link add flannel.1 address {macs[number]} type vxlan id 1 local 192.0.2.{number} dstport 4789 nolearning",
            f"address add 10.244.{number}.0/32 dev flannel.1",
            "link set flannel.1 mtu 1450 up",
            f"neigh replace 10.244.{other}.0 lladdr {macs[other]} dev flannel.1 nud permanent",
            f"route replace 10.244.{other}.0/24 via 10.244.{other}.0 dev flannel.1 onlink",
        ):
            cluster.run(number, "ip", *line.split())
        row = f"fdb replace {macs[other]} dev flannel.1 dst 192.0.2.{other} self permanent"
        cluster.run(number, "bridge", *row.split())

    def flannels() -> list[str]:
        shown = (
            "ip neigh show dev flannel.1 nud permanent",
            "bridge fdb show dev flannel.1",
            "ip route show dev flannel.1",
        )
        return [cluster.run(1, *one.split()) for one in shown]

    before = flannels()
    assert host.ping("h1", "10.244.2.0")
    found = {number: cluster.add("a", number, f"a{number}", ipMasq=True) for number in (1, 2)}
    assert host.ping("h1", "10.244.2.0") and host.ping("a1", address(found[2]))
    cluster.run(1, "ip", "link", "delete", LINK)
    cluster.reconcile("a", 1, everything=True)
    assert flannels() == before and host.ping("h1", "10.244.2.0") and host.ping("a1", address(found[2]))
    for number in (1, 2):
        cluster.delete("a", number, f"a{number}")
        cluster.collect("a", number)
    assert flannels() == before and host.ping("h1", "10.244.2.0")


def test_two_clusters_on_one_host(cluster: Cluster) -> None:
    """Of other addresses and peers, with the same UDP port: a peer of one is none of the other."""
    host = cluster.host
    del cluster.blocks["b"][3]
    for number in (1, 2):
        cluster.run(number, "ip", "address", "add", f"198.51.100.{number}/24", "dev", "eth0")
        cluster.members[number].networks["b"] = {"underlay": f"198.51.100.{number}"}
    cluster.write("b")
    found = {network: {one: cluster.add(network, one, f"{network}{one}") for one in (1, 2)} for network in VNIS}
    for network in VNIS:
        assert host.ping(f"{network}1", address(found[network][2])), network
    # Host 3 is a peer in a alone, and its packets are accepted there alone.
    for network, expected in (("a", True), ("b", False)):
        to = address(found[network][1])
        assert _delivered(cluster, "h3", f"{network}1", to, _forged(cluster, network, to, 7777)) == expected
    # One cluster's networks go, and the other's stay.
    for number in (1, 2):
        cluster.delete("b", number, f"b{number}")
        cluster.collect("b", number)
    assert host.ping("a1", address(found["a"][2]))
    # A VNI that the host has already is refused.
    cluster.members[1].networks["b"] = {"vni": VNIS["a"], "mac": "02:77:00:00:77:01"}
    cluster.write("b")
    answer = cluster.call("ADD", "b", 1, "b1")
    assert (answer.code, f"4789 . {VNIS['a']} in overlay_vnis" in answer.text) == (101, True), answer
    assert host.ping("a1", address(found["a"][2]))


def test_outer_packets_are_not_tracked(cluster: Cluster) -> None:
    found = {number: cluster.add("a", number, f"a{number}") for number in (1, 2)}
    assert cluster.host.ping("a1", address(found[2]))
    for number in (1, 2):
        assert "dport=4789" not in cluster.run(number, "cat", "/proc/net/nf_conntrack", check=False)


def test_nothing_is_left(cluster: Cluster) -> None:
    before = cluster.snapshots()
    for number in cluster.members:
        for network in VNIS:
            cluster.add(network, number, f"{network}{number}", ipMasq=True)
    for number in cluster.members:
        for network in VNIS:
            cluster.delete(network, number, f"{network}{number}")
            cluster.collect(network, number)

    until(lambda: cluster.left(before) == [], 20)
    for number in cluster.members:
        assert cluster.run(number, "ip", "nexthop") == ""
        assert "unreachable" not in cluster.run(number, "ip", "route") + cluster.run(number, "ip", "-6", "route")


BROKEN = {
    "VXLAN link down": (f"ip link set {LINK} down", "down"),
    "VXLAN link gone": (f"ip link delete {LINK}", LINK),
    "VXLAN link with another address": (f"ip link set {LINK} type vxlan id 100 local 192.0.2.9", "local"),
    "VXLAN link learns": (f"ip link set {LINK} type vxlan id 100 learning", "learning"),
    "VXLAN link MTU": (f"ip link set {LINK} mtu 1400", "MTU"),
    "VXLAN link MAC": (f"ip link set {LINK} address 02:00:00:00:00:09", "MAC"),
    "own address": (f"ip address delete 10.60.1.1/32 dev {LINK}", "10.60.1.1"),
    "gateway": (f"ip address delete 10.60.0.1/32 dev {BRIDGE}", "10.60.0.1"),
    "IPv6 gateway": (f"ip address delete fe80::1/64 dev {BRIDGE}", "fe80::1"),
    "own block": ("ip route delete 10.60.1.0/24", "10.60.1.0/24"),
    "peer's block": ("ip route delete 10.60.2.0/24", "10.60.2.0/24"),
    "unreachable": ("ip route delete unreachable 10.60.0.0/16 metric 9999", "unreachable route 10.60.0.0/16"),
    "neighbour": (f"ip neigh delete fe80::77:ff:fe00:6002 dev {LINK}", "fe80::77:ff:fe00:6002"),
    "FDB row": (f"bridge fdb delete 02:77:00:00:60:02 dev {LINK}", "02:77:00:00:60:02"),
    "FDB row elsewhere": (f"bridge fdb replace 02:77:00:00:60:02 dev {LINK} dst 192.0.2.66", "02:77:00:00:60:02"),
    "FDB row of nobody": (f"bridge fdb add 02:77:00:00:60:66 dev {LINK} dst 192.0.2.66", "02:77:00:00:60:66"),
    "nexthops": ("ip nexthop flush", "nexthop"),
    "known peers": ("nft flush set inet weft overlay_peers4", "192.0.2."),
    "an unknown peer": (
        "nft add element inet weft overlay_peers4 { 192.0.2.9 . 4789 . 0x64 comment MARK }", "192.0.2.9",
    ),
    "VNIs": ("nft flush set inet weft overlay_vnis", "overlay_vnis"),
    "proxy_arp": (f"sysctl -qw net.ipv4.conf.{BRIDGE}.proxy_arp=0", "proxy_arp"),
    "rp_filter": (f"sysctl -qw net.ipv4.conf.{LINK}.rp_filter=1", "rp_filter"),
}  # fmt: skip


def test_check_reports_each_change_and_reconcile_repairs_it(cluster: Cluster) -> None:
    found = {number: cluster.add("a", number, f"a{number}") for number in (1, 2)}
    mark = f'"{identity.mark("overlay", "a")}"'
    for name, (command, word) in BROKEN.items():
        assert cluster.call("CHECK", "a", 1, "a1", prevResult=found[1]).ok, name
        cluster.run(1, *command.replace("MARK", mark).split())
        answer = cluster.call("CHECK", "a", 1, "a1", prevResult=found[1])
        assert (answer.code, word in answer.text) == (104, True), (name, answer)
        cluster.reconcile("a", 1, everything=True)
    assert cluster.host.ping("a1", address(found[2])) and cluster.host.ping("a1", address(found[2], 6))


def test_doctor_sees_a_subnet_that_another_link_has(cluster: Cluster) -> None:
    """And none where the network is alone, although its own address is on the VXLAN link."""

    def found() -> list[str]:
        with namespaces.inside(cluster.members[1].path), contextlib.closing(LinuxKernel(TABLES)) as kernel:
            return [one.what for one in findings.of_subnets(cluster.weft.service(kernel))]

    cluster.add("a", 1, "a1")
    assert found() == []
    cluster.run(1, "ip", "address", "add", "10.60.77.1/24", "dev", "eth0")
    assert ["10.60.77.1" in one for one in found()] == [True]


def test_a_host_that_uses_the_subnet_does_not_join(cluster: Cluster) -> None:
    cluster.run(1, "ip", "route", "add", "10.60.128.0/20", "via", "192.0.2.2")
    cluster.host.container("a1")
    answer = cluster.call("ADD", "a", 1, "a1")
    assert (answer.code, "10.60.128.0/20" in answer.text) == (101, True), answer
    assert cluster.run(1, "ip", "nexthop") == "" and LINK not in cluster.run(1, "ip", "link")
