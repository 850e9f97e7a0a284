"""Encrypted overlay networks: by WireGuard, of the kernel or wireguard-go, and by IPsec, which needs its modules."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from lab import frames, namespaces
from lab.abilities import require
from lab.host import Host
from lab.overlay import ESP_PORT, Cluster, address
from lab.traffic import unanswered
from lab.waiting import until
from weft import identity, wireguard
from weft.errors import Busy

LINK = identity.overlay_vxlan(identity.overlay_bridge("a"))
SECRET = "5ec7e75ec7e75ec7e75ec7e7"
"""A pattern (hexadecimal) in the payload of ping."""


def _need(encryption: str) -> None:
    require("vxlan")
    if encryption == "ipsec":
        require("esp")
    elif shutil.which("wireguard-go") is None:
        require("wireguard")


def _end(cluster: Cluster) -> None:
    """wireguard-go ends with its link, and would else keep the namespace."""
    for number in cluster.members:
        for name in re.findall(r"wvw[0-9a-f]{10}", cluster.run(number, "ip", "-o", "link")):
            cluster.run(number, "ip", "link", "delete", name, check=False)
    until(lambda: not list(Path("/var/run/wireguard").glob("wvw*")))


@pytest.fixture(params=("wireguard", "ipsec"))
def cluster(host: Host, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    _need(request.param)
    made = Cluster(host, 2, encrypted=("a",), encryption=request.param)
    yield made
    _end(made)


@pytest.fixture
def wireguard_cluster(host: Host) -> Iterator[Cluster]:
    _need("wireguard")
    made = Cluster(host, 2, encrypted=("a",))
    yield made
    _end(made)


@pytest.fixture
def ipsec_cluster(host: Host) -> Cluster:
    _need("ipsec")
    return Cluster(host, 2, encrypted=("a",), encryption="ipsec")


def _joined(cluster: Cluster) -> dict[int, Any]:
    """A container on each host; once there is a host, it learns of the next one."""
    found = {number: cluster.add("a", number, f"a{number}") for number in cluster.members}
    cluster.reconcile("a")
    return found


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
    assert cluster.reconcile("a") == []
    # A network beside it is not encrypted.
    other = {number: cluster.add("b", number, f"b{number}") for number in (1, 2)}
    assert host.ping("b1", address(other[2]))


@pytest.mark.parametrize("underlay", ["192.0.2.{}/24", "2001:db8::{}/64"], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("encryption", ["wireguard", "ipsec"])
def test_packets_of_full_size_fit_the_underlay(host: Host, encryption: str, underlay: str) -> None:
    """The network's MTU is as large as it can be: the outer packet has what the underlay carries, or a few bytes
    less where a cipher has blocks. Nothing is fragmented, and what is larger is refused in the container.
    """
    _need(encryption)
    cluster = Cluster(host, 2, encrypted=("a",), encryption=encryption, underlay=underlay)
    try:
        found = _joined(cluster)
        mtu = cluster.mtu
        assert f"mtu {mtu} " in host.inside("a1", "ip", "link", "show", "eth0").stdout
        assert "df set" in cluster.run(1, "ip", "-d", "link", "show", LINK) or "df 1" in cluster.run(
            1, "ip", "-d", "link", "show", LINK
        )
        assert host.ping("a1", address(found[2]))
        with frames.Capture("/run/netns/fab") as capture:
            for version, headers in ((4, 28), (6, 48)):
                full = (
                    "ping",
                    "-c",
                    "3",
                    "-i",
                    "0.2",
                    "-W",
                    "5",
                    "-M",
                    "do",
                    "-s",
                    str(mtu - headers),
                    address(found[2], version),
                )
                assert host.inside("a1", *full).code == 0
            largest = max(len(one) for one in capture.frames()) - 14
        assert 1500 - 4 < largest <= 1500
        larger = ("ping", "-c", "1", "-W", "5", "-M", "do", "-s", str(mtu - 27), address(found[2]))
        refused = host.inside("a1", *larger, check=False)
        assert refused.code != 0 and f"mtu={mtu}" in (refused.stdout + refused.stderr).replace("= ", "=")
    finally:
        _end(cluster)


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
def test_broken_encryption_lets_nothing_out_in_clear(wireguard_cluster: Cluster, way: str) -> None:
    cluster = wireguard_cluster
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


def test_the_rule_is_what_stops_clear_packets(wireguard_cluster: Cluster) -> None:
    """Without it, what an FDB row sends to the underlay is seen there."""
    cluster = wireguard_cluster
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


FLUSHED = {
    "states": ("ip xfrm state flush",),
    "states to peers": ("ip xfrm state deleteall src 192.0.2.1",),
    "policies": ("ip xfrm policy flush",),
    "states and policies": ("ip xfrm state flush", "ip xfrm policy flush"),
    "IPsec of the link": ("sysctl -qw net.ipv4.conf.eth0.disable_xfrm=1",),
    "rules": ("nft flush ruleset",),
}


@pytest.mark.parametrize("way", FLUSHED)
def test_without_states_or_policies_nothing_leaves_in_clear(ipsec_cluster: Cluster, way: str) -> None:
    """Where states are gone, the host makes another key: a key of AES-GCM serves once."""
    cluster = ipsec_cluster
    found = _joined(cluster)
    to = address(found[2])
    assert cluster.host.ping("a1", to)
    file = cluster.members[1].file("a").with_name("a.1.key")
    before = file.read_text()
    with frames.Capture("/run/netns/fab") as capture:
        for line in FLUSHED[way]:
            cluster.run(1, *line.split())
        reached = _ping(cluster, to)
        assert _in_clear(capture) == []
    assert reached is (way == "rules"), "where the rules are gone, the policies are there"
    cluster.run(1, "sysctl", "-qw", "net.ipv4.conf.eth0.disable_xfrm=0")
    cluster.reconcile("a", 1, everything=True)
    assert file.exists() is ("states" not in way)
    # What the agents do: the host makes a key, if it has none, and the peers learn of it.
    cluster.write("a")
    cluster.reconcile("a", 1)
    cluster.reconcile("a", 2)
    assert cluster.host.ping("a1", to)
    assert (file.read_text() == before) is ("states" not in way)


def test_the_rule_stops_what_no_policy_encrypts(ipsec_cluster: Cluster) -> None:
    """Without policies and without the rule the packets are seen: the rule is what stops them."""
    cluster = ipsec_cluster
    found = _joined(cluster)
    with frames.Capture("/run/netns/fab") as capture:

        def is_seen() -> bool:
            """The engine restores the rule within moments."""
            cluster.run(1, "ip", "xfrm", "policy", "flush")
            cluster.run(1, "nft", "flush", "chain", "inet", "weft", "overlay_to_peer")
            _ping(cluster, address(found[2]), count=1)
            return bool(_in_clear(capture))

        until(is_seen)


def test_recorded_packets_are_not_accepted_again(ipsec_cluster: Cluster) -> None:
    """Sent again as they were captured, they are dropped and counted, also with another network's key."""
    cluster = ipsec_cluster
    found = _joined(cluster)
    assert cluster.host.ping("a1", address(found[2]))
    with frames.Capture("/run/netns/fab") as capture:
        assert _ping(cluster, address(found[2]))
        recorded = [one for one in capture.frames() if one[12:14] == b"\x08\x00" and one[23] == 50]
    assert recorded

    def replayed() -> int:
        text = cluster.run(2, "cat", "/proc/self/net/xfrm_stat")
        return sum(int(line.split()[1]) for line in text.splitlines() if "SeqError" in line or "NoStates" in line)

    before = replayed()
    with namespaces.inside("/run/netns/fab"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("p2", 0))
        for one in recorded:
            sender.send(one)
    to_second = [one for one in recorded if one[30:34] == socket.inet_aton("192.0.2.2")]
    until(lambda: replayed() - before >= len(to_second))


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
    process = cluster.host.start("ping", "-n", "-i", "0.005", to, name="a1")
    for keys, sending in (([1, 2], 1), ([1, 2], 2), ([2], 2), ([2, 3], 2), ([2, 3], 3), ([3], 3)):
        for number in (1, 2):
            cluster.members[number].generations = list(keys)
            cluster.members[number].networks["a"] = {"generation": sending}
        # One host after the other: each of them is ahead once.
        cluster.write("a")
        for number in (1, 2) if sending % 2 else (2, 1):
            cluster.reconcile("a", number)
    assert unanswered(process, 0.005) == set()
    if cluster.encryption == "ipsec":
        assert cluster.run(1, "ip", "xfrm", "state").count("proto esp") == 2
    else:
        links = cluster.run(1, "ip", "-o", "link")
        assert _tunnel(cluster, 1, 3) in links and _tunnel(cluster, 1, 1) not in links


def _vtep(cluster: Cluster, number: int) -> str:
    """The address of a host's VXLAN link."""
    if cluster.encryption == "ipsec":
        return cluster.members[number].underlay
    return str(wireguard.address(100, cluster.network("a", cluster.members[number])["mac"]))


def test_clear_packets_from_the_underlay_are_dropped(cluster: Cluster) -> None:
    """Forged, with the address of a peer's VXLAN link, which no key proves; the drop is counted."""
    _joined(cluster)
    peer, own = (_vtep(cluster, number) for number in (2, 1))
    port = ESP_PORT if cluster.encryption == "ipsec" else 4789
    cluster.run(1, "ip", "address", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    for line in (
        (
            f"address add {peer}/128 dev f0 nodad",
            "address add 2001:db8::9/64 dev f0 nodad",
            f"route add {own}/128 via 2001:db8::1 dev f0",
        )
        if ":" in peer
        else (f"address add {peer}/32 dev f0", f"route add {own}/32 dev f0")
    ):
        cluster.host.inside("fab", "ip", "-6" if ":" in peer else "-4", *line.split())
    rule = f'iifname != "wvw*" meta ipsec missing udp dport {port} counter'
    for priority in ("-301", "-299"):
        chain = f"add chain inet count c{priority} {{ type filter hook prerouting priority {priority}; }}"
        cluster.run(1, "nft", f"add table inet count; {chain}; add rule inet count c{priority} {rule}")
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with namespaces.inside("/run/netns/fab"), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.bind((peer, 0))
        for _ in range(3):
            sender.sendto(b"\x08\0\0\0\0\0\x64\0" + bytes(60), (own, port))

    def counted(priority: str) -> int:
        listed = cluster.run(1, "nft", "list", "chain", "inet", "count", f"c{priority}")
        return int(re.search(r"packets (\d+)", listed).group(1))  # type: ignore[union-attr]

    until(lambda: counted("-301") == 3)
    assert counted("-299") == 0


def test_nothing_is_left(cluster: Cluster) -> None:
    before = cluster.snapshots()
    _joined(cluster)
    for number in cluster.members:
        cluster.delete("a", number, f"a{number}")
        cluster.collect("a", number)
    until(lambda: cluster.left(before) == [], 20)
    for number in cluster.members if cluster.encryption == "ipsec" else ():
        assert cluster.run(number, "ip", "xfrm", "state") == cluster.run(number, "ip", "xfrm", "policy") == ""
