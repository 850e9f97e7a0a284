"""What the agent does about a store that was restored, and about the blocks of nodes that were removed."""

from __future__ import annotations

import contextlib
import logging
import random
import time

from cluster import networks, nodes, records
from cluster.view import View
from cni_plugin.agent import claim_hold
from cni_plugin.agent.claim_hold import Hold
from store import Compare, Put, Store

log = logging.getLogger(__name__)

GRACE = 3600.0
"""Seconds after which the blocks of a removed node are free, unless it is known to be powered off."""
_PERIOD = 300.0
"""Seconds between two looks for removed nodes, a fifth more or less."""


class Recovery:
    """The host ``node``'s part in it. Records that a list of the store lacks although nobody has removed them are
    kept for as long as claims are held.
    """

    def __init__(self, node: str, store: Store, view: View, hold: Hold) -> None:
        self._node = node
        self._store = store
        self._view = view
        self._hold = hold
        self._held_since = 0.0
        self._untold: frozenset[str] = frozenset()
        self._look_for_removed = 0.0

    def may_claim(self, network: str) -> bool:
        """Whether a block of a network that no host has may be claimed: where the store was restored, another host
        may have claimed it after the snapshot, and not have said so again. This one may never have heard of it.
        A host that has joined since then knows it from the others.
        """
        told = (value.decode("utf-8", "replace").split() for _, value in self._view.values_below(records.RESTORED))
        return not self._hold.includes(network) and not any(network in names for names in told)

    def note_read(self, before: frozenset[str]) -> None:
        """Log and remember that the store has just been read without records that may not have been removed.
        ``before`` are the networks that were known.
        """
        self._held_since = time.monotonic()
        if self._view.doubted or self._hold.accepted:
            if self._hold.accepted:  # by the operator; else it may be that many nodes were removed
                self._untold = before
            self._hold.begin(before)
            if before:
                seconds = claim_hold.SECONDS
                log.warning("the store may have been restored: for %.0f s no block of a network is claimed", seconds)
        if self._view.doubted and self._view.held:
            log.error(
                "the store has lost %d records of networks that nobody has removed; they are kept: %s …",
                len(self._view.held),
                ", ".join(sorted(self._view.held)[:3]),
            )

    async def tell(self) -> None:
        """Tell all hosts of which networks claims are held, since the operator has accepted a restored store here.

        Raises StoreError.
        """
        if self._untold:
            lease = await self._store.grant(claim_hold.SECONDS)
            await self._store.put(f"{records.RESTORED}{self._node}", " ".join(self._untold).encode(), lease=lease)
            self._untold = frozenset()

    async def reassert(self) -> bool:
        """Write again what the store has lost of this host's, and of the networks; believe it about the rest
        after a while, and return True then. Raises StoreError.
        """
        self._hold.end()
        if not (self._view.held or self._view.doubted):
            return False
        held = [
            (entry, there) for key, there in self._view.held.items() if (entry := self._view.entry(key)) is not None
        ]
        # A host's oldest block has its own address: the blocks must not change their order.
        for entry, there in sorted(held, key=lambda one: one[0].create_revision):
            if self._is_own(key := entry.key):
                same = Compare(key, "mod", there.mod_revision if there is not None else 0)
                await self._store.transact([same], [Put(key, entry.value)])
        if time.monotonic() - self._held_since > claim_hold.SECONDS:
            self._view.drop_held()
            return True
        return False

    def _is_own(self, key: str) -> bool:
        kind, *names = key.removeprefix(records.ROOT).split("/")
        if kind in ("network", "vni") or key == records.LIST:
            return True
        if kind == "member":
            return names[0] == self._node
        network = self._view.network(names[0]) if kind == "block" else None
        blocks = self._view.blocks(network).all if network is not None else ()
        return any(one.node == self._node and records.block_key(names[0], one.subnet) == key for one in blocks)

    async def free_removed(self) -> None:
        """Free the blocks of nodes that were removed, once they certainly use them no more. Raises StoreError."""
        if not self._view.networks() or time.monotonic() < self._look_for_removed:
            return
        self._look_for_removed = time.monotonic() + _PERIOD * random.uniform(0.8, 1.2)
        for node, revision in await self._removed():
            await networks.free_blocks(self._store, self._view, node, revision)

    async def _removed(self) -> list[tuple[str, int]]:
        """The nodes whose blocks are to be freed, with the revisions of their records."""
        gone = []
        for entry in (await self._store.range(nodes.ROOT)).entries:
            if "/" in entry.key.removeprefix(nodes.ROOT):
                continue
            with contextlib.suppress(nodes.DecodeError):
                found = nodes.decode(entry)
                if found.state is nodes.State.REMOVED and (found.powered_off or time.time() - found.removed > GRACE):
                    gone.append((found.name, entry.mod_revision))
        return gone
