"""When TTL checks expire, and how long checks have been critical: kept over restarts.

A TTL goes on while the agent is down; the time that counts for ``deregister_after`` does not, as
nobody could have reported or probed. In memory both are monotonic, so that setting the clock
changes neither; the expiry is stored by the wall clock, as Consul stores it.
"""

from __future__ import annotations

import json
import time

from discovery.structs import CheckDefinition, Status

State = tuple[Status, float | None, float]
"""Status, wall clock of the expiry (None: unknown), seconds critical."""


class CheckDeadlines:
    """The deadlines of a node's checks, by id."""

    def __init__(self) -> None:
        self._expires: dict[str, float] = {}
        self._critical_since: dict[str, float] = {}

    def renew(self, check_id: str, ttl: float) -> None:
        """A TTL check was reported now."""
        self._expires[check_id] = time.monotonic() + ttl

    def end_ttl(self, check_id: str) -> None:
        """The check has no TTL any more."""
        self._expires.pop(check_id, None)

    def remaining(self, check_id: str) -> float | None:
        """Seconds until a TTL check expires, negative if it has; None if it is not known."""
        expires = self._expires.get(check_id)
        return None if expires is None else expires - time.monotonic()

    def track(self, check_id: str, status: Status) -> None:
        """Note a check's status."""
        if status is Status.CRITICAL:
            self._critical_since.setdefault(check_id, time.monotonic())
        else:
            self._critical_since.pop(check_id, None)

    def critical(self) -> dict[str, float]:
        """The seconds that each critical check has been so."""
        now = time.monotonic()
        return {check_id: now - since for check_id, since in self._critical_since.items()}

    def forget(self, check_id: str) -> None:
        """The check is no longer registered."""
        self._expires.pop(check_id, None)
        self._critical_since.pop(check_id, None)

    def encode(self, check_id: str, status: Status) -> bytes:
        """What is stored of a check: its status and deadlines."""
        found: dict[str, object] = {"status": status.value}
        if (remaining := self.remaining(check_id)) is not None:
            found["expires"] = round(time.time() + remaining, 3)
        since = self._critical_since.get(check_id)
        if status is Status.CRITICAL and since is not None:
            found["critical"] = round(time.monotonic() - since, 1)
        return json.dumps(found, separators=(",", ":")).encode()

    def restore(self, definition: CheckDefinition, state: State) -> bool:
        """Take up what was stored; whether the TTL has expired meanwhile."""
        status, expires, critical = state
        if status is Status.CRITICAL:
            self._critical_since[definition.id] = time.monotonic() - critical
        if not definition.ttl:
            return False
        # A clock that was set back, or is not set yet after a boot, must not extend a TTL.
        remaining = definition.ttl if expires is None else min(expires - time.time(), definition.ttl)
        self._expires[definition.id] = time.monotonic() + remaining
        return remaining <= 0


def decode_state(value: bytes) -> State:
    """Decode what ``encode`` or an earlier release (the status alone) has stored. Raises
    ValueError.
    """
    found = json.loads(value)
    if isinstance(found, str):
        return Status(found), None, 0.0
    if not isinstance(found, dict):
        raise ValueError("not an object")
    expires, critical = found.get("expires"), found.get("critical", 0.0)
    if not isinstance(expires, int | float | None) or not isinstance(critical, int | float):
        raise ValueError("deadlines are not numbers")
    return Status(str(found.get("status"))), expires, float(critical)
