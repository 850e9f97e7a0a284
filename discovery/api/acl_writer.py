"""Writes ACL records, and waits until this agent uses them."""

from __future__ import annotations

from collections.abc import Sequence

from discovery.acl.records import ACLS
from discovery.api.http_error import HttpError
from discovery.api.kvs_endpoint import wait_event
from discovery.key_watch import KeyWatcher
from store import Compare, Operation, Put, Store

APPLIED_SECONDS = 1.0
"""Seconds to wait for a change that this agent has written itself."""


class AclWriter:
    """Transactions on ACL records. ``enabled`` is the setting acl.enabled."""

    def __init__(self, store: Store, changes: KeyWatcher, *, enabled: bool) -> None:
        self._store = store
        self._changes = changes
        self._enabled = enabled

    def require_enabled(self) -> None:
        """Raise HttpError, with Consul's text, where ACLs are off."""
        if not self._enabled:
            raise HttpError(401, "ACL support disabled")

    async def put(self, key: str, value: bytes, seconds: float = 0.0) -> Operation:
        """The operation that writes a key, for so many seconds if not 0. Raises StoreError."""
        return Put(key, value, await self._store.grant(seconds) if seconds > 0 else 0)

    async def write(self, operations: Sequence[Operation], *guards: Compare) -> bool:
        """Apply all, if the guards hold; whether they did. Raises StoreError."""
        with self._changes.subscribe(ACLS, prefix=True) as changed:
            if not (await self._store.transact(guards, operations)).succeeded:
                return False
            await wait_event(changed, APPLIED_SECONDS)
        return True
