"""The operation of transactions on sessions: ``delete``, as in Consul."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from discovery.consul.json_fields import BadField
from discovery.consul.kv_txn import OperationFailed, Txn
from discovery.consul.sessions import decode_session
from discovery.kv import LOCK_DELAY_PREFIX, LOCK_PREFIX, KVPair
from store import Delete, Put

MAX_LOCKS = 30
"""Locks that are released in the transaction; a session that holds more is destroyed by itself."""
_SHORTEST_DELAY = 1.0
"""Seconds; a lock delay that may have passed before it is written (Patroni's is 1 ms) is left out."""


@dataclass(frozen=True, slots=True)
class SessionOperation:
    """Destroy a session and release, or delete, the keys that it has locked; none is a no-op."""

    verb: str
    id: str

    async def run(self, txn: Txn) -> Sequence[KVPair]:
        """Evaluate it in a transaction. Raises OperationFailed, BadField, StoreError."""
        if self.verb != "delete":
            raise BadField(f'unknown Session verb "{self.verb[:40]}"; known is delete')
        entry = await txn.find_session(self.id)
        if entry is None:
            return []
        txn.expect(entry.key, entry.mod_revision)
        prefix = f"{LOCK_PREFIX}{decode_session(entry).id}/"
        locks = (await txn.store.range(prefix, limit=MAX_LOCKS + 1)).entries
        if len(locks) > MAX_LOCKS:
            raise OperationFailed(f'session "{self.id}" holds more than {MAX_LOCKS} locks: use session/destroy')
        for lock in locks:
            pair = await txn.read(lock.key.removeprefix(prefix))
            if pair is None or pair.session != self.id:
                continue
            if pair.behavior == "delete":
                txn.delete(pair.key)
            else:
                txn.put(replace(pair, session="", delay=0.0, behavior="release"))
            if pair.delay >= _SHORTEST_DELAY:
                delay = LOCK_DELAY_PREFIX + pair.key
                txn.writes[delay] = Put(delay, b"", await txn.store.grant(pair.delay))
        txn.writes[entry.key] = Delete(entry.key)
        return []
