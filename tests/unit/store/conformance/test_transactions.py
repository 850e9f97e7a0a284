"""Transactions: comparisons, operations, and isolation from each other."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from unit.store.children import add_one
from unit.store.engines import Engine
from unit.store.helpers import environment, program, state

from store import Compare, Delete, Invalid, LeaseGone, Put

Field = Literal["create", "mod", "version", "value", "lease"]
Op = Literal["=", "!=", "<", ">"]


@pytest.mark.parametrize(
    ("key", "field", "op", "is_", "holds"),
    [
        ("k", "create", "=", 1, True),
        ("k", "create", "=", 2, False),
        ("k", "create", ">", 0, True),
        ("k", "create", ">", 1, False),
        ("k", "mod", "=", 2, True),
        ("k", "mod", "!=", 2, False),
        ("k", "mod", "<", 3, True),
        ("k", "mod", "<", 2, False),
        ("k", "version", "=", 2, True),
        ("k", "version", "!=", 1, True),
        ("k", "lease", "=", 0, True),
        ("k", "lease", ">", 0, False),
        ("k", "value", "=", b"two", True),
        ("k", "value", "=", b"one", False),
        ("k", "value", "!=", b"one", True),
        ("k", "value", "!=", b"two", False),
        ("none", "create", "=", 0, True),
        ("none", "mod", "=", 0, True),
        ("none", "version", "=", 0, True),
        ("none", "version", "<", 1, True),
        ("none", "mod", ">", 0, False),
        ("none", "value", "=", b"", False),
        ("none", "value", "!=", b"x", False),
    ],
)
async def test_a_comparison(engine: Engine, key: str, field: Field, op: Op, is_: int | bytes, holds: bool) -> None:
    async with engine.open() as store:
        await store.put("k", b"one")
        await store.put("k", b"two")
        outcome = await store.transact([Compare(key, field, is_, op)], [Put("yes", b"")], [Put("no", b"")])
        assert outcome.succeeded is holds
        assert outcome.revision == 3
        assert set(state(await store.range(""))) == {"k", "yes" if holds else "no"}


async def test_a_transaction_is_one_revision(engine: Engine) -> None:
    async with engine.open() as store:
        for key in ("a/1", "a/2", "b"):
            await store.put(key, b"old")
        outcome = await store.transact(
            [Compare("b", "value", b"old"), Compare("new", "create", 0)],
            [Put("b", b"new"), Delete("a/", prefix=True), Put("new", b"new"), Delete("gone")],
        )
        assert (outcome.succeeded, outcome.revision, outcome.deleted) == (True, 4, 2)
        found = await store.range("")
        assert [(entry.key, entry.mod_revision, entry.version) for entry in found.entries] == [
            ("b", 4, 2),
            ("new", 4, 1),
        ]


async def test_one_failed_comparison_selects_the_failure_branch(engine: Engine) -> None:
    async with engine.open() as store:
        await store.put("a", b"")
        outcome = await store.transact([Compare("a", "version", 1), Compare("b", "version", 1)], [Delete("a")])
        assert (outcome.succeeded, outcome.revision, outcome.deleted) == (False, 1, 0)
        assert await store.get("a")


async def test_an_empty_transaction_makes_no_revision(engine: Engine) -> None:
    async with engine.open() as store:
        await store.put("a", b"")
        assert (await store.transact([], [])).revision == 1
        assert (await store.transact([Compare("a", "mod", 1)], [], [Put("b", b"")])).succeeded
        assert (await store.range("")).revision == 1


async def test_a_transaction_with_an_expired_lease_changes_nothing(engine: Engine) -> None:
    async with engine.open() as store:
        await store.put("a", b"")
        with pytest.raises(LeaseGone, match="lease 77"):
            await store.transact([], [Put("b", b""), Delete("a"), Put("c", b"", lease=77)])
        found = await store.range("")
        assert (list(state(found)), found.revision) == (["a"], 1)
        outcome = await store.transact([Compare("a", "version", 5)], [Put("c", b"", lease=77)], [Put("d", b"")])
        assert not outcome.succeeded, "leases of the other branch are not checked"


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        (Compare("", "mod", 0), "key is empty"),
        (Compare("k", "mod", b"1"), "mod is compared with bytes"),
        (Compare("k", "mod", -1), "mod of key 'k' is -1"),
        (Compare("k", "value", 1), "values are bytes"),
        (Compare("k", "value", b"1", "<"), "by = or !="),
        (Compare("k", "size", 1), "no comparison 'size'"),  # type: ignore[arg-type]
        (Compare("k", "mod", 1, "~"), "no comparison 'mod' '~'"),  # type: ignore[arg-type]
    ],
)
async def test_invalid_comparisons_are_refused(engine: Engine, compare: Compare, said: str) -> None:
    async with engine.open() as store:
        with pytest.raises(Invalid) as caught:
            await store.transact([compare], [])
        assert said in str(caught.value)


async def test_no_update_of_many_tasks_is_lost(engine: Engine) -> None:
    async with engine.open() as one, engine.open() as other:

        async def count(store: object) -> None:
            for _ in range(10):
                await add_one(one if store is one else other)

        await asyncio.gather(*(count(store) for store in (one, other) for _ in range(5)))
        entry = await one.get("counter")
        assert entry is not None
        assert (entry.value, entry.version) == (b"100", 100)


async def test_no_update_of_several_processes_is_lost(engine: Engine) -> None:
    command = program("count", engine.name, engine.place, "60")
    async with engine.open() as store:
        others = [await asyncio.create_subprocess_exec(*command, env=environment()) for _ in range(3)]
        for _ in range(60):
            await add_one(store)
        assert [await other.wait() for other in others] == [0, 0, 0]
        entry = await store.get("counter")
        assert entry is not None
        assert (entry.value, entry.version, entry.mod_revision) == (b"240", 240, 240)


async def test_only_one_of_many_concurrent_creates_succeeds(engine: Engine) -> None:
    async with engine.open() as one, engine.open() as other:
        outcomes = await asyncio.gather(
            *(
                store.transact([Compare("address", "create", 0)], [Put("address", b"%d" % number)])
                for number in range(20)
                for store in (one, other)
            )
        )
        assert sum(outcome.succeeded for outcome in outcomes) == 1
