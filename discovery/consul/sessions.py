"""Sessions, which hold locks on keys, and their invalidation.

A session with a TTL is bound to a lease of the store, so it expires for all nodes at once; one with
checks is invalidated when one of them is critical or missing. Every node releases (or deletes) the
keys of an invalidated session with compare-and-swap, so that several may do it concurrently.

Source: https://developer.hashicorp.com/consul/docs/automate/session and .../api-docs/session.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace

from discovery.catalog import CHECKS, NODES, Catalog, Topic
from discovery.consul.json_fields import Fields
from discovery.kv import KV_PREFIX, LOCK_DELAY_PREFIX, LOCK_PREFIX, SESSION_PREFIX, KVPair, decode_pair, encode_pair
from discovery.structs import SERF_HEALTH, Check, Status
from store import Batch, Compare, Delete, Entry, LeaseGone, Operation, Put, Store, StoreError

log = logging.getLogger(__name__)

RELEASE_BATCH = 30
"""Keys released in one transaction."""
MAX_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Session:
    """A session. Times in seconds, ``ttl`` 0 for none; ``behavior`` of its keys is "release" or
    "delete".
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
    create_index: int = 0
    modify_index: int = 0


def decode_session(entry: Entry) -> Session:
    """Decode a session. Raises ValueError."""
    found = Fields(json.loads(entry.value))
    return Session(
        id=entry.key.removeprefix(SESSION_PREFIX),
        node=found.text("node"),
        name=found.text("name"),
        ttl=_seconds(found, "ttl"),
        delay=_seconds(found, "delay"),
        behavior=found.text("behavior"),
        checks=found.string_list("checks"),
        service_checks=found.string_list("service_checks"),
        lease=found.number("lease", high=2**63 - 1),
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
        self._ended: asyncio.Queue[str] = asyncio.Queue()
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
        found = await self._store.range(SESSION_PREFIX)
        self._sessions.clear()
        for entry in found.entries:
            self._on_session(entry.key, entry)
        locks = await self._store.range(LOCK_PREFIX)
        for session in {entry.key.removeprefix(LOCK_PREFIX).partition("/")[0] for entry in locks.entries} - set(
            self._sessions
        ):
            self._ended.put_nowait(session)
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
            if event.key.startswith(SESSION_PREFIX):
                self._on_session(event.key, event.entry)

    def _on_session(self, key: str, entry: Entry | None) -> None:
        session_id = key.removeprefix(SESSION_PREFIX)
        if entry is None:
            self._sessions.pop(session_id, None)
            self._ended.put_nowait(session_id)
            return
        try:
            self._sessions[session_id] = decode_session(entry)
        except (ValueError, TypeError, AttributeError) as error:
            log.warning("ignoring invalid session %s: %s", key, error)

    # Operations of clients

    async def create(self, session: Session) -> Session:
        """Create a session and its id. Raises StoreError."""
        lease = await self._store.grant(session.ttl) if session.ttl else 0
        session = replace(session, id=str(uuid.uuid4()), lease=lease)
        encoded = {
            name: part for name, part in asdict(session).items() if name not in ("id", "create_index", "modify_index")
        }
        revision = await self._store.put(SESSION_PREFIX + session.id, json.dumps(encoded).encode(), lease=lease)
        return replace(session, create_index=revision, modify_index=revision)

    async def renew(self, session_id: str) -> Session | None:
        """Renew a session's TTL; None if it has expired. Raises StoreError."""
        entry = await self._store.get(SESSION_PREFIX + session_id)
        if entry is None:
            return None
        session = decode_session(entry)
        if session.lease:
            try:
                await self._store.keep_alive(session.lease)
            except LeaseGone:
                return None
        return session

    async def destroy(self, session_id: str) -> None:
        """Destroy a session and release its locks. Raises StoreError."""
        entry = await self._store.get(SESSION_PREFIX + session_id)
        if entry is None:
            return
        await self.release(session_id, [Delete(entry.key)])
        if lease := decode_session(entry).lease:
            await self._store.revoke(lease)

    # Invalidation

    def _on_checks_changed(self, revision: int, topics: frozenset[Topic]) -> None:
        """Invalidate sessions with a critical or missing check."""
        if not topics & {CHECKS, NODES}:
            return
        for session in tuple(self._sessions.values()):
            if not self._healthy(session):
                del self._sessions[session.id]
                self._ended.put_nowait(session.id)

    def _healthy(self, session: Session) -> bool:
        found = {check.id: check for check in self._catalog.node_checks(session.node)}
        wanted = {*session.checks, *session.service_checks}
        if session.node == self._node:
            wanted.discard(SERF_HEALTH)  # this agent is alive, even if its lease has just expired
        return _none_critical(wanted, found)

    async def _release_ended(self) -> None:
        while True:
            session_id = await self._ended.get()
            try:
                await self.destroy(session_id)
                await self.release(session_id)
            except StoreError as error:
                log.warning("releasing locks of session %s failed, retrying: %s", session_id, error)
                await asyncio.sleep(1)
                self._ended.put_nowait(session_id)

    async def release(self, session_id: str, also: Iterable[Operation] = ()) -> None:
        """Release all locks of a session; ``also`` is part of the first transaction. Raises
        StoreError.
        """
        also = list(also)
        lease: dict[float, int] = {}
        for _ in range(MAX_ATTEMPTS):
            locks = (await self._store.range(f"{LOCK_PREFIX}{session_id}/", limit=RELEASE_BATCH)).entries
            if not locks and not also:
                return
            compares: list[Compare] = []
            operations: list[Operation] = list(also)
            for lock in locks:
                await self._release_key(lock, session_id, compares, operations, lease)
            if (await self._store.transact(compares, operations)).succeeded:
                also = []
                if len(locks) < RELEASE_BATCH:
                    return

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
            operations.append(Put(LOCK_DELAY_PREFIX + key, b"", leases[pair.delay]))


def _noop() -> None:
    """Do nothing."""


def _none_critical(wanted: Iterable[str], found: dict[str, Check]) -> bool:
    return all(name in found and found[name].status is not Status.CRITICAL for name in wanted)
