"""What a container may take of what all share; each limit is exceeded by real packets, and a sibling is served."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.agent.limits import exceeded
from cni_plugin.dataplane import limits
from cni_plugin.dataplane.tables import TABLES
from lab import frames, seen
from lab.calls import Weft
from lab.confs import DEFAULT4, bridge, pool
from lab.ground import rest
from lab.host import Host
from lab.namespaces import inside
from lab.waiting import until
from weft.kernel.nft.ruleset import Nft

GATEWAY, EVIL = "10.80.0.1", "10.80.0.2"
COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
IPAM = pool("10.80.0.0/24", routes=[DEFAULT4])


class Site:
    """Two containers of a network with limits, and a machine on the LAN."""

    def __init__(self, host: Host, **given: Any) -> None:
        self.host, self.weft = host, Weft()
        seen.forward(host)
        self.lan = host.lan(subnet="192.168.0.0/16", default_route=True)
        keys = {"type": "weft", "driver": "bridge", "isGateway": True, "limits": given}
        self.conf = bridge(IPAM, **keys)
        self.paths = {name: host.container(name) for name in ("evil", "sibling")}
        self.results = {name: self.weft.add(self.conf, path, name) for name, path in self.paths.items()}

    def flood(self, to: Iterable[tuple[str, int, int]]) -> None:
        """One UDP datagram from evil to each address, from a port and to a port."""
        with inside(self.paths["evil"]), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sender:
            for address, source, port in to:
                sender.sendto(struct.pack("!HHHH", source, port, 8, 0), (address, 0))

    def flows(self) -> int:
        with inside(self.host.path):
            return int(COUNT.read_text())

    def exceeded(self, name: str) -> int:
        nft = Nft(TABLES)
        try:
            return sum(packets for element, packets in nft.exceeded(name) if str(element.key[1]) == EVIL)
        finally:
            nft.close()


def _queries(count: int) -> list[tuple[str, int, int]]:
    return [(GATEWAY, 1024 + number % 60000, 53) for number in range(count)]


def _connections(to: str, count: int) -> list[tuple[str, int, int]]:
    return [(to, 1024 + number % 60000, 4000 + number // 60000) for number in range(count)]


def test_dns_queries_are_limited_before_the_name_server(host: Host) -> None:
    """One container's flood leaves the name server and the connection table to its sibling."""
    site = Site(host, dnsQueries=100)
    server = host.serve_udp(None, 53, GATEWAY)
    started = time.monotonic()
    site.flood(_queries(3000))
    assert host.fetch("sibling", GATEWAY, 53, "udp") is not None
    allowed = 200 + 100 * (time.monotonic() - started) + 1
    until(lambda: site.exceeded(limits.DNS_QUERIES4) >= 3000 - allowed)
    assert server.clients.count(EVIL) <= allowed
    assert exceeded()["dnsQueries", "br0", EVIL] == site.exceeded(limits.DNS_QUERIES4)
    assert site.flows() < 3000 / 2
    # Queries to other name servers are not this host's.
    before = site.exceeded(limits.DNS_QUERIES4)
    site.flood((site.lan.outside, 1024 + number, 53) for number in range(300))
    assert site.exceeded(limits.DNS_QUERIES4) == before


@pytest.mark.parametrize(("limit", "sent", "most"), [(50, 300, 50), (8000, 20000, 9500)])
def test_connections_are_limited(host: Host, limit: int, sent: int, most: int) -> None:
    """Counted each, or a sample of them where ``ct count`` would be too slow."""
    site = Site(host, connections=limit)
    host.serve_udp("outside", 7, site.lan.outside)
    before = site.flows()
    site.flood(_connections(site.lan.outside, sent))
    assert limit / 2 <= site.flows() - before <= max(most, 100)  # and the host's own
    assert site.exceeded(limits.CONNECTIONS4 if limit == 50 else limits.CONNECTIONS_SAMPLED4) > 0
    assert host.fetch("sibling", site.lan.outside, 7, "udp") is not None
    assert [site.weft.check(site.conf, site.results[name], site.paths[name], name) for name in site.paths] == ["", ""]


def test_connections_a_second_are_limited(host: Host) -> None:
    site = Site(host, newConnections=20)
    host.serve_udp("outside", 7, site.lan.outside)
    before, started = site.flows(), time.monotonic()
    site.flood(_connections(site.lan.outside, 500))
    assert 20 <= site.flows() - before <= 20 + 20 * (time.monotonic() - started) + 1
    # Further packets of a connection without replies are none.
    exceeded = site.exceeded(limits.NEW_CONNECTIONS4)
    site.flood([(site.lan.outside, 1024, 4000)] * 200)
    assert site.exceeded(limits.NEW_CONNECTIONS4) == exceeded
    assert host.fetch("sibling", site.lan.outside, 7, "udp") is not None


@pytest.mark.parametrize("limit", [0, 10])
def test_addresses_that_the_host_resolves_are_limited(host: Host, limit: int) -> None:
    site = Site(host, newNeighbours=limit)
    started = time.monotonic()
    site.flood((f"192.168.{1 + number // 200}.{1 + number % 200}", 1024, 4000) for number in range(600))
    found = len(host.run("ip", "-4", "neigh", "show", "dev", "lan0").stdout.splitlines())
    if not limit:
        assert found >= 600
        return
    assert found <= 256 + 10 * (time.monotonic() - started) + 3
    assert (before := site.exceeded(limits.NEW_NEXTHOPS4)) > 0
    # Nor are addresses free that have connections already, once they are not resolved any more.
    host.run("nft", "flush", "set", "inet", "weft", "nexthops4")
    site.flood((f"192.168.1.{1 + number}", 1024, 4000) for number in range(200))
    assert site.exceeded(limits.NEW_NEXTHOPS4) > before
    # What the container talks to already, and its sibling's peers, can still be reached.
    host.serve_udp("outside", 7, site.lan.outside)
    assert host.fetch("sibling", site.lan.outside, 7, "udp") is not None


def test_a_port_is_bounded(host: Host) -> None:
    """No MAC address is learnt, no router port made by queries, and no more groups are joined than allowed."""
    site = Site(host, multicastGroups=9, macLearning=False)
    port, mac = site.results["evil"]["interfaces"][1]["name"], site.results["evil"]["interfaces"][2]["mac"]
    rows = host.run("bridge", "-j", "fdb", "show", "dev", port).json
    assert [one["state"] for one in rows if one["mac"] == mac] == ["static"]
    assert host.ping("sibling", EVIL)
    query = struct.pack("!BBH4s", 0x11, 100, 0xEE9B, bytes(4))
    frames.send(
        site.paths["evil"], [frames.frame(mac, *frames.ip(EVIL, "224.0.0.1", 2, query), to="01:00:5e:00:00:01")]
    )
    with inside(site.paths["evil"]):
        joined = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for number in range(30):  # a socket may join 20 groups
        group = socket.inet_aton(f"239.1.1.{number}") + socket.inet_aton(EVIL)
        joined[number // 15].setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    assert host.ping("evil", GATEWAY)  # the reports have been sent before
    mdb = host.run("bridge", "-j", "-d", "mdb", "show").json[0]
    assert not any(one.get("port") == port for routers in mdb.get("router", {}).values() for one in routers)
    groups = [one for one in mdb["mdb"] if one["port"] == port]
    assert len(groups) <= 9
    assert site.weft.check(site.conf, site.results["evil"], site.paths["evil"], "evil") == ""
    host.run("bridge", "link", "set", "dev", port, "learning", "on")
    assert "learning" in site.weft.check(site.conf, site.results["evil"], site.paths["evil"], "evil")
    host.run("bridge", "link", "set", "dev", port, "learning", "off")
    host.run("bridge", "fdb", "del", mac, "dev", port, "master")
    assert mac in site.weft.check(site.conf, site.results["evil"], site.paths["evil"], "evil")
    for one in joined:
        one.close()


def test_a_limit_is_checked_and_ends_with_its_container(host: Host) -> None:
    site = Site(host)
    evil = site.paths["evil"]
    key = f'"br0" . {EVIL}'
    host.run("nft", "delete", "element", "inet", "weft", "dns_queries4", f"{{ {key} }}")
    assert "dns_queries4" in site.weft.check(site.conf, site.results["evil"], evil, "evil")
    text = f"{{ {key} limit rate over 7/second burst 9 packets counter }}"
    host.run("nft", "add", "element", "inet", "weft", "dns_queries4", text)
    assert "dns_queries4" in site.weft.check(site.conf, site.results["evil"], evil, "evil")
    host.run("nft", "delete", "element", "inet", "weft", "dns_queries4", f"{{ {key} }}")
    site.flood([(site.lan.outside, 1024, 4000)])  # adds to a dynamic set
    for name, path in site.paths.items():
        site.weft.delete(site.conf, path, name)
    site.weft.collect(site.conf)
    assert rest(*site.paths.values()) == []
