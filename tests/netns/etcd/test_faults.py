"""The store on a cluster whose members die, fall silent or lose replies: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from unit.store.helpers import SOON, brief, collect, soon, take

from lab.etcd import KILL, Cluster
from lab.proxy import Proxy
from store import Compacted, Compare, Delete, Invalid, LeaseGone, Outcome, Put, Store, Unavailable
from store.etcd.client import open_etcd
from store.etcd.settings import EtcdSettings

_numbers = count(1)


@pytest.fixture
def settings(cluster: Cluster, tmp_path: Path) -> EtcdSettings:
    number = next(_numbers)
    return EtcdSettings(
        cluster.endpoints,
        str(tmp_path / "state"),
        prefix=f"/fault{number}/",
        operations=f"/token{number}/",
        call_seconds=30,
    )


async def through(proxy: Proxy, settings: EtcdSettings) -> Store:
    """A store whose first request goes through the proxy, and the others where it does not answer."""
    store = await open_etcd(replace(settings, endpoints=(proxy.address,)))
    await store.put("first", b"")
    await store.close()
    while True:
        store = await open_etcd(replace(settings, endpoints=(proxy.address, *settings.endpoints)))
        await store.get("first")
        if store._connection._members[store._connection._current].address == proxy.address:
            return store
        await store.close()


async def has_changed(settings: EtcdSettings, before: int) -> None:
    """Wait for a change, seen by another store."""
    async with asyncio.timeout(SOON):
        other = await open_etcd(settings)
        while (await other.range("")).revision == before:
            await asyncio.sleep(0.01)
        await other.close()


def _put(store: Store) -> Awaitable[Outcome]:
    return store.transact([], [Put("k", b"new"), Delete("old")])


def _put_if_new(store: Store) -> Awaitable[Outcome]:
    return store.transact([Compare("k", "create", 0)], [Put("k", b"new"), Delete("o", prefix=True)], [Put("k", b"no")])


def _fail(store: Store) -> Awaitable[Outcome]:
    return store.transact([Compare("k", "create", 5)], [Put("k", b"no")], [Put("k", b"new"), Delete("old")])


def _delete(store: Store) -> Awaitable[Outcome]:
    return store.transact([], [Delete("old"), Delete("none")])


@pytest.mark.parametrize("change", [_put, _put_if_new, _fail, _delete])
async def test_a_change_whose_reply_is_lost_is_applied_once(
    cluster: Cluster, settings: EtcdSettings, change: Callable[[Store], Awaitable[Outcome]]
) -> None:
    async with Proxy(cluster.endpoints[0]) as proxy:
        store = await through(proxy, settings)
        await store.put("old", b"")
        before = (await store.range("")).revision
        proxy.replies.clear()
        changing = asyncio.ensure_future(change(store))
        await has_changed(settings, before)
        await proxy.cut()
        outcome = await changing
        assert (outcome.succeeded, outcome.revision, outcome.deleted) == (change is not _fail, before + 1, 1)
        found = await store.range("")
        assert found.revision == before + 1
        assert {(one.key, one.value, one.version) for one in found.entries} == {("first", b"", 1)} | (
            set() if change is _delete else {("k", b"new", 1)}
        )
        await store.put("k", b"next")
        assert (await store.range("")).revision == before + 2
        await store.close()


async def test_members_that_are_told_later_are_used(cluster: Cluster, settings: EtcdSettings) -> None:
    """By requests and by watches, when those of before have left the cluster."""
    async with Proxy(cluster.endpoints[0]) as proxy:
        store = await open_etcd(replace(settings, endpoints=(proxy.address,)))
        watch = store.watch("", await store.put("k", b"1"))
        await store.put("k", b"2")
        assert (await anext(watch)).events[0].key == "k"
        following = asyncio.ensure_future(anext(watch))
        store.follow(cluster.endpoints)
    written = await store.put("k", b"3")
    async with asyncio.timeout(SOON):
        assert (await following).revision == written
    await store.close()


async def test_an_abandoned_change_is_not_taken_for_the_next_one(cluster: Cluster, settings: EtcdSettings) -> None:
    """The caller gives up; what it has sent is applied, and its slot's next user finds a foreign token."""
    async with Proxy(cluster.endpoints[0]) as proxy:
        store = await through(proxy, settings)
        before = (await store.range("")).revision
        proxy.replies.clear()
        abandoned = asyncio.ensure_future(store.put("a", b"1"))
        await has_changed(settings, before)
        abandoned.cancel()
        await asyncio.gather(abandoned, return_exceptions=True)
        await proxy.cut()
        await store.put("b", b"2")
        found = {one.key: one.version for one in (await store.range("")).entries}
        assert found == {"first": 1, "a": 1, "b": 1}
        await store.close()


async def test_a_silent_member_is_left(cluster: Cluster, settings: EtcdSettings) -> None:
    """A frozen connection, as of a stopped or unplugged member: calls and watches go on with another."""
    async with Proxy(cluster.endpoints[0]) as proxy:
        store = await through(proxy, replace(settings, silent_seconds=1, attempt_seconds=0.5))
        watch = store.watch("", (await store.range("")).revision)
        await store.put("k", b"0")
        await take(watch, 1)
        proxy.open.clear()
        for number in range(1, 4):
            await store.put("k", b"%d" % number)
        heard = [brief(event) for batch in await take(watch, 3) for event in batch.events]
        assert heard == [("k", b"1", b"0"), ("k", b"2", b"1"), ("k", b"3", b"2")]
        await store.close()


async def test_an_idle_watch_is_kept(cluster: Cluster, settings: EtcdSettings) -> None:
    """Signs of life are asked for: a watch of keys that nobody changes stays on its stream."""
    store = await open_etcd(replace(settings, silent_seconds=2))
    watch = store.watch("", (await store.range("")).revision)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(3)
    [stream] = store._watches._streams
    await store.put("k", b"")
    assert [brief(event) for event in (await soon(waiting)).events] == [("k", b"", None)]
    assert [stream] == list(store._watches._streams)
    await store.close()


async def test_what_is_compacted_while_a_watch_is_cut_off_is_told(cluster: Cluster, settings: EtcdSettings) -> None:
    async with Proxy(cluster.endpoints[0]) as proxy:
        store = await open_etcd(replace(settings, endpoints=(proxy.address,)))
        other = await open_etcd(settings)
        start = await store.put("k", b"0")
        watch = store.watch("", start - 1)
        await take(watch, 1)
        await proxy.cut()
        waiting = asyncio.ensure_future(anext(watch))
        for number in range(5):
            last = await other.put("k", b"%d" % number)
        await asyncio.to_thread(cluster.ctl, "compact", str(last))
        await proxy.listen()
        with pytest.raises(Compacted) as caught:
            await soon(waiting)
        assert caught.value.oldest == last
        heard = store.watch("", last)
        await other.put("k", b"new")
        assert [brief(event)[1] for batch in await take(heard, 1) for event in batch.events] == [b"new"]
        await store.close()
        await other.close()


async def test_large_revisions_are_whole(settings: EtcdSettings) -> None:
    """20 MiB in one revision, which etcd sends in fragments."""
    store = await open_etcd(settings)
    large = b"v" * 500_000
    start = (await store.range("")).revision
    for number in range(0, 40, 2):
        await store.transact([], [Put(f"k{number:02}", large), Put(f"k{number + 1:02}", large)])
    assert await store.delete("k", prefix=True) == 40
    await store.put("last", b"")
    heard = await collect(store.watch("", start), start + 22)
    assert [batch.revision for batch in heard] == list(range(start + 1, start + 23))
    assert [len(batch.events) for batch in heard] == [2] * 20 + [40, 1]
    assert all(event.previous and event.previous.value == large for event in heard[20].events)
    await store.close()


async def test_ten_thousand_keys(settings: EtcdSettings) -> None:
    store = await open_etcd(settings)
    for start in range(0, 10_001, 100):
        await store.transact([], [Put(f"k{number:05}", b"%d" % number) for number in range(start, start + 100)])
    reading = asyncio.ensure_future(store.range("k"))
    await store.put("k00000", b"later")
    found = await reading
    assert [entry.key for entry in found.entries] == [f"k{number:05}" for number in range(10_100)]
    assert all(entry.mod_revision <= found.revision for entry in found.entries), "all pages are of one revision"
    assert len((await store.range("k", limit=2500)).entries) == 2500
    assert await store.delete("k", prefix=True) == 10_100
    await store.close()


async def test_limits_of_the_server_are_named(settings: EtcdSettings) -> None:
    store = await open_etcd(settings)
    before = (await store.range("")).revision
    big = b"v" * 512 * 1024
    with pytest.raises(Invalid, match="--max-request-bytes"):
        await store.transact([], [Put("a", big), Put("b", big), Put("c", big[:-100])])
    assert (await store.range("")).revision == before
    await store.close()


async def test_a_lease_is_kept_through_a_cut(cluster: Cluster, settings: EtcdSettings) -> None:
    async with Proxy(cluster.endpoints[0]) as proxy:
        store = await through(proxy, settings)
        lease = await store.grant(30)
        await store.put("k", b"", lease=lease)
        await proxy.cut()
        await store.keep_alive(lease)
        assert await store.get("k")
        await store.revoke(lease)
        with pytest.raises(LeaseGone):
            await store.keep_alive(lease)
        with pytest.raises(LeaseGone, match=f"lease {lease} "):
            good = await store.grant(30)
            await store.transact([], [Put("a", b"", good), Put("b", b"", lease)])
        await store.revoke(good)
        await store.close()


async def test_without_a_member_calls_fail_in_time(cluster: Cluster, settings: EtcdSettings) -> None:
    """And work again soon after one is back."""
    async with Proxy(cluster.endpoints[0]) as proxy:
        store = await open_etcd(replace(settings, endpoints=(proxy.address, "127.0.0.1:9"), call_seconds=1))
        await store.put("k", b"")
        await proxy.cut()
        started = time.monotonic()
        calls = [store.put("k", b""), store.get("k"), store.range(""), store.grant(9), store.keep_alive(1)]
        calls += [store.put(f"k{number}", b"") for number in range(200)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - started < 10
        assert all(isinstance(answer, Unavailable) for answer in answers), answers
        assert "within 1 s" in str(answers[0]) and f"{proxy.address}: connection refused" in str(answers[0])
        assert "127.0.0.1:9: connection refused" in str(answers[0])
        await proxy.listen()

        async def served() -> None:
            while True:
                try:
                    return await store.put("k", b"back") and None
                except Unavailable:
                    await asyncio.sleep(0.01)

        await soon(served())
        await store.close()


@pytest.mark.parametrize("turns", [1, pytest.param(15, marks=pytest.mark.long)])
async def test_members_are_killed_in_turn(cluster: Cluster, settings: EtcdSettings, turns: int) -> None:
    """The leader, and in more turns the others: every put is applied once, and every watch has every revision once."""
    stores = [await open_etcd(settings)]
    stores += [await open_etcd(replace(settings, state=f"{settings.state}-2"))]
    start = (await stores[0].range("")).revision
    ended = asyncio.Event()

    async def write(store: Store, name: str) -> int:
        for number in count():
            if ended.is_set():
                return number
            await store.put(f"{name}/{number:05}", b"")
        return 0

    watches = [store.watch("", start) for store in stores]
    writing = [
        asyncio.ensure_future(write(store, f"w{at}-{turn}")) for at, store in enumerate(stores) for turn in (0, 1)
    ]
    for turn in range(turns):
        member = await asyncio.to_thread(cluster.leader) if turn % 3 == 0 else turn % 3
        await asyncio.to_thread(cluster.signal, member, KILL)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(cluster.start, member)
        await asyncio.to_thread(cluster.wait)
    ended.set()
    written = sum(await soon(asyncio.gather(*writing)))
    found = await stores[0].range("")
    assert len(found.entries) == written
    assert {entry.version for entry in found.entries} == {1}
    assert found.revision == start + written, "no put was applied twice"
    for watch in watches:
        heard = await collect(watch, found.revision)
        assert [batch.revision for batch in heard] == list(range(start + 1, found.revision + 1))
    for store in stores:
        await store.close()
