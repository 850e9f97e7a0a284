"""Sessions, which hold locks on keys, and their invalidation.

``/weft/v2/host/NODE/session/ID`` is a session. One with a TTL is bound to a lease of the store of
twice the TTL, so it expires for all nodes at once; one with checks is invalidated when one of them
is critical or missing. Every node releases (or deletes) the keys of an invalidated session with
compare-and-swap, so that several may do it concurrently.

Source: https://developer.hashicorp.com/consul/docs/automate/session and .../api-docs/session.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, replace

from discovery.catalog import CHECKS, NODES, Catalog, Topic
from discovery.consul.json_fields import Fields
from discovery.kv import KV_PREFIX, LOCK_DELAY_PREFIX, LOCK_PREFIX, KVPair, decode_pair, encode_pair
from discovery.layout import HOSTS, session_key, split_key, store_key
from discovery.structs import SERF_HEALTH, Status
from store import Batch, Compare, Delete, Entry, LeaseGone, Operation, Put, Range, Store, StoreError, Unavailable

log = logging.getLogger(__name__)

RELEASE_BATCH = 30
"""Keys released in one transaction."""
MAX_ATTEMPTS = 100
"""Transactions that fail because a key was written meanwhile, before giving up."""
_PASSED = -1
"""In place of the lease of a lock delay that has passed."""
TTL_MULTIPLIER = 2.0
"""A session expires this many TTLs after its last renewal, as in Consul (``SessionTTLMultiplier``).
Patroni and libkv rely on it: they ask for half the TTL that they mean.
"""


@dataclass(frozen=True, slots=True)
class Session:
    """A session. Times in seconds, ``ttl`` 0 for none; ``behavior`` of its keys is "release" or
    "delete". ``lease_seconds`` is what its lease was granted for.
    """

    id: str
    node: str
    name: str = ""
    ttl: float = 0.0
    delay: float = 15.0
    behavior: str = "release"
    checks: tuple[str, ...] = (SERF_HEALTH,)
    service_checks: tuple[str, ...] = ()
    lease: int = 0
    lease_seconds: float = 0.0
    create_index: int = 0
    modify_index: int = 0


def decode_session(entry: Entry) -> Session:
    """Decode a session. Raises ValueError."""
    found = Fields(json.loads(entry.value))
    return Session(
        id=split_key(entry.key)[1][1],
        node=found.text("node"),
        name=found.text("name"),
        ttl=_seconds(found, "ttl"),
        delay=_seconds(found, "delay"),
        behavior=found.text("behavior"),
        checks=found.string_list("checks"),
        service_checks=found.string_list("service_checks"),
        lease=found.number("lease", high=2**63 - 1),
        lease_seconds=_seconds(found, "lease_seconds") if found.has("lease_seconds") else 0.0,
        create_index=entry.create_revision,
        modify_index=entry.mod_revision,
    )


def _seconds(found: Fields, name: str) -> float:
    value = found.get(name)
    if not isinstance(value, int | float):
        found.invalid(name, value, "is not a number of seconds")
    return value


class SessionManager:
    """All sessions; this node invalidates those whose checks fail."""

    def __init__(self, catalog: Catalog, store: Store, node: str) -> None:
        self._catalog = catalog
        self._store = store
        self._node = node
        self._sessions: dict[str, Session] = {}
        self._ended: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] = _noop

    def start(self) -> None:
        """Look after them from now on; ``load`` and ``changed`` tell what there is."""
        self._unsubscribe = self._catalog.subscribe(self._on_checks_changed)
        self._task = asyncio.create_task(self._release_ended())

    async def load(self) -> int:
        """Take up what there is, and release what ended meanwhile; the revision to follow
        ``changed`` from.
        """
        found = await self._store.range(HOSTS, containing="/session/")
        self._sessions.clear()
        for entry in found.entries:
            self._on_change(entry.key, entry)
        locks = await self._store.range(LOCK_PREFIX)
        for session in {entry.key.removeprefix(LOCK_PREFIX).partition("/")[0] for entry in locks.entries} - set(
            self._sessions
        ):
            self._ended.put_nowait((session, ""))
        for query in self._catalog.queries().values():
            if query.session and query.session not in self._sessions:
                self._ended.put_nowait((query.session, ""))
        self._on_checks_changed(0, frozenset((CHECKS,)))
        return found.revision

    async def stop(self) -> None:
        """Stop; sessions remain."""
        self._unsubscribe()
        self._unsubscribe = _noop
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_batch(self, batch: Batch) -> None:
        """Apply changes of sessions in the store."""
        for event in batch.events:
            self._on_change(event.key, event.entry)

    def _on_change(self, key: str, entry: Entry | None) -> None:
        kind, names = split_key(key) if key.startswith(HOSTS) else ("", ())
        if kind != "session":
            return
        session_id = names[1]
        if entry is None:
            self._sessions.pop(session_id, None)
            self._ended.put_nowait((session_id, ""))
            return
        try:
            self._sessions[session_id] = decode_session(entry)
        except (ValueError, TypeError, AttributeError) as error:
            log.warning("ignoring invalid session %s: %s", key, error)

    # Operations of clients

    def _nodes(self) -> list[str]:
        """The nodes that may have sessions, this one first."""
        known = [one.name for one in self._catalog.nodes()] + [one.node for one in self._sessions.values()]
        return list(dict.fromkeys((self._node, *known)))

    async def find(self, session_id: str) -> Entry | None:
        """The entry of a session of any node, None if there is none. Raises StoreError."""
        known = self._sessions.get(session_id)
        for node in dict.fromkeys(((known.node,) if known else ()) + tuple(self._nodes())):
            if session_id and (entry := await self._store.get(session_key(node, session_id))) is not None:
                return entry
        return None

    async def all(self, read: Callable[[str], Awaitable[Range]]) -> Range:
        """The entries of all sessions, by node, and the revision to wait after."""
        found = [await read(session_key(node)) for node in self._nodes()]
        entries = sorted((entry for each in found for entry in each.entries), key=lambda one: split_key(one.key)[1][1])
        return Range(tuple(entries), min(each.revision for each in found))

    async def create(self, session: Session) -> Session:
        """Create a session and its id. Raises StoreError."""
        session = await self._with_lease(replace(session, id=str(uuid.uuid4())))
        revision = await self._store.put(session_key(session.node, session.id), _encode(session), lease=session.lease)
        return replace(session, create_index=revision, modify_index=revision)

    async def _with_lease(self, session: Session) -> Session:
        seconds = session.ttl * TTL_MULTIPLIER
        return replace(session, lease=await self._store.grant(seconds) if seconds else 0, lease_seconds=seconds)

    async def renew(self, session_id: str) -> Session | None:
        """Renew a session's TTL; None if it has expired. Raises StoreError."""
        entry = await self.find(session_id)
        if entry is None:
            return None
        session = decode_session(entry)
        if not session.lease:
            return session
        try:
            await self._store.keep_alive(session.lease)
        except LeaseGone:
            return None
        if session.lease_seconds != session.ttl * TTL_MULTIPLIER:  # of an earlier release: one TTL
            session = await self._with_lease(session)
            same = Compare(entry.key, "mod", entry.mod_revision)
            await self._store.transact((same,), (Put(entry.key, _encode(session), session.lease),))
        return session

    async def destroy(self, session_id: str) -> None:
        """Destroy a session and release its locks. Raises StoreError."""
        await self._destroy(await self.find(session_id))

    async def _destroy(self, entry: Entry | None) -> None:
        if entry is None:
            return
        session = decode_session(entry)
        await self.release(session.id, [Delete(entry.key)])
        if session.lease:
            await self._store.revoke(session.lease)

    # Invalidation

    def _on_checks_changed(self, revision: int, topics: frozenset[Topic]) -> None:
        """Invalidate sessions with a critical or missing check."""
        if not topics & {CHECKS, NODES}:
            return
        for session in tuple(self._sessions.values()):
            if not self._healthy(session):
                del self._sessions[session.id]
                self._ended.put_nowait((session.id, session_key(session.node, session.id)))

    def _healthy(self, session: Session) -> bool:
        wanted = {*session.checks, *session.service_checks}
        if session.node == self._node:
            wanted.discard(SERF_HEALTH)  # this agent is alive, even if its lease has just expired
        found = [self._catalog.check(session.node, name) for name in wanted]
        return all(one is not None and one.status is not Status.CRITICAL for one in found)

    async def _release_ended(self) -> None:
        while True:
            session_id, key = await self._ended.get()
            try:
                if key:
                    await self._destroy(await self._store.get(key))
                await self.release(session_id)
                for query in [one for one in self._catalog.queries().values() if one.session == session_id]:
                    await self._store.delete(store_key(query))
            except StoreError as error:
                log.warning("releasing locks of session %s failed, retrying: %s", session_id, error)
                await asyncio.sleep(1)
                self._ended.put_nowait((session_id, key))

    async def release(self, session_id: str, also: Iterable[Operation] = ()) -> None:
        """Release all locks of a session; ``also`` is part of the first transaction. Raises
        StoreError.
        """
        also = list(also)
        lease: dict[float, int] = {}
        failures = 0
        while failures < MAX_ATTEMPTS:
            locks = (await self._store.range(f"{LOCK_PREFIX}{session_id}/", limit=RELEASE_BATCH)).entries
            if not locks and not also:
                return
            compares: list[Compare] = []
            operations: list[Operation] = list(also)
            for lock in locks:
                await self._release_key(lock, session_id, compares, operations, lease)
            try:
                done = (await self._store.transact(compares, operations)).succeeded
            except LeaseGone:
                # A lock delay may be shorter than the time to write it (Patroni's is 1 ms): it has passed.
                lease = dict.fromkeys(lease, _PASSED)
                done = False
            if not done:
                failures += 1
                continue
            also = []
            if len(locks) < RELEASE_BATCH:
                return
        raise Unavailable(f"locks of session {session_id} were not released", hint="too many concurrent writes to them")

    async def _release_key(
        self,
        lock: Entry,
        session_id: str,
        compares: list[Compare],
        operations: list[Operation],
        leases: dict[float, int],
    ) -> None:
        key = lock.key.removeprefix(f"{LOCK_PREFIX}{session_id}/")
        entry = await self._store.get(KV_PREFIX + key)
        compares.append(Compare(KV_PREFIX + key, "mod", entry.mod_revision if entry else 0))
        operations.append(Delete(lock.key))
        pair = decode_pair(entry) if entry else KVPair(key)
        if pair.session != session_id:
            return
        if pair.behavior == "delete":
            operations.append(Delete(KV_PREFIX + key))
        else:
            operations.append(Put(KV_PREFIX + key, encode_pair(replace(pair, session="", delay=0.0))))
        if pair.delay > 0:
            if pair.delay not in leases:
                leases[pair.delay] = await self._store.grant(pair.delay)
            if leases[pair.delay] != _PASSED:
                operations.append(Put(LOCK_DELAY_PREFIX + key, b"", leases[pair.delay]))


def _encode(session: Session) -> bytes:
    left_out = ("id", "create_index", "modify_index")
    return json.dumps({name: part for name, part in asdict(session).items() if name not in left_out}).encode()


def _noop() -> None:
    """Do nothing."""
