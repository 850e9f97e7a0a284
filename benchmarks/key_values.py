"""Latency of the embedded store: ``PYTHONPATH=. .venv/bin/python benchmarks/key_values.py [FOLDER]``.

The disk's own fsync is measured too: no durable put can be faster.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from store import Put, Store
from store.embedded import open_embedded

VALUE = b"v" * 300
OTHER = """
import asyncio, sys, time
from pathlib import Path
from store.embedded import open_embedded

async def main():
    store = await open_embedded(Path(sys.argv[1]))
    for number in range(300):
        await asyncio.sleep(0.005)
        before = time.perf_counter()
        await store.put("from", b"%.9f" % before)
        await store.put("answered", b"%.9f" % time.perf_counter())
    await store.close()

asyncio.run(main())
"""


def show(name: str, seconds: list[float]) -> None:
    seconds.sort()
    middle, high = (seconds[min(int(len(seconds) * part), len(seconds) - 1)] * 1000 for part in (0.5, 0.99))
    print(f"{name:44} p50 {middle:8.3f} ms   p99 {high:8.3f} ms")


async def timed(count: int, call: Callable[[int], Awaitable[object]]) -> list[float]:
    times = []
    for number in range(count):
        begin = time.perf_counter()
        await call(number)
        times.append(time.perf_counter() - begin)
    return times


def sync(folder: str) -> None:
    """Append 16 KiB and fsync, about as much as a put."""
    descriptor = os.open(f"{folder}/floor", os.O_CREAT | os.O_WRONLY)
    times = []
    for number in range(300):
        os.pwrite(descriptor, bytes(16384), number * 16384)
        begin = time.perf_counter()
        os.fsync(descriptor)
        times.append(time.perf_counter() - begin)
    os.close(descriptor)
    show("disk: 16 KiB and fsync", times)


async def writes(store: Store) -> None:
    show("put", await timed(1000, lambda number: store.put(f"one/{number}", VALUE)))
    begin = time.perf_counter()

    async def client(task: int) -> list[float]:
        return await timed(100, lambda number: store.put(f"many/{task}/{number}", VALUE))

    times = [taken for some in await asyncio.gather(*map(client, range(64))) for taken in some]
    show(f"put, 64 concurrent: {len(times) / (time.perf_counter() - begin):.0f} per second", times)
    lease = await store.grant(1000)
    show("keep_alive", await timed(1000, lambda _: store.keep_alive(lease)))
    show("get", await timed(2000, lambda _: store.get("one/7")))


async def watching(store: Store, path: Path) -> None:
    """From the response of a put to the event of a watch, and from the call."""
    watch = store.watch("own", (await store.range("", limit=1)).revision)
    after: list[float] = []
    for _ in range(300):
        listening = asyncio.ensure_future(anext(watch))
        listening.add_done_callback(lambda _: after.append(time.perf_counter()))
        await asyncio.sleep(0.001)
        await store.put("own", VALUE)
        answered = time.perf_counter()
        await listening
        after[-1] -= answered
    show("watch, same process, from the response", [max(taken, 0.0) for taken in after])
    watch = store.watch("", (await store.range("", limit=1)).revision)
    command = [sys.executable, "-c", OTHER, str(path)]
    child = await asyncio.create_subprocess_exec(*command, env={**os.environ, "PYTHONPATH": os.getcwd()})
    begun, answered_at, seen = [], [], 0.0
    for _ in range(600):
        [event] = (await anext(watch)).events
        assert event.entry
        if event.key == "from":
            seen = time.perf_counter()
            begun.append(seen - float(event.entry.value))
        else:
            answered_at.append(max(seen - float(event.entry.value), 0.0))
    await child.wait()
    show("watch, other process, from the response", answered_at)
    show("watch, other process, from the call", begun)


async def opening(store: Store, path: Path) -> None:
    for start in range(0, 100_000, 100):
        await store.transact([], [Put(f"bulk/{number:06}", VALUE) for number in range(start, start + 100)])
    show("put with 100,000 keys", await timed(300, lambda number: store.put(f"bulk/{number * 317:06}", VALUE)))
    show("range of 100,000 keys", await timed(3, lambda _: store.range("bulk/")))
    await store.close()

    async def once(_: int) -> None:
        begin = time.perf_counter()
        store = await open_embedded(path)
        opened.append(time.perf_counter() - begin)
        await store.close()

    opened: list[float] = []
    await timed(9, once)
    show("open, 100,000 keys", opened)


async def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        sync(folder)
        path = Path(folder) / "store" / "store.db"
        store = await open_embedded(path)
        await writes(store)
        await watching(store, path)
        await opening(store, path)


if __name__ == "__main__":
    asyncio.run(main())
