"""The base rules with real traffic: a host, two containers on a bridge, a neighbour on a LAN."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from unit.nft.test_contract import MINE

from cni_plugin.dataplane.tables import TABLES
from lab import frames, namespaces, seen
from lab.host import Host, Lan
from lab.waiting import BRIEFLY, PATIENTLY, until
from weft.kernel.nft.ruleset import Nft
from weft.kernel.values import Element

BRIDGE = "br0"
GATEWAY, GATEWAY6 = "10.1.0.1", "fd00:1::1"
SERVER, SERVER6 = "10.1.0.5", "fd00:1::5"
SIBLING, SIBLING6 = "10.1.0.6", "fd00:1::6"
ELSEWHERE = "10.2.0.5"
PORT = 8080
INNER = 80


class Site:
    """Two containers on a bridge, a third on its own veth, and a LAN without a route to them."""

    def __init__(self, host: Host, nft: Nft) -> None:
        self.host, self.nft = host, nft
        host.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.lan: Lan = host.lan()
        host.run("ip", "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
        host.run("ip", "address", "add", f"{GATEWAY}/16", "dev", BRIDGE)
        host.run("ip", "address", "add", f"{GATEWAY6}/64", "dev", BRIDGE, "nodad")
        host.run("ip", "link", "set", BRIDGE, "up")
        self._attach("server", SERVER, SERVER6, BRIDGE)
        self._attach("sibling", SIBLING, SIBLING6, BRIDGE)
        self._attach("elsewhere", ELSEWHERE, "fd00:2::5", "")
        self.show_bridged(False)
        for address in (SERVER6, SIBLING6, "fd00:2::5", self.lan.outside6):
            assert host.ping(None, address), address
        nft.install(TABLES)

    def show_bridged(self, shown: bool) -> bool:
        """Set bridge-nf-call-*tables; False if the kernel has no br_netfilter."""
        switches = list(Path("/proc/sys/net/bridge").glob("bridge-nf-call-ip*tables"))
        for switch in switches:
            switch.write_text(str(int(shown)))
        return bool(switches) or not shown

    def _attach(self, name: str, address: str, address6: str, bridge: str) -> None:
        path = self.host.container(name)
        link = f"v-{name}"
        self.host.run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", path)
        gateway, gateway6 = (GATEWAY, GATEWAY6) if bridge else ("10.2.0.1", "fd00:2::1")
        if bridge:
            self.host.run("ip", "link", "set", link, "master", bridge)
        else:
            self.host.run("ip", "address", "add", f"{gateway}/16", "dev", link)
            self.host.run("ip", "address", "add", f"{gateway6}/64", "dev", link, "nodad")
        self.host.run("ip", "link", "set", link, "up")
        for words in (
            "link set lo up",
            "link set eth0 up",
            f"address add {address}/16 dev eth0",
            f"address add {address6}/64 dev eth0 nodad",
            f"route add default via {gateway}",
            f"route add ::/0 via {gateway6}",
        ):
            self.host.inside(name, "ip", *words.split())

    def add(self, collection: str, *key: str | int, to: tuple[str, int] | None = None) -> None:
        data = () if to is None else (ip_address(to[0]), to[1])
        self.nft.add([Element(collection, tuple(_typed(part) for part in key), data, MINE)])

    def publish(self, protocol: str = "tcp", *, snat: bool = True) -> None:
        self.add("ports4", protocol, PORT, to=(SERVER, INNER))
        self.add("ports6", protocol, PORT, to=(SERVER6, INNER))
        if snat:
            self.add("loopback_ports4", protocol, PORT)
            self.add("loopback_ports6", protocol, PORT)
            self.add("hairpin4", BRIDGE, SERVER)
            self.add("hairpin6", BRIDGE, SERVER6)
            self.add("hairpin_self4", SERVER, SERVER)
            self.add("hairpin_self6", SERVER6, SERVER6)

    def sees(
        self, client: str | None, address: str, port: int = PORT, protocol: str = "tcp", *, timeout: float = PATIENTLY
    ) -> str | None:
        """The client's address as the server sees it; None without an answer."""
        return self.host.fetch(client, address, port, protocol, timeout=timeout)


def _typed(part: str | int) -> object:
    if isinstance(part, str) and (":" in part or part[0].isdigit()):
        return ip_network(part) if "/" in part else ip_address(part)
    return part


@pytest.fixture
def site(host: Host) -> Iterator[Site]:
    nft = Nft(TABLES)
    yield Site(host, nft)
    nft.close()


def test_outgoing_connections_are_masqueraded(site: Site) -> None:
    site.host.serve_tcp("outside", 80)
    assert site.sees("server", site.lan.outside, 80, timeout=BRIEFLY) is None
    assert site.sees("server", site.lan.outside6, 80, timeout=BRIEFLY) is None
    site.add("masquerade4", SERVER)
    site.add("masquerade6", SERVER6)
    assert site.sees("server", site.lan.outside, 80) == site.lan.host
    assert site.sees("server", site.lan.outside6, 80) == site.lan.host6
    assert site.host.ping("server", site.lan.outside)
    assert site.sees("sibling", site.lan.outside, 80, timeout=BRIEFLY) is None  # not in the set masquerade4


@pytest.mark.parametrize("source", [SERVER, "10.1.0.0/16"], ids=["container", "network"])
def test_no_masquerading_within_the_network(site: Site, source: str) -> None:
    """To another bridge port, and routed to a part of the subnet that is behind another link."""
    site.host.serve_tcp("elsewhere", 80)
    site.host.inside("elsewhere", "ip", "address", "add", "10.1.99.9/32", "dev", "lo")
    site.host.run("ip", "route", "add", "10.1.99.9/32", "via", ELSEWHERE)
    site.host.inside("server", "ip", "route", "add", "10.1.99.9/32", "via", GATEWAY)
    site.add("masquerade4", SERVER)
    assert site.sees("server", "10.1.99.9", 80) == "10.2.0.1"
    site.add("masquerade_exempt4", source, "10.1.0.0/16")
    assert site.sees("server", "10.1.99.9", 80) == SERVER
    assert site.sees("server", ELSEWHERE, 80) == "10.2.0.1"
    site.host.serve_tcp("sibling", 80)
    assert site.sees("server", SIBLING, 80) == SERVER


@pytest.mark.parametrize("family", [4, 6])
def test_multicast_keeps_its_source(site: Site, family: int) -> None:
    """Sent by the host itself, as there is no multicast router; counted in a chain after weft's."""
    source, group, word = (GATEWAY, "239.1.2.3", "ip") if family == 4 else (GATEWAY6, "ff05::123", "ip6")
    site.add("masquerade4", GATEWAY)
    site.add("masquerade6", GATEWAY6)
    match = f"{word} saddr {source} {word} daddr {group} counter"
    site.host.run("nft", f"table inet watch {{ chain c {{ type filter hook postrouting priority 300; {match}\n}}\n}}")
    with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.bind((source, 0))
        if family == 4:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(site.lan.host))
        else:
            index = socket.if_nametoindex(site.lan.link)
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sender.sendto(b"x", (group, 9))
    assert "packets 1 " in site.host.run("nft", "list", "table", "inet", "watch").stdout


def test_no_masquerading_within_an_ipv6_network(site: Site) -> None:
    site.host.serve_tcp("elsewhere", 80)
    site.add("masquerade6", SERVER6)
    assert site.sees("server", "fd00:2::5", 80) == "fd00:2::1"
    site.add("masquerade_exempt6", SERVER6, "fd00::/16")
    assert site.sees("server", "fd00:2::5", 80) == SERVER6


def test_source_127_from_outside_is_dropped(site: Site) -> None:
    """With route_localnet on the bridge, the kernel itself would accept such a packet."""
    Path(f"/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet").write_text("1")
    server = site.host.serve_udp(None, 9999, GATEWAY)
    site.host.inside("sibling", "sysctl", "-q", "-w", "net.ipv4.conf.eth0.route_localnet=1")

    def send() -> None:
        site.host.fetch("sibling", GATEWAY, 9999, "udp", timeout=BRIEFLY, source="127.0.0.9")

    send()
    assert server.clients == []
    dropped = ("inet weft", "raw_prerouting", "a loopback source never arrives on a link")
    found = site.nft.drops()
    assert {key: number for key, number in found.items() if key[1] == "raw_prerouting"} == {dropped: found[dropped]}
    assert found[dropped] >= 1 and site.nft.lacks(TABLES) is None  # what is counted is no difference
    site.host.run("nft", "flush", "chain", "inet", "weft", "raw_prerouting")
    send()
    until(lambda: server.clients == ["127.0.0.9"], what="a datagram from 127.0.0.9")


@pytest.mark.parametrize("bridged", [False, True], ids=["", "br_netfilter"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_published_port_from_every_client(site: Site, protocol: str, bridged: bool) -> None:
    if not site.show_bridged(bridged):
        pytest.skip("this kernel has no br_netfilter")
    # With br_netfilter a packet may leave by the port it came from only in hairpin mode.
    site.host.run("ip", "link", "set", "v-server", "type", "bridge_slave", "hairpin", "on" if bridged else "off")
    site.host.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
    getattr(site.host, f"serve_{protocol}")("server", INNER)
    clients = [
        ("outside", site.lan.host, site.lan.outside),
        ("outside", site.lan.host6, site.lan.outside6),
        (None, site.lan.host, site.lan.host),
        (None, site.lan.host6, site.lan.host6),
        (None, GATEWAY, GATEWAY),
        (None, "127.0.0.1", GATEWAY),
        (None, "127.8.9.10", GATEWAY),
        (None, "::1", GATEWAY6),
        ("sibling", site.lan.host, SIBLING if bridged else GATEWAY),
        ("sibling", GATEWAY, SIBLING if bridged else GATEWAY),
        ("sibling", GATEWAY6, SIBLING6 if bridged else GATEWAY6),
        ("server", site.lan.host, GATEWAY),
        ("server", site.lan.host6, GATEWAY6),
        ("elsewhere", site.lan.host, ELSEWHERE),
        ("elsewhere", "10.2.0.1", ELSEWHERE),
    ]
    for client, address, _ in clients:
        if protocol == "udp" or ":" not in address:
            assert site.sees(client, address, protocol=protocol, timeout=BRIEFLY) is None, (client, address)
    site.publish(protocol)
    for client, address, known in clients:
        assert site.sees(client, address, protocol=protocol) == known, (client, address)
    assert site.sees("outside", site.lan.host, PORT + 1, protocol, timeout=BRIEFLY) is None
    other = "udp" if protocol == "tcp" else "tcp"
    assert site.sees("outside", site.lan.host, PORT, other, timeout=BRIEFLY) is None


def test_without_snat_sibling_and_loopback_get_no_reply(site: Site) -> None:
    site.host.serve_tcp("server", INNER)
    site.publish(snat=False)
    assert site.sees("outside", site.lan.host) == site.lan.outside
    assert site.sees("sibling", site.lan.host, timeout=BRIEFLY) is None
    assert site.sees(None, "127.0.0.1", timeout=BRIEFLY) is None
    assert site.sees(None, "::1", timeout=BRIEFLY) is None
    assert site.sees("elsewhere", site.lan.host) == ELSEWHERE


def test_masquerade_all(site: Site) -> None:
    site.host.serve_tcp("server", INNER)
    site.publish()
    site.add("masquerade_all4", SERVER)
    site.add("masquerade_all6", SERVER6)
    assert site.sees("outside", site.lan.host) == GATEWAY
    assert site.sees("outside", site.lan.host6) == GATEWAY6
    assert site.sees("elsewhere", site.lan.host) == GATEWAY
    assert site.sees("elsewhere", SERVER, INNER) == ELSEWHERE  # a direct connection is not masqueraded
    assert site.sees("sibling", SERVER, INNER) == SIBLING


def test_port_of_one_address_precedes_port_of_all(site: Site) -> None:
    site.host.serve_tcp("server", INNER)
    site.host.serve_tcp("server", INNER + 1)
    site.host.serve_tcp("sibling", INNER)
    site.add("ports4_at", site.lan.host, "tcp", PORT, to=(SERVER, INNER))
    assert site.sees("outside", site.lan.host) == site.lan.outside
    assert site.sees("elsewhere", "10.2.0.1", timeout=BRIEFLY) is None
    site.add("ports4", "tcp", PORT, to=(SIBLING, INNER))
    servers = {server.port: server for server in site.host._servers if server.namespace.endswith("server")}
    before = len(servers[INNER].clients)
    assert site.sees("outside", site.lan.host) == site.lan.outside
    assert len(servers[INNER].clients) == before + 1
    assert site.sees("elsewhere", "10.2.0.1") == ELSEWHERE
    assert len(servers[INNER].clients) == before + 1
    site.add("ports6_at", site.lan.host6, "tcp", PORT, to=(SERVER6, INNER + 1))
    assert site.sees("outside", site.lan.host6) == site.lan.outside6
    assert site.sees("elsewhere", "fd00:2::1", timeout=BRIEFLY) is None


@pytest.mark.parametrize("guarded", [True, False])
def test_loopback_port_is_reachable_from_the_host_only(site: Site, guarded: bool) -> None:
    """CVE-2020-8558: closed to the LAN and to a container that sends to 127.0.0.1 via the host."""
    site.host.serve_tcp("server", INNER)
    site.host.serve_udp(None, 9999, "127.0.0.1")
    site.add("ports4_at", "127.0.0.1", "tcp", PORT, to=(SERVER, INNER))
    site.add("loopback_ports4_at", "127.0.0.1", "tcp", PORT)
    site.add("hairpin4", BRIDGE, SERVER)
    assert site.sees(None, "127.0.0.1") == GATEWAY
    assert site.sees(None, "127.0.0.2", timeout=BRIEFLY) is None
    for client, gateway in (("outside", site.lan.host), ("sibling", GATEWAY), ("server", GATEWAY)):
        assert site.sees(client, gateway, timeout=BRIEFLY) is None
    # The attack: 127.0.0.1 is routed to the LAN instead of the loopback.
    for client, gateway in (("outside", site.lan.host), ("sibling", GATEWAY)):
        site.host.inside(client, "sysctl", "-q", "-w", "net.ipv4.conf.eth0.route_localnet=1")
        site.host.inside(client, "ip", "rule", "add", "pref", "5", "lookup", "local")
        site.host.inside(client, "ip", "rule", "del", "pref", "0")
        site.host.inside(client, "ip", "route", "add", "127.0.0.1/32", "via", gateway, "table", "77")
        site.host.inside(client, "ip", "rule", "add", "pref", "1", "to", "127.0.0.1", "lookup", "77")

    def answered(port: int, protocol: str, seconds: float = BRIEFLY) -> list[bool]:
        clients = (("outside", site.lan.outside), ("sibling", SIBLING))
        return [
            site.host.fetch(client, "127.0.0.1", port, protocol, timeout=seconds, source=source) == source
            for client, source in clients
        ]

    def let_in() -> None:
        for link in (site.lan.link, BRIDGE):
            Path(f"/proc/sys/net/ipv4/conf/{link}/route_localnet").write_text("1")

    if guarded:
        let_in()
        assert answered(PORT, "tcp") == answered(9999, "udp") == [False, False]
        return
    # Without route_localnet the kernel drops them; with it, the rule in raw_prerouting has to.
    site.host.run("nft", "flush", "chain", "inet", "weft", "raw_prerouting")
    assert answered(9999, "udp") == [False, False]
    let_in()
    assert answered(PORT, "tcp", PATIENTLY)[0]
    assert answered(9999, "udp", PATIENTLY)[1]


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("family", [4, 6])
def test_bridged_packets_to_loopback_are_dropped_in_raw_prerouting(site: Site, family: int, guarded: bool) -> None:
    """With br_netfilter the rules see bridged packets before the kernel drops them."""
    if not site.show_bridged(True):
        pytest.skip("this kernel has no br_netfilter")
    source, loopback, inner = (SIBLING, "127.0.0.1", SERVER) if family == 4 else (SIBLING6, "::1", SERVER6)
    site.add(f"ports{family}_at", loopback, "udp", PORT, to=(inner, INNER))
    if not guarded:
        site.host.run("nft", "flush", "chain", "inet", "weft", "raw_prerouting")
    packet = frames.ip(source, loopback, frames.UDP, frames.udp(4000, PORT, b"by the bridge"))
    macs = seen.link(site.host, "eth0", "sibling")["address"], seen.link(site.host, BRIDGE)["address"]
    ear = frames.Ear(f"{namespaces.FOLDER}/server")
    frames.send(f"{namespaces.FOLDER}/sibling", [frames.frame(macs[0], *packet, macs[1])])
    with pytest.raises(AssertionError) if guarded else contextlib.nullcontext():
        ear.heard([], b"by the bridge", within=BRIEFLY if guarded else PATIENTLY)
    ear.close()


def test_unpublished_loopback_port_reaches_the_hosts_server(site: Site) -> None:
    """Published on IPv4 only: a server of the host at ::1 is still reached, and vice versa."""
    site.host.serve_tcp("server", INNER)
    site.add("ports4", "tcp", PORT, to=(SERVER, INNER))
    site.add("loopback_ports4", "tcp", PORT)
    site.add("hairpin4", BRIDGE, SERVER)
    site.host.serve_tcp(None, PORT, "::1")
    assert site.sees(None, "::1") == "::1"
    assert site.sees(None, "127.0.0.1") == GATEWAY
    site.host.serve_tcp(None, PORT + 1, "127.0.0.1")
    assert site.sees(None, "127.0.0.1", PORT + 1) == "127.0.0.1"


def test_unpublished_port_is_closed(site: Site) -> None:
    site.host.serve_tcp("server", INNER)
    site.publish()
    assert site.sees("outside", site.lan.host) == site.lan.outside
    site.nft.delete(element for name in site.nft.collections() for element in site.nft.elements(name))
    assert site.sees("outside", site.lan.host, timeout=BRIEFLY) is None
    assert site.sees(None, "127.0.0.1", timeout=BRIEFLY) is None
