"""Other processes on a store: ``python -m unit.store.children FUNCTION ENGINE PATH …``."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys

from unit.store.engines import open_place

from store import Compare, Put, Store


async def count(engine: str, place: str, times: str) -> None:
    """Increment a counter that other processes increment, too."""
    store = await open_place(engine, place)
    for _ in range(int(times)):
        await add_one(store)
    await store.close()


async def add_one(store: Store) -> None:
    """Increment by compare and swap, retried until it succeeds."""
    while True:
        entry = await store.get("counter")
        revision, number = (entry.mod_revision, int(entry.value)) if entry else (0, 0)
        outcome = await store.transact([Compare("counter", "mod", revision)], [Put("counter", b"%d" % (number + 1))])
        if outcome.succeeded:
            return


async def write(engine: str, place: str, tag: str, times: str) -> None:
    """Put own keys, one after the other."""
    store = await open_place(engine, place)
    for number in range(int(times)):
        await store.put(f"{tag}/{number:04}", b"%d" % number)
    await store.close()


async def lease(engine: str, place: str, seconds: str) -> None:
    """Put a key with a lease, print a line, and exit without closing."""
    store = await open_place(engine, place)
    await store.put("leased", b"", lease=await store.grant(float(seconds)))
    print("put", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def crash(engine: str, place: str, rounds: str, seed: str) -> None:
    """Kill writers at random; after each, check that everything reported as written is there."""
    chance = random.Random(int(seed))
    told: dict[str, tuple[int, bytes]] = {}
    highest = 0
    for number in range(int(rounds)):
        receiving, sending = os.pipe()
        child = os.fork()
        if not child:
            os.close(receiving)
            asyncio.run(_write_for_ever(engine, place, number, sending))
        os.close(sending)
        limit = chance.randrange(1, 120)
        with os.fdopen(receiving) as answers:
            for position, line in enumerate(answers):
                if position == limit:
                    os.kill(child, signal.SIGKILL)
                key, revision, value = line.split()
                told[key] = (int(revision), value.encode())
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        highest = asyncio.run(_check_told(engine, place, told, highest))
    print(len(told), "told and kept")


async def _write_for_ever(engine: str, place: str, number: int, sending: int) -> None:
    store = await open_place(engine, place, history=500)

    async def write(task: int) -> None:
        turn = 0
        while True:
            key, value = f"{number}/{task}/{turn % 7}", b"%d" % turn
            outcome = await store.transact([], [Put(key, value), Put(f"{key}/twin", value)])
            os.write(sending, b"%s %d %s\n" % (key.encode(), outcome.revision, value))
            turn += 1

    await asyncio.gather(*map(write, range(8)))


async def _check_told(engine: str, place: str, told: dict[str, tuple[int, bytes]], highest: int) -> int:
    store = await open_place(engine, place, history=500)
    found = await store.range("")
    entries = {entry.key: entry for entry in found.entries}
    for key, (revision, value) in told.items():
        entry = entries[key]
        # One more put may have been committed that was not reported before the kill.
        assert entry.mod_revision >= revision, (key, entry, revision)
        assert entry.mod_revision > revision or entry.value == value, (key, entry, value)
    for key, entry in entries.items():
        if not key.endswith(("/twin", "after")):
            twin = entries[f"{key}/twin"]
            assert (twin.value, twin.mod_revision) == (entry.value, entry.mod_revision), (entry, twin)
    assert found.revision >= max(highest, *(revision for revision, _ in told.values()))
    assert await store.put("after", b"") == found.revision + 1
    await store.close()
    return found.revision + 1


if __name__ == "__main__":
    act = {"count": count, "write": write, "lease": lease}.get(sys.argv[1])
    if act:
        asyncio.run(act(*sys.argv[2:]))
    else:
        {"crash": crash}[sys.argv[1]](*sys.argv[2:])
