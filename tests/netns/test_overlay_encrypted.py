"""Encrypted overlay networks: by the kernel's WireGuard, or wireguard-go where it has none."""

from __future__ import annotations

import re
import shutil
import signal
import socket
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from lab import frames, namespaces
from lab.abilities import require
from lab.host import Host
from lab.overlay import Cluster, address
from lab.snapshot import difference, take
from lab.waiting import until
from weft import identity, wireguard
from weft.errors import Busy

LINK = identity.overlay_vxlan(identity.overlay_bridge("a"))
SECRET = "5ec7e75ec7e75ec7e75ec7e7"
"""A pattern (hexadecimal) in the payload of ping."""


@pytest.fixture
def cluster(host: Host) -> Iterator[Cluster]:
    require("vxlan")
    if shutil.which("wireguard-go") is None:
        require("wireguard")
    cluster = Cluster(host, 2, encrypted=("a",))
    yield cluster
    # wireguard-go ends with its link, and would else keep the namespace.
    for number in cluster.members:
        for name in re.findall(r"wvw[0-9a-f]{10}", cluster.run(number, "ip", "-o", "link")):
            cluster.run(number, "ip", "link", "delete", name, check=False)
    until(lambda: not list(Path("/var/run/wireguard").glob("wvw*")))


def _joined(cluster: Cluster) -> dict[int, Any]:
    return {number: cluster.add("a", number, f"a{number}") for number in cluster.members}


def _tunnel(cluster: Cluster, member: int, generation: int = 1) -> str:
    mac = cluster.network("a", cluster.members[member])["mac"]
    return "wvw" + identity.digest("wireguard", "a", mac, str(generation))[:10]


def _ping(cluster: Cluster, to: str, *, count: int = 3) -> bool:
    command = ("ping", "-n", "-c", str(count), "-i", "0.1", "-W", "1", "-p", SECRET, to)
    return cluster.host.inside("a1", *command, check=False).code == 0


def _in_clear(capture: frames.Capture) -> list[bytes]:
    """The captured frames with the payload, or a VXLAN header of the network."""
    return [
        one for one in capture.frames() if bytes.fromhex(SECRET) in one or b"\x08\x00\x00\x00\x00\x00\x64\x00" in one
    ]


def test_packets_are_encrypted_and_reach_each_other(cluster: Cluster) -> None:
    found = _joined(cluster)
    host = cluster.host
    with frames.Capture("/run/netns/fab") as capture:
        for version in (4, 6):
            for client, server in permutations((1, 2)):
                assert host.ping(f"a{client}", address(found[server], version)), (client, server)
        assert _ping(cluster, address(found[2]))
        assert _in_clear(capture) == [] and capture.frames()
    # A full packet of the network's MTU passes.
    size = ("ping", "-c", "1", "-W", "5", "-M", "do", "-s", str(1370 - 28))
    assert host.inside("a1", *size, address(found[2])).code == 0
    assert cluster.reconcile("a") == []
    # A network beside it is not encrypted.
    other = {number: cluster.add("b", number, f"b{number}") for number in (1, 2)}
    assert host.ping("b1", address(other[2]))


BROKEN = {
    "link": "ip link delete {tunnel}",
    "link down": "ip link set {tunnel} down",
    "route": "ip -6 route delete {peer}",
    "every route": "ip -6 route flush root fd77:6600::/32",
    "FDB row to the underlay": f"bridge fdb replace {{mac}} dev {LINK} dst 2001:db8::2 self permanent",
    "local address": f"ip link set {LINK} type vxlan id 100 local 2001:db8::1",
    "rules": "nft flush ruleset",
}


@pytest.mark.parametrize("way", BROKEN)
def test_broken_encryption_lets_nothing_out_in_clear(cluster: Cluster, way: str) -> None:
    found = _joined(cluster)
    to = address(found[2])
    # The underlay is able to carry clear packets: IPv6 with a default route to the peer.
    for number in (1, 2):
        cluster.run(number, "ip", "address", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
        cluster.run(number, "ip", "route", "add", "default", "via", f"2001:db8::{3 - number}", "dev", "eth0")
    assert cluster.host.ping("a1", to)
    mac = cluster.network("a", cluster.members[2])["mac"]
    words = {"tunnel": _tunnel(cluster, 1), "peer": str(wireguard.address(100, mac)), "mac": mac}
    with frames.Capture("/run/netns/fab") as capture:
        cluster.run(1, *BROKEN[way].format(**words).split())
        reached = _ping(cluster, to)
        assert _in_clear(capture) == []
    # With another local address the kernel may go on with the route that it has cached, through the tunnel.
    assert not reached or way in ("rules", "local address")
    cluster.reconcile("a", 1, everything=True)
    assert cluster.host.ping("a1", to)


def test_the_rule_is_what_stops_clear_packets(cluster: Cluster) -> None:
    """Without it, what an FDB row sends to the underlay is seen there."""
    found = _joined(cluster)
    for number in (1, 2):
        cluster.run(number, "ip", "address", "add", f"2001:db8::{number}/64", "dev", "eth0", "nodad")
    mac = cluster.network("a", cluster.members[2])["mac"]
    cluster.run(1, *f"bridge fdb replace {mac} dev {LINK} dst 2001:db8::2 self permanent".split())
    with frames.Capture("/run/netns/fab") as capture:

        def is_seen() -> bool:
            """The engine restores the rule within moments."""
            cluster.run(1, "nft", "flush", "chain", "inet", "weft", "overlay_to_peer")
            _ping(cluster, address(found[2]), count=1)
            return bool(_in_clear(capture))

        until(is_seen)


def test_without_its_key_a_host_does_not_take_part(cluster: Cluster) -> None:
    file = cluster.members[1].file("a").with_name("a.1.key")
    assert file.stat().st_mode & 0o777 == 0o600
    kept = file.rename(file.with_name("kept"))
    cluster.host.container("a1")
    answer = cluster.call("ADD", "a", 1, "a1")
    assert (answer.code, "a.1.key is missing" in answer.text) == (11, True), answer
    assert LINK not in cluster.run(1, "ip", "link")
    kept.rename(file)
    found = _joined(cluster)
    assert cluster.host.ping("a1", address(found[2]))
    file.rename(kept)
    with pytest.raises(Busy, match=r"a\.1\.key"):
        cluster.reconcile("a", 1)


def test_keys_are_replaced_without_loss(cluster: Cluster) -> None:
    """The next key is made, announced, used, and the last one removed: not a packet is lost."""
    found = _joined(cluster)
    to = address(found[2])
    assert cluster.host.ping("a1", to)
    process = cluster.host.start("ping", "-n", "-i", "0.02", to, name="a1")
    for keys, sending in (([1, 2], 1), ([1, 2], 2), ([2], 2), ([2, 3], 2), ([2, 3], 3), ([3], 3)):
        for number in (1, 2):
            cluster.members[number].generations = list(keys)
            cluster.members[number].networks["a"] = {"generation": sending}
        # One host after the other: each of them is ahead once.
        cluster.write("a")
        for number in (1, 2) if sending % 2 else (2, 1):
            cluster.reconcile("a", number)
    process.send_signal(signal.SIGINT)
    seen = {int(one) for one in re.findall(r"icmp_seq=(\d+)", process.communicate()[0].decode())}
    # The last ones may have been under way as it ended.
    assert seen == set(range(1, max(seen) + 1)) and len(seen) > 20
    links = cluster.run(1, "ip", "-o", "link")
    assert _tunnel(cluster, 1, 3) in links and _tunnel(cluster, 1, 1) not in links


def test_clear_packets_from_the_underlay_are_dropped(cluster: Cluster) -> None:
    """Forged, with the address of a peer's VXLAN link, which no key proves; the drop is counted."""
    _joined(cluster)
    peer, own = (str(wireguard.address(100, cluster.network("a", cluster.members[number])["mac"])) for number in (2, 1))
    cluster.run(1, "ip", "address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    for line in (
        f"address add {peer}/128 dev f0 nodad",
        "address add 2001:db8::9/64 dev f0 nodad",
        f"route add {own}/128 via 2001:db8::1 dev f0",
    ):
        cluster.host.inside("fab", "ip", "-6", *line.split())
    rule = 'iifname != "wvw*" udp dport 4789 counter'
    for priority in ("-301", "-299"):
        chain = f"add chain inet count c{priority} {{ type filter hook prerouting priority {priority}; }}"
        cluster.run(1, "nft", f"add table inet count; {chain}; add rule inet count c{priority} {rule}")
    with namespaces.inside("/run/netns/fab"), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.bind((peer, 0))
        for _ in range(3):
            sender.sendto(b"\x08\0\0\0\0\0\x64\0" + bytes(60), (own, 4789))

    def counted(priority: str) -> int:
        listed = cluster.run(1, "nft", "list", "chain", "inet", "count", f"c{priority}")
        return int(re.search(r"packets (\d+)", listed).group(1))  # type: ignore[union-attr]

    until(lambda: counted("-301") == 3)
    assert counted("-299") == 0


def test_nothing_is_left(cluster: Cluster) -> None:
    before = {}
    for number, member in cluster.members.items():
        cluster.run(number, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        with namespaces.inside(member.path):
            before[number] = take()
    _joined(cluster)
    for number in cluster.members:
        cluster.delete("a", number, f"a{number}")
        cluster.collect("a", number)

    def left() -> list[str]:
        found = []
        for number, member in cluster.members.items():
            with namespaces.inside(member.path):
                found += difference(before[number], take())
        return found

    until(lambda: left() == [], 20)
