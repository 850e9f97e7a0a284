"""Overlay networks of other kinds than the usual one: addresses that move from host to host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.etcd import KILL, Cluster
from lab.hosts import Machine, Machines
from lab.waiting import until

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
