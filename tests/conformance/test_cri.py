"""Containerd's CRI plugin, driven by gRPC as a kubelet drives it: pods with host ports, two address families and
bandwidth limits, calls that are repeated, and a node that restarts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.cri import Node, Pod
from lab.plugins import OWN_FOLDER, chosen_folder
from lab.waiting import until

SUBNETS = ("10.66.0.0/29", "fd66::/125")
IPAM = {
    "type": "host-local",
    "ranges": [[{"subnet": subnet}] for subnet in SUBNETS],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}
BRIDGE = {"bridge": "pods0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": IPAM}
ANNOTATIONS = {"kubernetes.io/ingress-bandwidth": "16M", "kubernetes.io/egress-bandwidth": "8M"}
PAGE = "weft was here\n"


def conflist(kind: str) -> dict[str, Any]:
    both = {"portMappings": True, "bandwidth": True}
    if kind == "single":
        only = {"type": "weft", "driver": "bridge", **BRIDGE, "portmap": {}, "bandwidth": {}, "capabilities": both}
        return {"cniVersion": "1.0.0", "name": "pods", "plugins": [only]}
    plugins = [
        {"type": "bridge", **BRIDGE},
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ]
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}


@pytest.fixture(params=["chain", "single"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "single" and chosen_folder() != OWN_FOLDER:
        pytest.skip("the reference has no single plugin for what a chain does")
    return str(request.param)


@pytest.fixture
def node(kind: str, plugin_folder: Path, root_image: Path, tmp_path: Path) -> Iterator[Node]:
    made = Node(plugin_folder, tmp_path, conflist(kind))
    try:
        made.add_image(root_image, tmp_path)
        yield made
    finally:
        made.close()


def serve(node: Node, name: str, port: int) -> tuple[Pod, str]:
    """A pod whose port 80 is a port of the node, and its container."""
    ports = [{"protocol": 0, "container_port": 80, "host_port": port}]
    pod = node.pod(name, ports=ports, annotations=ANNOTATIONS)
    return pod, node.container(pod, "/bin/httpd", "-f", "-p", "80", "-h", "/www")


def page(node: Node, where: str) -> bool:
    """Whether the node's own processes get the page; wget in Debian's static busybox crashes in the resolver."""
    script = "import sys, urllib.request as http; print(http.urlopen(sys.argv[1], timeout=2).read().decode(), end='')"
    return node.run(sys.executable, "-ISc", script, f"http://{where}/", check=False).stdout == PAGE


def pings(node: Node, container: str, address: str) -> bool:
    return " 0% packet loss" in node.execute(container, "/bin/ping", "-c", "1", "-W", "1", address)


def veths(node: Node) -> list[str]:
    return [name for name in node.links() if name.startswith("veth")]


def test_pods_from_start_to_end(node: Node) -> None:
    assert node.conditions() == {}
    first, server = serve(node, "web", 8080)
    second = node.pod("client")
    client = node.container(second, "/bin/sleep", "600")
    assert [address.split(".")[0].split(":")[0] for address in first.addresses] == ["10", "fd66"]
    for address in (*second.addresses, "10.66.0.1"):
        until(partial(pings, node, server, address), what=f"an answer of {address}")
    for where in ("127.0.0.1:8080", "[::1]:8080", "10.66.0.1:8080", "[fd66::1]:8080"):
        until(partial(page, node, where), what=where)
    asked = ("/bin/sh", "-c", r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 10.66.0.1 8080")
    until(lambda: node.execute(client, *asked).endswith(PAGE), what="the node's port from a pod")
    rates = [node.run("tc", "qdisc", "show", "dev", name).stdout for name in veths(node)]
    assert sum("tbf" in one and "rate 16Mbit" in one for one in rates) == 1
    for pod in (first, second):
        for method in ("StopPodSandbox", "StopPodSandbox", "RemovePodSandbox", "RemovePodSandbox"):
            node.call(method, id=pod.id)
    assert (node.leases("pods"), veths(node), page(node, "127.0.0.1:8080")) == ([], [], False)
    third, _ = serve(node, "web", 8080)
    until(partial(page, node, "127.0.0.1:8080"), what="the port of the next pod")
    node.end(third)


@pytest.mark.parametrize("kind", ["single"], indirect=True)
def test_pods_outlive_a_killed_runtime(own: None, node: Node) -> None:
    """Its mounts of their namespaces are lost as well, or weft's records are: gc takes nothing from them."""
    pod, server = serve(node, "web", 8080)
    node.kill_runtime()
    node.run("sh", "-c", "umount /run/netns/cni-* && rm -f /run/netns/cni-*")
    node.run("sh", "-c", "touch -d '2 minutes ago' /var/lib/cni/networks/pods/[1f]*")
    assert node.weft("gc").stdout == "nothing to remove\n"
    assert page(node, "127.0.0.1:8080") and sorted(node.leases("pods")) == sorted(pod.addresses)
    node.start_runtime()
    other = node.pod("other")
    node.run("rm", "-rf", "/run/weft")
    freed = node.weft("gc").stdout
    assert "lease" not in freed and "address" not in freed and page(node, "127.0.0.1:8080"), freed
    node.end(other)
    until(lambda: pings(node, server, "10.66.0.1"), what="an answer of the gateway")
    node.end(pod)
    assert node.leases("pods") == []


@pytest.mark.parametrize("kind", ["chain"], indirect=True)
def test_a_node_restarts(own: None, node: Node, kind: str, plugin_folder: Path, tmp_path: Path) -> None:
    """Without a boot of the kernel, as a node that is a container: processes, links and /run are gone, leases and
    libcni's results are kept. The kubelet ends the old pods after it has started new ones.
    """
    old = [node.pod(f"old{number}") for number in range(4)]
    gone = sorted(address for pod in old for address in pod.addresses)
    node.close()
    node = Node(plugin_folder, tmp_path, conflist(kind))
    try:
        assert sorted(node.leases("pods")) == gone
        node.run("sh", "-c", "touch -d '2 minutes ago' /var/lib/cni/networks/pods/[1f]*")
        said = node.weft("doctor").stdout
        assert all(f"address {address} on pods is leased to" in said for address in gone)
        assert "eth0, which is gone" in said
        new = [serve(node, "web", 8080), (node.pod("client"), "")]  # the pool has five addresses, one was left
        taken = sorted(address for pod, _ in new for address in pod.addresses)
        assert sorted(node.leases("pods")) == taken
        for pod in old:
            node.end(pod)
        assert sorted(node.leases("pods")) == taken
        until(partial(page, node, "127.0.0.1:8080"), what="the port of the new pod")
        for pod, _ in new:
            node.end(pod)
        assert node.leases("pods") == []
        node.weft("gc")
        assert node.weft("doctor").code == 0
    finally:
        node.close()
