"""The store's interface: keys, revisions, transactions, leases and watches.

The semantics are those of etcd's v3 API (https://etcd.io/docs/v3.5/learning/api/,
.../api_guarantees/), so that the store can be a file on one host or a cluster:

- Every change increments the revision. A transaction has one revision for all its changes, none
  without.
- Completed writes are durable, and visible to every read that starts later.
- Keys are ordered by their UTF-8 bytes.
- A call that is cancelled or raises ``Unavailable`` may have had its effect; read before repeating
  it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from weft.errors import INVALID_CONFIG, STATE_DAMAGED, UNKNOWN_CONTAINER, WeftError


class StoreError(WeftError):
    """Base of the store's errors."""


class Invalid(StoreError):
    """An invalid request: key too long, value too large, too many operations."""

    code = INVALID_CONFIG


class LeaseGone(StoreError):
    """The lease has expired, was revoked or never existed. Its keys are deleted."""

    code = UNKNOWN_CONTAINER

    def __init__(self, lease: int) -> None:
        super().__init__(f"lease {lease} does not exist", hint="grant a new one and put its keys again")
        self.lease = lease


class Compacted(StoreError):
    """The revision was compacted; ``oldest`` is the earliest one to watch after."""

    def __init__(self, oldest: int) -> None:
        super().__init__(
            f"revisions up to {oldest} have been compacted", hint="range again and watch after its revision"
        )
        self.oldest = oldest


class Unavailable(StoreError):
    """The store is closed, its disk full or its file damaged, or no member of its cluster answers. The
    message names the file or the members.
    """

    code = STATE_DAMAGED


@dataclass(frozen=True, slots=True)
class Entry:
    """A key at a revision.

    ``version`` counts its puts since its creation, ``lease`` is 0 without one.
    """

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A change of one key: ``entry`` is the new one, None if deleted, ``previous`` the old one."""

    key: str
    entry: Entry | None
    previous: Entry | None
    revision: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The events of one revision, in order. A watch gets those of its prefix in one batch."""

    revision: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """Entries sorted by key, and the revision that they were read at: watch after it."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Set a key. ``lease`` 0 detaches it from its lease."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key, or all keys with a prefix; missing keys are ignored."""

    key: str
    prefix: bool = False


Operation = Put | Delete


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition on a key. All numbers of a missing key are 0.

    Values compare only with ``=`` and ``!=``; both are false for a missing key.
    """

    key: str
    field: Literal["create", "mod", "version", "value", "lease"]
    is_: int | bytes
    op: Literal["=", "!=", "<", ">"] = "="


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a transaction: its branch, the revision, the number of deleted keys."""

    succeeded: bool
    revision: int
    deleted: int


class Store(Protocol):
    """A key-value store. All methods raise ``Invalid`` and ``Unavailable``."""

    async def get(self, key: str) -> Entry | None:
        """The key's entry, None if it does not exist. *Equivalent to:* ``etcdctl get KEY``."""

    async def range(self, prefix: str, *, limit: int = 0, without: str = "", containing: str = "") -> Range:
        """All keys with a prefix ("": all keys), or the first ``limit`` of them; ``without`` those with
        another prefix, and only those with ``containing`` in them.

        *Equivalent to:* ``etcdctl get --prefix PREFIX``.
        """

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Set a key; returns the new revision. Raises LeaseGone.

        *Equivalent to:* ``etcdctl put KEY VALUE``.
        """

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        """Delete a key, or all with a prefix; returns their number.

        *Equivalent to:* ``etcdctl del KEY``.
        """

    async def transact(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> Outcome:
        """Apply ``success`` if all comparisons hold, else ``failure``, atomically in one revision.

        A transaction may put a key only once, and not put a key that it deletes. Raises LeaseGone.
        *Equivalent to:* ``etcdctl txn``.
        """

    async def grant(self, seconds: float) -> int:
        """Grant a lease: its keys are deleted, in one revision, when it expires."""

    async def keep_alive(self, lease: int) -> None:
        """Renew a lease; creates no revision. Raises LeaseGone."""

    async def revoke(self, lease: int) -> None:
        """Revoke a lease and delete its keys in one revision; a missing one is ignored."""

    def watch(self, prefix: str, after: int) -> AsyncIterator[Batch]:
        """Every change of keys with a prefix after a revision, in order, exactly once.

        Ends when the store is closed. Raises Compacted if the history is compacted, at the start or
        because the reader is too slow.
        *Equivalent to:* ``etcdctl watch --prefix PREFIX --rev AFTER+1``.
        """

    @property
    def lost(self) -> str:
        """Why the store has to be opened again: its file is damaged, removed or replaced; "" if it is
        not.
        """

    async def close(self) -> None:
        """Finish pending calls, end all watches and close the store."""
