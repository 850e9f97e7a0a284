"""Random operations: the store behaves as a dictionary with a history."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from unit.store.engines import ENGINES, Engine
from unit.store.helpers import collect, memory

from store import Batch, Compacted, Compare, Delete, Entry, Event, LeaseGone, Operation, Put, Store

HISTORY = 10
SLACK = 1

Answer = TypeVar("Answer")

keys = st.sampled_from(["a", "a/", "a/1", "a/2", "b", "ä", "a0"])
prefixes = st.sampled_from(["", "a", "a/", "b", "c"])
values = st.binary(max_size=3)
leases = st.integers(0, 3)
puts = st.builds(Put, keys, values, leases)
deletes = st.builds(Delete, keys, st.booleans())


def consistent(operations: Sequence[Operation]) -> bool:
    """Whether these may be in one transaction: no key put twice, none put and deleted."""
    names = [operation.key for operation in operations if isinstance(operation, Put)]
    gone = [operation for operation in operations if isinstance(operation, Delete)]
    return len(set(names)) == len(names) and not any(
        name.startswith(delete.key) if delete.prefix else name == delete.key for name in names for delete in gone
    )


branches = st.lists(st.one_of(puts, deletes), max_size=4).filter(consistent)
comparisons = st.lists(
    st.one_of(
        st.builds(
            Compare,
            keys,
            st.sampled_from(["create", "mod", "version", "lease"]),
            st.integers(0, 6),
            st.sampled_from(["=", "!=", "<", ">"]),
        ),
        st.builds(Compare, keys, st.just("value"), values, st.sampled_from(["=", "!="])),
    ),
    max_size=2,
)


@dataclass
class Model:
    """The model: a dictionary with a history."""

    entries: dict[str, Entry] = field(default_factory=dict)
    revision: int = 0
    batches: list[Batch] = field(default_factory=list)

    def holds(self, compare: Compare) -> bool:
        entry = self.entries.get(compare.key)
        if compare.field == "value":
            return entry is not None and (entry.value == compare.is_) == (compare.op == "=")
        names = {"create": "create_revision", "mod": "mod_revision", "version": "version", "lease": "lease"}
        number, other = getattr(entry, names[compare.field]) if entry else 0, compare.is_
        return {"=": number == other, "!=": number != other, "<": number < other, ">": number > other}[compare.op]

    def apply(self, operations: Sequence[Operation]) -> int:
        """Apply all in one revision; returns the number of deleted keys."""
        events, deleted, revision = [], 0, self.revision + 1
        for operation in operations:
            if isinstance(operation, Put):
                old = self.entries.get(operation.key)
                created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
                new = Entry(operation.key, operation.value, created, revision, version, operation.lease)
                self.entries[operation.key] = new
                events.append(Event(operation.key, new, old, revision))
                continue
            for key in sorted(self.entries, key=str.encode):
                if key.startswith(operation.key) if operation.prefix else key == operation.key:
                    events.append(Event(key, None, self.entries.pop(key), revision))
                    deleted += 1
        if events:
            self.revision = revision
            self.batches.append(Batch(revision, tuple(events)))
        return deleted


class StoreMachine(RuleBasedStateMachine):
    make: Callable[[Path], Engine]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=memory()))
        self.engine = type(self).make(self.folder)
        self.runner = asyncio.Runner()
        self.model = Model()
        self.leases: list[int] = []
        self.open()

    def open(self) -> None:
        self.context = self.engine.open(HISTORY)
        self.store: Store = self.run(self.context.__aenter__())

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.run(self.context.__aexit__(None, None, None))
            self.runner.close()
            self.engine.close()
            shutil.rmtree(self.folder)

    def run(self, work: Coroutine[object, object, Answer]) -> Answer:
        return self.runner.run(work)

    def named(self, operations: Sequence[Operation]) -> list[Operation]:
        """Replace 1, 2, 3 by the ids of leases; 0 if there are fewer."""
        return [
            Put(operation.key, operation.value, self.lease(operation.lease))
            if isinstance(operation, Put)
            else operation
            for operation in operations
        ]

    def lease(self, number: int) -> int:
        return self.leases[number - 1] if 0 < number <= len(self.leases) else 0

    @rule(compare=comparisons, success=branches, failure=branches)
    def transact(self, compare: list[Compare], success: list[Operation], failure: list[Operation]) -> None:
        success, failure = self.named(success), self.named(failure)
        succeeded = all(map(self.model.holds, compare))
        outcome = self.run(self.store.transact(compare, success, failure))
        deleted = self.model.apply(success if succeeded else failure)
        assert (outcome.succeeded, outcome.revision, outcome.deleted) == (succeeded, self.model.revision, deleted)

    @rule(put=puts)
    def put(self, put: Put) -> None:
        [named] = self.named([put])
        assert isinstance(named, Put)
        self.model.apply([named])
        assert self.run(self.store.put(named.key, named.value, lease=named.lease)) == self.model.revision

    @rule(delete=deletes)
    def delete(self, delete: Delete) -> None:
        deleted = self.model.apply([delete])
        assert self.run(self.store.delete(delete.key, prefix=delete.prefix)) == deleted

    @rule(several=st.lists(puts, max_size=8))
    def put_together(self, several: list[Put]) -> None:
        """Put concurrently: each has a revision of its own; a cluster may take them in any order."""

        async def together() -> list[int]:
            return await asyncio.gather(*(self.store.put(put.key, put.value) for put in several))

        revisions = self.run(together())
        for revision, put in sorted(zip(revisions, several, strict=True), key=lambda one: one[0]):
            self.model.apply([Put(put.key, put.value)])
            assert revision == self.model.revision

    @precondition(lambda self: len(self.leases) < 3)
    @rule()
    def grant(self) -> None:
        self.leases.append(self.run(self.store.grant(1000)))

    @rule(number=st.integers(1, 3))
    def keep_alive(self, number: int) -> None:
        if lease := self.lease(number):
            self.run(self.store.keep_alive(lease))

    @rule(number=st.integers(1, 3))
    def revoke(self, number: int) -> None:
        if lease := self.lease(number):
            self.leases.remove(lease)
            self.run(self.store.revoke(lease))
            self.model.apply([Delete(key) for key, entry in sorted(self.model.entries.items()) if entry.lease == lease])
            with pytest.raises(LeaseGone):
                self.run(self.store.put("a", b"", lease=lease))

    @rule()
    def open_again(self) -> None:
        self.run(self.context.__aexit__(None, None, None))
        self.open()

    @rule(prefix=prefixes, limit=st.integers(0, 3), without=prefixes, containing=prefixes)
    def look(self, prefix: str, limit: int, without: str, containing: str) -> None:
        found = self.run(self.store.range(prefix, limit=limit, without=without, containing=containing))
        wanted = [
            self.model.entries[key]
            for key in sorted(self.model.entries)
            if key.startswith(prefix) and containing in key and not (without and key.startswith(without))
        ]
        assert list(found.entries) == wanted[: limit or None]

    @rule(prefix=prefixes, back=st.integers(0, HISTORY + SLACK + 5))
    def watch(self, prefix: str, back: int) -> None:
        after = max(self.model.revision - back, 0)
        wanted = []
        for batch in self.model.batches[after:]:
            events = tuple(event for event in batch.events if event.key.startswith(prefix))
            wanted += [Batch(batch.revision, events)] if events else []
        if not wanted:
            return
        try:
            assert self.run(collect(self.store.watch(prefix, after), wanted[-1].revision)) == wanted
        except Compacted as error:
            assert back > HISTORY
            assert error.oldest > after

    @invariant()
    def all_of_it_is_the_same(self) -> None:
        if hasattr(self, "store"):
            found = self.run(self.store.range(""))
            assert {entry.key: entry for entry in found.entries} == self.model.entries
            assert found.revision == self.model.revision


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_the_store_behaves_as_the_model(name: str) -> None:
    run_model(lambda folder: ENGINES[name](folder, pytest.MonkeyPatch()), 25)


def run_model(make: Callable[[Path], Engine], examples: int) -> None:
    """Compare the model with the stores of an engine."""
    machine: Callable[[], RuleBasedStateMachine] = type("Machine", (StoreMachine,), {"make": staticmethod(make)})
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None))
