"""What a store is: keys with values, one sequence of revisions, transactions, leases and watches.

The semantics are those of etcd's version 3 API (https://etcd.io/docs/v3.5/learning/api/ and .../api_guarantees/), so
that one caller can stand on a file of this host or on a cluster:

- Every change gets a revision, one more than the last. A transaction that changes several keys has one revision for
  all of them; one that changes nothing has none.
- What a call has answered is durable, and every read that begins later sees it.
- Keys are compared as UTF-8 bytes, which is the order of their code points.
- A call that is cancelled, or that raises ``Unavailable``, may or may not have had its effect; ask before repeating it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from weft.errors import INVALID_CONFIG, STATE_DAMAGED, UNKNOWN_CONTAINER, WeftError


class StoreError(WeftError):
    """What a store can answer instead of doing what it was asked."""


class Invalid(StoreError):
    """The request cannot be: a key too long, a value too large, too many operations. Nothing was changed."""

    code = INVALID_CONFIG


class LeaseGone(StoreError):
    """The lease has ended, or never was. Its keys are gone; ask for a new one and put them again."""

    code = UNKNOWN_CONTAINER

    def __init__(self, lease: int) -> None:
        super().__init__(f"lease {lease} has ended or never was", hint="grant a new one and put its keys again")
        self.lease = lease


class Compacted(StoreError):
    """The history that a watch asks for is no longer kept: ``oldest`` is the earliest revision to watch after."""

    def __init__(self, oldest: int) -> None:
        super().__init__(
            f"changes up to revision {oldest} are no longer kept", hint="range again and watch after its revision"
        )
        self.oldest = oldest


class Unavailable(StoreError):
    """The store cannot serve now: closed, disk full, damaged. The message names the file and the remedy."""

    code = STATE_DAMAGED


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as one revision left it. ``version`` counts its puts since it was created, ``lease`` is 0 without one."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A change of one key: ``entry`` is what is there now, None if deleted; ``previous`` what was there before."""

    key: str
    entry: Entry | None
    previous: Entry | None
    revision: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The events of one revision, in its order; a watch sees those of its prefix, never in two parts."""

    revision: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Entries sorted by key, and the store's revision as of which they are true: watch after it."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Set a key. Without a lease the key leaves the one it had."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key, or all whose names begin so; what is not there is no error."""

    key: str
    prefix: bool = False


Operation = Put | Delete


@dataclass(frozen=True, slots=True)
class Compare:
    """What must hold of a key. One that does not exist has 0 for every number, and its value equals nothing.

    Numbers compare by any ``op``; values only by ``=`` and ``!=``, both of which fail for a key that does not exist.
    """

    key: str
    field: Literal["create", "mod", "version", "value", "lease"]
    is_: int | bytes
    op: Literal["=", "!=", "<", ">"] = "="


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a transaction went: which branch, the store's revision after it, and how many keys it deleted."""

    succeeded: bool
    revision: int
    deleted: int


class Store(Protocol):
    """A key-value store. All of it raises ``Invalid`` for what cannot be and ``Unavailable`` when it cannot serve."""

    async def get(self, key: str) -> Entry | None:
        """The key as it is now, None if there is none. *Equivalent to:* ``etcdctl get KEY``."""

    async def range(self, prefix: str, *, limit: int = 0) -> Range:
        """All keys that begin so (all of the store for ""), or the first ``limit`` of them.

        *Equivalent to:* ``etcdctl get --prefix PREFIX``.
        """

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Set a key; answers the new revision. Raises LeaseGone. *Equivalent to:* ``etcdctl put KEY VALUE``."""

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        """Remove a key, or all that begin so; answers how many. *Equivalent to:* ``etcdctl del KEY``."""

    async def transact(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> Outcome:
        """Do ``success`` if all of ``compare`` holds, else ``failure``; all of it at once, under one revision.

        A transaction may put a key only once, and not put what it deletes. Raises LeaseGone.
        *Equivalent to:* ``etcdctl txn``.
        """

    async def grant(self, seconds: float) -> int:
        """A lease: keys put with it are deleted, under one revision, when nobody has renewed it for that long."""

    async def keep_alive(self, lease: int) -> None:
        """Give a lease its full time again; makes no revision. Raises LeaseGone."""

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys under one revision. One that has ended already is no error."""

    def watch(self, prefix: str, after: int) -> AsyncIterator[Batch]:
        """Every change of such keys after that revision, in order, none lost, none twice.

        It ends when the store is closed. Raises Compacted when the history is gone, at the start or because the reader
        was too slow.
        *Equivalent to:* ``etcdctl watch --prefix PREFIX --rev AFTER+1``.
        """

    async def close(self) -> None:
        """Let go of everything; calls that wait are finished first. Watches end."""
