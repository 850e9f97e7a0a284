"""Closed, routed, open and internal networks: which of them reach each other, in both families."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.dataplane import guard
from lab import seen, tracing
from lab.calls import Weft
from lab.confs import DEFAULT4, DEFAULT6, bridge, pool, ptp
from lab.frames import link_local
from lab.host import Host, Lan
from lab.waiting import BRIEFLY
from weft.kernel.nft.owned import OwnedTable

OWN = {"bridge": {"type": "weft", "driver": "bridge"}, "ptp": {"type": "weft", "driver": "ptp"}}
ROUTES = [DEFAULT4, DEFAULT6]


def conf(name: str, number: int, driver: str = "bridge", *, weft: bool = True, **keys: Any) -> dict[str, Any]:
    """Network ``name`` on 10.NUMBER.0.0/24 and fd00:NUMBER::/64, with a gateway, without NAT."""
    ipam = pool(f"10.{number}.0.0/24", f"fd00:{number}::/64", routes=ROUTES)
    made = bridge(ipam, name=name, bridge=f"b-{name}", isGateway=True) if driver == "bridge" else ptp(ipam, name=name)
    return {**made, **(OWN[driver] if weft else {}), **keys}


class Topology:
    """Containers that serve TCP 80 and UDP 53, and a host outside with routes to all of them."""

    def __init__(self, host: Host) -> None:
        self.host, self.weft = host, Weft()
        seen.hurry(host)
        seen.forward(host)
        self.lan: Lan = host.lan(default_route=True)
        host.serve_tcp(self.lan.name, 80)
        assert host.ping("outside", self.lan.host6) and host.ping(None, self.lan.outside6)
        self.addresses: dict[str, list[str]] = {self.lan.name: [self.lan.outside, self.lan.outside6]}
        self.confs: dict[str, dict[str, Any]] = {}
        self.results: dict[str, Any] = {}

    def add(self, container: str, network: dict[str, Any]) -> list[str]:
        result = self.weft.add(network, self.host.container(container), container)
        self.results[container], self.confs[container] = result, network
        self.addresses[container] = [ip["address"].partition("/")[0] for ip in result["ips"]]
        self.host.serve_tcp(container, 80)
        self.host.serve_udp(container, 53)
        return self.addresses[container]

    def reaches(self, client: str | None, server: str) -> bool:
        """Whether the client reaches the server, as expected: over TCP, UDP and ICMP, or none."""
        return self._reaches(client, server, expected=True)

    def blocked(self, client: str | None, server: str) -> bool:
        """Whether the client reaches the server over none of TCP, UDP and ICMP, as expected."""
        return not self._reaches(client, server, expected=False)

    def _reaches(self, client: str | None, server: str, *, expected: bool) -> bool:
        def try_one(way: tuple[str, str]) -> bool:
            address, kind = way
            return self.host.reaches(client, address, 53 if kind == "udp" else 80, kind, expected=expected)

        ways = [(one, kind) for one in self.addresses[server] for kind in ("tcp", "udp", "icmp")]
        ways = [way for way in ways if way != (way[0], "udp") or server != self.lan.name]
        with ThreadPoolExecutor(len(ways)) as pool:
            found = dict(zip(ways, pool.map(try_one, ways), strict=True))
        assert len(set(found.values())) == 1, found
        for address, kind in ways:
            self._traced(client, address, kind, found[address, kind])
        return next(iter(found.values()))

    def _traced(self, client: str | None, address: str, kind: str, reached: bool) -> None:
        """``weft trace`` says the same, and a packet that it sends meets the rules that it names."""
        start = client
        if client == self.lan.name:
            start = self.lan.outside6 if ":" in address else self.lan.outside
        port = 53 if kind == "udp" else 80
        said, why = tracing.reaches(start, address, port, kind, live=client != self.lan.name)
        assert said == reached, f"{kind} from {client} to {address} {'arrives' if reached else 'is lost'}:\n{why}"


DRIVERS = pytest.mark.parametrize("driver", ["bridge", "ptp"])


@DRIVERS
def test_networks_of_weft_are_closed_to_each_other_and_to_the_outside(host: Host, driver: str) -> None:
    topology = Topology(host)
    for name, number in (("one", 81), ("two", 82)):
        network = conf(name, number, driver)
        for index in (1, 2):
            topology.add(f"{name}{index}", network)
    assert topology.reaches("one1", "one2")
    assert topology.blocked("one1", "two1")
    assert topology.blocked("two2", "one2")
    assert topology.blocked("outside", "one1")
    assert topology.reaches(None, "one1")
    assert topology.reaches("one1", "outside")
    for name, path in (("one1", "/run/netns/one1"), ("two2", "/run/netns/two2")):
        assert topology.weft.check(topology.confs[name], topology.results[name], path, name) == ""


@DRIVERS
def test_open_networks_reach_each_other(host: Host, driver: str) -> None:
    topology = Topology(host)
    topology.add("shut", conf("shut", 81, driver))
    topology.add("free", conf("free", 82, driver, isolation="open"))
    assert topology.reaches("shut", "free")
    assert topology.reaches("outside", "free")
    assert topology.blocked("free", "shut")


@DRIVERS
def test_routed_network_is_open_to_the_outside_only(host: Host, driver: str) -> None:
    topology = Topology(host)
    network = conf("road", 81, driver, isolation="routed")
    topology.add("road1", network)
    topology.add("road2", network)
    topology.add("shut", conf("shut", 82, driver))
    assert topology.reaches("outside", "road1")
    assert topology.reaches("road1", "road2")
    assert topology.blocked("shut", "road1")
    assert topology.blocked("road1", "shut")


@DRIVERS
def test_under_the_references_name_networks_are_open(host: Host, driver: str) -> None:
    topology = Topology(host)
    topology.add("one", conf("one", 81, driver, weft=False))
    topology.add("two", conf("two", 82, driver, weft=False))
    assert topology.reaches("one", "two")
    assert topology.reaches("outside", "one")


@DRIVERS
def test_the_references_networks_can_be_closed(host: Host, driver: str) -> None:
    topology = Topology(host)
    topology.add("one", conf("one", 81, driver, weft=False, isolation="closed"))
    topology.add("two", conf("two", 82, driver, weft=False))
    assert topology.blocked("two", "one")
    assert topology.blocked("outside", "one")
    assert topology.reaches("one", "two")


@pytest.mark.parametrize("keys", [{}, {"internal": True}])
def test_siblings_reach_each_other_with_br_netfilter(host: Host, keys: dict[str, Any]) -> None:
    """With br_netfilter, as on Kubernetes nodes, bridged packets pass the inet hooks as well."""
    switches = list(Path("/proc/sys/net/bridge").glob("bridge-nf-call-ip*tables"))
    if not switches:
        pytest.skip("this kernel has no br_netfilter")
    for switch in switches:
        switch.write_text("1")
    topology = Topology(host)
    for name, network in (("a", conf("one", 81, **keys)), ("b", conf("one", 81, **keys)), ("c", conf("two", 82))):
        topology.add(name, network)
    assert topology.reaches("a", "b")
    assert topology.blocked("c", "a")


@pytest.mark.parametrize("address", [True, False], ids=["host on the network", "host without an address"])
def test_a_gateway_that_is_another_machine_with_br_netfilter(host: Host, *, address: bool) -> None:
    """What is bridged to it does not leave the network, also by the rules that survive a flush."""
    switches = list(Path("/proc/sys/net/bridge").glob("bridge-nf-call-ip*tables"))
    if not switches:
        pytest.skip("this kernel has no br_netfilter")
    for switch in switches:
        switch.write_text("1")
    host.run("ip", "link", "add", "br-lan", "type", "bridge")
    host.run("ip", "link", "set", "br-lan", "up")
    if address:
        host.run("ip", "address", "add", "192.0.2.1/24", "dev", "br-lan")
    router = host.container("router")
    host.run("ip", "link", "add", "to-router", "type", "veth", "peer", "name", "eth0", "netns", router)
    host.run("ip", "link", "set", "to-router", "master", "br-lan", "up")
    for words in ("address add 192.0.2.254/24 dev eth0", "address add 198.51.100.1/32 dev lo", "link set eth0 up"):
        host.inside("router", "ip", *words.split())
    ranges = {"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.50", "rangeEnd": "192.0.2.60", "gateway": "192.0.2.254"}
    ipam = {"type": "host-local", "ranges": [[ranges]], "routes": [DEFAULT4]}
    lan = {**OWN["bridge"], "cniVersion": "1.0.0", "name": "lan", "bridge": "br-lan", "isolation": "closed"}
    weft = Weft()
    for name in ("a", "b"):
        weft.add({**lan, "ipam": ipam}, host.container(name), name)
    table = OwnedTable(guard.TABLES[guard.Owner.ENGINE])
    try:
        if not table.claim():
            pytest.skip("this kernel has no owned tables that persist")
        for target in ("198.51.100.1", "192.0.2.51"):
            assert host.ping("a", target), target
        assert host.ping("router", "192.0.2.50")
    finally:
        table.remove()


def test_additional_address_opens_nothing(host: Host) -> None:
    """Neither one of the other network's subnet, nor an unassigned one, nor a link-local one."""
    topology = Topology(host)
    topology.add("one", conf("one", 81, macspoofchk=False))
    topology.add("two", conf("two", 82, macspoofchk=False))
    for address in ("10.82.0.99/24", "10.99.0.9/24", "fd00:82::99/64"):
        host.inside("one", "ip", "address", "add", address, "dev", "eth0", "nodad", check=False)
    host.run("ip", "route", "add", "10.99.0.0/24", "dev", "b-two")
    host.inside("two", "ip", "address", "add", "10.99.0.5/24", "dev", "eth0")
    for address, source in (
        ("10.82.0.2", "10.81.0.2"),
        ("10.82.0.2", "10.99.0.9"),
        ("10.99.0.5", "10.81.0.2"),
        ("fd00:82::2", "fd00:81::2"),
    ):
        assert host.fetch("one", address, 80, timeout=BRIEFLY, source=source) is None
    assert host.fetch("outside", "10.99.0.5", 80, timeout=BRIEFLY) is None
    assert host.fetch(None, "10.99.0.5", 80) is not None


@pytest.mark.parametrize("weft", [True, False])
def test_port_isolation_keeps_siblings_apart(host: Host, weft: bool) -> None:
    topology = Topology(host)
    network = conf("one", 81, weft=weft, portIsolation=True)
    topology.add("a", network)
    topology.add("b", network)
    assert topology.blocked("a", "b")
    assert topology.reaches(None, "a")
    assert topology.reaches("a", "outside")


@pytest.mark.parametrize(("driver", "gateway"), [("bridge", True), ("bridge", False), ("ptp", True)])
def test_an_internal_network_has_no_way_out(host: Host, driver: str, gateway: bool) -> None:
    """Nor by a route that the container adds, via its gateway or other addresses of the host."""
    topology = Topology(host)
    network = conf("in", 81, driver, internal=True)
    network = {**network, **({"isGateway": gateway} if driver == "bridge" else {})}
    topology.add("a", network)
    topology.add("b", network)
    topology.add("other", conf("other", 82, isolation="open"))
    host.serve_tcp(None, 81)
    host.serve_udp(None, 53)
    if not gateway:
        local = seen.link(host, "b-in")["address"]
        for words in (f"-6 route replace default via {link_local(local)} dev eth0", "route replace default dev eth0"):
            host.inside("a", "ip", *words.split())
    assert topology.reaches("a", "b")
    assert topology.blocked("a", "outside")
    assert topology.blocked("a", "other")
    assert topology.blocked("outside", "a")
    assert topology.blocked("other", "a")
    for address in (topology.lan.host, topology.lan.host6, "10.82.0.1", "fd00:82::1", "10.81.0.1", "fd00:81::1"):
        assert host.fetch("a", address, 81, timeout=BRIEFLY) is None, address
    assert host.fetch("a", topology.lan.host, 53, "udp", timeout=BRIEFLY) is None
    if gateway:
        assert topology.reaches(None, "a")
        assert host.fetch("a", "10.81.0.1", 53, "udp") is not None
        assert host.fetch("a", "fd00:81::1", 53, "udp") is not None


def test_without_internal_the_same_routes_work(host: Host) -> None:
    """Proves that the test above can fail."""
    topology = Topology(host)
    topology.add("a", conf("in", 81))
    topology.add("other", conf("other", 82, isolation="open"))
    host.serve_tcp(None, 81)
    for address in (topology.lan.host, topology.lan.host6, "10.82.0.1", "fd00:82::1", "10.81.0.1", "fd00:81::1"):
        assert host.fetch("a", address, 81) is not None, address
    assert topology.reaches("a", "outside") and topology.reaches("a", "other")


@DRIVERS
def test_of_the_host_only_dns(host: Host, driver: str) -> None:
    topology = Topology(host)
    topology.add("a", conf("in", 81, driver, hostAccess="dns"))
    host.serve_tcp(None, 81)
    host.serve_udp(None, 53)
    for address in ("10.81.0.1", "fd00:81::1"):
        assert host.fetch("a", address, 53, "udp") is not None
        assert host.fetch("a", address, 81, timeout=BRIEFLY) is None
        assert host.ping("a", address)
    assert host.fetch("a", topology.lan.host, 53, "udp", timeout=BRIEFLY) is None
    assert topology.reaches("a", "outside")
    assert topology.reaches(None, "a")


METADATA = ("169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254", "fd00:ec2::23")
WIRESERVER = "168.63.129.16"


@DRIVERS
@pytest.mark.parametrize("allowed", [False, True])
def test_metadata_services_are_out_of_reach(host: Host, driver: str, allowed: bool) -> None:
    """Except for DNS, which some clouds serve at that address."""
    topology = Topology(host)
    for address in (*METADATA, WIRESERVER):
        host.inside("outside", "ip", "address", "add", address, "dev", "lo")
    host.serve_udp("outside", 53, METADATA[0])
    topology.add("a", conf("in", 81, driver, **({"metadata": True} if allowed else {})))
    for address in METADATA:
        assert host.reaches("a", address, 80, expected=allowed) == allowed
        assert host.reaches("a", address, 0, "icmp", expected=allowed) == allowed
    assert host.fetch("a", "169.254.169.254", 53, "udp") is not None
    host.serve_tcp("outside", 32526)
    host.serve_tcp("outside", 5000)
    for number in (80, 32526):
        assert host.reaches("a", WIRESERVER, number, expected=allowed) == allowed
    assert host.reaches("a", WIRESERVER, 5000)  # health probes come from there


@DRIVERS
def test_link_local_gateway(host: Host, driver: str) -> None:
    topology = Topology(host)
    network = conf("in", 81, driver)
    network["ipam"] = pool("169.254.77.0/24", routes=[DEFAULT4])
    topology.add("a", network)
    host.serve_tcp(None, 81)
    assert host.ping("a", "169.254.77.1")
    assert host.fetch("a", "169.254.77.1", 81) == "169.254.77.2"


@DRIVERS
@pytest.mark.parametrize("keys", [{}, {"isolation": "routed"}, {"internal": True}])
def test_del_removes_all_rules(host: Host, driver: str, keys: dict[str, Any]) -> None:
    seen.forward(host)
    before, weft = host.snapshot(), Weft()
    network = conf("one", 81, driver, **keys)
    for name in ("a", "b"):
        weft.add(network, host.container(name), name)
    weft.delete(network, "/run/netns/a", "a")
    assert host.run("nft", "list", "ruleset").stdout.count("fd00:81::2 ") == 0
    weft.delete(network, "/run/netns/b", "b")
    weft.collect(network)
    assert host.changes(before) == []


def test_flushed_rules_are_reported_by_check_and_restored_by_add(host: Host) -> None:
    topology = Topology(host)
    topology.add("one", conf("one", 81))
    topology.add("two", conf("two", 82))
    host.run("nft", "flush", "ruleset")
    assert topology.reaches("one", "two"), "without rules the networks must be open"
    said = topology.weft.check(topology.confs["one"], topology.results["one"], "/run/netns/one", "one")
    assert "inet weft is missing" in said and "in closed_links" in said and "in dns_queries4" in said
    topology.add("three", conf("three", 83))
    assert topology.blocked("one", "two")
    for name in ("one", "two"):
        assert topology.weft.check(topology.confs[name], topology.results[name], f"/run/netns/{name}", name) == ""


def test_existing_bridge_is_closed_only_on_request(host: Host) -> None:
    """Hosts behind it may have nothing to do with weft."""
    topology = Topology(host)
    host.run("ip", "link", "add", "b-one", "up", "type", "bridge")
    topology.add("one", conf("one", 81))
    assert topology.reaches("outside", "one")
    topology.add("two", conf("one", 81, isolation="closed"))
    assert topology.blocked("outside", "two")


def test_elements_are_added_before_the_link_and_removed_after_it(host: Host) -> None:
    weft = Weft()
    record = weft.preview(conf("one", 81), host.container())
    kinds = [type(operation).__name__ for operation in record.operations]
    elements = [name for name, kind in enumerate(kinds) if kind == "Elements"]
    assert kinds.index("Veth") > elements[0] > kinds.index("PoolLease")


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"isolation": "maybe"}, "isolation"),
        ({"isolation": True}, "isolation"),
        ({"hostAccess": "none"}, "hostAccess"),
        ({"internal": True, "isolation": "open"}, "isolation"),
        ({"internal": True, "hostAccess": "open"}, "hostAccess"),
        ({"internal": True, "ipMasq": True}, "ipMasq"),
        ({"internal": "yes"}, "internal"),
        ({"metadata": 1}, "metadata"),
    ],
)
def test_invalid_combinations_are_refused(host: Host, keys: dict[str, Any], word: str) -> None:
    answer = Weft()("ADD", conf("one", 81, **keys), host.container())
    assert answer.code == 7 and word in answer.text
