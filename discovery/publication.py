"""Where a node writes down what it offers: in its own part of a store to keep it, in the shared part to show it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence

from discovery import layout
from discovery.structs import CatalogEntry
from store import Delete, Entry, LeaseGone, Operation, Put, Store

BATCH = 100
"""Operations in one transaction of the store; etcd takes 128."""


class Publication:
    """One node's keys in two stores, ``own`` and ``shared``, which on one host are the same.

    ``seconds`` is how long what is shown outlives the last sign of life.
    """

    def __init__(self, node: str, local: Store, shared: Store, ttl: float) -> None:
        self._node = node
        self._local = local
        self._shared = shared
        self._ttl = ttl
        self._lease = 0

    # What is to be written

    def publish(self, value: CatalogEntry) -> Operation:
        """Have everybody see a value, for as long as this node lives."""
        return Put(layout.store_key(value), layout.encode(value), self._lease)

    @staticmethod
    def unpublish(value: CatalogEntry) -> Operation:
        """The reverse; what is not shown is no error."""
        return Delete(layout.store_key(value))

    def persist(self, kind: str, name: str, value: bytes) -> Operation:
        """Keep something over restarts."""
        return Put(layout.local_key(self._node, kind, name), value)

    def forget(self, kind: str, name: str) -> Operation:
        """The reverse; what is not kept is no error."""
        return Delete(layout.local_key(self._node, kind, name))

    async def write(self, persisted: Sequence[Operation], published: Sequence[Operation]) -> None:
        """First what must not be lost, then what others see; both at once where both are in one store.

        Raises LeaseGone where this node was thought dead: ``revive`` and show everything; StoreError.
        """
        if self._local is self._shared:
            persisted, published = (), (*persisted, *published)
        for target, operations in ((self._local, persisted), (self._shared, published)):
            for start in range(0, len(operations), BATCH):
                await target.transact((), operations[start : start + BATCH])

    async def replace_all(self, values: Iterable[CatalogEntry]) -> None:
        """Show these values and no others, and write nothing that is so already. Raises StoreError."""
        wanted = {layout.store_key(value): layout.encode(value) for value in values}
        published = {entry.key: entry async for entry in self.published()}
        operations: list[Operation] = [
            Put(key, value, self._lease)
            for key, value in wanted.items()
            if key not in published or published[key].value != value or published[key].lease != self._lease
        ]
        operations += [Delete(key) for key in published if key not in wanted]
        await self.write((), operations)

    # What is there

    async def persisted(self) -> list[tuple[str, str, Entry]]:
        """What this node keeps: kind, name and entry. Raises StoreError."""
        prefix = layout.local_key(self._node, "", "").rstrip("/") + "/"
        found = []
        for entry in (await self._local.range(prefix)).entries:
            kind, name = layout.key_parts(entry.key)[1:3]
            found.append((kind, name, entry))
        return found

    async def published(self) -> AsyncIterator[Entry]:
        """What everybody sees of this node, services first. Raises StoreError."""
        for prefix, place in ((layout.SERVICES, 1), (layout.CHECKS, 0), (layout.NODES, 0)):
            for entry in (await self._shared.range(prefix)).entries:
                if layout.key_parts(entry.key)[place : place + 1] == (self._node,):
                    yield entry

    # Its life

    async def acquire_lease(self) -> None:
        """Take up the lease that this node had, if it still holds, or a new one. Raises StoreError."""
        if not self._lease:
            held = await self._local.get(layout.local_key(self._node, "lease"))
            self._lease = int(json.loads(held.value)) if held is not None else 0
        try:
            if self._lease:
                await self._shared.keep_alive(self._lease)
                return
        except LeaseGone:
            pass
        self._lease = await self._shared.grant(self._ttl)
        await self._local.put(layout.local_key(self._node, "lease"), json.dumps(self._lease).encode())

    async def renew_lease(self) -> None:
        """Give a sign of life. Raises LeaseGone where it came too late, StoreError."""
        await self._shared.keep_alive(self._lease)

    async def revoke_lease(self) -> None:
        """Have all that is shown vanish at once. Raises StoreError."""
        await self._shared.revoke(self._lease)
