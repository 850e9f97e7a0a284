"""Podman (its CNI backend) with weft: containers that talk, ports, fixed addresses, restarts, and nothing left."""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.machine import Machine

LEASES = "/var/lib/cni/networks"
CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{folder}"]
"""
STORAGE_CONF = """
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"""


class Podman(Machine):
    """A machine with podman on it, a network called as the conflist says, and a neighbour at 192.0.2.2."""

    def __init__(self, conflist: dict[str, Any], plugins: Path) -> None:
        super().__init__()
        self.network = str(conflist["name"])
        self.write("/etc/cni/net.d/10-lab.conflist", json.dumps(conflist))
        self.write("/etc/containers/containers.conf", CONTAINERS_CONF.format(folder=plugins))
        self.write("/etc/containers/storage.conf", STORAGE_CONF)
        self.write("/etc/containers/policy.json", '{"default": [{"type": "insecureAcceptAnything"}]}')
        for line in (
            "netns add outside",
            "link add lan0 type veth peer name eth0 netns outside",
            "address add 192.0.2.1/24 dev lan0",
            "link set lan0 up",
            "-n outside address add 192.0.2.2/24 dev eth0",
            "-n outside link set eth0 up",
        ):
            self.run("ip", *line.split())

    def podman(self, *argv: str, check: bool = True) -> str:
        return self.run("podman", *argv, check=check).stdout.strip()

    def up(self, name: str, root: str, *options: str, network: str = "", command: tuple[str, ...] = ()) -> str:
        """Start a container; its address."""
        where = network or self.network
        flags = ("--cgroups=disabled", "--cap-add=NET_RAW", "--network", where, "--name", name, *options)
        self.podman("run", "-d", *flags, "--rootfs", root, *(command or ("/bin/sleep", "600")))
        return self.inspect(name, where)["IPAddress"]

    def inspect(self, name: str, network: str = "") -> dict[str, str]:
        [found] = json.loads(self.podman("inspect", name))
        return dict(found["NetworkSettings"]["Networks"][network or self.network])

    def ping(self, name: str, address: str) -> bool:
        # The first packet may be lost to neighbour discovery on a loaded machine.
        argv = ("podman", "exec", name, "/bin/ping", "-c", "3", "-i", "0.2", "-w", "5", address)
        return "0 packets received" not in self.run(*argv, check=False).stdout

    def leases(self, network: str = "") -> list[str]:
        """The addresses that are taken on disk."""
        names = [Path(path).name for path in self.files(f"{LEASES}/{network or self.network}")]
        return [name for name in names if not name.startswith(("last_reserved_ip", "lock"))]


@pytest.fixture(scope="module")
def machine(network: dict[str, Any], plugin_folder: Path) -> Iterator[Podman]:
    made = Podman(network, plugin_folder)
    yield made
    made.close()


@pytest.fixture
def podman(machine: Podman) -> Iterator[Podman]:
    """Podman without containers, and again without when the test is over."""
    yield machine
    machine.podman("rm", "-fa", "-t0")


GET = """
import http.client, sys
client = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=3)
client.request("GET", "/")
print(client.getresponse().read().decode())
"""


def get(podman: Podman, address: str, port: int, *, namespace: str = "", patience: float = 6) -> str:
    """The page a server has, asked for on the machine or in a namespace; "" if it cannot be had in time."""
    where = ("ip", "netns", "exec", namespace) if namespace else ()
    return podman.until(*where, sys.executable, "-ISc", GET, address, str(port), timeout=patience).stdout


def test_containers_reach_each_other_and_the_world(podman: Podman, roots: list[str]) -> None:
    first, second = podman.up("c1", roots[0]), podman.up("c2", roots[1])
    assert first != second
    assert podman.ping("c1", second)
    assert podman.ping("c2", first)
    # The neighbour knows no way to the containers: it is their host that it answers.
    assert podman.ping("c1", "192.0.2.2")


def test_a_published_port(podman: Podman, roots: list[str]) -> None:
    command = ("/bin/httpd", "-f", "-p", "80", "-h", "/www")
    address = podman.up("web", roots[0], "-p", "8080:80", command=command)
    podman.up("c2", roots[1])
    assert "weft was here" in get(podman, address, 80)
    assert "weft was here" in get(podman, "192.0.2.1", 8080, namespace="outside")
    assert "weft was here" in get(podman, "192.0.2.1", 8080)
    assert "weft was here" in get(podman, "127.0.0.1", 8080)
    # Debian's static busybox dies of a resolver's library in wget, not in nc.
    asked = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 192.0.2.1 8080"
    assert "weft was here" in podman.until("podman", "exec", "c2", "/bin/sh", "-c", asked, timeout=6).stdout
    podman.podman("rm", "-f", "-t0", "web")
    assert get(podman, "192.0.2.1", 8080, namespace="outside", patience=0) == ""


def test_a_fixed_address_and_mac(podman: Podman, roots: list[str]) -> None:
    podman.up("c1", roots[0], "--ip", "10.66.0.77", "--mac-address", "02:11:22:33:44:55")
    found = podman.inspect("c1")
    assert (found["IPAddress"], found["MacAddress"]) == ("10.66.0.77", "02:11:22:33:44:55")
    shown = podman.podman("exec", "c1", "/bin/ip", "address", "show", "eth0")
    assert "10.66.0.77/24" in shown
    assert "02:11:22:33:44:55" in shown
    taken = podman.run("podman", "run", "--cgroups=disabled", "--network", podman.network, "--ip", "10.66.0.77",
                       "--rootfs", roots[1], "/bin/sleep", "1", check=False)  # fmt: skip
    assert taken.code != 0
    assert "10.66.0.77" in taken.stderr
    assert podman.leases() == ["10.66.0.77"]


def test_a_container_restarts(podman: Podman, roots: list[str]) -> None:
    podman.up("c1", roots[0])
    podman.up("c2", roots[1])
    podman.podman("restart", "-t0", "c1")
    assert podman.ping("c2", podman.inspect("c1")["IPAddress"])
    assert podman.ping("c1", podman.inspect("c2")["IPAddress"])
    assert len(podman.leases()) == 2


def test_nothing_is_left_when_containers_are_removed(podman: Podman, roots: list[str]) -> None:
    addresses = [podman.up(f"c{number}", root, "-p", f"809{number}:80") for number, root in enumerate(roots)]
    assert sorted(podman.leases()) == sorted(addresses)
    podman.podman("rm", "-fa", "-t0")
    assert podman.leases() == []
    assert not [link for link in podman.links() if link.startswith("veth")]
    assert podman.files("/var/lib/cni/results") == []
    rules = podman.run("nft", "list", "ruleset").stdout
    assert not [address for address in addresses if f"{address} " in rules.replace("/32", " ").replace(",", " ")]
    assert "809" not in rules


def test_podman_lists_and_shows_the_network(podman: Podman) -> None:
    outcome = podman.run("podman", "network", "ls", "--format", "{{.Name}}")
    assert podman.network in outcome.stdout.split()
    assert outcome.stderr == ""
    [shown] = json.loads(podman.podman("network", "inspect", podman.network))
    assert shown["name"] == podman.network


def test_a_network_that_podman_makes(podman: Podman, roots: list[str]) -> None:
    podman.podman("network", "create", "--subnet", "10.67.0.0/24", "made")
    try:
        [shown] = json.loads(podman.podman("network", "inspect", "made"))
        assert shown["subnets"][0]["subnet"] == "10.67.0.0/24"
        first = podman.up("c1", roots[0], network="made")
        second = podman.up("c2", roots[1], network="made")
        assert ipaddress.ip_address(first) in ipaddress.ip_network("10.67.0.0/24")
        assert podman.ping("c1", second)
        podman.podman("rm", "-fa", "-t0")
        assert podman.leases("made") == []
    finally:
        podman.podman("network", "rm", "-f", "made")


def test_two_networks_in_one_container(podman: Podman, roots: list[str]) -> None:
    podman.podman("network", "create", "--subnet", "10.68.0.0/24", "second")
    try:
        both = f"{podman.network},second"
        podman.podman("run", "-d", "--cgroups=disabled", "--cap-add=NET_RAW", "--network", both, "--name", "c1",
                      "--rootfs", roots[0], "/bin/sleep", "600")  # fmt: skip
        other = podman.up("c2", roots[1])
        third = podman.up("c3", roots[2], network="second")
        assert podman.ping("c1", other)
        assert podman.ping("c1", third)
        podman.podman("rm", "-fa", "-t0")
        assert podman.leases() == podman.leases("second") == []
    finally:
        podman.podman("network", "rm", "-f", "second")
