"""Keys, values and revisions, one operation at a time."""

from __future__ import annotations

import asyncio

import pytest
from unit.store.engines import Engine
from unit.store.helpers import state

from store import Delete, Entry, Invalid, Put, Unavailable


async def test_a_put_is_visible_to_the_next_get(engine: Engine) -> None:
    async with engine.open() as store:
        assert await store.get("a") is None
        first = await store.put("a", b"1")
        assert await store.get("a") == Entry("a", b"1", first, first, 1, 0)
        second = await store.put("a", b"2")
        assert second == first + 1
        assert await store.get("a") == Entry("a", b"2", first, second, 2, 0)


async def test_a_deleted_key_starts_with_version_1(engine: Engine) -> None:
    async with engine.open() as store:
        first = await store.put("a", b"1")
        await store.put("a", b"2")
        assert await store.delete("a") == 1
        assert await store.get("a") is None
        assert await store.delete("a") == 0
        again = await store.put("a", b"3")
        assert again == first + 3, "a delete without a match makes no revision"
        assert await store.get("a") == Entry("a", b"3", again, again, 1, 0)


async def test_a_range_is_sorted_by_bytes_and_has_a_revision(engine: Engine) -> None:
    keys = ["p/", "p/a", "p/a\0", "p/ab", "p/b", "p/ä", "p/￿", "p/😀"]
    async with engine.open() as store:
        for key in reversed(keys):
            await store.put(key, key.encode())
        for outside in ("o", "p", "p.", "p0", "q"):
            await store.put(outside, b"")
        found = await store.range("p/")
        assert [entry.key for entry in found.entries] == keys
        assert found.revision == len(keys) + 5
        assert [entry.key for entry in (await store.range("p/", limit=3)).entries] == keys[:3]
        assert len((await store.range("")).entries) == len(keys) + 5
        assert (await store.range("nothing")).entries == ()


async def test_a_prefix_is_deleted_under_one_revision(engine: Engine) -> None:
    async with engine.open() as store:
        for key in ("a/1", "a/2", "a/3", "b"):
            await store.put(key, b"")
        before = (await store.range("")).revision
        assert await store.delete("a/", prefix=True) == 3
        after = await store.range("")
        assert list(state(after)) == ["b"]
        assert after.revision == before + 1


async def test_keys_persist_when_the_store_is_reopened(engine: Engine) -> None:
    async with engine.open() as store:
        revision = await store.put("a", bytes(range(256)))
    async with engine.open() as store:
        assert await store.get("a") == Entry("a", bytes(range(256)), revision, revision, 1, 0)
        assert await store.put("b", b"") == revision + 1


async def test_concurrent_puts_have_distinct_revisions(engine: Engine) -> None:
    async with engine.open() as store:
        revisions = await asyncio.gather(*(store.put(f"k{number}", b"%d" % number) for number in range(300)))
        assert sorted(revisions) == list(range(1, 301))
        found = {entry.key: entry.mod_revision for entry in (await store.range("k")).entries}
        assert found == {f"k{number}": revision for number, revision in enumerate(revisions)}


async def test_two_open_stores_see_each_others_writes(engine: Engine) -> None:
    async with engine.open() as one, engine.open() as other:
        first = await one.put("a", b"1")
        assert await other.get("a") == Entry("a", b"1", first, first, 1, 0)
        assert await other.put("a", b"2") == first + 1
        assert (await one.range("a")).revision == first + 1


async def test_keys_and_values_of_maximum_size(engine: Engine) -> None:
    key, value = "ä" * 2048, b"v" * 512 * 1024
    async with engine.open() as store:
        await store.put(key, value)
        entry = await store.get(key)
        assert entry is not None
        assert entry.value == value
        await store.transact([], [Put(f"k{number}", b"") for number in range(128)])
        assert len((await store.range("k")).entries) == 128


async def test_invalid_requests_are_refused_and_change_nothing(engine: Engine) -> None:
    big = b"v" * 512 * 1024
    async with engine.open() as store:
        for said, call in (
            ("key is empty", store.put("", b"")),
            ("4097 bytes", store.put("k" * 4097, b"")),
            ("not valid text", store.put("\ud800", b"")),
            ("524289 bytes", store.put("large", big + b"v")),
            ("of type str", store.put("text", "text")),  # type: ignore[arg-type]
            ("lease of key 'k' is -1", store.put("k", b"", lease=-1)),
            ("limit is -1", store.range("", limit=-1)),
            ("129 success operations", store.transact([], [Put(f"k{number}", b"") for number in range(129)])),
            (
                "1572883 bytes",
                store.transact([], [Put(f"k{number:04}", big) for number in range(3)] + [Delete("gone")]),
            ),
            ("'k' is put twice", store.transact([], [Put("k", b"1"), Put("k", b"2")])),
            ("'k/a' is put and deleted", store.transact([], [Put("k/a", b"1"), Delete("k/", prefix=True)])),
            ("'k' is put and deleted", store.transact([], [], [Delete("k"), Put("k", b"1")])),
            ("lease of 0 seconds", store.grant(0)),
            ("lease of nan seconds", store.grant(float("nan"))),
            ("lease of inf seconds", store.grant(float("inf"))),
        ):
            with pytest.raises(Invalid) as caught:
                await call
            assert said in str(caught.value)
            assert caught.value.hint
        found = await store.range("")
        assert (found.entries, found.revision) == ((), 0)
        with pytest.raises(Invalid, match="after is -1"):
            store.watch("", -1)


async def test_a_failed_request_does_not_affect_concurrent_ones(engine: Engine) -> None:
    async with engine.open() as store:
        calls = []
        for number in range(50):
            calls.append(store.put(f"good{number}", b""))
            calls.append(store.put(f"bad{number}", b"", lease=12345))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(answer for answer in answers if isinstance(answer, int)) == list(range(1, 51))
        assert all("lease 12345" in str(answer) for answer in answers[1::2])
        assert all(key.startswith("good") for key in state(await store.range("")))


async def test_a_closed_store_refuses_requests(engine: Engine) -> None:
    async with engine.open() as store:
        waiting = [asyncio.ensure_future(store.put(f"k{number}", b"")) for number in range(20)]
        await asyncio.sleep(0)
        await store.close()
        assert sorted(await asyncio.gather(*waiting)) == list(range(1, 21)), "pending requests are completed first"
        for call in (store.get("a"), store.put("a", b""), store.range(""), store.grant(1)):
            with pytest.raises(Unavailable, match="closed"):
                await call
        await store.close()


async def test_a_cancelled_request_does_not_affect_others(engine: Engine) -> None:
    async with engine.open() as store:
        calls = [asyncio.ensure_future(store.put(f"k{number}", b"")) for number in range(100)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found = await store.range("")
        stayed = {f"k{number}" for number in range(1, 100, 2)}
        assert all(isinstance(answer, int) for answer in answers[1::2])
        assert stayed <= set(state(found))
        assert found.revision == len(found.entries)
