"""Watches of keys, and what happens when the store's history was compacted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from discovery.key_watch import KeyWatcher
from store import Batch, Compacted, Store
from store.embedded import open_embedded


class Forgetful:
    """A store whose first ``times`` watches raise Compacted."""

    def __init__(self, store: Store, times: int) -> None:
        self._store = store
        self.times = times

    async def watch(self, prefix: str, after: int) -> AsyncIterator[Batch]:
        if self.times:
            self.times -= 1
            raise Compacted(after)
        async for batch in self._store.watch(prefix, after):
            yield batch


async def follow(path: Path, times: int) -> None:
    store = await open_embedded(path / "store.db")
    forgetful = Forgetful(store, times)
    seen: list[int] = []
    loads = 0

    async def load() -> int:
        nonlocal loads
        loads += 1
        return (await store.range("")).revision

    changes = KeyWatcher(forgetful, "/a/", lambda batch: seen.append(batch.revision))  # type: ignore[arg-type]
    await changes.start(load)
    try:
        async with asyncio.timeout(20):
            while loads < 1 + times:
                await asyncio.sleep(0.01)
            with changes.subscribe("/a/x") as key, changes.subscribe("/a/", prefix=True) as tree:
                await store.put("/b/x", b"")
                await store.put("/a/y", b"")
                await tree.wait()
                assert not key.is_set()
                await store.put("/a/x", b"")
                await key.wait()
        assert len(seen) == 2
    finally:
        await changes.stop()
        await store.close()


def test_a_change_wakes_its_waiters(tmp_path: Path) -> None:
    asyncio.run(follow(tmp_path, 0))


def test_after_compaction_the_keys_are_loaded_again(tmp_path: Path) -> None:
    asyncio.run(follow(tmp_path, 3))


def test_concurrent_reads_share_one_read_of_the_store(tmp_path: Path) -> None:
    async def run() -> None:
        store = await open_embedded(tmp_path / "store.db")
        changes = KeyWatcher(store, "/")
        await store.put("/a", b"1")
        found = await asyncio.gather(*(changes.read("/a") for _ in range(50)))
        assert len({id(one) for one in found}) == 1
        await store.put("/a", b"2")
        assert (await changes.read("/a")).entries[0].value == b"2"
        await store.close()

    asyncio.run(run())
