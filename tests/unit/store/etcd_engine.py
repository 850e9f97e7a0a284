"""The etcd store under the conformance tests, on a cluster that serves all of them.

A test sees the keys below a prefix of its own, and revisions counted from its start: an etcd cluster has
one revision for all. It is alone on the cluster. Lease times are real, but short.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import grpc

from store import Batch, Compacted, Compare, Entry, Event, Operation, Outcome, Range, Store
from store.etcd.client import open_etcd
from store.etcd.settings import EtcdSettings

SCALE = 0.2
"""Seconds for each of a test's, when it has stopped the clock: etcd's leases are whole seconds."""
_COMPACT_EVERY = 20
"""Revisions."""
_numbers = itertools.count(1)


class Etcd:
    name = "etcd"

    def __init__(self, folder: Path, endpoints: Sequence[str]) -> None:
        number = next(_numbers)
        settings = EtcdSettings(
            tuple(endpoints),
            str(folder / "state"),
            prefix=f"/test{number}/",
            operations=f"/operation{number}/",
            attempt_seconds=5,
            call_seconds=30,
        )
        self._settings = settings
        self._scale = 1.0
        self._leases: list[int] = []
        self._base = asyncio.run(_revision(settings))
        self._compacted = 0
        self.place = f"{' '.join(endpoints)}|{settings.state}|{number}|{self._base}"

    @contextlib.asynccontextmanager
    async def open(self, history: int = 10_000) -> AsyncIterator[Store]:
        async def compact(revision: int) -> None:
            await self._compact(revision - history)

        store = Shifted(await open_etcd(self._settings), self._base, self._scale, self._leases)
        store.on_write = compact if history < 10_000 else None
        try:
            yield store
        finally:
            await store.close()

    async def _compact(self, wanted: int) -> None:
        """Compact what is older than the history, as an operator's etcd does from time to time."""
        if wanted >= self._compacted + _COMPACT_EVERY:
            self._compacted = wanted
            async with grpc.aio.insecure_channel(self._settings.endpoints[0]) as channel:
                await channel.unary_unary("/etcdserverpb.KV/Compact")(b"\x08" + _varint(wanted + self._base))

    def stop_time(self) -> None:
        self._scale = SCALE

    def pass_time(self, seconds: float) -> None:
        time.sleep(seconds * self._scale)

    def close(self) -> None:
        """Delete the test's keys and leases: their expiry would be a revision of the next test."""

        async def clear() -> None:
            store = await open_etcd(self._settings)
            await store.delete("", prefix=True)
            await asyncio.gather(*map(store.revoke, self._leases))
            await store.close()

        asyncio.run(clear())


class Shifted:
    """A store whose revisions start from 0 at ``base``."""

    def __init__(self, store: Store, base: int, scale: float, leases: list[int]) -> None:
        self._store = store
        self._base = base
        self._scale = scale
        self._leases = leases
        self.on_write: Callable[[int], Awaitable[None]] | None = None

    async def get(self, key: str) -> Entry | None:
        entry = await self._store.get(key)
        return self._entry(entry)

    async def range(self, prefix: str, *, limit: int = 0, without: str = "", containing: str = "") -> Range:
        found = await self._store.range(prefix, limit=limit, without=without, containing=containing)
        return Range(tuple(self._there(entry) for entry in found.entries), found.revision - self._base)

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        return await self._written(await self._store.put(key, value, lease=lease) - self._base)

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        return await self._store.delete(key, prefix=prefix)

    async def transact(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> Outcome:
        outcome = await self._store.transact([self._compare(one) for one in compare], success, failure)
        return replace(outcome, revision=await self._written(outcome.revision - self._base))

    async def grant(self, seconds: float) -> int:
        lease = await self._store.grant(seconds * self._scale if 0 < seconds < 1000 else seconds)
        self._leases.append(lease)
        return lease

    async def keep_alive(self, lease: int) -> None:
        await self._store.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        await self._store.revoke(lease)

    def watch(self, prefix: str, after: int) -> AsyncIterator[Batch]:
        return self._watch(self._store.watch(prefix, after + self._base if after >= 0 else after))

    async def _watch(self, watch: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
        try:
            async for batch in watch:
                revision = batch.revision - self._base
                events = (
                    Event(one.key, self._entry(one.entry), self._entry(one.previous), one.revision - self._base)
                    for one in batch.events
                )
                yield Batch(revision, tuple(events))
        except Compacted as error:
            raise Compacted(error.oldest - self._base) from None

    @property
    def lost(self) -> str:
        return self._store.lost

    async def close(self) -> None:
        await self._store.close()

    def _entry(self, entry: Entry | None) -> Entry | None:
        return None if entry is None else self._there(entry)

    def _there(self, entry: Entry) -> Entry:
        return replace(
            entry,
            create_revision=entry.create_revision - self._base,
            mod_revision=entry.mod_revision - self._base,
        )

    def _compare(self, compare: Compare) -> Compare:
        if compare.field in ("create", "mod") and isinstance(compare.is_, int) and compare.is_ > 0:
            return replace(compare, is_=compare.is_ + self._base)
        return compare

    async def _written(self, revision: int) -> int:
        if self.on_write is not None:
            await self.on_write(revision)
        return revision


async def open_place(place: str) -> Store:
    """Open the store that another process tests."""
    endpoints, state, number, base = place.split("|")
    settings = EtcdSettings(
        tuple(endpoints.split()),
        state,
        prefix=f"/test{number}/",
        operations=f"/operation{number}/",
        attempt_seconds=5,
        call_seconds=30,
    )
    return Shifted(await open_etcd(settings), int(base), 1.0, [])


async def _revision(settings: EtcdSettings) -> int:
    store = await open_etcd(settings)
    found = (await store.range("")).revision
    await store.close()
    return found


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*found, number))
