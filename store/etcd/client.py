"""The store on an etcd cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence

from store.etcd import rpc_pb2 as rpc
from store.etcd.administration import Administration
from store.etcd.connection import GRANT, KEEP_ALIVE, RANGE, REVOKE, TIME_TO_LIVE, TXN, Connection
from store.etcd.errors import Answered
from store.etcd.messages import Keys
from store.etcd.record import Record, WrongCluster
from store.etcd.settings import EtcdSettings
from store.etcd.slots import Slot, Slots
from store.etcd.transaction import Transaction
from store.etcd.watches import Watches
from store.interface import (
    Batch,
    Compare,
    Delete,
    Entry,
    Invalid,
    LeaseGone,
    Operation,
    Outcome,
    Put,
    Range,
    StoreError,
    Unavailable,
)
from store.limits import check_number, check_seconds, check_transaction, encoded
from weft.errors import StateDamaged

_PAGE = 1000
"""Keys in one response of a range."""
_RECORD_SECONDS = 1.0

log = logging.getLogger(__name__)


async def open_etcd(settings: EtcdSettings) -> EtcdStore:
    """Open the store on a cluster, which need not answer yet: calls fail with Unavailable until it
    does.

    Raises Invalid for certificates that cannot be used, Unavailable where the folder of its state
    cannot.
    """
    if not settings.endpoints:
        raise Invalid("store.endpoints is empty", hint='endpoints = ["http://10.0.0.1:2379", …]')
    try:
        record = await asyncio.to_thread(Record, settings.state)
    except (StateDamaged, OSError) as error:
        raise Unavailable(f"cannot use {settings.state}: {error}") from None
    slots = Slots(f"{settings.operations}{record.client}/")
    try:
        connection = Connection(settings, record, slots.key(0))
    except BaseException:
        record.close()
        raise
    return EtcdStore(settings, record, slots, connection)


class EtcdStore:
    """See ``Store``. Raises, besides, WrongCluster (an Unavailable): see ``store.etcd.record``."""

    def __init__(self, settings: EtcdSettings, record: Record, slots: Slots, connection: Connection) -> None:
        self._settings = settings
        self._record = record
        self._slots = slots
        self._connection = connection
        self._keys = Keys(settings.prefix)
        self._watches = Watches(connection, self._keys)
        self._calls: set[asyncio.Task[object] | None] = set()
        self._idle = asyncio.Event()
        self._pending = 0
        self._closing: asyncio.Task[None] | None = None
        self._recording = asyncio.create_task(self._keep_record(), name="etcd-record")

    def follow(self, endpoints: Sequence[str]) -> None:
        """Use other members of the same cluster (``HOST:PORT``) from now on."""
        self._connection.follow(endpoints)

    async def get(self, key: str) -> Entry | None:
        encoded(key)
        with self._call():
            found = await self._range(rpc.RangeRequest(key=self._keys.full(key)), f"get {key!r}")
            return self._keys.entry(found.kvs[0]) if found.kvs else None

    async def range(self, prefix: str, *, limit: int = 0, without: str = "", containing: str = "") -> Range:
        for one in (prefix, without, containing):
            encoded(one, prefix=True)
        check_number("limit", limit)
        with self._call():
            for _ in range(3):
                with contextlib.suppress(_CompactedRead):
                    return await self._pages(prefix, limit, without, containing)
            raise Unavailable(f"range {prefix!r}: compacted while it was read, three times")

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        return (await self.transact((), (Put(key, value, lease),))).revision

    async def delete(self, key: str, *, prefix: bool = False) -> int:
        return (await self.transact((), (Delete(key, prefix),))).deleted

    async def transact(
        self, compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation] = ()
    ) -> Outcome:
        check_transaction(compare, success, failure)
        with self._call():
            end = self._connection.deadline()
            try:
                async with asyncio.timeout_at(end):
                    slot = await self._slots.take()
            except TimeoutError:
                raise Unavailable("too many transactions wait for the etcd cluster; this one was not sent") from None
            try:
                transaction = Transaction(self._keys, compare, success, failure, self._slots.token())
                return await self._transact(transaction, slot, end)
            finally:
                self._slots.give_back(slot)

    async def grant(self, seconds: float) -> int:
        check_seconds(seconds)
        # An id of our own: a repeated request grants nothing twice.
        lease = secrets.randbelow(2**63 - 1) + 1
        request = rpc.LeaseGrantRequest(TTL=math.ceil(seconds), ID=lease)
        with self._call():
            try:
                await self._connection.call(GRANT, request, "grant a lease", self._connection.deadline())
            except Answered as answered:
                if "lease already exists" not in answered.details:
                    raise self._connection.error(answered, "grant a lease") from None
        return lease

    async def keep_alive(self, lease: int) -> None:
        check_number("lease", lease)
        with self._call():
            what = f"renew lease {lease}"
            request = rpc.LeaseKeepAliveRequest(ID=lease)
            try:
                found = await self._connection.call(KEEP_ALIVE, request, what, self._connection.deadline())
            except Answered as answered:
                raise self._connection.error(answered, what) from None
        if found.TTL <= 0:
            raise LeaseGone(lease)

    async def revoke(self, lease: int) -> None:
        check_number("lease", lease)
        with self._call():
            what = f"revoke lease {lease}"
            try:
                await self._connection.call(REVOKE, rpc.LeaseRevokeRequest(ID=lease), what, self._connection.deadline())
            except Answered as answered:
                if answered.code != "NOT_FOUND":
                    raise self._connection.error(answered, what) from None

    def watch(self, prefix: str, after: int) -> AsyncIterator[Batch]:
        encoded(prefix, prefix=True)
        check_number("after", after)
        return self._watches.watch(prefix, after)

    def administration(self) -> Administration:
        """The cluster's members and users, where this store's user is root."""
        return Administration(self._connection)

    @property
    def lost(self) -> str:
        return ""  # on another cluster it refuses to act

    async def close(self) -> None:
        if self._closing is None:
            self._watches.close()
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        while self._pending:
            self._idle.clear()
            await self._idle.wait()
        self._recording.cancel()
        await asyncio.gather(self._recording, return_exceptions=True)
        await self._connection.close()
        try:
            await asyncio.to_thread(self._record.close)
        except StateDamaged as error:
            log.warning("%s", error)

    @contextlib.contextmanager
    def _call(self) -> Iterator[None]:
        """Count a call, which ``close`` waits for."""
        if self._closing is not None:
            raise Unavailable("the store has been closed", hint="open it again")
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1
            if not self._pending:
                self._idle.set()

    async def _range(self, request: rpc.RangeRequest, what: str) -> rpc.RangeResponse:
        try:
            return await self._connection.call(RANGE, request, what, self._connection.deadline())
        except Answered as answered:
            if answered.code == "OUT_OF_RANGE" and "compacted" in answered.details:
                raise _CompactedRead from None
            raise self._connection.error(answered, what) from None

    async def _pages(self, prefix: str, limit: int, without: str, containing: str) -> Range:
        """All keys at one revision, in several requests."""
        start, end = self._keys.all(prefix)
        entries: list[Entry] = []
        revision = 0
        while True:
            most = min(limit - len(entries), _PAGE) if limit else _PAGE
            request = rpc.RangeRequest(key=start, range_end=end, limit=most, revision=revision)
            found = await self._range(request, f"range {prefix!r}")
            revision = revision or found.header.revision
            entries += (
                one
                for one in map(self._keys.entry, found.kvs)
                if containing in one.key and not (without and one.key.startswith(without))
            )
            if not found.more or 0 < limit == len(entries):
                return Range(tuple(entries), revision)
            start = found.kvs[-1].key + b"\0"

    async def _transact(self, transaction: Transaction, slot: Slot, end: float) -> Outcome:
        while True:
            branch = transaction.direct() or transaction.decide(await self._send(transaction, transaction.look(), end))
            if isinstance(branch, Outcome):
                return branch
            reply = await self._send(transaction, transaction.request(branch, slot), end)
            if reply.succeeded:
                slot.revision = reply.header.revision
                self._note(slot)
                deleted = sum(one.response_delete_range.deleted for one in reply.responses)
                return Outcome(branch.succeeded, slot.revision, deleted)
            found = reply.responses[0].response_range.kvs
            revision = found[0].mod_revision if found else 0
            if revision == slot.revision:
                if not branch.looked:
                    return Outcome(False, reply.header.revision, 0)
                continue  # what was looked at has changed
            self._check(slot, revision)
            slot.revision = revision
            if found and found[0].value.startswith(transaction.token):
                self._note(slot)
                return await self._earlier(transaction, found[0])

    async def _send(self, transaction: Transaction, request: rpc.TxnRequest, end: float) -> rpc.TxnResponse:
        operations = (*transaction.success, *transaction.failure)
        what = f"transaction of {len(operations)} operations"
        if len(operations) == 1:
            what = f"{'put' if isinstance(operations[0], Put) else 'delete'} {operations[0].key!r}"
        try:
            return await self._connection.call(TXN, request, what, end)
        except Answered as answered:
            if answered.code == "NOT_FOUND" and "lease" in answered.details:
                raise await self._lease_gone(operations, end) from None
            raise self._connection.error(answered, what) from None

    async def _lease_gone(self, operations: Sequence[Operation], end: float) -> StoreError:
        """Which of the leases does not exist: etcd does not say."""
        leases = {one.lease: None for one in operations if isinstance(one, Put) and one.lease}
        if len(leases) > 1:
            for lease in leases:
                request = rpc.LeaseTimeToLiveRequest(ID=lease)
                if (await self._connection.call(TIME_TO_LIVE, request, f"lease {lease}", end)).TTL <= 0:
                    return LeaseGone(lease)
        return LeaseGone(next(iter(leases)))

    # Operation tokens

    def _note(self, slot: Slot) -> None:
        """The first slot is what the cluster is known by."""
        if slot.key == self._slots.key(0):
            self._record.marker = slot.revision

    def _check(self, slot: Slot, revision: int) -> None:
        """A slot's revision only grows."""
        try:
            self._record.check_marker(f"key {slot.key.decode()}", revision, slot.revision)
        except WrongCluster as error:
            self._connection.refuse(error)
            raise

    async def _earlier(self, transaction: Transaction, token: rpc.KeyValue) -> Outcome:
        """The outcome of a transaction whose reply was lost, from its token and the revision before."""
        succeeded, revision = token.value.endswith(b"1"), token.mod_revision
        gone: set[bytes] = set()
        for operation in transaction.success if succeeded else transaction.failure:
            if isinstance(operation, Delete):
                start, stop = self._keys.bounds(operation)
                request = rpc.RangeRequest(key=start, range_end=stop, revision=revision - 1, keys_only=True)
                what = f"read what {operation.key!r} deleted at revision {revision}"
                try:
                    gone.update(one.key for one in (await self._range(request, what)).kvs)
                except _CompactedRead:
                    raise Unavailable(f"{what}: compacted", hint="the transaction was applied") from None
        return Outcome(succeeded, revision, len(gone))

    async def _keep_record(self) -> None:
        while True:
            await asyncio.sleep(_RECORD_SECONDS)
            try:
                await asyncio.to_thread(self._record.save)
            except StateDamaged as error:
                log.warning("%s", error)


class _CompactedRead(Exception):
    """The revision to be read was compacted meanwhile."""
