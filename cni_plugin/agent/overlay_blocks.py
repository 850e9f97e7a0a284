"""Which blocks of overlay networks this host leases from, and its changes of blocks in the store."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator

from cluster import records, static
from cluster.blocks import Blocks, Change, Usage, Wish, decide, overlaps
from cluster.host_files import own_blocks
from cluster.records import Ask, Block, Network
from cluster.static import Asking, Refusal
from cluster.view import View
from cni_plugin.agent.overlay_host import Look
from store import Compare, Delete, Put, Store
from weft.claims import Claim
from weft.types import Address, Subnet

log = logging.getLogger(__name__)

IDLE = 600.0
"""Seconds that a block has no lease before it is given back."""
_ASK_SECONDS = 15.0
_ANSWER_SECONDS = 3.0
"""Seconds after which a claim of addresses is answered also if no other host does."""
Withhold = Callable[[tuple[Subnet, ...]], Awaitable[frozenset[Address]]]
"""Leases from these parts alone from now on; returns the leases that there are then."""


class OwnBlocks:
    """The blocks of the host ``node``; ``wake`` asks for another pass."""

    def __init__(self, node: str, store: Store, view: View, wake: Callable[[], None]) -> None:
        self._node = node
        self._store = store
        self._view = view
        self._wake = wake
        self._idle_since: dict[tuple[str, Subnet], float] = {}
        self._withheld: dict[str, dict[Subnet, tuple[Subnet, int]]] = {}
        """By network: the parts that may be given away already, with their block and its revision when they were
        not: until it is known what became of that, nothing is leased from them.
        """
        self._read: set[str] = set()
        self._answered: dict[str, set[str]] = {}

    def of(self, network: Network, blocks: Blocks, look: Look) -> tuple[Subnet, ...]:
        """What this host may lease from."""
        withheld = self._withheld.get(network.name, {})
        for part, (subnet, revision) in list(withheld.items()):
            there = blocks.at(subnet)
            if there is None or there.revision != revision:
                del withheld[part]  # it is given away, or somebody has changed it
        leased = look.leased.get(network.name, frozenset())
        before = look.leasing.get(network.name)
        if not self._view.revision and before is not None:
            # What is known from a file may be older than a block's return: an agent that was killed has not saved
            # that, but it has first stopped to lease from it.
            return tuple(_common(own_blocks(blocks, self._node, leased, withheld), before))
        if network.name not in self._read:
            self._read.add(network.name)
            if before is not None:  # what that agent wanted to give away may still be on its way to the store
                withheld = self._withheld.setdefault(network.name, {})
                for block in blocks.all:
                    for rest in (rest for part in block.of(self._node) for rest in records.without(part, before)):
                        withheld[rest] = block.subnet, block.revision
        return own_blocks(blocks, self._node, leased, withheld)

    async def change(
        self,
        network: Network,
        blocks: Blocks,
        look: Look,
        start: int,
        withhold: Withhold,
        *,
        joined: bool,
        may_claim: bool = True,
    ) -> None:
        """Claim, give back and lend as it is time to (``cluster.blocks.decide``). Raises StoreError."""
        leased = look.leased.get(network.name, frozenset())
        usage = Usage(leased, self._idle(network, blocks, leased))
        given: set[Subnet | None] = set()
        wanted = self._view.wanted(network.name)
        for step in decide(blocks, self._node, usage, wanted, start, joined=joined, may_claim=may_claim):
            if isinstance(step, Wish):
                await self._wish(network, step)
            else:
                given.add(await self._make(network, blocks, look, step, withhold))
        claims = look.claims.get(network.name, ()) if joined else ()
        for each in static.decide(blocks, self._node, leased, claims, self._view.asks(network.name)):
            match each:
                case Asking(ask):
                    await self._ask(network, ask)
                case Refusal(ask):
                    same = Compare(ask.key, "mod", ask.revision)
                    await self._store.transact([same], [Put(ask.key, records.encode(ask), await self._ask_lease())])
                case Change():
                    given.add(await self._make(network, blocks, look, each, withhold))
        withheld = self._withheld.get(network.name, {})
        for subnet in {subnet for part, (subnet, _) in withheld.items() if part not in given}:
            await self._renew(network, blocks.at(subnet))

    async def _ask(self, network: Network, ask: Ask) -> None:
        """Write an ask, which ends by itself: nobody must hand over an address to a host that is gone."""
        await self._store.transact([_same(network)], [Put(ask.key, records.encode(ask), await self._ask_lease())])

    async def _ask_lease(self) -> int:
        return await self._store.grant(_ASK_SECONDS)

    def answers(self, network: Network, blocks: Blocks, look: Look, problem: str) -> Iterator[tuple[Claim, str]]:
        """The claims of static addresses that can be answered now, each with why it is refused, "" if it is
        not; for the others a pass is made soon. ``problem`` is the store's, or why the host takes no part.
        """
        known = self._answered.setdefault(network.name, set())
        claims = look.claims.get(network.name, ())
        known &= {one.token for one in claims}
        own = {one[0] for one in self.of(network, blocks, look) if one.num_addresses == 1}
        for claim in claims:
            if claim.token in known:
                continue
            late = time.time() - claim.written > _ANSWER_SECONDS
            unanswered = problem or "no host answers"
            found = static.answer(
                blocks, self._node, claim, own, self._view.asks(network.name), unanswered if late else ""
            )
            if found is None:
                asyncio.get_running_loop().call_later(_ANSWER_SECONDS / 2, self._wake)
            else:
                known.add(claim.token)
                yield claim, found

    def _idle(self, network: Network, blocks: Blocks, leased: frozenset[Address]) -> frozenset[Subnet]:
        now, found = time.monotonic(), set()
        parts = blocks.of(self._node)
        for part in parts:
            key = (network.name, part)
            if any(one in part for one in leased):
                self._idle_since.pop(key, None)
            elif now - self._idle_since.setdefault(key, now) >= IDLE:
                found.add(part)
        for key in [one for one in self._idle_since if one[0] == network.name and one[1] not in parts]:
            del self._idle_since[key]
        return frozenset(found)

    async def _wish(self, network: Network, step: Wish) -> None:
        there = self._view.wanted(network.name).get(self._node, [])
        versions = sorted({*there, step.version})
        if there != versions:
            wanted = Put(records.wanted_key(network.name, self._node), " ".join(map(str, versions)).encode())
            await self._store.transact([_same(network)], [wanted])

    async def _renew(self, network: Network, block: Block | None) -> None:
        """Write a block again as it is, so that what is still on its way to the store to give away a part of it comes
        too late. What is withheld is leased from again when the new revision is read; where that is refused, the
        block is another one already, and what it says then decides.
        """
        if block is not None:
            key = records.block_key(network.name, block.subnet)
            same = [_same(network), Compare(key, "mod", block.revision)]
            await self._store.transact(same, [Put(key, records.encode(block))])

    async def _make(
        self, network: Network, blocks: Blocks, look: Look, step: Change, withhold: Withhold
    ) -> Subnet | None:
        """Make one decision true, if the store is as it was when it was made; what was given away by it."""
        if step.withhold is not None and not await self._withheld_now(network, blocks, step, look, withhold):
            return None
        key, wanted = records.block_key(network.name, step.subnet), records.wanted_key(network.name, self._node)
        same = [_same(network), Compare(key, "mod", step.old.revision if step.old is not None else 0)]
        operations: list[Put | Delete] = [Put(key, records.encode(step.new)) if step.new is not None else Delete(key)]
        if step.served:
            served = records.wanted_key(network.name, step.served)
            same.append(Compare(served, "create", 0, "!="))
            operations.append(Delete(served))
        elif step.ask is not None:
            same.append(Compare(step.ask.key, "mod", step.ask.revision))
            operations.append(Delete(step.ask.key))
        elif step.old is None and self._view.entry(wanted) is not None:
            operations.append(Delete(wanted))
        outcome = await self._store.transact(same, operations)
        log.info(
            "network %s: block %s %s",
            network.name,
            step.withhold or step.subnet,
            _done(step) if outcome.succeeded else "was changed meanwhile",
        )
        # Refused may mean that it was given away before, and that the watch lags: it stays withheld.
        return step.withhold if outcome.succeeded else None

    async def _withheld_now(
        self, network: Network, blocks: Blocks, step: Change, look: Look, withhold: Withhold
    ) -> bool:
        """Stop leasing from a block; whether nothing of it is leased then."""
        assert step.withhold is not None and step.old is not None
        if network.name not in look.joined or look.host is None:
            return not any(one in step.withhold for one in look.leased.get(network.name, ()))
        kept = self._withheld.setdefault(network.name, {})
        before = kept.get(step.withhold)
        kept[step.withhold] = (step.old.subnet, step.old.revision)
        own = own_blocks(blocks, self._node, look.leased.get(network.name, ()), kept)
        if any(one in step.withhold for one in await withhold(own)):
            if before is None:
                del kept[step.withhold]
                self._wake()
            return False
        return True


def _common(one: Iterable[Subnet], other: Collection[Subnet]) -> Iterator[Subnet]:
    """What two lists of subnets have both."""
    for each in one:
        yield from (max(each, there, key=lambda part: part.prefixlen) for there in other if overlaps(each, there))


def _done(step: Change) -> str:
    if step.old is None:
        return "claimed"
    if step.ask is not None:
        return f"handed over to {step.ask.node}"
    return f"lent to {step.served}" if step.served else "given back"


def _same(network: Network) -> Compare:
    return Compare(network.key, "mod", network.revision)
