"""Metrics of what other processes do on this host: calls and repairs from the events (``weft.events``),
attachments and pools from the records, conntrack, traffic and drops from the kernel. All are read when metrics
are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping
from contextlib import closing

from cni_plugin.agent.recorded import Configured, Summaries
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.service.records import Record
from discovery.metrics import Metrics
from discovery.page.overview import NetworkSummary
from weft import events
from weft.errors import WeftError
from weft.kernel.linux.kernel import LinuxKernel

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
_CALLS = ("add", "del", "gc", "check", "status")
_CONNTRACK = "/proc/sys/net/netfilter/nf_conntrack_"

LinkCounters = tuple[int, int, int, int]
"""Bytes and packets received, bytes and packets sent."""
Gauges = dict[tuple[str, ...], float]


class HostMetrics:
    """Reads the metrics of the host whose folder below /run is ``run``; ``netns`` is the inode of its network
    namespace.
    """

    def __init__(self, metrics: Metrics, run: str, netns: int, folder: str = "") -> None:
        self._records = Summaries(run, _attached)
        self._networks = Configured(folder)
        self._events = events.Reader(netns)
        self._calls = metrics.counter("weft_calls_total", "Calls by runtimes.", "command", "code")
        self._seconds = metrics.histogram("weft_call_seconds", "Duration of calls.", "command", bounds=SECONDS)
        self._repairs = metrics.counter("weft_repairs_total", "What others changed and weft restored.", "source")
        self._starts = metrics.counter("weft_daemon_starts_total", "Starts of weft's daemons.", "daemon")
        self._takeovers = metrics.counter("weft_takeovers_total", "Daemons and addresses that were taken over.", "what")
        self._refusals = metrics.counter("weft_refusals_total", "Services, names and API requests that were refused.")
        self._attached = metrics.gauge("weft_attachments", "Attachments.", "network", "driver")
        self._used = metrics.gauge("weft_pool_used_addresses", "Leased addresses of a range.", "network", "range")
        self._size = metrics.gauge("weft_pool_addresses", "Addresses of a range.", "network", "range")
        self._drops = metrics.counter(
            "weft_dropped_packets_total", "Packets dropped by rules, by their comments.", "table", "chain", "reason"
        )
        self._traffic = Traffic(link_counters())
        text = "by containers of a network, on links with an end on this host."
        self._bytes = metrics.counter("weft_network_bytes_total", f"Bytes {text}", "network", "direction")
        self._packets = metrics.counter("weft_network_packets_total", f"Packets {text}", "network", "direction")
        metrics.gauge("weft_conntrack_entries", "Connections that are tracked.", read=lambda: _conntrack("count"))
        metrics.gauge("weft_conntrack_limit", "Connections that can be tracked.", read=lambda: _conntrack("max"))
        metrics.read_before(self.read)

    async def read(self) -> None:
        """Read everything, in a thread."""
        attached, used, size = await asyncio.to_thread(self._read)
        self._drops.replace(await asyncio.to_thread(_dropped))
        self._bytes.replace(self._traffic.bytes)
        self._packets.replace(self._traffic.packets)
        self._attached.replace(attached)
        self._used.replace(used)
        self._size.replace(size)

    def _read(self) -> tuple[Gauges, Gauges, Gauges]:
        for one in self._events.new():
            self._count(one)
        networks: list[NetworkSummary] = []
        with contextlib.suppress(WeftError):
            networks = self._networks.read()
        records = self._records.read()
        self._traffic.add({link: network for network, _, link in records if link}, link_counters())
        attached: Gauges = dict(Counter((network, driver) for network, driver, _ in records))
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
        elif kind == "takeover":
            self._takeovers.add(1, str(event.get("what", "")))
        elif kind == "refusal":
            self._refusals.add(1)
        elif kind in ("agent", "engine"):
            self._starts.add(1, kind)


class Traffic:
    """What containers have sent and received, by network and direction, since the counters were as in ``before``.

    A link's counters end with it, so what they have grown by is added up at each reading.
    """

    def __init__(self, before: Mapping[str, LinkCounters] | None = None) -> None:
        self.bytes: Counter[tuple[str, ...]] = Counter()
        self.packets: Counter[tuple[str, ...]] = Counter()
        self._last = dict(before or {})

    def add(self, networks: Mapping[str, str], counters: Mapping[str, LinkCounters]) -> None:
        """Add what the links with these networks have counted since."""
        found = {link: numbers for link, numbers in counters.items() if link in networks}
        for link, now in found.items():
            before = self._last.get(link, (0, 0, 0, 0))
            if any(one < was for one, was in zip(now, before, strict=True)):  # another link of that name
                before = (0, 0, 0, 0)
            # What the host's end receives, the container has sent.
            for direction, first in (("sent", 0), ("received", 2)):
                self.bytes[networks[link], direction] += now[first] - before[first]
                self.packets[networks[link], direction] += now[first + 1] - before[first + 1]
        self._last = found


def link_counters(path: str = "/proc/self/net/dev") -> dict[str, LinkCounters]:
    """The counters of each link. *Equivalent to:* ``ip -s link``. Source: proc_net_dev(5)."""
    found = {}
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            name, colon, numbers = line.rpartition(":")
            if colon:
                fields = [int(one) for one in numbers.split()]
                found[name.strip()] = fields[0], fields[1], fields[8], fields[9]
    return found


def _dropped() -> Gauges:
    """Packets by table, chain and reason."""
    found: Gauges = {}
    with contextlib.suppress(WeftError), closing(LinuxKernel(TABLES)) as kernel:
        found.update({key: float(number) for key, number in kernel.rules.drops().items()})
    return found


def _attached(record: Record) -> tuple[str, str, str] | None:
    """Network and driver of an attachment that has made the interface, and its link on this host, "" for none."""
    links = [one.name for one in record.result.interfaces if not one.sandbox]
    return (record.attachment.network, record.driver, (links or [""])[-1]) if record.driver else None  # after a bridge


def _conntrack(name: str) -> float:
    """A number of nf_conntrack, 0 where that is not loaded."""
    with contextlib.suppress(OSError, ValueError), open(f"{_CONNTRACK}{name}", encoding="ascii") as file:
        return float(file.read())
    return 0.0
