"""Podman's containers on its networks: ports, several networks, connect, disconnect, pods."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.podman import Podman

Create = Callable[..., None]
# It answers one client and exits, so that no process keeps the network namespace.
ANSWER = """
import socket, sys
name, port = sys.argv[1:]
kind = {"udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP)}[name]
server = socket.socket(socket.AF_INET, *kind)
server.settimeout(20)
server.bind(("", int(port)))
print("ready", flush=True)
if name == "udp":
    question, client = server.recvfrom(100)
    server.sendto(b"weft " + question, client)
else:
    server.listen()
    client, _ = server.accept()
    client.sendall(b"weft " + client.recv(100))
    client.close()
"""
ASK = """
import socket, sys
name, address, port = sys.argv[1:]
kind = {"udp": (socket.SOCK_DGRAM, 0), "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP)}[name]
client = socket.socket(socket.AF_INET, *kind)
client.settimeout(10)
client.connect((address, int(port)))
client.sendall(b"was here")
print(client.recv(100).decode())
"""


def asked(podman: Podman, name: str, protocol: str, port: int, published: int, log: Path) -> str:
    """The reply that the outside host gets at a published port from a server in the container."""
    sandbox = Path(podman.state(name)["NetworkSettings"]["SandboxKey"]).name
    podman.start(
        "ip", "netns", "exec", sandbox, sys.executable, "-ISc", ANSWER, protocol, str(port), log=log
    )  # fmt: skip
    assert podman.until("grep", "-q", "ready", str(log)).code == 0, log.read_text()
    return podman.run(
        "ip", "netns", "exec", "outside", sys.executable, "-ISc", ASK, protocol, "192.0.2.1", str(published)
    ).stdout.strip()


def test_ports_of_all_kinds(podman: Podman, create: Create, roots: list[str], tmp_path: Path) -> None:
    create("web-net", "--subnet", "10.70.0.0/24")
    ports = ("9000-9005:80-85", "127.0.0.1:8081:80", "192.0.2.1:8082:80", "5300-5301:53-54/udp", "7000:7000/sctp")
    servers = "for port in 80 81 82 83 84 85; do /bin/httpd -p $port -h /www; done; sleep 600"
    options = [text for port in ports for text in ("-p", port)]
    podman.up("web", roots[0], *options, network="web-net", command=("/bin/sh", "-c", servers))
    for port in range(9000, 9006):
        assert "weft was here" in podman.get("192.0.2.1", port, namespace="outside"), port
    assert "weft was here" in podman.get("127.0.0.1", 8081)
    assert podman.get("192.0.2.1", 8081, namespace="outside", patience=0) == ""
    assert "weft was here" in podman.get("192.0.2.1", 8082, namespace="outside")
    assert podman.get("127.0.0.1", 8082, patience=0) == ""
    assert asked(podman, "web", "udp", 54, 5301, tmp_path / "udp") == "weft was here"
    taken = podman.start_one("other", roots[1], "-p", "9003:80", network="web-net")
    assert taken.code != 0 and "9003" in taken.stderr
    assert "weft was here" in podman.get("192.0.2.1", 9003, namespace="outside")


def test_a_published_sctp_port(podman: Podman, create: Create, roots: list[str], tmp_path: Path) -> None:
    probe = "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)"
    create("web-net", "--subnet", "10.70.0.0/24")
    podman.up("web", roots[0], "-p", "7001:7000/sctp", network="web-net")
    assert "sctp" in podman.run("nft", "list", "map", "inet", "weft", "ports4").stdout
    if podman.run(sys.executable, "-ISc", probe, check=False).code:
        return  # the rule exists, but this kernel cannot send SCTP packets
    assert asked(podman, "web", "sctp", 7000, 7001, tmp_path / "sctp") == "weft was here"


def test_two_networks_with_fixed_addresses(podman: Podman, create: Create, roots: list[str]) -> None:
    create("one-net", "--subnet", "10.70.0.0/24")
    create("two-net", "--subnet", "10.71.0.0/24")
    fixed = ("--network", "one-net:ip=10.70.0.9,mac=02:00:00:00:00:09", "--network", "two-net:interface_name=second")
    podman.run("podman", "run", "-d", "--cap-add=NET_RAW", *fixed, "--name", "c1", "--rootfs", roots[0],
               "/bin/sleep", "600")  # fmt: skip
    shown = podman.show("c1", "address")
    assert "inet 10.70.0.9/24" in shown and "02:00:00:00:00:09" in shown
    assert "inet 10.71.0.2/24 brd 10.71.0.255 scope global second" in shown
    podman.run("podman", "run", "-d", "--cap-add=NET_RAW", "--network", "one-net,two-net", "--name", "c2",
               "--rootfs", roots[1], "/bin/sleep", "600")  # fmt: skip
    assert {"eth0", "eth1"} <= set(podman.show("c2", "-o", "link").replace("@", ": ").split(": "))
    assert podman.ping("c2", "10.70.0.9")
    assert podman.ping("c2", "10.71.0.2")


def test_network_connect_and_disconnect(podman: Podman, create: Create, roots: list[str]) -> None:
    create("one-net", "--subnet", "10.70.0.0/24")
    create("two-net", "--subnet", "10.71.0.0/24")
    podman.serve("web", roots[0], "-p", "8080:80", network="one-net")
    podman.up("far", roots[1], network="two-net")
    podman.podman("network", "connect", "--ip", "10.71.0.33", "--alias", "www", "two-net", "web")
    assert "inet 10.71.0.33/24" in podman.show("web", "address", "show", "eth1")
    assert podman.ping("far", "10.71.0.33")
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    podman.podman("network", "disconnect", "one-net", "web")
    # Podman gave the port to both networks: it now leads to the container's address on the other
    # one.
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    assert "eth0" not in podman.show("web", "-o", "link")
    assert podman.leases("one-net") == []
    assert podman.ping("far", "10.71.0.33")
    podman.podman("network", "connect", "one-net", "web")
    assert podman.inspect("web", "one-net")["IPAddress"] in podman.show("web", "address", "show", "eth0")
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")


@pytest.mark.parametrize("lost", ["nothing", "rules"])
def test_network_reload_restores_flushed_rules(
    lost: str, own: None, podman: Podman, create: Create, roots: list[str]
) -> None:
    """``podman network reload`` restores rules that another program has flushed, where neither engine nor
    agent runs.
    """
    create("one-net", "--ipv6", "--subnet", "10.70.0.0/24", "--subnet", "fd70::/64")
    address = podman.serve("web", roots[0], "-p", "8080:80", "--ip", "10.70.0.40", network="one-net")
    podman.up("c2", roots[1], network="one-net")
    if lost == "rules":
        podman.flush_unfollowed()
        assert podman.get("192.0.2.1", 8080, namespace="outside", patience=0) == ""
    podman.run("podman", "network", "reload", "--all", environment=podman.unfollowed)
    assert podman.inspect("web", "one-net")["IPAddress"] == address
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    assert podman.ping("c2", address)
    assert podman.ping("c2", "192.0.2.2")
    assert len(podman.leases("one-net")) == 4
    assert podman.findings() == []


def test_stop_start_restart_and_a_killed_container(podman: Podman, create: Create, roots: list[str]) -> None:
    create("one-net", "--subnet", "10.70.0.0/24")
    podman.serve("web", roots[0], "-p", "8080:80", "--ip", "10.70.0.40", network="one-net")
    podman.up("c2", roots[1], network="one-net")
    podman.podman("restart", "-t0", "web", "c2")
    assert podman.ping("c2", "10.70.0.40")
    podman.podman("stop", "-t0", "web")
    assert len(podman.leases("one-net")) == 1
    assert podman.get("192.0.2.1", 8080, namespace="outside", patience=0) == ""
    podman.podman("start", "web")
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    podman.run("kill", "-9", str(podman.state("web")["State"]["Pid"]))
    # conmon has podman clean up after a container that was killed.
    gone = podman.until("sh", "-c", "! ls /var/lib/cni/networks/one-net/10.70.0.40 2>/dev/null")
    assert gone.code == 0
    assert podman.get("192.0.2.1", 8080, namespace="outside", patience=0) == ""
    podman.podman("start", "web")
    assert podman.ping("c2", "10.70.0.40")


def test_network_modes_without_cni(podman: Podman, create: Create, roots: list[str]) -> None:
    create("one-net", "--subnet", "10.70.0.0/24")
    podman.up("c1", roots[0], network="one-net")
    links = ("--rm", "--rootfs", roots[1], "/bin/ip", "-o", "address")
    assert " lan0 " in podman.podman("run", "--network", "host", *links)
    assert "eth0" not in podman.podman("run", "--network", "none", *links)
    assert podman.inspect("c1", "one-net")["IPAddress"] in podman.podman("run", "--network", "container:c1", *links)
    assert len(podman.leases("one-net")) == 1


def test_a_pod_with_shared_ports(podman: Podman, create: Create, roots: list[str], root_image: Path) -> None:
    create("one-net", "--subnet", "10.70.0.0/24")
    podman.run("sh", "-c", f"tar -C {root_image} -c . | podman import - localhost/first")
    first = ("--infra-image", "localhost/first", "--infra-command", "/bin/sleep 600", "--share", "net")
    podman.podman("pod", "create", *first, "--network", "one-net", "-p", "9100:80", "the-pod")
    try:
        for name, root, command in (
            ("web", roots[0], "/bin/httpd -f -p 80 -h /www"),
            ("c2", roots[1], "/bin/sleep 600"),
        ):
            podman.podman("run", "-d", "--pod", "the-pod", "--name", name, "--rootfs", root, *command.split())
        assert "weft was here" in podman.get("192.0.2.1", 9100, namespace="outside")
        asked = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 127.0.0.1 80"
        assert "weft was here" in podman.podman("exec", "c2", "/bin/sh", "-c", asked)
        assert len(podman.leases("one-net")) == 1
        podman.podman("pod", "stop", "-t0", "the-pod")
        assert podman.left() == []
        podman.podman("pod", "start", "the-pod")
        assert "weft was here" in podman.get("192.0.2.1", 9100, namespace="outside")
    finally:
        podman.podman("pod", "stop", "-t0", "the-pod")
        podman.podman("pod", "rm", "-f", "the-pod")
    assert podman.left() == []


def test_sixteen_containers_concurrently(own: None, podman: Podman, create: Create, root_image: Path) -> None:
    create("one-net", "--subnet", "10.70.0.0/24")

    def start(number: int) -> str:
        return podman.up(f"c{number}", str(root_image), "-p", f"{8100 + number}:80", network="one-net")

    with ThreadPoolExecutor(16) as threads:
        addresses = list(threads.map(start, range(16)))
    assert len(set(addresses)) == 16
    assert sorted(podman.leases("one-net")) == sorted(addresses)
    attached = podman.weft("ps", "--json").json
    assert len(attached) == 16, json.dumps(attached)
    assert podman.findings() == []
    podman.podman("rm", "-fa", "-t0")
    assert podman.left() == []
    assert podman.findings() == []
