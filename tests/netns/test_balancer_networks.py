"""Virtual IPs and weft's networks: closed, internal, containers on one bridge, clients outside."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from discovery.balancer.balancer import Balancer
from lab import seen, tracing
from lab.calls import Weft
from lab.confs import DEFAULT4, DEFAULT6, bridge, pool, ptp
from lab.host import Host, Lan
from lab.services import Book, Greeters, instance, picks, run, talk, virtual
from lab.waiting import until

FAMILIES = pytest.mark.parametrize("version", [4, 6])
VIPS = {4: "10.79.0.10", 6: "fd57:6566:7400::10"}
SHOWN = pytest.mark.parametrize("shown", ["0", "1"], ids=["bridged unseen", "bridged seen"])


class Topology:
    """Containers on weft's networks; the server at port 80 replies with the container's name."""

    def __init__(self, host: Host) -> None:
        self.host, self.weft = host, Weft()
        seen.hurry(host)
        seen.forward(host)
        self.lan: Lan = host.lan(default_route=True)
        self.book = Book()
        self.addresses: dict[str, dict[int, str]] = {}
        self._servers: list[Greeters] = []

    def close(self) -> None:
        for server in self._servers:
            server.close()

    def show_bridged(self, shown: str) -> None:
        """Set bridge-nf-call-iptables and its siblings (br_netfilter)."""
        for key in ("iptables", "ip6tables"):
            self.host.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-{key}={shown}")

    def add(self, name: str, network: str, number: int, driver: str = "bridge", **keys: Any) -> None:
        ipam = pool(f"10.{number}.0.0/24", f"fd00:{number}::/64", routes=[DEFAULT4, DEFAULT6])
        if driver == "bridge":
            conf = bridge(ipam, name=network, bridge=f"b-{network}", isGateway=True)
        else:
            conf = ptp(ipam, name=network)
        result = self.weft.add({**conf, "type": "weft", "driver": driver, **keys}, self.host.container(name), name)
        found = [ip["address"].partition("/")[0] for ip in result["ips"]]
        self.addresses[name] = {6 if ":" in one else 4: one for one in found}
        self._servers.append(Greeters(f"/run/netns/{name}", {name: ("::", 80)}))

    def offer(self, *names: str, **rest: Any) -> None:
        """Register these containers as instances of the service, with both families."""
        for name in names:
            for version in (4, 6):
                self.book.put(instance("web", self.addresses[name][version], **rest))
        self.book.put(*(virtual("web", one) for one in VIPS.values()))

    def asks(self, name: str | None, address: str, count: int = 12, port: int = 80) -> Counter[str]:
        return picks(self.host.path if name is None else f"/run/netns/{name}", address, port, count)


@pytest.fixture
def topology(host: Host) -> Iterator[Topology]:
    made = Topology(host)
    try:
        yield made
    finally:
        made.close()


@FAMILIES
@pytest.mark.parametrize("driver", ["bridge", "ptp"])
def test_closed_network_is_reachable_by_virtual_address_only(topology: Topology, driver: str, version: int) -> None:
    topology.add("a", "x", 81, driver)
    topology.add("b", "y", 82, driver)
    topology.offer("b")

    async def work(balancer: Balancer) -> None:
        assert topology.asks("a", VIPS[version]) == {"b": 12}
        assert topology.asks(None, VIPS[version]) == {"b": 12}
        assert not topology.host.reaches("a", topology.addresses["b"][version], 80, expected=False)
        assert topology.asks("a", VIPS[version], 2, 81) == {"refused": 2}
        for client in ("a", None):
            reached, why = tracing.reaches(client, VIPS[version], 80, "tcp", live=True)
            assert reached and f"the destination becomes {topology.addresses['b'][version]} port 80" in why, why

    run(work, topology.book)


@FAMILIES
@SHOWN
def test_instance_on_a_bridge_reaches_siblings_and_itself(topology: Topology, shown: str, version: int) -> None:
    topology.show_bridged(shown)
    for name in ("a", "b", "c"):
        topology.add(name, "x", 81)
    topology.offer("b", "c")

    async def work(balancer: Balancer) -> None:
        assert set(topology.asks("a", VIPS[version], 40)) == {"b", "c"}
        # It may connect to either instance, but must also be able to reach itself.
        await asyncio.to_thread(until, lambda: set(topology.asks("b", VIPS[version], 40)) == {"b", "c"}, 30)
        clients = set(topology._servers[1].clients["b"] + topology._servers[2].clients["c"])
        own = {one.removeprefix("::ffff:") for one in clients}
        # The client's address stays wherever the replies pass this host anyway (br_netfilter).
        assert (topology.addresses["a"][version] in own) == (shown == "1")

    run(work, topology.book)


@FAMILIES
def test_ptp_instance_reaches_itself(topology: Topology, version: int) -> None:
    topology.add("a", "x", 81, "ptp")
    topology.add("b", "x", 81, "ptp")
    topology.offer("b")

    async def work(balancer: Balancer) -> None:
        assert topology.asks("b", VIPS[version]) == {"b": 12}
        assert topology.asks("a", VIPS[version]) == {"b": 12}
        clients = {one.removeprefix("::ffff:") for one in topology._servers[1].clients["b"]}
        assert topology.addresses["a"][version] in clients

    run(work, topology.book)


@FAMILIES
def test_internal_network_reaches_only_its_own_instances(topology: Topology, version: int) -> None:
    """Also with routes that such a network does not give its containers."""
    topology.add("in1", "inner", 81, internal=True)
    topology.add("in2", "inner", 81, internal=True)
    topology.add("b", "y", 82)
    topology.offer("b")

    async def work(balancer: Balancer) -> None:
        assert topology.asks(None, VIPS[version], 2) == {"b": 2}
        assert not topology.host.reaches("in1", VIPS[version], 80, expected=False)
        for one in topology.book.catalog.instances("web"):
            topology.book.drop(one)
        topology.offer("in2")
        await balancer.wait_synced()
        assert topology.asks("in1", VIPS[version]) == {"in2": 12}

    run(work, topology.book)


@FAMILIES
def test_outside_reaches_published_ports_but_no_virtual_address(topology: Topology, version: int) -> None:
    topology.add("a", "x", 81)
    topology.add("b", "x", 81)
    topology.offer("a", "b", meta={"weft-publish": "30080:80"})
    here = {4: topology.lan.host, 6: topology.lan.host6}[version]

    async def work(balancer: Balancer) -> None:
        assert set(topology.asks("outside", here, 40, 30080)) == {"a", "b"}
        there = {4: topology.lan.outside, 6: topology.lan.outside6}[version]
        clients = topology._servers[0].clients["a"] + topology._servers[1].clients["b"]
        assert {one.removeprefix("::ffff:") for one in clients} == {there}
        assert topology.asks("outside", VIPS[version], 2) == {"refused": 2}
        assert set(topology.asks(None, here, 40, 30080)) == {"a", "b"}
        topology.show_bridged("0")
        await asyncio.to_thread(until, lambda: set(topology.asks("a", here, 20, 30080)) == {"a", "b"}, 30)
        # Neither another port, nor this port at another address.
        assert topology.asks("outside", here, 2, 30081) == {"refused": 2}
        for one in topology.book.catalog.instances("web"):
            topology.book.drop(one)
        await balancer.wait_synced()
        assert topology.asks("outside", here, 2, 30080) == {"refused": 2}

    run(work, topology.book, outside=None)


@FAMILIES
def test_virtual_addresses_are_for_containers_and_this_host(topology: Topology, version: int) -> None:
    """Not for a second LAN, whose link has no default route; for containers of every kind of link."""
    host = topology.host
    second = host.lan("second", link="lan1", subnet="198.51.100.0/24", subnet6="2001:db8:98::/64", default_route=True)
    for route in (f"default via {second.outside} dev lan1", f"default via {second.outside6} dev lan1"):
        host.run("ip", *(["-6"] if ":" in route else []), "route", "del", *route.split())
    host.run("ip", "link", "add", "b-z", "type", "bridge")  # not created by weft
    topology.add("s", "v", 80)
    topology.add("a", "x", 81)
    topology.add("b", "y", 82, driver="ptp")
    topology.add("c", "z", 83)
    topology.offer("s")

    async def work(balancer: Balancer) -> None:
        for client in ("a", "b", "c", None):
            assert topology.asks(client, VIPS[version], 2) == {"s": 2}, client
        for client in ("outside", "second"):
            assert topology.asks(client, VIPS[version], 2) == {"refused": 2}, client
        topology.add("d", "w", 84, driver="ptp")  # no link that the agent has seen
        assert topology.asks("d", VIPS[version], 2) == {"s": 2}

    run(work, topology.book, outside=None)


def test_published_container_port_precedes_published_service(topology: Topology) -> None:
    topology.add("a", "x", 81)
    mapping = {"hostPort": 30080, "containerPort": 80, "protocol": "tcp"}
    topology.add("b", "y", 82, portmap={}, runtimeConfig={"portMappings": [mapping]})
    topology.offer("a", meta={"weft-publish": "30080:80"})

    async def work(balancer: Balancer) -> None:
        assert topology.asks("outside", topology.lan.host, 10, 30080) == {"b": 10}

    run(work, topology.book, outside=None)


def test_listening_process_keeps_its_port(topology: Topology) -> None:
    """Otherwise a service registration could take over a port that the host serves."""
    topology.add("a", "x", 81)
    server = Greeters(topology.host.path, {"host": ("0.0.0.0", 30080)})
    topology.offer("a", meta={"weft-publish": "30080:80"})

    async def work(balancer: Balancer) -> None:
        assert topology.asks("outside", topology.lan.host, 5, 30080) == {"host": 5}
        assert topology.asks(None, VIPS[4], 2) == {"a": 2}
        server.close()
        await asyncio.to_thread(until, lambda: set(topology.asks("outside", topology.lan.host, 2, 30080)) == {"a"})

    run(work, topology.book, outside=None)


@FAMILIES
def test_instances_at_metadata_and_loopback_addresses_are_refused(topology: Topology, version: int) -> None:
    """A service must not forward to a destination that its clients are not allowed to reach."""
    topology.add("a", "x", 81)
    for address in ("127.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254"):
        topology.book.put(instance("web", address))
    topology.book.put(*(virtual("web", one) for one in VIPS.values()))

    async def work(balancer: Balancer) -> None:
        assert topology.asks("a", VIPS[version], 2) == {"refused": 2}
        assert talk("/run/netns/a", VIPS[version], 80) == "refused"

    run(work, topology.book)


def test_what_an_instance_on_another_network_sees_as_the_client(topology: Topology) -> None:
    """The client, unless ``ipMasq`` of its network masquerades it, as the reference does."""
    topology.add("plain", "x", 81)
    topology.add("masked", "m", 83, ipMasq=True)
    topology.add("b", "y", 82)
    topology.offer("b")

    async def work(balancer: Balancer) -> None:
        seen_by: dict[str, set[str]] = {}
        for name in ("plain", "masked"):
            topology._servers[2].clients["b"].clear()
            assert topology.asks(name, VIPS[4], 4) == {"b": 4}
            seen_by[name] = {one.removeprefix("::ffff:") for one in topology._servers[2].clients["b"]}
        assert seen_by == {"plain": {topology.addresses["plain"][4]}, "masked": {"10.82.0.1"}}

    run(work, topology.book)


def test_a_published_service_is_not_at_loopback_but_at_the_addresses_of_the_host(topology: Topology) -> None:
    topology.add("b", "y", 82)
    topology.offer("b", meta={"weft-publish": "30080:80"})

    async def work(balancer: Balancer) -> None:
        assert topology.asks(None, topology.lan.host, 4, 30080) == {"b": 4}
        assert topology.asks(None, "127.0.0.1", 2, 30080) == {"refused": 2}
        assert topology.asks(None, VIPS[4], 4) == {"b": 4}

    run(work, topology.book, outside=None)


def test_a_udp_server_of_the_host_answers_behind_a_virtual_address_if_it_is_bound_to_its_own(
    topology: Topology,
) -> None:
    """One that is bound to 0.0.0.0 answers from the bridge's address, which is no reply."""
    topology.add("a", "x", 81)
    here = topology.lan.host
    topology._servers.append(Greeters(topology.host.path, {"bound": (here, 5301), "any": ("0.0.0.0", 5302)}))
    for name, port, vip in (("bound", 5301, "10.79.0.20"), ("any", 5302, "10.79.0.21")):
        topology.book.put(instance(name, here, port, protocol="udp"), virtual(name, vip))

    async def work(balancer: Balancer) -> None:
        assert await asyncio.to_thread(talk, "/run/netns/a", "10.79.0.20", 5301) == "bound"
        assert await asyncio.to_thread(talk, "/run/netns/a", "10.79.0.21", 5302) != "any"
        assert "10.81.0.2" in topology._servers[1].clients["any"]  # it was asked

    run(work, topology.book)
