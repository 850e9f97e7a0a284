"""Metrics of what other processes do on this host: calls and repairs from the events (``weft.events``),
attachments and pools from the records, conntrack from the kernel. All are read when metrics are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

from cni_plugin.agent.recorded import Configured, Summaries
from cni_plugin.service.records import Record
from discovery.metrics import Metrics
from discovery.page.overview import NetworkSummary
from weft import events
from weft.errors import WeftError

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
_CALLS = ("add", "del", "gc", "check", "status")
_CONNTRACK = "/proc/sys/net/netfilter/nf_conntrack_"

Gauges = dict[tuple[str, ...], float]


class HostMetrics:
    """Reads the metrics of the host whose folder below /run is ``run``; ``netns`` is the inode of its network
    namespace.
    """

    def __init__(self, metrics: Metrics, run: str, netns: int, folder: str = "") -> None:
        self._records = Summaries(run, _driver)
        self._networks = Configured(folder)
        self._events = events.Reader(netns)
        self._calls = metrics.counter("weft_calls_total", "Calls by runtimes.", "command", "code")
        self._seconds = metrics.histogram("weft_call_seconds", "Duration of calls.", "command", bounds=SECONDS)
        self._repairs = metrics.counter("weft_repairs_total", "What others changed and weft restored.", "source")
        self._starts = metrics.counter("weft_daemon_starts_total", "Starts of weft's daemons.", "daemon")
        self._attached = metrics.gauge("weft_attachments", "Attachments.", "network", "driver")
        self._used = metrics.gauge("weft_pool_used_addresses", "Leased addresses of a range.", "network", "range")
        self._size = metrics.gauge("weft_pool_addresses", "Addresses of a range.", "network", "range")
        metrics.gauge("weft_conntrack_entries", "Connections that are tracked.", read=lambda: _conntrack("count"))
        metrics.gauge("weft_conntrack_limit", "Connections that can be tracked.", read=lambda: _conntrack("max"))
        metrics.read_before(self.read)

    async def read(self) -> None:
        """Read everything, in a thread."""
        attached, used, size = await asyncio.to_thread(self._read)
        self._attached.replace(attached)
        self._used.replace(used)
        self._size.replace(size)

    def _read(self) -> tuple[Gauges, Gauges, Gauges]:
        for one in self._events.new():
            self._count(one)
        networks: list[NetworkSummary] = []
        with contextlib.suppress(WeftError):
            networks = self._networks.read()
        attached: Gauges = dict(Counter(self._records.read()))
        used: Gauges = {}
        size: Gauges = {}
        for network in networks:
            for ranges, held, every in network.pools:
                used[network.name, ranges], size[network.name, ranges] = held, every
        return attached, used, size

    def _count(self, event: dict[str, object]) -> None:
        kind = str(event.get("event", ""))
        milliseconds = event.get("ms")
        if kind in _CALLS:
            self._calls.add(1, kind, str(event.get("code", 0)))
            if isinstance(milliseconds, int | float):
                self._seconds.observe(milliseconds / 1000, kind)
        elif kind == "repair":
            self._repairs.add(1, str(event.get("source", "")))
        elif kind in ("agent", "engine"):
            self._starts.add(1, kind)


def _driver(record: Record) -> tuple[str, ...] | None:
    """Network and driver of an attachment that has made the interface."""
    return (record.attachment.network, record.driver) if record.driver else None


def _conntrack(name: str) -> float:
    """A number of nf_conntrack, 0 where that is not loaded."""
    with contextlib.suppress(OSError, ValueError), open(f"{_CONNTRACK}{name}", encoding="ascii") as file:
        return float(file.read())
    return 0.0
