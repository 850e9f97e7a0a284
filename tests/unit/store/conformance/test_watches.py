"""Watches: every change in order, exactly once, and each revision in one batch."""

from __future__ import annotations

import asyncio

import pytest
from unit.store.engines import Engine
from unit.store.helpers import brief, collect, environment, program, soon, take

from store import Batch, Compacted, Delete, Entry, Event, Put, Store


async def test_events_have_the_current_and_the_previous_entry(engine: Engine) -> None:
    async with engine.open() as store:
        watch = store.watch("a/", 0)
        await store.put("a/1", b"one")
        await store.put("b", b"unseen")
        await store.put("a/1", b"two")
        await store.delete("a/1")
        first = Entry("a/1", b"one", 1, 1, 1)
        second = Entry("a/1", b"two", 1, 3, 2)
        assert await take(watch, 3) == [
            Batch(1, (Event("a/1", first, None, 1),)),
            Batch(3, (Event("a/1", second, first, 3),)),
            Batch(4, (Event("a/1", None, second, 4),)),
        ]


async def test_a_watch_from_an_old_revision_replays_history(engine: Engine) -> None:
    async with engine.open() as store:
        for number in range(20):
            await store.put("k", b"%d" % number)
    async with engine.open() as store:
        watch = store.watch("k", 12)
        assert [batch.revision for batch in await take(watch, 8)] == list(range(13, 21))
        await store.put("k", b"new")
        assert [batch.revision for batch in await take(watch, 1)] == [21]


async def test_range_then_watch_misses_nothing(engine: Engine) -> None:
    async with engine.open() as store:

        async def write() -> None:
            for number in range(200):
                await store.put(f"k{number % 5}", b"%d" % number)

        writing = asyncio.create_task(write())
        for _ in range(10):
            found = await store.range("")
            replica = {entry.key: entry for entry in found.entries}
            batches = (
                await collect(store.watch("", found.revision), min(found.revision + 10, 200))
                if found.revision < 200
                else []
            )
            for batch in batches:
                for event in batch.events:
                    assert replica.get(event.key) == event.previous
                    assert event.entry
                    replica[event.key] = event.entry
        await writing


async def test_batches_are_whole_and_in_order(engine: Engine) -> None:
    async with engine.open() as store:
        watches = [store.watch("", 0) for _ in range(3)]

        async def write(task: int) -> None:
            for turn in range(25):
                await store.transact([], [Put(f"{task}/{part}", b"%d" % turn) for part in range(10)])

        writing = [asyncio.create_task(write(task)) for task in range(4)]
        heard = await asyncio.gather(*(collect(watch, 100) for watch in watches))
        await asyncio.gather(*writing)
        assert heard[0] == heard[1] == heard[2]
        assert [batch.revision for batch in heard[0]] == list(range(1, 101))
        for batch in heard[0]:
            assert len({event.key.split("/")[0] for event in batch.events}) == 1
            assert [event.key.split("/")[1] for event in batch.events] == [str(part) for part in range(10)]


async def test_a_large_revision_is_one_batch_from_history(engine: Engine) -> None:
    async with engine.open() as store:
        for start in range(0, 3000, 100):
            await store.transact([], [Put(f"k{number:05}", b"") for number in range(start, start + 100)])
        assert await store.delete("k", prefix=True) == 3000
        await store.put("last", b"")
    async with engine.open() as store:
        heard = await collect(store.watch("", 0), 32)
        assert [batch.revision for batch in heard] == list(range(1, 33))
        assert [len(batch.events) for batch in heard] == [100] * 30 + [3000, 1]
        assert [batch.revision for batch in await collect(store.watch("k0001", 0), 31)] == [1, 31]


async def test_a_watch_of_compacted_history_raises(engine: Engine) -> None:
    async with engine.open(history=50) as store:
        for number in range(200):
            await store.put("k", b"%d" % number)
        with pytest.raises(Compacted) as caught:
            await take(store.watch("k", 0), 1)
        oldest = caught.value.oldest
        assert 100 < oldest <= 150, "at least the requested history is kept, and little more"
        with pytest.raises(Compacted):
            await take(store.watch("", oldest - 1), 1)
        heard = await collect(store.watch("", oldest), 200)
        assert [batch.revision for batch in heard] == list(range(oldest + 1, 201))


async def test_a_watch_during_compaction(engine: Engine) -> None:
    """A slow reader gets all events, or Compacted; it never misses one silently."""
    async with engine.open(history=30) as store, engine.open(history=30) as other:

        async def listen(pause: float, prefix: str) -> tuple[int, int]:
            cursor = late = 0
            while cursor < 600:
                try:
                    async for batch in store.watch(prefix, cursor):
                        assert [event.revision for event in batch.events] == [batch.revision]
                        assert batch.revision == cursor + 1
                        cursor = batch.revision
                        await asyncio.sleep(pause)
                        if cursor >= 600:
                            break
                except Compacted as error:
                    assert error.oldest > cursor
                    cursor, late = error.oldest, late + 1
            return cursor, late

        listening = [asyncio.create_task(listen(pause, prefix)) for pause in (0, 0.001, 0.02) for prefix in ("", "k")]
        for number in range(300):
            await store.put("k", b"%d" % number)
            await other.put("k", b"%d" % number)
        assert {cursor for cursor, _ in await soon(asyncio.gather(*listening))} == {600}


async def test_a_watch_from_a_future_revision_waits(engine: Engine) -> None:
    async with engine.open() as store:
        watch = store.watch("", 3)
        for number in range(5):
            await store.put("k", b"%d" % number)
        assert [batch.revision for batch in await take(watch, 2)] == [4, 5]


async def test_closing_the_store_ends_its_watches(engine: Engine) -> None:
    async with engine.open() as store:
        await store.put("k", b"")
        heard: list[int] = []

        async def listen() -> None:
            async for batch in store.watch("", 0):
                heard.append(batch.revision)

        listening = [asyncio.create_task(listen()) for _ in range(3)]
        while len(heard) < 3:
            await asyncio.sleep(0.01)
        await store.close()
        await soon(asyncio.gather(*listening))
        assert [batch async for batch in store.watch("", 0)] == []


async def test_a_cancelled_watch(engine: Engine) -> None:
    async with engine.open() as store:
        watch = store.watch("", 0)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await store.put("k", b"")
        assert len(await take(store.watch("", 0), 1)) == 1


async def write_alternately(stores: list[Store], count: int) -> None:
    for number in range(count):
        await stores[number % len(stores)].put(f"k{number % 3}", b"%d" % number)


async def test_changes_of_other_stores_are_interleaved_in_order(engine: Engine) -> None:
    async with engine.open() as one, engine.open() as other:
        watches = [store.watch("", 0) for store in (one, other, one)]
        writing = asyncio.create_task(write_alternately([one, other], 120))
        heard = await asyncio.gather(*(collect(watch, 120) for watch in watches))
        await writing
        assert [batch.revision for batch in heard[0]] == list(range(1, 121))
        assert heard[0] == heard[1] == heard[2]


async def test_changes_of_several_processes_have_one_order(engine: Engine) -> None:
    async with engine.open() as store:
        watch = store.watch("", 0)
        children = [
            await asyncio.create_subprocess_exec(
                *program("write", engine.name, engine.place, f"p{number}", "50"), env=environment()
            )
            for number in range(3)
        ]
        for number in range(50):
            await store.put(f"own/{number:04}", b"%d" % number)
        heard = await collect(watch, 200)
        assert [await child.wait() for child in children] == [0, 0, 0]
        assert [batch.revision for batch in heard] == list(range(1, 201))
        for tag in ("p0", "p1", "p2", "own"):
            keys = [brief(event)[0] for batch in heard for event in batch.events if event.key.startswith(tag)]
            assert keys == [f"{tag}/{number:04}" for number in range(50)]


async def test_a_watch_of_a_prefix_gets_only_its_events_of_a_revision(engine: Engine) -> None:
    async with engine.open() as store:
        live = store.watch("a/", 0)
        await store.put("a/old", b"")
        await store.transact([], [Put("b/1", b""), Put("a/1", b""), Delete("a/old"), Put("c", b"")])
        await store.put("ab", b"")
        await store.put("a/2", b"")
        wanted = [[("a/old", b"", None)], [("a/1", b"", None), ("a/old", None, b"")], [("a/2", b"", None)]]
        for watch in (live, store.watch("a/", 0)):
            assert [[brief(event) for event in batch.events] for batch in await take(watch, 3)] == wanted
