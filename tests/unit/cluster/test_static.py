"""Static addresses: hosts that claim, ask for, hand over and give back at once, on a store that compares and swaps."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import static
from cluster.blocks import Block, Blocks, Change
from cluster.records import Ask, Network, decode, encode, static_range
from cluster.static import Asking, Refusal
from store import Entry
from weft.claims import Claim
from weft.types import Address

HOSTS = ("h1", "h2", "h3")
NETWORK = Network("blue", "1", 100, (ip_network("10.60.0.0/24"),), (29,), static=(ip_network("10.60.0.240/28"),))
SEVEN, EIGHT = ip_address("10.60.0.247"), ip_address("10.60.0.248")
Key = tuple[Address, str]


class Cluster:
    """A store, and hosts that decide on views of different ages while containers come and go."""

    def __init__(self) -> None:
        self.blocks: dict[Address, Block] = {}
        self.asks: dict[Key, Ask] = {}
        self.views: dict[str, tuple[Blocks, list[Ask]]] = {host: (Blocks(NETWORK, ()), []) for host in HOSTS}
        self.claims: dict[str, dict[Address, Claim]] = {host: {} for host in HOSTS}
        self.used: dict[str, set[Address]] = {host: set() for host in HOSTS}
        self.withheld: dict[str, dict[Address, int]] = {host: {} for host in HOSTS}
        self.count = 0

    def watch(self, host: str, _: Address) -> None:
        self.views[host] = Blocks(NETWORK, tuple(self.blocks.values())), list(self.asks.values())

    def start(self, host: str, address: Address) -> None:
        self.count += 1
        self.claims[host].setdefault(address, Claim("blue", "c", "eth0", (address,), str(self.count)))

    def stop(self, host: str, address: Address) -> None:
        self.claims[host].pop(address, None)
        self.used[host].discard(address)

    def own(self, host: str) -> set[Address]:
        blocks, found = self.views[host][0], set()
        for part in blocks.of(host):
            block = blocks.at(part)
            if block is not None and self.withheld[host].get(part[0]) != block.revision:
                found.add(part[0])
        return found

    def act(self, host: str, _: Address) -> None:
        blocks, asks = self.views[host]
        own = self.own(host)
        for address, claim in list(self.claims[host].items()):
            came = static.answer(blocks, host, claim, own, asks, "")
            if came == "":
                self.used[host].add(address)
            elif came is not None:
                self.stop(host, address)
        for step in static.decide(blocks, host, self.used[host], self.claims[host].values(), asks):
            self.count += 1
            match step:
                case Asking(ask):
                    self.asks[ask.address, ask.node] = replace(ask, revision=self.count)
                case Refusal(ask):
                    there = self.asks.get((ask.address, ask.node))
                    if there is not None and there.revision == ask.revision:
                        self.asks[ask.address, ask.node] = replace(ask, revision=self.count)
                case Change():
                    self.change(host, step)

    def change(self, host: str, step: Change) -> None:
        address = step.subnet[0]
        if step.withhold is not None:
            assert step.old is not None
            self.withheld[host][address] = step.old.revision
        there = self.blocks.get(address)
        if (there.revision if there else 0) != (step.old.revision if step.old else 0):
            return
        if step.ask is not None and self.asks.pop((step.ask.address, step.ask.node), None) is None:
            return
        self.blocks.pop(address, None)
        if step.new is not None:
            self.blocks[address] = replace(step.new, revision=self.count)


STEPS = st.tuples(st.sampled_from(["watch", "act", "act", "start", "stop"]), st.sampled_from(HOSTS),
                  st.sampled_from([SEVEN, EIGHT]))  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=80))
def test_no_address_is_used_on_two_hosts(steps: list[tuple[str, str, Address]]) -> None:
    cluster = Cluster()
    for kind, host, address in steps:
        {"watch": cluster.watch, "act": cluster.act, "start": cluster.start, "stop": cluster.stop}[kind](host, address)
        used = [one for each in cluster.used.values() for one in each]
        assert len(used) == len(set(used))
    # In the end an address is where its container is, and nowhere without one.
    for host in HOSTS[1:]:
        for one in (SEVEN, EIGHT):
            cluster.stop(host, one)
    cluster.stop("h1", EIGHT)
    cluster.start("h1", SEVEN)
    for _ in range(6):
        for host in HOSTS:
            cluster.watch(host, SEVEN)
            cluster.start("h1", SEVEN)
            cluster.act(host, SEVEN)
    assert cluster.used["h1"] == {SEVEN} and cluster.blocks.keys() == {SEVEN}


def test_what_a_container_is_told() -> None:
    block = Block(ip_network(SEVEN), "h2", revision=3)
    blocks, claim = Blocks(NETWORK, (block,)), Claim("blue", "c1", "eth0", (SEVEN,), "t2")
    [asking] = static.decide(blocks, "h1", (), [claim], [])
    assert isinstance(asking, Asking) and asking.ask == Ask("blue", SEVEN, "h1", "t2")
    assert static.answer(blocks, "h1", claim, (), [asking.ask], "") is None
    [refusal] = static.decide(blocks, "h2", [SEVEN], [replace(claim, container="c2")], [asking.ask])
    assert isinstance(refusal, Refusal) and refusal.ask.refused == "c2/eth0 on host h2 uses it"
    assert "c2/eth0 on host h2" in str(static.answer(blocks, "h1", claim, (), [refusal.ask], ""))
    later = replace(claim, token="t3")
    assert static.answer(blocks, "h1", later, (), [refusal.ask], "") is None, "it was refused to another one"
    assert "weft node rm h2" in str(static.answer(blocks, "h1", claim, (), [], "no answer"))
    assert "etcd" in str(static.answer(Blocks(NETWORK, ()), "h1", claim, (), [], "etcd is down"))
    outside = replace(claim, addresses=(ip_address("10.60.0.9"),))
    assert "10.60.0.240/28" in str(static.answer(blocks, "h1", outside, (), [], ""))
    asked = replace(refusal.ask, revision=9)
    assert decode(Entry(asked.key, encode(asked), 1, 9, 1)) == asked


def test_the_static_range_of_a_subnet() -> None:
    assert static_range(ip_network("10.60.0.0/16"), 24) == ip_network("10.60.240.0/20")
    assert static_range(ip_network("fd00:60::/48"), 64) == ip_network("fd00:60:0:f000::/52")
    assert static_range(ip_network("10.60.0.0/26"), 28) is None
