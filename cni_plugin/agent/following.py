"""The agent's follower of the host, for as long as no engine runs, and where one hangs."""

from __future__ import annotations

import logging
import os
import threading

from cni_plugin.dataplane.guard import Owner
from cni_plugin.service import follower, restorations
from discovery.metrics import Metrics

log = logging.getLogger(__name__)

_SETTLE = 0.3
"""Seconds: an engine has usually restored everything by then, and this look finds nothing to do."""


class Following:
    """A part of the agent: a thread that restores what other programs change."""

    def __init__(self, folder: str, metrics: Metrics) -> None:
        metrics.counter(
            "weft_restorations_total",
            "Repairs of rules and links after changes by other programs, by the engine or the agent.",
            read=lambda: restorations.read(folder).count,
        )
        self._thread: threading.Thread | None = None
        self._stop, self._stop_end = -1, -1

    async def start(self) -> None:
        """Start the thread, if it is wanted."""
        if not follower.is_wanted():
            return
        self._stop, self._stop_end = os.pipe2(os.O_CLOEXEC)
        follow = follower.Follower(Owner.AGENT, log.warning, settle=_SETTLE)
        self._thread = threading.Thread(target=follow.run, args=(self._stop,), name="follower", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Tell the thread to end; it is not waited for, since it may wait for a lock."""
        if self._thread is not None:
            os.close(self._stop_end)
            self._thread = None
