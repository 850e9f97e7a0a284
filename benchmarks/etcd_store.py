"""The store on a real etcd cluster of three members in namespaces: throughput, latency, failover.

As root: ``PYTHONPATH=.:tests tests/private .venv/bin/python benchmarks/etcd_store.py [SECONDS]``. The data are
in memory, without fsync's time.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable

from lab.etcd import KILL, Cluster
from store import Compare, Put, Store, Unavailable
from store.etcd.client import open_etcd
from store.etcd.settings import EtcdSettings

Call = Callable[[int], Awaitable[object]]


async def measure(name: str, call: Call, tasks: int, seconds: float) -> None:
    """Print calls a second and their times, by so many tasks at once."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def work(task: int) -> None:
        while (started := time.perf_counter()) < end:
            await call(task)
            times.append(time.perf_counter() - started)

    await asyncio.gather(*map(work, range(tasks)))
    cuts = statistics.quantiles(times, n=100)
    p50, p99 = cuts[49] * 1e3, cuts[98] * 1e3
    print(f"{name:<22} {tasks:>3} at once {len(times) / seconds:>7.0f}/s  p50 {p50:.2f}  p99 {p99:.2f} ms")


async def failover(store: Store, cluster: Cluster) -> float:
    """The longest time between two writes when the leader is killed."""
    leader = await asyncio.to_thread(cluster.leader)
    longest, last, end, killed = 0.0, time.perf_counter(), time.perf_counter() + 8, False
    while time.perf_counter() < end:
        if not killed and time.perf_counter() > end - 7:
            killed = True
            cluster.signal(leader, KILL)
        try:
            await store.put("failover", b"")
        except Unavailable as error:
            print(f"  failed: {error.message}")
            continue
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    cluster.start(leader)
    cluster.wait()
    return longest


async def run(cluster: Cluster, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = await open_etcd(EtcdSettings(cluster.endpoints, folder))
        for number in range(1000):
            await store.put(f"range/{number:04}", b"v" * 200)
        for tasks in (1, 16, 64):
            await measure("put", lambda task: store.put(f"put/{task}", b"v" * 200), tasks, seconds)
        for tasks in (1, 64):
            await measure("compare and two puts", lambda task: swap(store, task), tasks, seconds)
            await measure("get", lambda task: store.get(f"range/{task:04}"), tasks, seconds)
        await measure("range of 1000 keys", lambda task: store.range("range/"), 1, seconds)
        for _ in range(3):
            print(f"leader killed: longest time without a write {await failover(store, cluster):.2f} s")
        await store.close()


async def swap(store: Store, task: int) -> None:
    puts = [Put(f"swap/{task}", b"v"), Put(f"swap/{task}/twin", b"v")]
    assert (await store.transact([Compare(f"swap/{task}/none", "create", 0)], puts)).succeeded


if __name__ == "__main__":
    made = Cluster(9)
    try:
        asyncio.run(run(made, float(sys.argv[1]) if len(sys.argv) > 1 else 3.0))
    finally:
        made.close()
