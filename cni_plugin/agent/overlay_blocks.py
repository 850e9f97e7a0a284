"""Which blocks of overlay networks this host leases from, and its changes of blocks in the store."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from cluster import records
from cluster.blocks import Blocks, Change, Usage, Wish, decide
from cluster.host_files import own_blocks
from cluster.records import Network
from cluster.view import View
from cni_plugin.agent.overlay_host import Look
from store import Compare, Delete, Put, Store
from weft.types import Address, Subnet

log = logging.getLogger(__name__)

IDLE = 600.0
"""Seconds that a block has no lease before it is given back."""
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

    def of(self, network: Network, blocks: Blocks, look: Look) -> tuple[Subnet, ...]:
        """What this host may lease from."""
        withheld = self._withheld.get(network.name, {})
        for part, (subnet, revision) in list(withheld.items()):
            there = blocks.at(subnet)
            if there is None or there.revision != revision:
                del withheld[part]  # it is given away, or somebody has changed it
        leased = look.leased.get(network.name, frozenset())
        return own_blocks(blocks, self._node, leased, withheld)

    async def change(
        self, network: Network, blocks: Blocks, look: Look, start: int, withhold: Withhold, *, joined: bool
    ) -> None:
        """Claim, give back and lend as it is time to; ``start`` is a random number. Raises StoreError."""
        leased = look.leased.get(network.name, frozenset())
        usage = Usage(leased, self._idle(network, blocks, leased))
        for step in decide(blocks, self._node, usage, self._view.wanted(network.name), start, joined=joined):
            if isinstance(step, Wish):
                await self._wish(network, step)
            else:
                await self._make(network, blocks, look, step, withhold)

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

    async def _make(self, network: Network, blocks: Blocks, look: Look, step: Change, withhold: Withhold) -> None:
        """Make one decision true, if the store is as it was when it was made."""
        if step.withhold is not None and not await self._withheld_now(network, blocks, step, look, withhold):
            return
        key, wanted = records.block_key(network.name, step.subnet), records.wanted_key(network.name, self._node)
        same = [_same(network), Compare(key, "mod", step.old.revision if step.old is not None else 0)]
        operations: list[Put | Delete] = [Put(key, records.encode(step.new)) if step.new is not None else Delete(key)]
        if step.served:
            served = records.wanted_key(network.name, step.served)
            same.append(Compare(served, "create", 0, "!="))
            operations.append(Delete(served))
        elif step.old is None and self._view.entry(wanted) is not None:
            operations.append(Delete(wanted))
        outcome = await self._store.transact(same, operations)
        log.info(
            "network %s: block %s %s",
            network.name,
            step.withhold or step.subnet,
            ("claimed" if step.old is None else "given back" if not step.served else f"lent to {step.served}")
            if outcome.succeeded
            else "was changed by another host meanwhile",
        )
        if not outcome.succeeded and step.withhold is not None:
            self._withheld.get(network.name, {}).pop(step.withhold, None)
            self._wake()

    async def _withheld_now(
        self, network: Network, blocks: Blocks, step: Change, look: Look, withhold: Withhold
    ) -> bool:
        """Stop leasing from a block; whether nothing of it is leased then."""
        assert step.withhold is not None and step.old is not None
        if network.name not in look.joined or look.host is None:
            return not any(one in step.withhold for one in look.leased.get(network.name, ()))
        kept = self._withheld.setdefault(network.name, {})
        kept[step.withhold] = (step.old.subnet, step.old.revision)
        own = own_blocks(blocks, self._node, look.leased.get(network.name, ()), kept)
        if any(one in step.withhold for one in await withhold(own)):
            del kept[step.withhold]
            self._wake()
            return False
        return True


def _same(network: Network) -> Compare:
    return Compare(network.key, "mod", network.revision)
