"""Overlay networks of a cluster, by real agents on three hosts and a real etcd cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import pytest

from lab.abilities import require
from lab.commands import run
from lab.etcd import KILL, Cluster
from lab.hosts import Machine, Machines
from lab.traffic import unanswered
from lab.waiting import until

pytestmark = pytest.mark.in_order
_SOON = 60.0


class Blue:
    """The network blue with a container on each host; their addresses."""

    def __init__(self, hosts: Machines) -> None:
        hosts.create("blue", "--ipv6")
        self.at = {number: hosts[number].attach("blue", f"c{number}") for number in hosts.all}


@pytest.fixture(scope="module")
def blue(hosts: Machines) -> Blue:
    return Blue(hosts)


def cluster_of(one: Machine, network: str) -> dict[str, Any]:
    found: dict[str, Any] = one.weft("network", "inspect", network).json[0]["Weft"]["Cluster"]
    return found


def test_a_network_is_on_every_host(hosts: Machines, blue: Blue) -> None:
    assert len(set(blue.at.values())) == 3
    for client, server in permutations(hosts.all, 2):
        assert hosts[client].ping(f"c{client}", blue.at[server]), (client, server)
    found = {number: cluster_of(hosts[number], "blue") for number in hosts.all}
    assert found[1]["Blocks"] == found[2]["Blocks"] == found[3]["Blocks"]
    assert {one["Node"] for one in found[1]["Blocks"]} == {"h1", "h2", "h3"}
    assert len({hosts[number].weft("network", "inspect", "blue").json[0]["Id"] for number in hosts.all}) == 1
    for number in hosts.all:
        assert hosts[number].read("/etc/cni/net.d/zz-blue.conflist")["name"] == "blue"
        assert hosts[number].read("/etc/containers/networks/blue.json")["driver"] == "overlay"
    until(lambda: all(one["Attached"] for one in cluster_of(hosts[1], "blue")["Hosts"]), _SOON, "the use by all hosts")
    refused = hosts[2].weft("network", "rm", "blue", check=False)
    assert refused.code and "containers on h1, h2, h3" in refused.stderr
    subnet = found[1]["Subnets"][0]
    refused = hosts[3].weft("network", "create", "-d", "overlay", "other", "--subnet", subnet, check=False)
    assert refused.code and "network blue" in refused.stderr
    assert "overlaps with" not in hosts[1].weft("doctor", check=False).stdout, "the routes to its own peers"


def test_weft_gc_leaves_networks_without_containers(hosts: Machines) -> None:
    hosts.create("idle", on=3)
    hosts[2].weft("gc")
    address = cluster_of(hosts[1], "idle")["Subnets"][0]
    assert address in hosts[2].run("ip", "route").stdout
    until(lambda: not hosts[1].weft("network", "rm", "idle", check=False).code, 60, "the removal")
    until(lambda: all("idle" not in hosts[n].weft("network", "ls").stdout for n in hosts.all), _SOON, "the removal")
    until(lambda: address not in hosts[2].run("ip", "route").stdout, _SOON, "the removal of the routes")
    assert "idle" not in hosts[3].run("ls", "/etc/cni/net.d").stdout


@pytest.mark.long
def test_a_host_that_uses_the_subnet_does_not_join(hosts: Machines, blue: Blue) -> None:
    hosts[3].run("ip", "route", "add", "10.200.7.0/24", "dev", "eth0")
    hosts[1].weft("network", "create", "-d", "overlay", "red", "--subnet", "10.200.0.0/16")
    until(lambda: cluster_problem(hosts[1], "red", "h3"), _SOON, "the refusal of host 3")
    assert "10.200.7.0/24" in cluster_problem(hosts[1], "red", "h3")
    assert "10.200.7.0/24" in hosts[3].weft("status", check=False).stdout
    assert "red" not in hosts[3].weft("network", "ls").stdout
    hosts[3].run("ip", "route", "delete", "10.200.7.0/24", "dev", "eth0")
    hosts[3].kill_agent()
    hosts[3].up()
    hosts.joined("red")
    until(lambda: not hosts[2].weft("network", "rm", "red", check=False).code, 60, "the removal")


def cluster_problem(one: Machine, network: str, node: str) -> str:
    hosts = cluster_of(one, network)["Hosts"]
    return str(next((each["Problem"] for each in hosts if each["Node"] == node), ""))


@pytest.fixture
def server(hosts: Machines, blue: Blue) -> Iterator[None]:
    process = hosts[2].serve("c2", "two")
    yield
    process.kill()
    process.wait()


def test_a_service_of_another_host_has_a_virtual_address_here(hosts: Machines, blue: Blue, server: None) -> None:
    tagged = {"virtual": {"address": "", "port": 80}}
    service = {"name": "web", "address": blue.at[2], "port": 80, "tagged_addresses": tagged}
    hosts[2].write("/run/web.json", json.dumps({"service": service}))
    hosts[2].weft("services", "register", "/run/web.json")

    def virtual(number: int) -> str:
        found = hosts[number].weft("services", "list", "-detailed", "-json", check=False)
        services = found.json if not found.code else []
        known = [one["VirtualAddresses"] for one in services if one["Service"] == "web"]
        return str(known[0][0]) if known and known[0] else ""

    until(lambda: virtual(1), _SOON, "a virtual address")
    for number in (1, 3):
        until(lambda number=number: hosts[number].fetch(f"c{number}", virtual(1)) == "two", _SOON, "the answer")  # type: ignore[misc]
    hosts[2].weft("services", "deregister", "-id=web")


@pytest.mark.long
def test_names_and_services_are_known_on_other_hosts(hosts: Machines) -> None:
    hosts.create("named", "--names", "--subnet", "10.150.0.0/16")
    server = "10.150.0.1"
    hosts[1].attach("named", "n1")
    address = hosts[2].attach("named", "n2")
    until(lambda: hosts[1].resolved("n1", "weft-n2", server) == [address], _SOON, "the name of a container")
    until(lambda: hosts[2].resolved("n2", "weft-n1.named", server), _SOON, "the name of the other")
    hosts[2].weft("network", "create", "plain", "--names")
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    alone = hosts[2].add("plain", "p1", "IgnoreUnknown=1;SERVICE_NAME=alone;SERVICE_PORT=80")
    hosts[2].add("plain", "p2", "IgnoreUnknown=1;SERVICE_NAME=public;SERVICE_PORT=80", portMappings=ports)
    spanning = hosts[2].add("named", "p3", "IgnoreUnknown=1;SERVICE_NAME=spanning;SERVICE_PORT=80")
    until(lambda: hosts[1].resolved("n1", "spanning.service.weft", server) == [spanning], _SOON, "a service")
    until(
        lambda: hosts[1].resolved("n1", "public.service.weft", server) == [hosts[2].address], _SOON, "a published one"
    )
    assert hosts[1].resolved("n1", "alone.service.weft", server) == []
    assert hosts[2].resolved("n2", "alone.service.weft", server) == [alone]
    found = hosts[1].weft("services", "list", "-detailed", "-json").json
    reach = {one["Service"]: one["Reach"] for one in found}
    wanted = {"alone": "its host", "public": f"{hosts[2].address}:8080", "spanning": "everywhere"}
    assert {name: reach[name] for name in wanted} == wanted
    hosts[2].detach("named", "n2")
    until(lambda: hosts[1].resolved("n1", "weft-n2", server) == [], _SOON, "the end of the name")
    hosts[1].detach("named", "n1")
    for network, container in (("named", "p3"), ("plain", "p1"), ("plain", "p2")):
        hosts[2].add(network, container, "IgnoreUnknown=1", command="DEL")
        hosts[2].run("ip", "netns", "delete", container)
    until(lambda: not hosts[2].weft("network", "rm", "plain", check=False).code, 60, "the removal")
    until(lambda: not hosts[1].weft("network", "rm", "named", check=False).code, _SOON, "the removal")


@pytest.mark.long
def test_routes_have_the_mtu_that_reaches_a_peer(hosts: Machines, blue: Blue) -> None:
    """A bridge on the way drops larger packets and says nothing: no ICMP error comes."""
    found = hosts[1].weft("status", "peers", "--json").json
    assert {(one["Node"], one["Reachable"], one["MTU"]) for one in found} == {("h2", True, 1450), ("h3", True, 1450)}
    run("ip", "link", "set", hosts[2].link, "mtu", "1400")
    try:
        small = hosts[1].weft("status", "peers", "--json", check=False)
        assert small.code and {one["Node"]: one["MTU"] for one in small.json} == {"h2": 1350, "h3": 1450}
        until(lambda: "mtu 1350" in hosts[1].run("ip", "route").stdout, _SOON, "the MTU of the routes")
        ping = ("ip", "netns", "exec", "c1", "ping", "-c", "1", "-w", "10", "-M", "do", "-s")
        assert hosts[1].run(*ping, str(1350 - 28), blue.at[2], check=False).code == 0
    finally:
        run("ip", "link", "set", hosts[2].link, "mtu", "1500")
    assert hosts[1].weft("status", "peers").code == 0
    until(lambda: "mtu 1350" not in hosts[1].run("ip", "route").stdout, _SOON, "the routes with the full MTU")


@pytest.mark.long
def test_containers_start_while_the_cluster_is_down(hosts: Machines, blue: Blue, etcd: Cluster) -> None:
    """Traffic goes on, agents restart from what they know, and all is caught up within seconds of its return."""
    for member in range(3):
        etcd.signal(member, KILL)
    hosts[1].kill_agent()
    assert hosts[1].ping("c1", blue.at[2])
    hosts[1].up()
    new = {number: hosts[number].attach("blue", f"new{number}") for number in (1, 2)}
    assert hosts[1].ping("new1", new[2]) and hosts[2].ping("new2", blue.at[1])
    for link in json.loads(hosts[1].run("ip", "-j", "link", "show", "type", "vxlan").stdout):
        hosts[1].run("ip", "link", "delete", link["ifname"])
    hosts[1].kill_agent()
    hosts[1].up()
    assert hosts[1].ping("c1", blue.at[3], _SOON), "the agent repairs it from what it knows"
    for member in range(3):
        etcd.start(member)
    etcd.wait()
    back = time.monotonic()
    until(lambda: not hosts[2].weft("network", "create", "-d", "overlay", "late", check=False).code, _SOON, "a network")
    created = time.monotonic()
    hosts.joined("late")
    print(f"created after {created - back:.1f} s, on all hosts {time.monotonic() - created:.2f} s later")
    until(lambda: not hosts[1].weft("network", "rm", "late", check=False).code, 60, "the removal")
    for number in new:
        hosts[number].detach("blue", f"new{number}")


@pytest.mark.long
def test_a_host_that_was_cut_off_catches_up(hosts: Machines, blue: Blue) -> None:
    hosts[3].cut()
    hosts[1].weft("network", "create", "-d", "overlay", "green")
    late = hosts[3].attach("blue", "alone")
    assert hosts[1].ping("c1", blue.at[2])
    hosts[3].cut(False)
    hosts.joined("green")
    assert hosts[1].ping("c1", late, _SOON)
    hosts[3].detach("blue", "alone")
    until(lambda: not hosts[1].weft("network", "rm", "green", check=False).code, 60, "the removal")


@pytest.mark.long
def test_keys_of_an_encrypted_network_are_replaced(hosts: Machines, blue: Blue) -> None:
    """By a command, on all hosts, while packets pass: none is lost."""
    if shutil.which("wireguard-go") is None:
        require("wireguard")
    refused = hosts[1].weft("network", "replace-keys", "blue", check=False)
    assert refused.code and "is not encrypted" in refused.stderr
    hosts.create("secret", "-o", "encryption=wireguard")
    at = {number: hosts[number].attach("secret", f"s{number}") for number in hosts.all}
    for client, server in permutations(hosts.all, 2):
        assert hosts[client].ping(f"s{client}", at[server]), (client, server)
    argv = ("ip", "netns", "exec", "s1", "ping", "-n", "-i", "0.02", at[3])
    process = hosts[1].start(*argv, stdout=subprocess.PIPE)
    said = hosts[2].weft("network", "replace-keys", "secret").stdout
    assert said.split()[-1] == "2"
    until(lambda: not cluster_of(hosts[1], "secret")["Rotating"], _SOON, "new keys on all hosts")
    assert unanswered(process, 0.02) == set()
    found = cluster_of(hosts[3], "secret")
    assert (found["KeyGeneration"], found["Encryption"], found["LeftOut"]) == (2, "wireguard", {})
    for number in hosts.all:
        hosts[number].detach("secret", f"s{number}")
    until(lambda: not hosts[1].weft("network", "rm", "secret", check=False).code, _SOON, "the removal")
    until(lambda: not any("wvw" in hosts[n].run("ip", "link").stdout for n in hosts.all), _SOON, "the end of the links")


def test_everything_goes_with_the_network(hosts: Machines, blue: Blue, etcd: Cluster) -> None:
    for number in hosts.all:
        hosts[number].detach("blue", f"c{number}")
    until(lambda: not hosts[2].weft("network", "rm", "blue", check=False).code, _SOON, "the removal")

    def left() -> list[str]:
        found = []
        for one in hosts.all.values():
            found += json.loads(one.run("ip", "-j", "link", "show", "type", "vxlan").stdout)
            found += one.run("ls", "/etc/cni/net.d", "/etc/containers/networks").stdout.split()[1:-1]
            found += one.run("ip", "nexthop").stdout.splitlines()
        return [str(one) for one in found if not str(one).endswith(":")]

    until(lambda: left() == [], _SOON, "nothing left")
    keys = etcd.ctl("get", "--prefix", "--keys-only", "/weft/v2/overlay/").stdout.split()
    until(
        lambda: (
            etcd.ctl("get", "--prefix", "--keys-only", "/weft/v2/overlay/").stdout.split()
            == ["/weft/v2/overlay/networks"]
        ),
        _SOON,
        f"no keys, not {keys}",
    )
