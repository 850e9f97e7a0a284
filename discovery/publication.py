"""What a node's agent writes to the store: persisted for itself, published for all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from discovery import layout
from discovery.check_deadlines import State, decode_state
from discovery.claims import Claims
from discovery.structs import CatalogEntry, CheckDefinition, Instance, Status
from store import Delete, Entry, LeaseGone, Operation, Put, Store

log = logging.getLogger(__name__)

Value = TypeVar("Value")

_AT_ONCE = 50  # values of ``unhurried`` without a pause: some milliseconds
BATCH = 100
"""Operations in one transaction; etcd's default limit is 128."""


@dataclass(frozen=True, slots=True)
class Persisted:
    """What a node's agent has persisted: instances and states of checks by id, definitions."""

    instances: dict[str, Instance] = field(default_factory=dict)
    definitions: list[CheckDefinition] = field(default_factory=list)
    states: dict[str, State] = field(default_factory=dict)


async def unhurried(values: Iterable[Value]) -> AsyncIterator[Value]:
    """The values; other tasks of the loop run in between."""
    for number, value in enumerate(values, 1):
        yield value
        if not number % _AT_ONCE:
            await asyncio.sleep(0)


class Publication:
    """One node's keys in the ``local`` and the ``shared`` store, which on one host are the same.

    Published keys are bound to a lease of ``ttl`` seconds.
    """

    def __init__(self, node: str, local: Store, shared: Store, ttl: float) -> None:
        self._node = node
        self._local = local
        self._shared = shared
        self._ttl = ttl
        self._lease = 0
        self._claims = Claims(node, shared)

    # Operations

    def publish(self, value: CatalogEntry) -> Operation:
        """Publish an entry for as long as the node's lease lasts."""
        return Put(layout.store_key(value), layout.encode(value), self._lease)

    @staticmethod
    def unpublish(value: CatalogEntry) -> Operation:
        """Unpublish an entry; a missing one is no error."""
        return Delete(layout.store_key(value))

    def persist(self, kind: str, name: str, value: bytes) -> Operation:
        """Persist something over restarts."""
        return Put(layout.local_key(self._node, kind, name), value)

    def forget(self, kind: str, name: str) -> Operation:
        """Forget something persisted; a missing one is no error."""
        return Delete(layout.local_key(self._node, kind, name))

    async def claim(self, service: str, network: str, *, shared: bool | None = None, force: bool = False) -> str:
        """Claim a service for a network's instances (``Claims.claim``). Raises LeaseGone, StoreError."""
        return await self._claims.claim(service, network, self._lease, shared=shared, force=force)

    def withdraw(self, service: str, network: str) -> Operation:
        """End a claim; a missing one is no error."""
        return self._claims.withdraw(service, network)

    async def write(self, persisted: Sequence[Operation], published: Sequence[Operation]) -> None:
        """Write ``persisted`` first, then ``published``; in one transaction if it is the same
        store.

        Raises LeaseGone if the lease has expired: call ``acquire_lease`` and publish everything
        again. Raises StoreError.
        """
        if self._local is self._shared:
            persisted, published = (), (*persisted, *published)
        for target, operations in ((self._local, persisted), (self._shared, published)):
            for start in range(0, len(operations), BATCH):
                await target.transact((), operations[start : start + BATCH])

    async def replace_all(self, values: Iterable[CatalogEntry]) -> None:
        """Publish exactly these entries; unchanged ones are not rewritten. Raises StoreError."""
        wanted = {layout.store_key(value): layout.encode(value) async for value in unhurried(values)}
        published = {entry.key: entry async for entry in self.published()}
        operations: list[Operation] = [
            Put(key, value, self._lease)
            for key, value in wanted.items()
            if key not in published or published[key].value != value or published[key].lease != self._lease
        ]
        operations += [Delete(key) for key in published if key not in wanted]
        await self.write((), operations)

    # Reading

    async def persisted(self) -> Persisted:
        """What is persisted; malformed entries are ignored. Raises StoreError."""
        found = Persisted()
        async for entry in unhurried((await self._local.range(layout.local_prefix(self._node))).entries):
            what, names = layout.split_key(entry.key)
            try:
                match (what, *names[1:]):
                    case ("own", "service", name):
                        found.instances[name] = layout.decode_local(entry)
                    case ("own", "check", _):
                        found.definitions.append(layout.decode_check_definition(entry.value))
                    case ("own", "status", name):
                        found.states[name] = decode_state(entry.value)
            except (layout.DecodeError, ValueError) as error:
                log.warning("ignoring persisted %s: %s", entry.key, error)
        return found

    async def has_expired_checks(self) -> bool:
        """Whether a TTL has expired that is not known to be critical. Raises StoreError."""
        now = time.time()
        for entry in (await self._local.range(layout.local_key(self._node, "status"))).entries:
            with contextlib.suppress(ValueError):
                status, expires, _ = decode_state(entry.value)
                if expires is not None and expires <= now and status is not Status.CRITICAL:
                    return True
        return False

    async def published(self) -> AsyncIterator[Entry]:
        """The node's published entries, services first. Raises StoreError."""
        for kind in ("service/", "check/", "node"):
            for entry in (await self._shared.range(layout.host_prefix(self._node) + kind)).entries:
                yield entry

    # Lease

    async def acquire_lease(self) -> None:
        """Resume the node's lease if it still exists, else grant a new one. Raises StoreError."""
        if await self.resume_lease():
            return
        self._lease = await self._shared.grant(self._ttl)
        await self._local.put(layout.local_key(self._node, "lease"), json.dumps(self._lease).encode())

    async def resume_lease(self) -> bool:
        """Renew the node's lease, that of an earlier agent included; whether there still is one. Raises
        StoreError.
        """
        if not self._lease:
            held = await self._local.get(layout.local_key(self._node, "lease"))
            self._lease = int(json.loads(held.value)) if held is not None else 0
        try:
            if self._lease:
                await self._shared.keep_alive(self._lease)
                return True
        except LeaseGone:
            pass
        return False

    async def renew_lease(self) -> None:
        """Renew the lease. Raises LeaseGone if it has expired, StoreError."""
        await self._shared.keep_alive(self._lease)

    async def revoke_lease(self) -> None:
        """Revoke the lease, which unpublishes everything. Raises StoreError."""
        await self._shared.revoke(self._lease)
