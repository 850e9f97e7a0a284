"""Consul's transactions: operations on keys (of the catalog: ``catalog_txn``), all or none.

Concurrency is optimistic: the operations are evaluated on what is read; the writes are then
committed on the condition that no key read has changed, else everything is evaluated again. Keys
added meanwhile below a prefix (``get-tree``, ``delete-tree``) are not detected.

Source: https://developer.hashicorp.com/consul/api-docs/txn; error messages are Consul's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from discovery.consul.json_fields import BadField
from discovery.consul.sessions import decode_session
from discovery.kv import KV_PREFIX, LOCK_DELAY_PREFIX, LOCK_PREFIX, KVPair, decode_pair, encode_pair
from discovery.layout import store_key
from discovery.structs import CatalogEntry, VirtualAddress
from store import Compare, Delete, Entry, Operation, Put, Store, Unavailable
from store.limits import TRANSACTION_OPERATIONS

FindSession = Callable[[str], Awaitable[Entry | None]]
"""Finds a session's entry by its id."""

MAX_ATTEMPTS = 100
"""Attempts before giving up; each conflict means that another transaction succeeded."""


@dataclass(frozen=True, slots=True)
class KVOperation:
    """One operation. ``verb`` is Consul's ("set", "cas", "lock" …), ``index`` what cas and
    check-index compare.
    """

    verb: str
    key: str
    value: bytes = b""
    flags: int = 0
    index: int = 0
    session: str = ""

    async def run(self, txn: Txn) -> Sequence[KVPair]:
        """Evaluate it in a transaction. Raises OperationFailed, BadField, StoreError."""
        return await _run_operation(txn, self)


@dataclass(frozen=True, slots=True)
class TxnError:
    """Why an operation, by number, failed."""

    operation: int
    reason: str


@dataclass(frozen=True, slots=True)
class TxnResult:
    """The resulting pairs and entries in order; or the errors, and then nothing was changed."""

    results: tuple[KVPair | CatalogEntry, ...] = ()
    errors: tuple[TxnError, ...] = ()


class OperationFailed(Exception):
    """The operation failed."""


@dataclass(slots=True)
class Txn:
    """Reads and pending writes while operations are evaluated."""

    store: Store
    find_session: FindSession
    pairs: dict[str, KVPair | None] = field(default_factory=dict)
    compares: dict[tuple[str, str], Compare] = field(default_factory=dict)
    writes: dict[str, Operation] = field(default_factory=dict)
    deleted_prefixes: list[str] = field(default_factory=list)
    """Of keys of the store, each to be deleted with all below it."""
    changed: set[str] = field(default_factory=set)
    entries: dict[str, CatalogEntry | None] = field(default_factory=dict)
    """Catalog entries by key, as read or written."""

    async def read(self, key: str) -> KVPair | None:
        """A key; the transaction fails if it changes meanwhile."""
        if key not in self.pairs:
            entry = await self.store.get(KV_PREFIX + key)
            self.pairs[key] = decode_pair(entry) if entry else None
        pair = self.pairs[key]
        if (KV_PREFIX + key, "mod") not in self.compares and KV_PREFIX + key not in self.writes:
            self.expect(KV_PREFIX + key, pair.modify_index if pair else 0)
        return pair

    def expect(self, key: str, revision: int) -> None:
        """Let the transaction fail if a store key has another revision."""
        self.compares[key, "mod"] = Compare(key, "mod", revision)

    async def read_tree(self, prefix: str) -> list[KVPair]:
        for entry in (await self.store.range(KV_PREFIX + prefix)).entries:
            self.pairs.setdefault(entry.key.removeprefix(KV_PREFIX), decode_pair(entry))
        return [pair for key, pair in sorted(self.pairs.items()) if pair is not None and key.startswith(prefix)]

    def put(self, pair: KVPair) -> KVPair:
        old = self.pairs[pair.key]
        if old is not None and old.comparable == pair.comparable:
            return old  # a no-op write must not wake blocking queries
        self.pairs[pair.key] = pair
        self.changed.add(KV_PREFIX + pair.key)
        self.writes[KV_PREFIX + pair.key] = Put(KV_PREFIX + pair.key, encode_pair(pair))
        for session in {old.session if old else "", pair.session} - {""}:
            hold = f"{LOCK_PREFIX}{session}/{pair.key}"
            self.writes[hold] = Put(hold, b"") if session == pair.session else Delete(hold)
        return pair

    def delete(self, key: str) -> None:
        pair = self.pairs[key]
        if pair is not None:
            self.writes[KV_PREFIX + key] = Delete(KV_PREFIX + key)
            if pair.session:
                hold = f"{LOCK_PREFIX}{pair.session}/{key}"
                self.writes[hold] = Delete(hold)
        self.pairs[key] = None

    def operations(self) -> list[Operation]:
        """The pending writes; a prefix is deleted by one operation if nothing below it is
        written.

        Where they are too many for the store, holds of deleted keys stay until their session ends, which then
        finds that they hold nothing.
        """
        writes = dict(self.writes)
        deleted_prefixes = []
        for prefix in dict.fromkeys(self.deleted_prefixes):
            below = [key for key in writes if key.startswith(prefix)]
            if all(isinstance(writes[key], Delete) for key in below):
                deleted_prefixes.append(Delete(prefix, prefix=True))
                for key in below:
                    del writes[key]
        found = [*deleted_prefixes, *writes.values()]
        if len(found) <= TRANSACTION_OPERATIONS:
            return found
        return [one for one in found if not (isinstance(one, Delete) and one.key.startswith(LOCK_PREFIX))]

    def comparisons(self) -> list[Compare]:
        """What must be unchanged. Where that is too much for the store, without lock delays: one is written with
        its key, whose own comparison fails then, unless the key was made and deleted meanwhile.
        """
        found = list(self.compares.values())
        if len(found) <= TRANSACTION_OPERATIONS:
            return found
        return [one for one in found if not one.key.startswith(LOCK_DELAY_PREFIX)]


class TxnOperation(Protocol):
    """One operation of a transaction."""

    async def run(self, txn: Txn) -> Sequence[KVPair | CatalogEntry]:
        """Evaluate it; returns the results. Raises OperationFailed, BadField, StoreError."""


async def apply(store: Store, operations: Sequence[TxnOperation], find_session: FindSession) -> TxnResult:
    """Apply all operations or none. Raises BadField for an unknown verb, StoreError."""
    for _ in range(MAX_ATTEMPTS):
        txn = Txn(store, find_session)
        results: list[KVPair | CatalogEntry] = []
        errors: list[TxnError] = []
        for number, operation in enumerate(operations):
            try:
                results += await operation.run(txn)
            except OperationFailed as error:
                errors.append(TxnError(number, str(error)))
        if errors:
            return TxnResult((), tuple(errors))
        outcome = await store.transact(txn.comparisons(), txn.operations())
        if outcome.succeeded:
            return TxnResult(tuple(_with_indexes(one, txn, outcome.revision) for one in results))
    raise Unavailable(
        f"transaction of {len(operations)} operations failed", hint="too many concurrent writes to the same keys"
    )


def _with_indexes(found: KVPair | CatalogEntry, txn: Txn, revision: int) -> KVPair | CatalogEntry:
    key = KV_PREFIX + found.key if isinstance(found, KVPair) else store_key(found)
    if key not in txn.changed or isinstance(found, VirtualAddress):
        return found
    return replace(found, create_index=found.create_index or revision, modify_index=revision)


async def _run_operation(txn: Txn, operation: KVOperation) -> list[KVPair]:
    match operation.verb:
        case "get-tree":
            return await txn.read_tree(operation.key)
        case "delete-tree":
            for found in await txn.read_tree(operation.key):
                txn.delete(found.key)
            txn.deleted_prefixes.append(KV_PREFIX + operation.key)
            return []
    pair = await txn.read(operation.key)
    match operation.verb:
        case "set" | "cas" | "lock" | "unlock":
            return [replace(await _write(txn, operation, pair), value=b"")]
        case "delete" | "delete-cas":
            if operation.verb == "delete-cas" and pair is not None and pair.modify_index != operation.index:
                raise OperationFailed(f'failed to delete key "{operation.key}", index is stale')
            txn.delete(operation.key)
            return []
        case "get":
            if pair is None:
                raise OperationFailed(f'key "{operation.key}" doesn\'t exist')
            return [pair]
        case "get-or-empty":
            return [pair or KVPair(operation.key)]
        case "check-index" | "check-session" | "check-not-exists":
            return [replace(found, value=b"") for found in _check(operation, pair)]
    raise BadField(f'unknown KV verb "{operation.verb[:40]}"')


async def _write(txn: Txn, operation: KVOperation, pair: KVPair | None) -> KVPair:
    new = replace(pair or KVPair(operation.key), value=operation.value, flags=operation.flags)
    if operation.verb == "cas" and (pair.modify_index if pair else 0) != operation.index:
        raise OperationFailed(f'failed to set key "{operation.key}", index is stale')
    if operation.verb == "lock":
        new = await _acquire_lock(txn, operation, pair, new)
    if operation.verb == "unlock":
        if not operation.session:
            raise BadField("missing session")
        if pair is None or pair.session != operation.session:
            raise OperationFailed(
                f'failed to unlock key "{operation.key}", lock isn\'t held, or is held by another session'
            )
        new = replace(new, session="", delay=0.0, behavior="release")
    return txn.put(new)


async def _acquire_lock(txn: Txn, operation: KVOperation, pair: KVPair | None, new: KVPair) -> KVPair:
    if not operation.session:
        raise BadField("missing session")
    entry = await txn.find_session(operation.session)
    if entry is None:
        raise BadField(f'invalid session "{operation.session[:60]}"')
    txn.expect(entry.key, entry.mod_revision)
    if pair is not None and pair.session == operation.session:
        return new
    delayed = await txn.store.get(LOCK_DELAY_PREFIX + operation.key)
    if (pair is not None and pair.session) or delayed is not None:
        raise OperationFailed(f'failed to lock key "{operation.key}", lock is already held')
    txn.expect(LOCK_DELAY_PREFIX + operation.key, 0)
    session = decode_session(entry)
    return replace(
        new,
        session=session.id,
        lock_index=new.lock_index + 1,
        delay=session.delay,
        behavior=session.behavior,
    )


def _check(operation: KVOperation, pair: KVPair | None) -> list[KVPair]:
    if operation.verb == "check-not-exists":
        if pair is not None:
            raise OperationFailed(f'key "{operation.key}" exists')
        return []
    if pair is None:
        what = "index" if operation.verb == "check-index" else "lock"
        raise OperationFailed(f'failed to check {what} for key "{operation.key}", key doesn\'t exist')
    if operation.verb == "check-index" and pair.modify_index != operation.index:
        raise OperationFailed(
            f'failed index check for key "{operation.key}", '
            f"current modify index {pair.modify_index} != {operation.index}"
        )
    if operation.verb == "check-session" and pair.session != operation.session:
        raise OperationFailed(
            f'failed session check for key "{operation.key}", current session "{pair.session}" != "{operation.session}"'
        )
    return [pair]
