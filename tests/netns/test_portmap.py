"""Published ports with real traffic: reachable from where they should be, and from nowhere else."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from lab import abilities, namespaces, seen
from lab.confs import SUBNET, bridge, dual, network, pool, port, ptp, published
from lab.host import Host, Lan
from lab.plugins import Cni
from lab.waiting import BRIEFLY, PATIENTLY, until

CHAIN = bridge(dual(), isGateway=True, ipMasq=True, hairpinMode=True)
DRIVERS = {"bridge": CHAIN, "ptp": ptp(dual(), ipMasq=True)}


def publish(
    host: Host, cni: Cni, *mappings: dict[str, Any], driver: dict[str, Any] = CHAIN, name: str = "c1", **keys: Any
) -> Any:
    """ADD of a container with published ports; returns the result."""
    conflist, runtime = published(driver, mappings, **keys)
    return cni.add_list(conflist, host.container(name), runtime, container=name)


def withdraw(cni: Cni, *mappings: dict[str, Any], driver: dict[str, Any] = CHAIN, name: str = "c1") -> None:
    conflist, runtime = published(driver, mappings)
    cni.delete_list(conflist, None, f"/run/netns/{name}", runtime, container=name)


@pytest.fixture
def lan(host: Host) -> Lan:
    return host.lan()


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)
def test_a_port_is_reached_from_everywhere(host: Host, cni: Cni, lan: Lan, driver: dict[str, Any]) -> None:
    """From the LAN without SNAT, from the host by all its addresses, from siblings, from itself."""
    seen.forward(host)
    before = host.snapshot()
    mappings = (port(8080, 80), port(8080, 80, "udp"))
    publish(host, cni, *mappings, driver=driver)
    cni.add(driver, host.container("c2"), container="c2")
    host.serve_tcp("c1", 80)
    host.serve_udp("c1", 80)
    for protocol in ("tcp", "udp"):
        assert host.fetch(lan.name, lan.host, 8080, protocol) == lan.outside
        assert host.fetch(None, "127.0.0.1", 8080, protocol) == "10.80.0.1"
        assert host.fetch(None, "127.8.9.10", 8080, protocol) == "10.80.0.1"
        assert host.fetch(None, "::1", 8080, protocol) == "fd80::1"
        assert host.fetch(None, lan.host, 8080, protocol) is not None
        assert host.fetch("c2", lan.host, 8080, protocol) in ("10.80.0.1", "10.80.0.3")
        assert host.fetch("c2", "10.80.0.1", 8080, protocol) in ("10.80.0.1", "10.80.0.3")
        assert host.fetch("c1", lan.host, 8080, protocol) == "10.80.0.1"
    assert host.fetch(lan.name, lan.host6, 8080) == lan.outside6
    assert host.fetch(None, lan.host6, 8080) is not None
    assert host.fetch("c2", lan.host6, 8080) is not None
    assert host.fetch("c1", lan.host6, 8080) is not None
    withdraw(cni, *mappings, driver=driver)
    assert host.fetch(lan.name, lan.host, 8080, timeout=0.5) is None
    assert host.fetch(None, "127.0.0.1", 8080, timeout=0.5) is None
    assert host.fetch(None, "::1", 8080, timeout=0.5) is None
    withdraw(cni, *mappings, driver=driver)
    cni.delete(driver, "/run/netns/c2", container="c2")
    seen.collect(cni, driver)
    seen.collect(cni, {**driver, "type": "portmap"})
    assert host.changes(before) == []


def test_mapping_with_hostip_is_bound_to_that_address(host: Host, cni: Cni, lan: Lan) -> None:
    host.run("ip", "address", "add", "192.0.2.77/24", "dev", lan.link)
    publish(host, cni, port(8080, 80, address="192.0.2.77"), port(8081, 80, address=lan.host6))
    host.serve_tcp("c1", 80)
    assert host.fetch(lan.name, "192.0.2.77", 8080) == lan.outside
    assert host.fetch(lan.name, lan.host, 8080, timeout=0.5) is None
    assert host.fetch(lan.name, lan.host6, 8080, timeout=0.5) is None
    assert host.fetch(lan.name, lan.host6, 8081) == lan.outside6
    assert host.fetch(lan.name, lan.host, 8081, timeout=0.5) is None
    assert host.fetch(None, "127.0.0.1", 8080, timeout=0.5) is None


def test_one_port_of_two_host_addresses(host: Host, cni: Cni, lan: Lan) -> None:
    """A port may lead to another container at each address; one of every address includes them all."""
    host.run("ip", "address", "add", "192.0.2.77/24", "dev", lan.link)
    publish(host, cni, port(8080, 80, address=lan.host))
    publish(host, cni, port(8080, 81, address="192.0.2.77"), name="c2")
    first, second = host.serve_tcp("c1", 80), host.serve_tcp("c2", 81)
    assert host.fetch(lan.name, lan.host, 8080) == lan.outside
    assert (len(first.clients), len(second.clients)) == (1, 0)
    assert host.fetch(lan.name, "192.0.2.77", 8080) == lan.outside
    assert (len(first.clients), len(second.clients)) == (1, 1)

    def refused(mapping: dict[str, Any]) -> str:
        driver, portmap = Cni._members(*published(CHAIN, [mapping]))
        netns = host.container("c4")
        result = cni.add(driver, netns, container="c4")
        before = host.snapshot()
        problem = seen.problem(cni, "ADD", {**portmap, "prevResult": result}, netns, container="c4")
        assert problem["code"] == 101 and host.changes(before) == []
        cni.delete(driver, netns, container="c4")
        host.remove_container("c4")
        return str(problem["msg"])

    assert refused(port(8080, 80)).startswith("host port 8080/tcp on 192.0.2.")
    publish(host, cni, port(8081, 80), name="c3")
    for address in ("127.0.0.1", lan.host6):
        assert "host port 8081/tcp on every address belongs to c3/eth0" in refused(port(8081, 82, address=address))


def test_port_of_127_0_0_1_is_reachable_from_the_host_only(host: Host, cni: Cni, lan: Lan) -> None:
    """CVE-2020-8558: packets to 127.0.0.1 from a neighbour or a container are dropped."""
    publish(host, cni, port(8080, 80, address="127.0.0.1"))
    cni.add(CHAIN, host.container("c2"), container="c2")
    server = host.serve_tcp("c1", 80)
    secret = host.serve_tcp(None, 9999, "127.0.0.1")
    assert host.fetch(None, "127.0.0.1", 8080) == "10.80.0.1"
    assert host.fetch(lan.name, lan.host, 8080, timeout=0.5) is None
    host.run("sysctl", "-qw", f"net.ipv4.conf.{lan.link}.rp_filter=0", "net.ipv4.conf.all.rp_filter=0")
    host.run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
    for place, way, own in ((lan.name, lan.host, lan.outside), ("c2", "10.80.0.1", "10.80.0.3")):
        for lines in (
            ("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1", "net.ipv4.conf.all.rp_filter=0"),
            ("ip", "route", "flush", "table", "local"),
            ("ip", "route", "add", "local", own, "dev", "eth0", "table", "local"),
            ("ip", "route", "replace", "127.0.0.1/32", "via", way, "dev", "eth0"),
        ):
            host.inside(place, *lines)
        for number in (8080, 9999):
            assert host.fetch(place, "127.0.0.1", number, timeout=0.5) is None
    assert server.clients == ["10.80.0.1"] and secret.clients == []


def test_neighbour_reaches_loopback_without_the_rule(host: Host, cni: Cni, lan: Lan) -> None:
    """With route_localnet the same packets arrive: proves that the test above can fail."""
    publish(host, cni, port(8080, 80, address="127.0.0.1"))
    cni.add(CHAIN, host.container("c2"), container="c2")
    secret = host.serve_udp(None, 9999, "127.0.0.1")
    host.run("nft", "flush", "chain", "inet", "weft", "raw_prerouting")
    host.run("sysctl", "-qw", "net.ipv4.conf.br0.route_localnet=1")
    for lines in (
        ("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1", "net.ipv4.conf.all.rp_filter=0"),
        ("ip", "route", "flush", "table", "local"),
        ("ip", "route", "add", "local", "10.80.0.3", "dev", "eth0", "table", "local"),
        ("ip", "route", "replace", "127.0.0.1/32", "via", "10.80.0.1", "dev", "eth0"),
    ):
        host.inside("c2", *lines)
    host.fetch("c2", "127.0.0.1", 9999, "udp", timeout=0.5)
    until(lambda: secret.clients == ["10.80.0.3"], what="a datagram routed by the host")


def test_a_thousand_ports(host: Host, cni: Cni, lan: Lan) -> None:
    mappings = tuple(port(20000 + index, 10000 + index) for index in range(1000))
    result = publish(host, cni, *mappings)
    for number in (10000, 10500, 10999):
        host.serve_tcp("c1", number)
        assert host.fetch(lan.name, lan.host, number + 10000) == lan.outside
    conflist, runtime = published(CHAIN, mappings)
    cni.check_list(conflist, result, "/run/netns/c1", runtime)
    withdraw(cni, *mappings)
    assert "10.80.0.2" not in host.run("nft", "list", "ruleset").stdout


def test_without_snat_the_host_reaches_it_by_its_outer_addresses_only(host: Host, cni: Cni, lan: Lan) -> None:
    publish(host, cni, port(8080, 80), snat=False)
    host.serve_tcp("c1", 80)
    assert host.fetch(lan.name, lan.host, 8080) == lan.outside
    for address in ("127.0.0.1", "::1"):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, 8080), timeout=5)


def test_masquerading_all_hides_every_client(host: Host, cni: Cni, lan: Lan) -> None:
    publish(host, cni, port(8080, 80), masqAll=True)
    host.serve_tcp("c1", 80)
    assert host.fetch(lan.name, lan.host, 8080) == "10.80.0.1"
    assert host.fetch(lan.name, lan.host6, 8080) == "fd80::1"


def test_a_taken_port_is_refused_and_its_owner_named(host: Host, cni: Cni, lan: Lan) -> None:
    publish(host, cni, port(8080, 80))
    host.serve_tcp("c1", 80)
    conflist, runtime = published(CHAIN, [port(8081, 80), port(8080, 80)])
    netns = host.container("c2")
    first, second = Cni._members(conflist, runtime)
    result = cni.add(first, netns, container="c2")
    before = host.snapshot()
    problem = seen.problem(cni, "ADD", {**second, "prevResult": result}, netns, container="c2")
    assert problem["code"] == 101
    assert problem["msg"] == "tcp . 8080 in ports4 belongs to c1/eth0 on net, not to c2/eth0 on net"
    assert host.changes(before) == []
    cni.delete(second, netns, container="c2")
    assert host.fetch(lan.name, lan.host, 8080) == lan.outside
    udp = {**second, "prevResult": result, "runtimeConfig": {"portMappings": [port(8080, 80, "udp")]}}
    cni.add(udp, netns, container="c2")


def test_two_networks_of_one_container(host: Host, cni: Cni, lan: Lan) -> None:
    """DEL of one network keeps the ports of the other."""
    publish(host, cni, port(8080, 80))
    other = bridge(pool("10.81.0.0/24"), bridge="br1", isGateway=True, name="other")
    conflist, runtime = published(other, [port(9090, 80)])
    cni.add_list(conflist, "/run/netns/c1", runtime, ifname="eth1")
    host.serve_tcp("c1", 80)
    assert host.fetch(lan.name, lan.host, 8080) == lan.outside
    assert host.fetch(None, lan.host, 9090) is not None
    cni.delete_list(conflist, None, "/run/netns/c1", runtime, ifname="eth1")
    assert host.fetch(lan.name, lan.host, 8080) == lan.outside
    assert host.fetch(None, lan.host, 9090, timeout=0.5) is None


def test_a_port_can_be_published_again_at_once(host: Host, cni: Cni, lan: Lan) -> None:
    """A client that keeps its UDP source port reaches the new container, not the old target."""
    with namespaces.inside(f"/run/netns/{lan.name}"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.settimeout(PATIENTLY)
        client.connect((lan.host, 5353))
        for name in ("c1", "c2"):
            publish(host, cni, port(5353, 53, "udp"), name=name)
            server = host.serve_udp(name, 53)
            client.send(b"hello")
            assert client.recv(100).startswith(lan.outside.encode())
            assert server.clients == [lan.outside]
            withdraw(cni, port(5353, 53, "udp"), name=name)


def test_check_notices_a_port_that_is_gone(host: Host, cni: Cni) -> None:
    result = publish(host, cni, port(8080, 80), port(8081, 81))
    conflist, runtime = published(CHAIN, [port(8080, 80), port(8081, 81)])
    cni.check_list(conflist, result, "/run/netns/c1", runtime)
    host.run("nft", "delete", "element", "inet", "weft", "ports4", "{ tcp . 8081 }")
    member = Cni._members(conflist, runtime)[1]
    problem = seen.problem(cni, "CHECK", {**member, "prevResult": result}, "/run/netns/c1")
    assert problem["code"] == 104 and "8081" in problem["msg"]


def test_an_sctp_port(host: Host, cni: Cni, lan: Lan) -> None:
    """TCP and SCTP ports of the same number are independent."""
    abilities.require_sctp()
    seen.forward(host)
    before = host.snapshot()
    mappings = (port(8080, 80, "sctp"), port(8080, 81))
    publish(host, cni, *mappings)
    for address in ("10.80.0.2", "fd80::2"):
        host.serve_sctp("c1", 80, address)
    host.serve_tcp("c1", 81)
    for protocol in ("sctp", "tcp"):
        assert host.fetch(lan.name, lan.host, 8080, protocol) == lan.outside
        assert host.fetch(lan.name, lan.host6, 8080, protocol) == lan.outside6
        assert host.fetch(None, lan.host, 8080, protocol) is not None
    withdraw(cni, *mappings)
    assert host.fetch(lan.name, lan.host, 8080, "sctp", timeout=BRIEFLY) is None
    seen.collect(cni, CHAIN)
    assert host.changes(before) == []


def test_del_needs_no_mappings(host: Host, cni: Cni) -> None:
    """DEL without runtimeConfig: runtimes may no longer know what they published."""
    publish(host, cni, port(8080, 80))
    withdraw(cni)
    assert not seen.named(8080, host.run("nft", "list", "ruleset").stdout)


def test_without_mappings_nothing_changes(host: Host, cni: Cni) -> None:
    netns = host.container()
    result = cni.add(bridge(pool(SUBNET)), netns)
    before = host.snapshot()
    conf = network("portmap", prevResult=result)
    assert cni.add(conf, netns) == result
    assert host.changes(before) == []
    cni.check(conf, result, netns)
    cni.delete(conf, netns)
    assert host.changes(before) == []


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"hostPort": 0, "containerPort": 80, "protocol": "tcp"}, "hostPort 0 must be between 1 and 65535"),
        ({"hostPort": 80, "containerPort": 65536, "protocol": "tcp"}, "containerPort 65536 must be between"),
        ({"hostPort": 80, "containerPort": 80, "protocol": "icmp"}, 'protocol "icmp" must be one of tcp, udp, sctp'),
        ({"hostPort": 80, "containerPort": 80}, "protocol"),
        ({"hostPort": 80, "protocol": "tcp"}, "requires hostPort and containerPort"),
        ({**port(80, 80), "hostIP": "example"}, 'hostIP "example" is not an IP address'),
        ({**port(80, 80), "hostIP": "2001:db8::1"}, "the container has no IPv6 address"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused_by_name(host: Host, cni: Cni, mapping: dict[str, Any], words: str) -> None:
    netns = host.container()
    result = cni.add(bridge(pool(SUBNET)), netns)
    before = host.snapshot()
    conf = network("portmap", prevResult=result, runtimeConfig={"portMappings": [mapping]})
    problem = seen.problem(cni, "ADD", conf, netns)
    assert problem["code"] == 7 and words in problem["msg"]
    assert host.changes(before) == []


def test_every_address_of_a_container_with_ipv6_only(host: Host, cni: Cni, lan: Lan) -> None:
    """nerdctl passes hostIP 0.0.0.0 where its user gave none."""
    netns = host.container()
    result = cni.add(bridge(pool("fd80::/64", routes=[{"dst": "::/0"}]), isGateway=True), netns)
    runtime = {"portMappings": [{**port(8080, 80), "hostIP": "0.0.0.0"}]}
    cni.add(network("portmap", prevResult=result, runtimeConfig=runtime), netns)
    host.serve_tcp("c1", 80)
    assert host.fetch(lan.name, lan.host6, 8080) == lan.outside6
    assert host.fetch(None, "::1", 8080) is not None


def test_keys_in_the_case_that_containerd_sends(host: Host, cni: Cni, lan: Lan) -> None:
    netns = host.container()
    result = cni.add(CHAIN, netns)
    mapping = {"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""}
    cni.add(network("portmap", prevResult=result, runtimeConfig={"portMappings": [mapping]}), netns)
    host.serve_tcp("c1", 80)
    assert host.fetch(lan.name, lan.host, 8080) == lan.outside


def test_conditions_beyond_addresses_and_links_are_refused(host: Host, cni: Cni) -> None:
    netns = host.container()
    result = cni.add(bridge(pool(SUBNET)), netns)
    conf = network("portmap", prevResult=result, conditionsV4=["-m", "statistic"])
    problem = seen.problem(cni, "ADD", conf, netns)
    assert problem["code"] == 2 and "conditionsV4" in problem["msg"]


def test_portmap_of_the_weft_plugin(host: Host, cni: Cni, lan: Lan) -> None:
    """``weft`` with a nested portmap: the same ports from one plugin, one record and one DEL."""
    runtime = {"portMappings": [port(8080, 80)]}
    conf = {**CHAIN, "type": "weft", "driver": "bridge", "portmap": {}, "runtimeConfig": runtime}
    netns = host.container()
    result = cni.add(conf, netns)
    host.serve_tcp("c1", 80)
    assert host.fetch(lan.name, lan.host, 8080) == lan.outside
    assert host.fetch(None, "127.0.0.1", 8080) == "10.80.0.1"
    cni.check(conf, result, netns)
    cni.delete(conf, netns)
    assert not seen.named(8080, host.run("nft", "list", "ruleset").stdout)


@pytest.mark.parametrize("policy", ["", "weft", "promiscMode"])
def test_a_container_reaches_itself_with_br_netfilter(host: Host, cni: Cni, lan: Lan, policy: str) -> None:
    """br_netfilter translates on the bridge, which sends a frame back only by a port in hairpin mode."""
    abilities.require("bridge_netfilter")
    host.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1")
    conf = bridge(dual(), isGateway=True, ipMasq=True, hairpinMode=False, promiscMode=policy == "promiscMode")
    mappings = (port(8080, 80), port(8080, 80, "udp"))
    netns = host.container()
    if policy == "weft":
        runtime = {"portMappings": list(mappings)}
        conf = {**conf, "type": "weft", "driver": "bridge", "portmap": {}, "runtimeConfig": runtime}
        cni.check(conf, cni.add(conf, netns), netns)
    else:
        conflist, runtime = published(conf, mappings)
        cni.check_list(conflist, cni.add_list(conflist, netns, runtime), netns, runtime)
    ports = host.run("bridge", "-j", "-d", "link", "show").json
    modes = {one["ifname"]: one.get("hairpin") for one in ports if one.get("master") == "br0"}
    # On a promiscuous bridge every frame would come back twice.
    assert list(modes.values()) == [policy != "promiscMode"]
    if policy == "promiscMode":
        return
    host.serve_tcp("c1", 80)
    host.serve_udp("c1", 80)
    for protocol in ("tcp", "udp"):
        for address in (lan.host, "10.80.0.1", lan.host6):
            assert host.fetch("c1", address, 8080, protocol) is not None, (protocol, address)
