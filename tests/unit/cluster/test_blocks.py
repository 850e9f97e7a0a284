"""Blocks of addresses: hosts that claim, lend and give back at once, on a store that compares and swaps."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.blocks import Block, Blocks, Change, Usage, Wish, decide, freed, lost, static_problem, usable
from cluster.host_files import own_blocks
from cluster.records import Network, block_length, without
from weft.types import Address, Subnet

HOSTS = ("h1", "h2", "h3", "h4")
SMALL = Network("blue", "1", 100, (ip_network("10.60.0.0/26"),), (28,), static=(ip_network("10.60.0.48/28"),))
WIDE = Network("blue", "1", 100, (ip_network("10.60.0.0/16"), ip_network("fd00:60::/48")), (24, 64))


class Cluster:
    """A store of blocks, and hosts that decide on views of different ages and lease addresses meanwhile."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.blocks: dict[Subnet, Block] = {}
        self.wanted: dict[str, list[int]] = {}
        self.views: dict[str, Blocks] = {host: Blocks(network, ()) for host in HOSTS}
        self.leased: dict[str, set[Address]] = {host: set() for host in HOSTS}
        self.withheld: dict[str, dict[Subnet, tuple[Subnet, int]]] = {host: {} for host in HOSTS}
        self.revision = 0

    def own(self, host: str) -> tuple[Subnet, ...]:
        for part, (subnet, revision) in list(self.withheld[host].items()):
            there = self.views[host].at(subnet)
            if there is None or there.revision != revision:
                del self.withheld[host][part]
        return own_blocks(self.views[host], host, self.leased[host], self.withheld[host])

    def watch(self, host: str, _: int = 0) -> None:
        found = sorted(self.blocks.values(), key=lambda one: one.created)
        self.views[host] = Blocks(self.network, tuple(found))

    def lease(self, host: str, number: int) -> None:
        free = [
            one
            for part in self.own(host)
            if part.num_addresses > 1
            for one in part.hosts()
            if one not in self.leased[host]
        ]
        if free:
            self.leased[host].add(free[number % len(free)])

    def free(self, host: str, number: int) -> None:
        if self.leased[host]:
            self.leased[host].remove(sorted(self.leased[host], key=int)[number % len(self.leased[host])])

    def act(self, host: str, start: int) -> None:
        view = self.views[host]
        self.own(host)
        idle = frozenset(part for part in view.of(host) if not any(one in part for one in self.leased[host]))
        usage = Usage(frozenset(self.leased[host]), idle)
        others = {node: versions for node, versions in self.wanted.items() if node != host}
        for step in decide(view, host, usage, others, start):
            if isinstance(step, Wish):
                self.wanted[host] = [step.version]
            else:
                self._change(host, step)

    def _change(self, host: str, step: Change) -> None:
        if step.withhold is not None:
            assert step.old is not None
            if any(one in step.withhold for one in self.leased[host]):
                return
            self.withheld[host][step.withhold] = (step.old.subnet, step.old.revision)
        there = self.blocks.get(step.subnet)
        expected = step.old.revision if step.old is not None else 0
        if (there.revision if there is not None else 0) != expected or (step.served and step.served not in self.wanted):
            return
        self.revision += 1
        if step.new is None:
            del self.blocks[step.subnet]
        else:
            created = there.created if there is not None else self.revision
            self.blocks[step.subnet] = replace(step.new, created=created, revision=self.revision)
        self.wanted.pop(step.served or host, None)

    def check(self) -> None:
        """No address is leased twice, no part has two owners, and what nobody has can be claimed."""
        leases = [one for each in self.leased.values() for one in each]
        assert len(leases) == len(set(leases))
        parts = [part for block in self.blocks.values() for host in HOSTS for part in block.of(host)]
        for place, one in enumerate(parts):
            assert not any(one.overlaps(other) for other in parts[place + 1 :]), (one, parts)
        assert sum(one.num_addresses for one in parts) == sum(one.num_addresses for one in self.blocks)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("wwaallf"), st.sampled_from(HOSTS), st.integers(0, 255)), max_size=120))
def test_no_block_has_two_owners_and_no_address_is_leased_twice(steps: list[tuple[str, str, int]]) -> None:
    cluster = Cluster(SMALL)
    for kind, host, number in steps:
        {"w": cluster.watch, "a": cluster.act, "l": cluster.lease, "f": cluster.free}[kind](host, number)
        cluster.check()


def test_a_full_pool_is_shared_by_splitting_and_comes_together_again() -> None:
    cluster, dice = Cluster(SMALL), random.Random(7)
    for _ in range(12):
        for host in HOSTS:
            cluster.watch(host)
            cluster.act(host, dice.randrange(1 << 16))
    assert all(cluster.views[host].of(host) for host in HOSTS), "three blocks serve four hosts"
    assert any(block.parts for block in cluster.blocks.values())
    assert not cluster.wanted
    for host in HOSTS:
        cluster.lease(host, 0)
    cluster.check()


def test_a_host_claims_before_its_blocks_are_full() -> None:
    block = Block(ip_network("10.60.5.0/24"), "h1", created=1, revision=1)
    six = Block(ip_network("fd00:60:0:5::/64"), "h1", created=2, revision=2)
    blocks = Blocks(WIDE, (block, six))
    few = frozenset[Address](IPv4Address("10.60.5.0") + number for number in range(2, 200))
    assert decide(blocks, "h1", Usage(few), {}, 3) == []
    many = frozenset[Address](IPv4Address("10.60.5.0") + number for number in range(2, 210))
    assert decide(blocks, "h1", Usage(many), {}, 3) == [Change(None, Block(ip_network("10.60.3.0/24"), "h1"))]
    assert decide(blocks, "h1", Usage(many), {}, 5) == [Change(None, Block(ip_network("10.60.6.0/24"), "h1"))]


def test_idle_blocks_are_given_back_but_not_the_first() -> None:
    first, second = (Block(ip_network(f"10.60.{n}.0/24"), "h1", created=n, revision=n) for n in (5, 6))
    six = Block(ip_network("fd00:60:0:5::/64"), "h1", created=2, revision=2)
    blocks = Blocks(WIDE, (six, first, second))
    idle = frozenset({first.subnet, second.subnet, six.subnet})
    assert decide(blocks, "h1", Usage(idle=idle), {}, 0) == [Change(second, None, second.subnet)]
    assert decide(blocks, "h1", Usage(), {}, 0) == []
    gone = decide(blocks, "h1", Usage(idle=idle), {}, 0, joined=False)
    assert {one.subnet for one in gone if isinstance(one, Change)} == {second.subnet, six.subnet}


def test_only_what_has_no_leases_is_lent() -> None:
    """What is withheld and has some would be withheld again on each pass."""
    blocks = tuple(Block(ip_network(f"10.60.0.{n}/28"), "h1", created=n + 1, revision=n + 1) for n in (0, 16, 32))
    full = Blocks(SMALL, blocks)

    def lent(*numbers: int) -> list[object]:
        leased = frozenset[Address](IPv4Address("10.60.0.0") + one for one in numbers)
        found = decide(full, "h1", Usage(leased), {"h2": [4]}, 0)
        return [one.withhold for one in found if isinstance(one, Change)]

    assert lent() == [ip_network("10.60.0.8/29")]
    assert lent(9) == [ip_network("10.60.0.24/29")]
    assert lent(9, 25, 36) == [ip_network("10.60.0.40/29")]
    assert lent(9, 25, 47) == []


def test_leases_that_the_store_has_lost_are_asserted() -> None:
    leased = frozenset({ip_address("10.60.5.9"), ip_address("fd00:60:0:5::9")})
    found = decide(Blocks(WIDE, ()), "h1", Usage(leased), {}, 0)
    assert {one.subnet for one in found if isinstance(one, Change)} == {
        ip_network("10.60.5.0/24"),
        ip_network("fd00:60:0:5::/64"),
    }
    other = Block(ip_network("10.60.5.0/24"), "h2", created=1, revision=1)
    own = own_blocks(Blocks(WIDE, (other,)), "h1", leased, ())
    assert ip_network("10.60.5.9/32") in own and ip_network("fd00:60:0:5::9/128") in own
    assert lost([], [ip_address("10.60.5.9")]) == (ip_network("10.60.5.9/32"),)


def test_a_removed_node_leaves_what_it_lent_to_a_borrower() -> None:
    half, quarter = ip_network("10.60.5.128/25"), ip_network("10.60.5.64/26")
    block = Block(ip_network("10.60.5.0/24"), "h1", ((half, "h2"), (quarter, "h3")), 1, 1)
    assert freed(block, "h4") is None
    change = freed(block, "h1")
    assert change is not None and change.new == replace(block, node="h2", parts=((quarter, "h3"),))
    assert change.new.of("h2") == (ip_network("10.60.5.0/26"), half) and change.new.of("h3") == (quarter,)
    assert freed(replace(block, parts=()), "h1") == Change(replace(block, parts=()), None)
    returned = freed(block, "h3")
    assert returned is not None and returned.new == replace(block, parts=((half, "h2"),))


@pytest.mark.parametrize(
    ("subnet", "length"),
    [("10.0.0.0/8", 24), ("10.60.0.0/16", 24), ("10.60.0.0/20", 28), ("10.60.0.0/24", 28), ("fd00::/48", 64),
     ("fd00::/64", 80)],
)  # fmt: skip
def test_the_length_of_blocks(subnet: str, length: int) -> None:
    assert block_length(ip_network(subnet)) == length


def test_parts_and_static_ranges() -> None:
    assert without(ip_network("10.60.5.0/24"), [ip_network("10.60.5.128/26")]) == (
        ip_network("10.60.5.0/25"),
        ip_network("10.60.5.192/26"),
    )
    assert without(ip_network("10.60.5.0/25"), [ip_network("10.60.5.0/24")]) == ()
    assert static_problem(WIDE, ip_network("10.60.250.0/23")) == ""
    assert "whole blocks" in static_problem(WIDE, ip_network("10.60.250.0/25"))
    assert "part of" in static_problem(WIDE, ip_network("10.61.0.0/24"))
    assert usable(ip_network("10.60.5.0/24")) == 253 and usable(ip_network("10.60.5.7/32")) == 1
    full = Blocks(SMALL, tuple(Block(ip_network(f"10.60.0.{n}/28"), "h2") for n in (0, 16, 32)))
    assert full.free(SMALL.subnets[0], 0) is None, "the static range is not claimed"
