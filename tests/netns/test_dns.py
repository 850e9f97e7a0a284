"""DNS at the gateways of networks: who is answered, and that internal networks leak no query."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest

from discovery.dns.network_zones import NetworkZone
from discovery.dns.settings import DnsSettings
from discovery.structs import Instance
from lab import seen
from lab.calls import Weft
from lab.confs import DEFAULT4, DEFAULT6, bridge, pool
from lab.dns import MutableCatalog, Running, Upstream, ask, ask_stream, question, read, records, running
from lab.host import Host
from lab.namespaces import inside
from lab.waiting import BRIEFLY, PATIENTLY, until

SEARCH = "corp.example"


def conf(name: str, number: int, **keys: Any) -> dict[str, Any]:
    ipam = pool(f"10.{number}.0.0/24", f"fd00:{number}::/64", routes=[DEFAULT4, DEFAULT6])
    made = bridge(ipam, name=name, bridge=f"b-{name}", isGateway=True, ipMasq=True)
    return {**made, "type": "weft", "driver": "bridge", **keys}


def names(name: str, number: int, **more: Any) -> NetworkZone:
    return NetworkZone(
        name,
        gateways=(f"10.{number}.0.1", f"fd00:{number}::1"),
        subnets=(f"10.{number}.0.0/24", f"fd00:{number}::/64"),
        records={"db": (f"10.{number}.0.77", f"fd00:{number}::77"), f"only-{name}": (f"10.{number}.0.78",)},
        reverse={f"10.{number}.0.77": "db"},
        **more,
    )


class Topology:
    """A host with weft's DNS at the gateways; a name server on the uplink answers all queries."""

    def __init__(self, host: Host, folder: Path, stack: contextlib.ExitStack) -> None:
        self.host, self.weft = host, Weft()
        seen.hurry(host)
        seen.forward(host)
        self.lan = host.lan()
        with inside(host._place(self.lan.name)):
            self.upstream = Upstream(lambda query, _: [self.answer(query)], self.lan.outside, 53)
        stack.callback(self.upstream.close)
        # Counts packets to port 53 on the uplink, of the host itself and forwarded.
        host.run("nft", "-f", "-", stdin=(
            "table inet watch {\ncounter dns { }\nchain out {\ntype filter hook postrouting priority 300\n"
            "oifname lan0 meta l4proto { tcp, udp } th dport 53 counter name dns\n}\n}\n"
        ))  # fmt: skip
        resolv_conf = folder / "resolv.conf"
        resolv_conf.write_text(f"search {SEARCH}\nnameserver {self.lan.outside}\n")
        world = MutableCatalog(Instance("n1", "w", "web", "10.1.0.5", 80))
        self.dns: Running = stack.enter_context(
            running(world.catalog, DnsSettings(listen=(), resolv_conf=str(resolv_conf)))
        )
        assert host.ping(None, self.lan.outside)

    @staticmethod
    def answer(query: dns.message.Message) -> bytes:
        return dns.message.make_response(query).to_wire()

    @property
    def leaked(self) -> int:
        """The number of packets to port 53 that left by the uplink."""
        listed = self.host.run("nft", "-j", "list", "counter", "inet", "watch", "dns").json["nftables"]
        return int(next(one["counter"]["packets"] for one in listed if "counter" in one))

    def serve(self, *networks: NetworkZone) -> None:
        self.dns.run(self.dns.server.set_networks(networks))

    def add(self, container: str, network: dict[str, Any]) -> None:
        self.weft.add(network, self.host.container(container), container)

    def ask(
        self, container: str, gateway: str, name: str, kind: str = "A", *, timeout: float = PATIENTLY
    ) -> str | None:
        """The records, or the response code if there are none; None without a response."""
        with inside(self.host._place(container)):
            reply = ask(gateway, 53, question(name, kind), timeout=timeout)
        if reply is None:
            return None
        found = read(reply)
        return " ".join(line.split()[-1] for line in records(found.answer)) or dns.rcode.to_text(found.rcode())

    def ask_stream(self, container: str, gateway: str, name: str, kind: str = "A") -> str:
        with inside(self.host._place(container)):
            (reply,) = ask_stream(gateway, 53, question(name, kind))
        found = read(reply)
        return " ".join(line.split()[-1] for line in records(found.answer)) or dns.rcode.to_text(found.rcode())


@pytest.fixture
def topology(host: Host, tmp_path: Path) -> Iterator[Topology]:
    with contextlib.ExitStack() as stack:
        yield Topology(host, tmp_path, stack)


@pytest.mark.parametrize(("gateway", "most"), [("10.21.0.1", 1400 - 28), ("fd00:21::1", 1400 - 48)])
def test_a_reply_is_as_large_as_the_bridge_carries(topology: Topology, gateway: str, most: int) -> None:
    """A client that accepts 4096 bytes gets whole datagrams of the MTU; one that accepts less, less."""
    topology.add("c1", conf("wide", 21, mtu=1400))
    many = {"db": tuple(f"10.21.1.{n}" for n in range(1, 251))}
    topology.serve(NetworkZone("wide", (gateway,), ("10.21.0.0/24", "fd00:21::/64"), records=many, internal=True))
    with inside(topology.host._place("c1")):
        sizes = [len(ask(gateway, 53, question("db", edns=True, size=size)) or b"") for size in (4096, 1232, 600)]
    assert [bound - 16 < size <= bound for size, bound in zip(sizes, (most, 1232, 600), strict=True)] == [True] * 3, (
        sizes
    )


def test_containers_are_answered_at_their_gateway(topology: Topology) -> None:
    """The server starts before the bridge exists."""
    topology.serve(names("blue", 10))
    assert not topology.dns.server.bind_errors
    topology.add("c1", conf("blue", 10))
    for gateway in ("10.10.0.1", "fd00:10::1"):
        assert topology.ask("c1", gateway, "db") == "10.10.0.77"
        assert topology.ask("c1", gateway, "db", "AAAA") == "fd00:10::77"
        assert topology.ask_stream("c1", gateway, "web.service.weft") == "10.1.0.5"
        assert topology.ask("c1", gateway, "77.0.10.10.in-addr.arpa", "PTR") == "db.dns.podman."
    before = topology.leaked
    assert topology.ask("c1", "10.10.0.1", "www.example.org") == "NOERROR"
    assert topology.leaked == before + 1
    assert [str(each.question[0].name).lower() for each in topology.upstream.queries] == ["www.example.org."]


def test_names_of_containers_do_not_leave_the_host(topology: Topology) -> None:
    """With every name of the search list and every query type (CVE-2025-8283)."""
    topology.serve(names("blue", 10))
    topology.add("c1", conf("blue", 10))
    reverse = "78.0.10.10.in-addr.arpa"
    for name in ("db", "db.blue", "db.dns.podman", f"db.{SEARCH}", "gone", "gone.dns.podman", reverse):
        for kind in ("A", "AAAA", "MX", "TXT", "PTR"):
            assert topology.ask("c1", "10.10.0.1", name, kind) is not None
            assert topology.ask_stream("c1", "10.10.0.1", name, kind)
    assert topology.leaked == 0
    assert not topology.upstream.queries
    assert topology.ask("c1", "10.10.0.1", f"other.{SEARCH}") == "NOERROR"
    assert topology.leaked == 1


def test_an_internal_network_leaks_no_query(topology: Topology) -> None:
    """By UDP and TCP, to weft's server and past it (CVE-2024-29018)."""
    topology.serve(names("inner", 11, internal=True))
    topology.add("c1", conf("inner", 11, internal=True, ipMasq=False))
    for gateway in ("10.11.0.1", "fd00:11::1"):
        assert topology.ask("c1", gateway, "db") == "10.11.0.77"
        assert topology.ask_stream("c1", gateway, "web.service.weft") == "10.1.0.5"
        for name in ("secret.example.org", "gone", f"db.{SEARCH}", "1.2.0.192.in-addr.arpa", "."):
            for kind in ("A", "AAAA", "PTR", "NS", "ANY"):
                assert topology.ask("c1", gateway, name, kind) == "NXDOMAIN", (name, kind)
            assert topology.ask_stream("c1", gateway, name) == "NXDOMAIN"
    for place in (topology.lan.outside, topology.lan.outside6, topology.lan.host):
        assert topology.ask("c1", place, "www.example.org", timeout=BRIEFLY) is None
    assert topology.leaked == 0
    assert not topology.upstream.queries


def test_gateway_of_another_network_does_not_answer(topology: Topology) -> None:
    topology.serve(names("blue", 10), names("red", 12))
    topology.add("c1", conf("blue", 10, isolation="open"))
    topology.add("c2", conf("red", 12, isolation="open"))
    assert topology.ask("c1", "10.10.0.1", "only-blue") == "10.10.0.78"
    assert topology.ask("c1", "10.10.0.1", "only-red") == "NXDOMAIN"
    assert topology.ask("c2", "10.12.0.1", "only-red") == "10.12.0.78"
    assert topology.ask("c1", "10.12.0.1", "only-red", timeout=BRIEFLY) is None
    assert topology.ask("c1", "10.12.0.1", "web.service.weft", timeout=BRIEFLY) is None
    # Clients outside get no response, though they reach the gateway's address.
    topology.host.inside("outside", "ip", "route", "add", "10.10.0.0/24", "via", topology.lan.host)
    assert topology.ask("outside", "10.10.0.1", "only-blue", timeout=BRIEFLY) is None


def test_recreated_network_is_answered(topology: Topology) -> None:
    """A bridge that is deleted and created again is served by the same socket."""
    topology.serve(names("blue", 10), names("red", 12))
    topology.add("c1", conf("blue", 10))
    assert topology.ask("c1", "10.10.0.1", "db") == "10.10.0.77"
    topology.host.run("ip", "link", "delete", "b-blue")
    topology.host.remove_container("c1")
    topology.add("c2", {**conf("blue", 10), "bridge": "b-again"})
    assert topology.ask("c2", "10.10.0.1", "db") == "10.10.0.77"
    topology.serve(names("red", 12))
    assert topology.ask("c2", "10.10.0.1", "db", timeout=BRIEFLY) is None
    topology.serve(names("red", 12), names("blue", 10))
    until(lambda: topology.ask("c2", "10.10.0.1", "db") == "10.10.0.77")
