"""Overlay networks of other kinds than the usual one: static addresses, which move from host to host, and
mode l2, one broadcast domain in which nothing is flooded to other hosts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from itertools import permutations

import pytest

from lab.etcd import KILL, Cluster
from lab.hosts import Machine, Machines
from lab.waiting import until
from weft import identity

pytestmark = pytest.mark.in_order
STATIC = "10.120.240.7"
SOON = 60.0


@pytest.fixture(scope="module")
def fixed(hosts: Machines) -> Iterator[Machines]:
    """The network fixed, with a container on each host."""
    hosts.create("fixed", "--subnet", "10.120.0.0/16")
    for number in hosts.all:
        hosts[number].attach("fixed", f"s{number}")
    yield hosts
    for number in hosts.all:
        hosts[number].detach("fixed", f"s{number}")


def reached(hosts: Machines, address: str) -> None:
    """Every container gets an answer from the address."""
    for number in hosts.all:
        assert hosts[number].ping(f"s{number}", address), number


def refused(one: Machine, container: str, address: str) -> str:
    """Why a container cannot have an address."""
    one.run("ip", "netns", "add", container)
    found = one.weft("attach", "fixed", container, "--ip", address, check=False)
    one.run("ip", "netns", "delete", container)
    assert found.code
    return found.stderr


def test_an_address_moves_with_its_container(fixed: Machines) -> None:
    assert fixed[1].attach("fixed", "moving", "--ip", STATIC) == STATIC
    reached(fixed, STATIC)
    why = refused(fixed[2], "other", STATIC)
    assert STATIC in why and "moving/eth0 on host h1 uses it" in why
    assert "leased" in refused(fixed[1], "other", STATIC)
    reached(fixed, STATIC)
    for before, number in ((1, 3), (3, 1)):
        fixed[before].detach("fixed", "moving")
        assert fixed[number].attach("fixed", "moving", "--ip", STATIC) == STATIC
        reached(fixed, STATIC)
        for other in fixed.all:
            route = fixed[other].run("ip", "route", "show", STATIC).stdout
            assert ("nhid" in route) == (other != number), route
    fixed[1].detach("fixed", "moving")
    until(lambda: not any(fixed[n].run("ip", "route", "show", STATIC).stdout for n in fixed.all), SOON, "the release")


@pytest.mark.long(sampled=True)  # the cluster's members are killed and started again
def test_without_the_cluster_no_address_is_claimed(fixed: Machines, etcd: Cluster) -> None:
    for member in range(3):
        etcd.signal(member, KILL)
    why = refused(fixed[2], "late", STATIC)
    assert STATIC in why and "not available" in why
    assert fixed[2].attach("fixed", "late"), "addresses of the host's own blocks need no cluster"
    fixed[2].detach("fixed", "late")
    for member in range(3):
        etcd.start(member)
    etcd.wait()

    def attached() -> bool:
        fixed[2].run("ip", "netns", "add", "late", check=False)
        return not fixed[2].weft("attach", "fixed", "late", "--ip", STATIC, check=False).code

    until(attached, SOON, "the address once the cluster is back")
    reached(fixed, STATIC)
    fixed[2].detach("fixed", "late")


@pytest.mark.long(sampled=True)  # the agent is started again
def test_a_host_that_does_not_answer_keeps_its_addresses(fixed: Machines) -> None:
    fixed[1].attach("fixed", "kept", "--ip", STATIC)
    fixed[1].cut()
    try:
        why = refused(fixed[3], "other", STATIC)
        assert "host h1 has it and does not answer" in why and "weft node rm h1" in why
    finally:
        fixed[1].cut(False)
    fixed[1].kill_agent()
    fixed[1].up()
    reached(fixed, STATIC)
    assert "kept/eth0 on host h1 uses it" in refused(fixed[3], "other", STATIC)
    fixed[1].detach("fixed", "kept")


FIXED = "10.130.240.9"
BRIDGE = identity.overlay_bridge("flat")
VXLAN = identity.overlay_vxlan(BRIDGE)


class Flat:
    """The network flat with a container on each host: IPv4 and IPv6 addresses by host."""

    def __init__(self, hosts: Machines) -> None:
        hosts.create("flat", "--names", "-o", "mode=l2", "--subnet", "10.130.0.0/16", "--subnet", "fd00:130::/48")
        self.hosts = hosts
        self.four = {number: hosts[number].attach("flat", f"f{number}") for number in hosts.all}
        self.six = {number: inside(hosts[number], f"f{number}", 6) for number in hosts.all}


def inside(one: Machine, container: str, version: int) -> str:
    """A container's address as the kernel has it."""
    listed = one.run("ip", "-n", container, "-j", f"-{version}", "address", "show", "eth0", "scope", "global").json
    return str(listed[0]["addr_info"][0]["local"])


def mac(one: Machine, container: str) -> str:
    return str(one.run("ip", "-n", container, "-j", "link", "show", "eth0").json[0]["address"])


@pytest.fixture(scope="module")
def flat(hosts: Machines) -> Iterator[Flat]:
    made = Flat(hosts)
    yield made
    for number in hosts.all:
        hosts[number].detach("flat", f"f{number}")


def sent(one: Machine) -> int:
    """Packets that a host has sent by the VXLAN link."""
    return int(one.run("ip", "-s", "-j", "link", "show", VXLAN).json[0]["stats64"]["tx"]["packets"])


def test_containers_share_a_segment(hosts: Machines, flat: Flat) -> None:
    for client, server in permutations(hosts.all, 2):
        assert hosts[client].ping(f"f{client}", flat.four[server]), (client, server)
        assert hosts[client].ping(f"f{client}", flat.six[server]), (client, server)
    # The neighbour is the other container itself, not a router.
    listed = hosts[1].run("ip", "-n", "f1", "-j", "neigh", "show", flat.four[2], "dev", "eth0").json
    assert listed[0]["lladdr"] == mac(hosts[2], "f2")
    for number in hosts.all:  # hosts reach containers of other hosts, and answer them
        assert hosts[number].run("ping", "-c1", "-w10", flat.four[number % 3 + 1], check=False).code == 0
    assert not hosts[2].weft("check", check=False).code


def test_nothing_is_flooded_to_other_hosts(hosts: Machines, flat: Flat) -> None:
    def none_was_sent() -> bool:
        for number in hosts.all:  # else the kernel asks neighbours of late, one by one, whether they are still there
            hosts[number].run("ip", "-n", f"f{number}", "neigh", "flush", "dev", "eth0")
        before = sent(hosts[1])
        assert not hosts[1].ping("f1", "10.130.77.77", expected=False)
        assert not hosts[1].ping("f1", "fd00:130::77", expected=False)
        hosts[1].run("ip", "netns", "exec", "f1", "ping", "-c1", "-W1", "-b", "10.130.255.255", check=False)
        return sent(hosts[1]) == before

    until(none_was_sent, SOON, "silence")  # but for agents, which probe their peers twice a minute
    before = sent(hosts[1])
    assert hosts[1].ping("f1", flat.four[2]) and sent(hosts[1]) > before


def test_a_container_cannot_take_the_addresses_of_another(hosts: Machines, flat: Flat) -> None:
    own, other = mac(hosts[1], "f1"), mac(hosts[2], "f2")
    hosts[1].run("ip", "-n", "f1", "link", "set", "eth0", "address", other)
    try:
        assert not hosts[1].ping("f1", flat.four[3], expected=False)
        assert hosts[3].ping("f3", flat.four[2])
        rows = hosts[1].run("bridge", "fdb", "show", "dev", VXLAN).stdout
        assert any(other in line and "sticky" in line for line in rows.splitlines()), rows
    finally:
        hosts[1].run("ip", "-n", "f1", "link", "set", "eth0", "address", own)
    hosts[1].run("ip", "-n", "f1", "address", "add", f"{flat.four[2]}/32", "dev", "eth0")
    argv = ("ip", "netns", "exec", "f1", "ping", "-c1", "-W1", "-I", flat.four[2], flat.four[3])
    assert hosts[1].run(*argv, check=False).code
    hosts[1].run("ip", "-n", "f1", "address", "delete", f"{flat.four[2]}/32", "dev", "eth0")
    assert hosts[1].ping("f1", flat.four[3])


def test_networks_are_isolated(hosts: Machines, flat: Flat) -> None:
    hosts[2].weft("network", "create", "beside")
    beside = hosts[2].attach("beside", "b2")
    assert hosts[2].run("ping", "-c1", "-w10", beside).code == 0
    for number in (1, 2):
        assert not hosts[number].ping(f"f{number}", beside, expected=False)
    assert not hosts[2].ping("b2", flat.four[1], expected=False)
    hosts[2].detach("beside", "b2")
    until(lambda: not hosts[2].weft("network", "rm", "beside", check=False).code, 60, "the removal")


def test_an_address_moves_with_its_mac_address(hosts: Machines, flat: Flat) -> None:
    assert hosts[1].attach("flat", "roaming", "--ip", FIXED) == FIXED
    before = mac(hosts[1], "roaming")
    for number in hosts.all:
        assert hosts[number].ping(f"f{number}", FIXED), number
    hosts[1].detach("flat", "roaming")
    assert hosts[3].attach("flat", "roaming", "--ip", FIXED) == FIXED
    assert mac(hosts[3], "roaming") == before
    for number in hosts.all:
        assert hosts[number].ping(f"f{number}", FIXED), number
    hosts[3].detach("flat", "roaming")
    gone = lambda: not any(before in hosts[n].run("bridge", "fdb", "show").stdout for n in hosts.all)  # noqa: E731
    until(gone, SOON, "the end of its rows")


def test_what_another_program_breaks_is_repaired(hosts: Machines, flat: Flat) -> None:
    hosts[1].run("bridge", "link", "set", "dev", VXLAN, "neigh_suppress", "off", "flood", "on")
    hosts[1].run("ip", "neigh", "delete", flat.four[2], "dev", BRIDGE)
    hosts[1].weft("network", "reconcile", "flat")  # if engine and agent have not done it yet
    port = json.loads(hosts[1].run("ip", "-d", "-j", "link", "show", VXLAN).stdout)[0]["linkinfo"]["info_slave_data"]
    assert port["neigh_suppress"] and not port["flood"] and not port["learning"]
    assert flat.four[2] in hosts[1].run("ip", "neigh", "show", "dev", BRIDGE, "nud", "permanent").stdout
    for number in hosts.all:
        assert hosts[number].weft("network", "reconcile", "flat", "--dry-run").stdout == ""
    assert hosts[1].ping("f1", flat.four[2])


WIDE, MACHINE = "10.180.0.0/16", "10.180.9.5"


@pytest.mark.long(sampled=True)  # a network more
def test_a_vlan_is_part_of_a_network(hosts: Machines) -> None:
    """A machine behind a link of one host, and containers of all; another network cannot have that link."""
    options = ("-o", "mode=l2", "-o", "vlan-gateway=h2", "-o", "vlan-parent=vlan7", "-o", "vlan-range=10.180.9.0/24")
    hosts[2].run("ip", "netns", "add", "machine")
    lines = ["link add vlan7 type veth peer name eth0 netns machine", "link set vlan7 up"]
    hosts[2].run("ip", "-batch", "-", stdin="\n".join(lines))
    hosts[2].run("ip", "-n", "machine", "address", "add", f"{MACHINE}/16", "dev", "eth0")
    hosts[2].run("ip", "-n", "machine", "link", "set", "eth0", "up")
    hosts.create("wide", "--subnet", WIDE, *options)
    at = {number: hosts[number].attach("wide", f"w{number}") for number in (1, 2)}
    assert hosts[2].ping("machine", at[2]), "which makes it known"
    assert hosts[1].ping("w1", MACHINE, SOON), "the agents have told each other"
    assert hosts[2].ping("machine", at[1])
    found = hosts[1].weft("network", "inspect", "wide").json[0]["Weft"]["Cluster"]["VlanGateway"]
    assert found == {"Host": "h2", "Parent": "vlan7", "Vlan": "", "Range": "10.180.9.0/24"}
    argv = ("network", "create", "-d", "overlay", "second", "--subnet", "10.181.0.0/16", *options[:-1])
    refused_one = hosts[3].weft(*argv, "vlan-range=10.181.9.0/24", check=False)
    assert refused_one.code and "is a part of network wide" in refused_one.stderr
    for number in (1, 2):
        hosts[number].detach("wide", f"w{number}")
    until(lambda: not hosts[2].weft("network", "rm", "wide", check=False).code, SOON, "the removal")
    until(lambda: "master" not in hosts[2].run("ip", "link", "show", "vlan7").stdout, SOON, "the link is free")
    hosts[2].run("ip", "link", "delete", "vlan7")
    hosts[2].run("ip", "netns", "delete", "machine")


class Near:
    """The network near with direct routing, and a container on each host."""

    def __init__(self, hosts: Machines) -> None:
        hosts.create("near", "-o", "direct=true", "--internal", "--subnet", "10.160.0.0/16")
        self.four = {number: hosts[number].attach("near", f"n{number}") for number in hosts.all}


@pytest.fixture(scope="module")
def near(hosts: Machines) -> Iterator[Near]:
    made = Near(hosts)
    yield made
    for number in hosts.all:
        hosts[number].detach("near", f"n{number}")


def route_to(one: Machine, address: str) -> dict[str, str]:
    found: dict[str, str] = one.run("ip", "-j", "route", "get", address).json[0]
    return found


def test_peers_on_the_same_segment_are_reached_without_vxlan(hosts: Machines, near: Near) -> None:
    for client, server in permutations(hosts.all, 2):
        assert hosts[client].ping(f"n{client}", near.four[server]), (client, server)
        route = route_to(hosts[client], near.four[server])
        assert (route["dev"], route["gateway"]) == ("eth0", hosts[server].address)
    argv = ("network", "reconcile", "near", "--dry-run")
    for number in hosts.all:  # and nothing of it is deleted and added again on each comparison
        until(lambda one=hosts[number]: not one.weft(*argv).stdout, SOON, "no difference")
    tunnel = identity.overlay_vxlan(identity.overlay_bridge("near"))
    packets = hosts[1].run("ip", "-s", "-j", "link", "show", tunnel).json[0]["stats64"]["rx"]["packets"]
    assert hosts[2].ping("n2", near.four[1])
    assert hosts[1].run("ip", "-s", "-j", "link", "show", tunnel).json[0]["stats64"]["rx"]["packets"] == packets


def test_direct_routes_let_nobody_else_in(hosts: Machines, near: Near) -> None:
    """The network is internal: neither the outside nor another network of a peer reaches it."""
    subnet = "10.160.0.0/16"
    hosts[3].weft("network", "create", "stranger")
    hosts[3].attach("stranger", "x3")
    assert not hosts[3].ping("x3", near.four[1], expected=False)
    hosts[3].detach("stranger", "x3")
    until(lambda: not hosts[3].weft("network", "rm", "stranger", check=False).code, 60, "the removal")
    # The peer itself is let in, also by its underlay address, which masquerading gives to other networks.
    assert hosts[3].run("ping", "-c1", "-w10", near.four[1], check=False).code == 0
    listed = hosts[1].run("nft", "list", "set", "inet", "weft", "direct_peers4").stdout
    assert hosts[3].address in listed, listed
    # A host of the segment that is no peer, with a route to the containers.
    with contextlib.closing(Machine(9, hosts.bridge, hosts[1].address.rpartition(".")[0])) as other:
        other.run("ip", "route", "add", subnet, "via", hosts[1].address)
        assert other.run("ping", "-c1", "-w10", hosts[1].address, check=False).code == 0
        assert other.run("ping", "-c1", "-W1", near.four[1], check=False).code
        other.run("ip", "address", "add", "10.99.0.1/32", "dev", "lo")
        assert other.run("ping", "-c1", "-W1", "-I", "10.99.0.1", near.four[1], check=False).code
    assert hosts[2].ping("n2", near.four[1])


def test_a_peer_behind_a_router_is_reached_by_vxlan(hosts: Machines, near: Near) -> None:
    """The host route by another host stands for a router between both."""
    there = hosts[3].address
    hosts[1].run("ip", "route", "add", f"{there}/32", "via", hosts[2].address, "dev", "eth0")
    hosts[2].run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    try:
        hosts[1].weft("network", "reconcile", "near")
        assert route_to(hosts[1], near.four[3])["dev"] != "eth0"
        assert route_to(hosts[1], near.four[2])["dev"] == "eth0"
    finally:
        hosts[1].run("ip", "route", "delete", f"{there}/32")
    hosts[1].weft("network", "reconcile", "near")
    assert route_to(hosts[1], near.four[3])["dev"] == "eth0"
    assert hosts[1].ping("n1", near.four[3])


def test_direct_routes_are_not_for_encrypted_networks(hosts: Machines) -> None:
    for option, what in (("encryption=wireguard", "encryption"), ("mode=l2", "mode l2")):
        argv = ("network", "create", "-d", "overlay", "both", "-o", "direct=true", "-o", option)
        found = hosts[1].weft(*argv, check=False)
        assert found.code and f"direct cannot be set together with {what}" in found.stderr


OPEN = "10.170.0.0/16"


class Open:
    """The network open with direct routing, which is not internal, and a container on each host."""

    def __init__(self, hosts: Machines) -> None:
        hosts.create("open", "--names", "-o", "direct=true", "--subnet", OPEN)
        self.four = {number: hosts[number].attach("open", f"o{number}") for number in hosts.all}


@pytest.fixture(scope="module")
def opened(hosts: Machines) -> Iterator[Open]:
    made = Open(hosts)
    yield made
    for number in hosts.all:
        hosts[number].detach("open", f"o{number}")


@pytest.fixture(params=["flat", "open"])
def spanning(request: pytest.FixtureRequest, flat: Flat, opened: Open) -> tuple[str, dict[int, str]]:
    """A network of each mode, and its addresses."""
    return request.param, (flat if request.param == "flat" else opened).four


def picked(one: Machine, client: str, address: str, left: set[str]) -> bool:
    """Fetch once, and note the answer; whether all have come."""
    left.discard(one.fetch(client, address))
    return not left


def test_names_and_virtual_addresses_in_every_mode(hosts: Machines, spanning: tuple[str, dict[int, str]]) -> None:
    """Clients are in the network of the instances, which are on two other hosts, and in one of the other mode."""
    name, at = spanning
    letter, gateway = name[0], f"{'.'.join(at[1].split('.')[:2])}.0.1"
    until(lambda: hosts[1].resolved(f"{letter}1", f"weft-{letter}2", gateway) == [at[2]], SOON, "the name")
    servers = [hosts[number].serve(f"{letter}{number}", str(number)) for number in (2, 3)]
    try:
        for number in (2, 3):
            tagged = {"virtual": {"address": "", "port": 80}}
            service = {"name": name, "address": at[number], "port": 80, "tagged_addresses": tagged}
            hosts[number].write("/run/service.json", json.dumps({"service": service}))
            hosts[number].weft("services", "register", "/run/service.json")
        virtual, left = f"{name}.virtual.weft", {client: {"2", "3"} for client in ("f1", "o1")}
        until(lambda: len(hosts[1].resolved(f"{letter}1", f"{name}.service.weft", gateway)) == 2, SOON, "instances")
        address = hosts[1].resolved(f"{letter}1", virtual, gateway)[0]
        until(lambda: picked(hosts[1], "f1", address, left["f1"]), SOON, "answers of both instances to f1")
        until(lambda: picked(hosts[1], "o1", address, left["o1"]), SOON, "answers of both instances to o1")
    finally:
        for process in servers:
            process.kill()
            process.communicate()


def test_published_ports_in_every_mode(hosts: Machines, spanning: tuple[str, dict[int, str]]) -> None:
    """From the host itself, another host, and containers of both networks on this host and another."""
    name, _ = spanning
    hosts[2].add(name, "public", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    process = hosts[2].serve("public", name)
    try:
        for number in (1, 2):
            for client in ("", f"f{number}", f"o{number}"):
                assert hosts[number].fetch(client, hosts[2].address, 8080) == name, (number, client)
    finally:
        process.kill()
        process.communicate()
        hosts[2].add(name, "public", command="DEL")
        hosts[2].run("ip", "netns", "delete", "public")


def test_networks_of_both_modes_are_isolated(hosts: Machines, flat: Flat, opened: Open) -> None:
    assert not hosts[1].ping("f1", opened.four[2], expected=False)
    assert not hosts[1].ping("o1", flat.four[2], expected=False)
