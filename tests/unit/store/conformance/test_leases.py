"""Leases: expiry, keep-alive, revocation, and the keys attached to them."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
from unit.store.engines import Engine
from unit.store.helpers import brief, environment, program, soon, state, take, until

from store import Delete, LeaseGone, Put, Store


async def gone(store: Store, key: str) -> None:
    async def is_gone() -> bool:
        return await store.get(key) is None

    await until(is_gone)


async def test_keys_of_a_lease_are_deleted_in_one_revision(engine: Engine) -> None:
    engine.stop_time()
    async with engine.open() as store:
        lease = await store.grant(10)
        for key in ("a", "b", "c"):
            await store.put(key, b"", lease=lease)
        await store.put("other", b"")
        entry = await store.get("b")
        assert entry is not None
        assert entry.lease == lease
        watch = store.watch("", 4)
        engine.pass_time(11)
        [batch] = await take(watch, 1)
        assert batch.revision == 5
        assert sorted(map(brief, batch.events)) == [("a", None, b""), ("b", None, b""), ("c", None, b"")]
        assert list(state(await store.range(""))) == ["other"]
        with pytest.raises(LeaseGone):
            await store.put("a", b"", lease=lease)
        with pytest.raises(LeaseGone):
            await store.keep_alive(lease)


async def test_a_lease_expires(engine: Engine) -> None:
    """With the real clock."""
    async with engine.open() as store:
        await store.put("a", b"", lease=await store.grant(0.2))
        await gone(store, "a")


async def test_keep_alive_renews_a_lease_without_a_revision(engine: Engine) -> None:
    engine.stop_time()
    async with engine.open() as store:
        lease = await store.grant(10)
        await store.put("a", b"", lease=lease)
        for _ in range(3):
            engine.pass_time(6)
            await store.keep_alive(lease)
        assert await store.get("a")
        assert (await store.range("")).revision == 1
        engine.pass_time(10.5)
        await gone(store, "a")


async def test_another_open_store_can_renew_and_use_the_lease(engine: Engine) -> None:
    engine.stop_time()
    async with engine.open() as one, engine.open() as other:
        lease = await one.grant(10)
        await other.put("a", b"", lease=lease)
        for _ in range(3):
            engine.pass_time(6)
            await other.keep_alive(lease)
        assert await one.get("a")


async def test_revoking_a_lease_deletes_its_keys(engine: Engine) -> None:
    async with engine.open() as store:
        lease, stays = await store.grant(100), await store.grant(100)
        await store.transact([], [Put("a", b"", lease), Put("b", b"", lease), Put("c", b"", stays)])
        await store.revoke(lease)
        found = await store.range("")
        assert (list(state(found)), found.revision) == (["c"], 2)
        await store.revoke(lease)
        await store.revoke(await store.grant(100))
        assert (await store.range("")).revision == 2
        with pytest.raises(LeaseGone):
            await store.keep_alive(lease)


async def test_a_key_has_the_lease_of_its_last_put(engine: Engine) -> None:
    async with engine.open() as store:
        first, second = await store.grant(100), await store.grant(100)
        await store.put("moved", b"", lease=first)
        await store.put("moved", b"", lease=second)
        await store.put("freed", b"", lease=first)
        await store.put("freed", b"")
        await store.put("again", b"", lease=first)
        await store.transact([], [Delete("again")])
        await store.put("again", b"")
        await store.revoke(first)
        assert set(state(await store.range(""))) == {"moved", "freed", "again"}
        await store.revoke(second)
        assert set(state(await store.range(""))) == {"freed", "again"}


async def test_a_lease_outlives_its_store_being_closed(engine: Engine) -> None:
    engine.stop_time()
    async with engine.open() as store:
        lease = await store.grant(10)
        await store.put("a", b"", lease=lease)
    engine.pass_time(5)
    async with engine.open() as store:
        await store.keep_alive(lease)
        engine.pass_time(6)
        await store.put("b", b"", lease=lease)
        engine.pass_time(5)
        await gone(store, "a")
        await gone(store, "b")


async def test_setting_the_clock_expires_no_lease(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    years = 10 * 365 * 86400
    truth = time.time
    async with engine.open() as store:
        lease = await store.grant(1000)
        await store.put("a", b"", lease=lease)
        for jump in (years, -years):
            monkeypatch.setattr(time, "time", lambda jump=jump: truth() + jump)
            monkeypatch.setattr(time, "time_ns", lambda jump=jump: int((truth() + jump) * 1e9))
            await store.keep_alive(lease)
            assert await store.get("a")


async def test_a_lease_of_a_dead_process_expires_for_others(engine: Engine) -> None:
    async with engine.open() as store:
        watch = store.watch("", 0)
        child = await asyncio.create_subprocess_exec(
            *program("lease", engine.name, engine.place, "1"), env=environment(), stdout=asyncio.subprocess.DEVNULL
        )
        put, end = await take(watch, 2)
        assert await soon(child.wait()) == -signal.SIGKILL
        assert [brief(event) for event in (*put.events, *end.events)] == [("leased", b"", None), ("leased", None, b"")]


async def test_lease_ids_are_distinct(engine: Engine) -> None:
    async with engine.open() as store:
        leases = await asyncio.gather(*(store.grant(100) for _ in range(100)))
        assert len(set(leases)) == 100
        assert all(0 < lease < 2**63 for lease in leases)
        with pytest.raises(LeaseGone):
            await store.keep_alive(max(leases) + 1 if max(leases) + 1 not in leases else max(leases) + 2)
