"""The agent's follower of the host, for as long as no engine runs, and where one hangs."""

from __future__ import annotations

import logging
import os
import threading

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.service import restorations
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.follower import Follower
from discovery.metrics import Metrics
from weft.kernel.host import Host
from weft.kernel.linux.kernel import LinuxKernel

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
        """Start the thread, unless WEFT_FOLLOW is "off"."""
        if os.environ.get("WEFT_FOLLOW") == "off":
            return
        self._stop, self._stop_end = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Tell the thread to end; it is not waited for, since it may wait for a lock."""
        if self._thread is not None:
            os.close(self._stop_end)
            self._thread = None

    def _run(self) -> None:
        try:
            Follower(_connect, log.warning, settle=_SETTLE).run(self._stop)
        except Exception as error:  # without it, the next ADD restores
            log.error("changes of the host are not followed: %r", error)


def _connect() -> ServiceContext:
    kernel = LinuxKernel(TABLES)
    return ServiceContext(kernel, Host.current(kernel))
