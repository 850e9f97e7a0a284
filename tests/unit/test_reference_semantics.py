"""What callers of the reference plugins rely on: IPAM called alone, late DELs, refused ADDs. On the fake kernel."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lab.calls import Weft
from lab.cases import Conf, conf, pool
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
    from cni_plugin.service.gc import collect_stale

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
