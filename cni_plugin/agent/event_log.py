"""The agent's log as events (``weft.events``): also of an agent that an ADD has started, whose standard
error nobody reads.
"""

from __future__ import annotations

import logging
import os

from weft import events


class _Handler(logging.Handler):
    """Records each line; one with ``extra={"event": …, "fields": …}`` as an event of that name."""

    def __init__(self, run: str) -> None:
        super().__init__(logging.INFO)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", "")
        fields = dict(getattr(record, "fields", {}))
        if not event:
            event = "log"
            fields = {"source": record.name.removeprefix("cni_plugin."), "level": record.levelname}
            fields["message"] = record.getMessage()
        # A unit's standard error is in the journal already.
        events.record(self._run, event, fields, journal="JOURNAL_STREAM" not in os.environ)


def start(run: str) -> None:
    """Record what this process logs from now on; ``run`` is the host's folder."""
    root = logging.getLogger()
    if any(isinstance(one, _Handler) for one in root.handlers):
        return
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    root.addHandler(_Handler(run))
    root.setLevel(min(root.level, logging.INFO))
    events.record(run, "agent", {"message": f"started, process {os.getpid()}", "source": "agent", "level": "INFO"})
