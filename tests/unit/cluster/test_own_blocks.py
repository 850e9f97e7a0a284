"""What a host leases from while it does not know what the store says now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from unit.cluster.test_overlay_networks import entries

from cluster import networks, records
from cluster.host_files import Host
from cluster.records import Block, Network
from cluster.view import View
from cni_plugin.agent.overlay_blocks import OwnBlocks
from cni_plugin.agent.overlay_host import Look
from store import Compare, Delete, Operation, Outcome, Put, Range, Store, Unavailable
from store.embedded import open_embedded
from weft.types import Address, Subnet

SMALL = Network("small", "id", 0, (ip_network("10.60.0.0/27"),), (28,))
FIRST, SECOND = ip_network("10.60.0.0/28"), ip_network("10.60.0.16/28")
WISH = records.wanted_key("small", "h2")


def test_a_block_that_was_given_back_is_not_leased_from_again(tmp_path: Path) -> None:
    """An agent that was killed right after the return has the block in its list still, not in the network's file."""
    view, path = View(), str(tmp_path / "networks.json")
    view.load(Range(tuple(entries(3)), 50), "h1")
    view.save(path)
    again = View()
    assert again.restore(path)
    network = again.network("blue")
    assert network is not None
    whole = again.blocks(network)
    blocks = replace(whole, all=(*whole.all, Block(ip_network("10.60.9.0/24"), "h1", created=60)))
    own = OwnBlocks("h1", None, again, lambda: None)  # type: ignore[arg-type]

    def leased_from(*leasing: str) -> list[str]:
        look = Look(None, leasing={"blue": tuple(map(ip_network, leasing))} if leasing else {})
        return [str(one) for one in own.of(network, blocks, look)]

    assert leased_from("10.60.1.0/24") == ["10.60.1.0/24"]
    assert leased_from("10.60.1.0/25", "10.60.9.0/24") == ["10.60.1.0/25", "10.60.9.0/24"]
    assert leased_from() == ["10.60.1.0/24", "10.60.9.0/24"], "a network that was never set up here"
    again.load(Range(tuple(entries(3)), 70), "h1")
    assert leased_from("10.60.1.0/25") == ["10.60.1.0/24", "10.60.9.0/24"], "the store has been read"


@dataclass
class Lender:
    """Host h1, which has both blocks of a network, and does not follow the store by itself."""

    store: Store
    leased: set[Address] = field(default_factory=set)
    file: tuple[Subnet, ...] = (FIRST, SECOND)

    async def start(self) -> None:
        """Start its agent, which reads the store."""
        self.view = View()
        self.own = OwnBlocks("h1", self.store, self.view, lambda: None)
        await self.read()

    async def read(self) -> None:
        self.view.load(await self.store.range(records.ROOT), "h1")

    def leases_from(self) -> tuple[Subnet, ...]:
        """As a pass writes it to the network's file."""
        network, look = self._look()
        self.file = self.own.of(network, self.view.blocks(network), look)
        return self.file

    async def act(self) -> None:
        """A pass."""
        self.leases_from()
        network, look = self._look()

        async def withhold(own: tuple[Subnet, ...]) -> frozenset[Address]:
            self.file = own
            return frozenset(self.leased)

        await self.own.change(network, self.view.blocks(network), look, 0, withhold, joined=True)

    def _look(self) -> tuple[Network, Look]:
        network, host = self.view.network("small"), Host("h1", ip_address("192.0.2.1"), 1500)
        assert network is not None
        return network, Look(host, frozenset({"small"}), leased={"small": frozenset(self.leased)},
                             leasing={"small": self.file})  # fmt: skip


async def lender(store: Store, leased: Iterable[Address] = ()) -> Lender:
    await networks.create(store, SMALL)
    for one in (FIRST, SECOND):
        await store.put(records.block_key("small", one), records.encode(Block(one, "h1")))
    await store.put(WISH, b"4")
    found = Lender(store, set(leased))
    await found.start()
    return found


async def test_what_was_lent_is_not_leased_from_while_the_hosts_watch_lags(tmp_path: Path) -> None:
    """The next pass wants to lend it once more, and the store refuses that: because it is lent."""
    store = await open_embedded(tmp_path / "catalog.db")
    host = await lender(store)
    await host.act()
    borrowed = ip_network("10.60.0.8/29")
    assert (await store.range(WISH)).entries == () and host.leases_from() == (ip_network("10.60.0.0/29"), SECOND)
    for _ in range(3):
        await host.act()
        assert not any(one.overlaps(borrowed) for one in host.leases_from())
    await host.read()
    network, _ = host._look()
    assert host.view.blocks(network).of("h2") == (borrowed,)
    assert host.leases_from() == (ip_network("10.60.0.0/29"), SECOND)
    await store.close()


async def test_what_nobody_borrowed_is_leased_from_once_that_is_certain(tmp_path: Path) -> None:
    store = await open_embedded(tmp_path / "catalog.db")
    host = await lender(store)
    await store.delete(WISH)  # another host has lent something
    await host.act()
    assert host.leases_from() == (ip_network("10.60.0.0/29"), SECOND), "nothing says yet why it was refused"
    await host.read()
    await host.act()
    assert host.leases_from() == (FIRST, SECOND)
    await store.close()


class Late:
    """A store whose first loan is on its way for long: it is applied when its host does not wait any more."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: tuple[Sequence[Compare], Sequence[Operation]] | None = None

    async def transact(self, compare: Sequence[Compare], success: Sequence[Operation]) -> Outcome:
        if self._waiting is None and Delete(WISH) in success:
            self._waiting = compare, success
            raise Unavailable("no member answers")
        return await self._store.transact(compare, success)

    async def arrive(self) -> bool:
        assert self._waiting is not None
        return (await self._store.transact(*self._waiting)).succeeded

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_loan_that_arrives_late_takes_nothing_that_is_leased_from(tmp_path: Path, restarted: bool) -> None:
    """Also where the agent that wanted it was killed."""
    store = await open_embedded(tmp_path / "catalog.db")
    late = Late(store)
    host = await lender(late)  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        await host.act()
    await store.delete(WISH)
    if restarted:
        await host.start()
    await host.read()
    assert host.leases_from() == (ip_network("10.60.0.0/29"), SECOND), "it may be lent by now"
    await host.act()
    await store.transact((), [Put(WISH, b"4")])
    assert not await late.arrive()
    await host.read()
    assert host.leases_from() == (FIRST, SECOND)
    await store.close()
