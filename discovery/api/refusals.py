"""Requests that are refused, as events: the first of a caller to an endpoint in a minute."""

from __future__ import annotations

import logging
import time

from discovery.api.exchange import Connection

log = logging.getLogger(__name__)

SECONDS = 60.0
_MOST = 1000  # callers and endpoints that are remembered


class Refusals:
    """Logs them."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], float] = {}

    def note(self, connection: Connection, what: str, error: str, started: float) -> None:
        """A request to an endpoint was refused, which came at ``started`` of the monotonic clock."""
        who = connection.client
        now = time.monotonic()
        if now - self._last.get((who, what), now - SECONDS) < SECONDS:
            return
        if len(self._last) >= _MOST:
            self._last = {key: at for key, at in self._last.items() if now - at < SECONDS}
        if len(self._last) < _MOST:
            self._last[who, what] = now
            fields = {"what": what, "by": who, "error": error, "ms": round(1000 * (now - started), 1)}
            log.warning("refused %s to %s: %s", what, who, error, extra={"event": "refusal", "fields": fields})
