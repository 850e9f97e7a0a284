"""Podman 5 of Debian 13: netavark calls weft, its driver plugin, for the networks created with ``-d weft``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.podman import Podman

Create = Callable[..., None]
OUTSIDE = "192.0.2.2"
ONE = ("-d", "weft", "-o", "driver=bridge", "--subnet", "10.91.0.0/24")
TWO = ("-d", "weft", "-o", "driver=bridge", "--subnet", "10.92.0.0/24")


@pytest.fixture(scope="module")
def machine(podman5: Podman) -> Podman:
    return podman5


def test_containers_reach_each_other_and_the_world(podman: Podman, create: Create, roots: list[str]) -> None:
    create("green", *ONE)
    first, second = podman.up("c1", roots[0], network="green"), podman.up("c2", roots[1], network="green")
    assert podman.ping("c1", second) and podman.ping("c2", first)
    assert podman.ping("c1", OUTSIDE)


def test_published_ports(podman: Podman, create: Create, roots: list[str]) -> None:
    """Podman itself has bound them when it has weft called; what another process serves stays its own."""
    create("green", *ONE)
    podman.serve("web", roots[0], "-p", "8080:80", "-p", "127.0.0.1:8081-8082:80-81", network="green")
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    assert "weft was here" in podman.get("127.0.0.1", 8080)
    assert "weft was here" in podman.get("127.0.0.1", 8081)
    assert podman.get("192.0.2.1", 8081, namespace="outside", patience=0) == ""
    podman.podman("network", "reload", "web")
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    # What serves has only [::1], which podman's own bind does not notice.
    podman.podman("network", "create", "-d", "weft", "-o", "driver=bridge", "--ipv6", "six")
    serving = "echo $$ >/run/service.pid; exec podman system service -t0 tcp://[::1]:9000"
    podman.start("sh", "-c", serving, log=Path("/dev/null"))
    assert podman.until("sh", "-c", "ss -Hltn sport = 9000 | grep -q .").code == 0
    refused = podman.start_one("other", roots[1], "-p", "9000:80", network="six")
    assert refused.code and "port 9000/tcp is in use: podman" in refused.stderr, refused
    podman.run("sh", "-c", "kill $(cat /run/service.pid)")
    podman.podman("network", "rm", "-f", "six")


def test_a_network_that_is_removed_and_created_again(podman: Podman, create: Create, roots: list[str]) -> None:
    """Podman calls no plugin to remove a network; its new bridge gets another name."""
    podman.podman("network", "create", *ONE, "green")
    first = podman.defined("green")["network_interface"]
    podman.serve("web", roots[0], "-p", "8080:80", network="green")
    podman.podman("rm", "-fa", "-t0")
    podman.podman("network", "rm", "green")
    assert "network green is set up but neither defined nor used" in podman.findings()
    create("green", *ONE)
    second = podman.defined("green")["network_interface"]
    assert first not in podman.links() and second != first
    podman.serve("web", roots[0], "-p", "8080:80", network="green")
    assert "weft was here" in podman.get("127.0.0.1", 8080)
    assert podman.findings() == []
    taken = podman.run("podman", "network", "create", *ONE, "blue", check=False)
    assert taken.code and "overlaps" in taken.stderr and "10.91.0.0/24" in taken.stderr


def test_addresses_and_ranges(podman: Podman, create: Create, roots: list[str]) -> None:
    """The range bounds what is given out, not what is asked for; inspect shows all of it."""
    create("green", *ONE, "--ip-range", "10.91.0.128/25", "--ipv6", "--subnet", "fd91::/64")
    [four, six] = podman.defined("green")["subnets"]
    assert (four["subnet"], four["gateway"]) == ("10.91.0.0/24", "10.91.0.1")
    assert (six["subnet"], six["gateway"]) == ("fd91::/64", "fd91::1")
    assert podman.up("c1", roots[0], network="green") == "10.91.0.129"
    fixed = ("--ip", "10.91.0.20", "--ip6", "fd91::20", "--mac-address", "02:00:00:00:00:20")
    assert podman.up("c2", roots[1], *fixed, network="green") == "10.91.0.20"
    found = podman.inspect("c2", "green")
    assert (found["GlobalIPv6Address"], found["MacAddress"]) == ("fd91::20", "02:00:00:00:00:20")
    assert (found["Gateway"], found["IPv6Gateway"]) == ("10.91.0.1", "fd91::1")
    assert podman.ping("c1", "10.91.0.20") and podman.ping("c1", "fd91::20")
    for address in ("10.91.0.20", "10.91.0.1", "10.92.0.5"):
        refused = podman.start_one("c3", roots[2], "--ip", address, network="green")
        assert refused.code and address in refused.stderr, refused
        podman.podman("rm", "-f", "-t0", "c3")


def test_two_networks_connect_disconnect_and_restart(podman: Podman, create: Create, roots: list[str]) -> None:
    create("green", *ONE)
    create("red", *TWO)
    both = ("--network", "green:ip=10.91.0.9,mac=02:00:00:00:00:09", "--network", "red:interface_name=second")
    podman.run("podman", "run", "-d", "--cap-add=NET_RAW", *both, "-p", "8080:80", "--name", "web", "--rootfs",
               roots[0], "/bin/httpd", "-f", "-p", "80", "-h", "/www")  # fmt: skip
    shown = podman.show("web", "address")
    assert "inet 10.91.0.9/24" in shown and "02:00:00:00:00:09" in shown
    assert "inet 10.92.0.2/24 brd 10.92.0.255 scope global second" in shown
    podman.up("far", roots[1], network="red")
    assert podman.ping("far", "10.92.0.2")
    podman.podman("network", "disconnect", "green", "web")
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    podman.podman("network", "connect", "--ip", "10.91.0.33", "green", "web")
    assert "inet 10.91.0.33/24" in podman.show("web", "address")
    podman.flush_unfollowed()
    assert podman.get("192.0.2.1", 8080, namespace="outside", patience=0) == ""
    podman.run("podman", "network", "reload", "--all", environment=podman.unfollowed)
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    podman.podman("restart", "-t0", "web", "far")
    assert "inet 10.91.0.33/24" in podman.show("web", "address")
    assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
    assert podman.ping("far", podman.inspect("web", "red")["IPAddress"])
    podman.run("kill", "-9", str(podman.state("web")["State"]["Pid"]))
    # conmon has podman clean up after a container that was killed.
    gone = podman.until("sh", "-c", "! ls /var/lib/cni/networks/green/10.91.0.33 2>/dev/null")
    assert gone.code == 0 and podman.get("192.0.2.1", 8080, namespace="outside", patience=0) == ""


def test_a_pod_with_shared_ports(podman: Podman, create: Create, roots: list[str], root_image: Path) -> None:
    create("green", *ONE)
    podman.run("sh", "-c", f"tar -C {root_image} -c . | podman import - localhost/first")
    first = ("--infra-image", "localhost/first", "--infra-command", "/bin/sleep 600", "--share", "net")
    podman.podman("pod", "create", *first, "--network", "green", "-p", "9100:80", "the-pod")
    try:
        serving = ("/bin/httpd", "-f", "-p", "80", "-h", "/www")
        podman.podman("run", "-d", "--pod", "the-pod", "--name", "web", "--rootfs", roots[0], *serving)
        assert "weft was here" in podman.get("192.0.2.1", 9100, namespace="outside")
        podman.podman("pod", "stop", "-t0", "the-pod")
        assert podman.left() == []
        podman.podman("pod", "start", "the-pod")
        assert "weft was here" in podman.get("192.0.2.1", 9100, namespace="outside")
    finally:
        podman.podman("pod", "rm", "-f", "-t0", "the-pod")


def test_the_docker_compatible_api(podman: Podman, create: Create, roots: list[str], root_image: Path) -> None:
    """Networks by Docker's API, with curl: create, inspect, a container with a port, connect, remove."""
    podman.run("sh", "-c", f"tar -C {root_image} -c . | podman import - localhost/first")
    serving = "echo $$ >/run/service.pid; exec podman system service -t0 unix:///run/podman.sock"
    podman.start("sh", "-c", serving, log=Path("/dev/null"))
    assert podman.until("test", "-S", "/run/podman.sock").code == 0

    def ask(verb: str, path: str, body: object = None) -> Any:
        given = () if body is None else ("-H", "Content-Type: application/json", "-d", json.dumps(body))
        command = ("curl", "-sS", "--unix-socket", "/run/podman.sock", "-X", verb, *given, f"http://d/v1.41{path}")
        answer = podman.run(*command).stdout
        return json.loads(answer) if answer.startswith(("{", "[")) else answer.strip()

    try:
        network = {"Name": "green", "Driver": "weft", "Options": {"driver": "bridge"}}
        ask("POST", "/networks/create", {**network, "IPAM": {"Config": [{"Subnet": "10.91.0.0/24"}]}})
        shown = ask("GET", "/networks/green")
        assert shown["Driver"] == "weft"
        assert shown["IPAM"]["Config"] == [{"Subnet": "10.91.0.0/24", "Gateway": "10.91.0.1"}]
        host = {"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}, "NetworkMode": "green"}
        web = {"Image": "localhost/first", "Cmd": ["/bin/httpd", "-f", "-p", "80", "-h", "/www"], "HostConfig": host}
        made = ask("POST", "/containers/create?name=web", {**web, "ExposedPorts": {"80/tcp": {}}})
        assert ask("POST", f"/containers/{made['Id']}/start") == ""
        assert "weft was here" in podman.get("192.0.2.1", 8080, namespace="outside")
        networks = ask("GET", "/containers/web/json")["NetworkSettings"]["Networks"]
        assert networks["green"]["IPAddress"] == "10.91.0.2"
        create("red", *TWO)
        assert ask("POST", "/networks/red/connect", {"Container": "web"}) == "OK"
        assert "inet 10.92.0.2/24" in podman.show("web", "address")
        ask("DELETE", "/containers/web?force=true")
        assert podman.left() == []
        ask("DELETE", "/networks/green")
    finally:
        podman.run("sh", "-c", "kill $(cat /run/service.pid)")


def test_the_drivers_overlay_and_host_by_their_own_names(podman: Podman, create: Create, roots: list[str]) -> None:
    """As docker's: podman takes a driver's name for that of a plugin. The agent serves a cluster of one host."""
    podman.write("/etc/weft/weft.toml", '[agent]\nnode = "h1"\naddress = "192.0.2.1"\n')
    podman.weft("down")
    assert podman.weft("up", "--config", "/etc/weft/weft.toml").code == 0
    podman.podman("network", "create", "-d", "overlay", "my-overlay")
    defined = podman.defined("my-overlay")
    assert defined["driver"] == "overlay"
    first = podman.up("c1", roots[0], network="my-overlay")
    second = podman.up("c2", roots[1], "-p", "8080:80", network="my-overlay")
    assert first.startswith("10.128.") and first != second
    assert podman.ping("c1", second) and podman.ping("c1", "c2") and podman.ping("c1", OUTSIDE)
    inspected = json.loads(podman.weft("network", "inspect", "my-overlay").stdout)[0]
    assert inspected["Id"] == defined["id"] and inspected["Driver"] == "overlay"
    static = inspected["Weft"]["Cluster"]["Static"][0].replace(".0/20", ".7")
    assert podman.up("c4", roots[2], "--ip", static, network="my-overlay") == static and podman.ping("c1", static)
    refused = podman.weft("network", "rm", "my-overlay")
    assert refused.code and "containers on h1" in refused.stderr
    podman.podman("rm", "-fa", "-t0")
    create("my-host", "-d", "host")
    refused = podman.start_one("c3", roots[2], network="my-host")
    assert refused.code and "--network host" in refused.stderr
    podman.podman("rm", "-fa", "-t0")
    assert podman.until(f"{podman.weft_folder}/bin/weft", "network", "rm", "my-overlay").code == 0
    assert podman.until("sh", "-c", "! podman network exists my-overlay").code == 0
    podman.weft("down")
    podman.run("rm", "/etc/weft/weft.toml")
