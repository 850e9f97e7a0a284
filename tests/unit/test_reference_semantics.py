"""What callers of the reference plugins rely on: IPAM called alone, late DELs, refused ADDs. On the fake kernel."""

from __future__ import annotations

import shutil
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from cni_plugin.networks import findings
from cni_plugin.ops import Gateways, Veth
from cni_plugin.ops.operation import Operation
from cni_plugin.service.executor import Watch
from cni_plugin.service.gc import collect_stale
from lab.calls import Weft
from lab.cases import Conf, conf, pool
from weft.errors import KernelRefused
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.host import Host


class Node:
    """A host with the fake kernel, two containers and a lease directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = FakeKernel()
        self.kernel.add("/c1")
        self.kernel.add("/c2")
        self.host = Host(str(folder / "run"), "boot", 0.0)
        self.weft = Weft(self.kernel, self.host)

    def ipam(self, *subnets: str, **keys: Any) -> Conf:
        return pool(*(subnets or ("10.60.0.0/28",)), dataDir=str(self.folder / "disk"), **keys)

    def leases(self, network: str) -> dict[str, str]:
        folder = self.folder / "disk" / network
        found = folder.iterdir() if folder.is_dir() else ()
        return {path.name: path.read_bytes().decode().replace("\r\n", "/") for path in found if path.name[0] in "1f"}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def pool_conf(node: Node, plugin: str = "host-local") -> Conf:
    return conf(plugin, "red", {"ipam": node.ipam()})


def test_a_second_add_to_host_local_is_refused_and_the_lease_stays(node: Node) -> None:
    """The reference says "duplicate allocation is not allowed"; a new address would leave one to two containers."""
    red = pool_conf(node)
    result = node.weft.add(red, "/c1")
    for path in ("/c1", "/c2", "/gone"):
        answer = node.weft("ADD", red, path)
        assert (answer.code, "10.60.0.2" in answer.text) == (101, True), answer
    assert node.leases("red") == {"10.60.0.2": "c1/eth0"}
    assert node.weft.check(red, result, "/c1") == ""
    assert node.weft.add(red, "/c2", "c2")["ips"][0]["address"] == "10.60.0.3/28"
    node.weft.delete(red, "/c1")
    assert node.leases("red") == {"10.60.0.3": "c2/eth0"}


def test_an_add_after_its_lease_was_deleted_by_hand(node: Node) -> None:
    red = pool_conf(node)
    node.weft.add(red, "/c1")
    shutil.rmtree(node.folder / "disk")
    assert node.weft.add(red, "/c1")["ips"][0]["address"] == "10.60.0.2/28"


@pytest.mark.parametrize("path", ["vm-1f3a", "/dev/null", "/no/such/path", "tap:7"])
@pytest.mark.parametrize("plugin", ["host-local", "static"])
def test_ipam_alone_never_opens_the_namespace(node: Node, plugin: str, path: str) -> None:
    addresses = {"type": "static", "addresses": [{"address": "10.60.0.2/28"}]}
    red = pool_conf(node) if plugin == "host-local" else conf(plugin, "red", {"ipam": addresses})
    result = node.weft.add(red, path)
    assert result["ips"][0]["address"] == "10.60.0.2/28"
    assert node.weft.check(red, result, path) == ""
    assert "open" not in node.kernel.calls
    node.weft.delete(red, path)
    assert node.leases("red") == {}


def test_gc_keeps_the_lease_of_what_has_no_namespace(node: Node) -> None:
    """A virtual machine's plugin passes any string as CNI_NETNS; only its DEL, or the runtime's GC, ends the lease."""
    red = pool_conf(node)
    node.weft.add(red, "vm-1f3a")
    assert collect_stale(node.weft.service(node.kernel)).attachments == []
    assert node.leases("red") == {"10.60.0.2": "c1/eth0"}
    node.weft.collect(red, ("c1", "eth0"))
    assert node.leases("red") == {"10.60.0.2": "c1/eth0"}
    node.weft.collect(red)
    assert node.leases("red") == {}


def test_a_del_with_a_path_that_is_gone_ends_the_attachment(node: Node) -> None:
    """A runtime unmounts /run/netns/NAME first, while a process still holds the namespace under another path."""
    red = conf("bridge", "red", {"bridge": "br0", "ipam": node.ipam()})
    node.weft.add(red, "/c1")
    node.weft.delete(red, "/c2")
    assert node.leases("red") == {"10.60.0.2": "c1/eth0"}
    node.weft.delete(red, "/gone")
    assert node.leases("red") == {}
    assert node.kernel.open("/c1").link("eth0") is None


def routed(node: Node, *subnets: str, **keys: Any) -> Conf:
    return conf("bridge", "red", {"bridge": "br0", "isGateway": True, "ipam": node.ipam(*subnets), **keys})


def network_state(node: Node) -> tuple[object, list[str]]:
    """The host without its sysctls, and what doctor says of attachments and networks."""
    service = node.weft.service(node.kernel)
    host = node.kernel.dump()[node.kernel.host.id.path]
    assert isinstance(host, dict)
    state = {name: part for name, part in host.items() if name != "sysctls"}
    return (state, node.kernel.dump()["rules"]), [one.what for one in findings.of_attachments(service)]


def test_a_refused_add_takes_back_what_it_added_to_its_network(node: Node) -> None:
    """Not only the first ADD of a network: another gateway must not stay on the bridge, nor in the network's record."""
    node.weft.add(routed(node, "10.60.0.0/28"), "/c1")
    before = network_state(node)
    assert before[1] == []
    refused = [
        node.weft("ADD", routed(node, "10.61.0.0/28"), "/c2", "c2"),  # the bridge has another address
        node.weft("ADD", routed(node, "10.60.0.0/28", "fd60::/64", ipMasq=True), "/c2", "c2", watch=failing_at(Veth)),
        node.weft(
            "ADD", routed(node, "10.60.0.0/28", "fd60::/64", ipMasq=True), "/c2", "c2", watch=failing_at(Gateways)
        ),
    ]
    assert [answer.ok for answer in refused] == [False, False, False]
    assert network_state(node) == before
    assert node.weft.add(routed(node, "10.60.0.0/28", "fd60::/64"), "/c2", "c2")["ips"][1]["gateway"] == "fd60::1"


def test_what_another_attachment_uses_stays_after_a_refused_add(node: Node) -> None:
    """c2 is attached with the same new gateway while the ADD of c3 that added it fails."""
    node.kernel.add("/c3")
    node.weft.add(routed(node, "10.60.0.0/28"), "/c1")
    dual = routed(node, "10.60.0.0/28", "fd60::/64")

    def fail(verb: str, operation: Operation) -> None:
        if verb == "apply" and isinstance(operation, Veth):
            node.weft.add(dual, "/c2", "c2")
            raise KernelRefused("no more links")

    assert not node.weft("ADD", dual, "/c3", "c3", watch=fail).ok
    assert ip_interface("fd60::1/64") in node.kernel.host.addresses("br0")
    assert network_state(node)[1] == []


def test_a_gateway_of_both_stays_when_the_other_ranges_are_refused(node: Node) -> None:
    """The same gateway with other sibling ranges is another operation; undoing it must not take the address."""
    node.weft.add(routed(node, "10.60.0.0/28"), "/c1")
    more = {"ipam": {**node.ipam(), "ranges": [[{"subnet": "10.60.0.0/28"}, {"subnet": "10.61.0.0/28"}]]}}
    deleted: list[str] = []
    original = node.kernel.host.delete_address
    node.kernel.host.delete_address = lambda link, address: (deleted.append(str(address)), original(link, address))  # type: ignore[method-assign]
    assert not node.weft("ADD", routed(node, **more), "/c2", "c2", watch=failing_at(Veth)).ok
    assert deleted == []
    assert network_state(node)[1] == []


def failing_at(kind: type[Operation]) -> Watch:
    def watch(verb: str, operation: Operation) -> None:
        if verb == "apply" and isinstance(operation, kind):
            raise KernelRefused(f"no {kind.__name__}")

    return watch
