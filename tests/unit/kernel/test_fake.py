"""The fake's own functions: injected faults, comparable state, missing kinds, removed namespaces."""

from __future__ import annotations

import pytest
from unit.kernel.test_contract_links import veth
from unit.kernel.topology import Topology

from weft.errors import KernelLacks, KernelRefused
from weft.kernel.fake.kernel import FakeKernel
from weft.kernel.interface import Kernel, VethPeer


def test_it_implements_the_kernel_protocol() -> None:
    kernel: Kernel = FakeKernel()
    assert kernel.host.link("lo") is not None


def test_a_fault_is_raised_once_at_the_chosen_call() -> None:
    kernel = FakeKernel()
    kernel.fail("add_link", KernelRefused("no"), call=2)
    kernel.host.add_link("a", "bridge")
    before = kernel.dump()
    with pytest.raises(KernelRefused, match="no"):
        kernel.host.add_link("b", "bridge")
    assert kernel.dump() == before
    kernel.host.add_link("b", "bridge")
    assert kernel.calls.count("add_link") == 3


def test_two_faults_of_one_verb_are_raised_in_order() -> None:
    kernel = FakeKernel()
    kernel.fail("link", KernelRefused("first"))
    kernel.fail("link", KernelRefused("second"), call=2)
    for message in ("first", "second"):
        with pytest.raises(KernelRefused, match=message):
            kernel.host.link("lo")
    assert kernel.host.link("lo") is not None


def test_reading_the_state_counts_as_no_call() -> None:
    kernel = FakeKernel()
    kernel.fail("links", KernelRefused("no"))
    kernel.dump()
    assert kernel.calls == []
    with pytest.raises(KernelRefused):
        kernel.host.links()


def test_the_dump_differs_for_different_states(topology: Topology) -> None:
    assert isinstance(topology.kernel, FakeKernel)
    before = topology.kernel.dump()
    veth(topology)
    made = topology.kernel.dump()
    assert made != before
    topology.container.set_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
    topology.host.change_link("veth0", alias="")
    assert topology.kernel.dump() != made
    topology.container.delete_link("eth0")
    assert topology.kernel.dump() == before


def test_a_kernel_can_lack_kinds() -> None:
    kernel = FakeKernel(lacks=["vlan"])
    kernel.host.add_link("up0", "veth", peer=VethPeer("wire"))
    with pytest.raises(KernelLacks, match="vlan"):
        kernel.host.add_link("x", "vlan", parent="up0", options={"vlan_id": 5})


def test_removing_a_namespace_removes_its_links_and_their_peers(topology: Topology) -> None:
    assert isinstance(topology.kernel, FakeKernel)
    veth(topology)
    topology.kernel.remove(topology.container_path)
    assert topology.host.link("veth0") is None
    assert not topology.kernel.identify(topology.container_path).known


def test_duplicate_address_detection_can_be_set_to_fail(topology: Topology) -> None:
    kernel = FakeKernel()
    space = kernel.add("/run/netns/x")
    space.set_dad_state("lo", True, False)
    assert space.tentative("lo") == (True, False)
