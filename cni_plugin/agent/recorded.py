"""What the web page shows of this host beside names and services: attachments, by their records, and
networks, by their files.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from cni_plugin.dataplane.packets import INTERNAL_LINKS
from cni_plugin.networks import conflists, leases
from cni_plugin.networks.attachments import published
from cni_plugin.networks.conflists import NetworkList
from cni_plugin.ops import Elements
from cni_plugin.service.records import Phase, Record, Records
from discovery.page.overview import AttachmentSummary, NetworkSummary
from weft.errors import StateDamaged, WeftError
from weft.identity import attachment_digest

T = TypeVar("T")

_State = tuple[int, int]
"""Inode and mtime (ns)."""
_MTIME_RESOLUTION = 20_000_000  # ns; a tick of the slowest kernel is 10 ms


class Summaries(Generic[T]):
    """What ``summary`` makes of each record of this host. A record is parsed when its file has changed."""

    def __init__(self, run: str, summary: Callable[[Record], T | None]) -> None:
        self._folder = os.path.join(run, "attachments")
        self._records = Records(run)
        self._summary = summary
        self._known: dict[str, tuple[_State, T | None]] = {}

    def read(self) -> list[T]:
        """All but None, in no particular order."""
        now = {}
        try:
            entries = [one for one in os.scandir(self._folder) if one.name.endswith(".json")]
        except OSError:
            entries = []
        for entry in entries:
            try:
                state = _state(entry.stat(follow_symlinks=False))
            except OSError:
                continue
            known = self._known.get(entry.name)
            now[entry.name] = known if known and known[0] == state else (state, self._of(entry.name))
        self._known = now
        return [each for _, each in now.values() if each is not None]

    def _of(self, name: str) -> T | None:
        try:
            record = self._records.read_digest(name.removesuffix(".json"))
            return self._summary(record) if record is not None and record.phase is Phase.ATTACHED else None
        except StateDamaged:
            return None


class Recorded:
    """The attachments of this host by their records."""

    def __init__(self, run: str) -> None:
        self._summaries = Summaries(run, summary)

    def read(self) -> list[AttachmentSummary]:
        """Every attached interface once: of a chain of plugins, what the last one has answered."""
        found = {}
        for one in sorted(self._summaries.read(), key=lambda each: each.since):
            found[one.network, one.container, one.interface] = one
        return list(found.values())


def summary(record: Record) -> AttachmentSummary:
    """An attachment as the page shows it."""
    elements = [each for one in record.operations if isinstance(one, Elements) for each in one.elements]
    elements += [each for one in record.shared if isinstance(one, Elements) for each in one.elements]
    return AttachmentSummary(
        owner=attachment_digest(record.attachment),
        network=record.attachment.network,
        container=record.attachment.container,
        interface=record.attachment.interface,
        addresses=tuple(str(ip.address) for ip in record.result.ips),
        gateways=tuple(dict.fromkeys(str(ip.gateway) for ip in record.result.ips if ip.gateway)),
        ports=published(record.operations),
        internal=any(one.collection == INTERNAL_LINKS for one in elements),
        since=time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + record.made,
    )


class Configured:
    """The networks of this host by their files. A file is parsed when it has changed, and the leases of a network
    are counted when a lease has come or gone.
    """

    def __init__(self, folder: str = "") -> None:
        self._folder = folder or os.environ.get("WEFT_CNI_CONFIG") or conflists.FOLDER
        self._known: dict[str, tuple[_State, _Network | None]] = {}

    def read(self) -> list[NetworkSummary]:
        """Every network whose file is valid, by name; of two files of one name the first, as runtimes do. Raises
        StateDamaged where the folder cannot be read.
        """
        now: dict[str, tuple[_State, _Network | None]] = {}
        for path in conflists.paths(self._folder):
            with contextlib.suppress(OSError):
                state = _state(os.stat(path))
                known = self._known.get(path)
                now[path] = known if known and known[0] == state else (state, _network(path))
        self._known = now
        found: dict[str, NetworkSummary] = {}
        for _, one in now.values():
            if one is not None and one.summary.name not in found:
                found[one.summary.name] = one.counted()
        return list(found.values())


class _Network:
    """A network, and the leases of its pool as they were counted last."""

    def __init__(self, network: NetworkList) -> None:
        subnets = tuple(map(str, conflists.subnets(network)))
        self.summary = NetworkSummary(network.name, network.driver, subnets, internal=network.internal)
        self._pool = leases.pool(network)
        self._counted_at: _State | None = None

    def counted(self) -> NetworkSummary:
        if self._pool is None:
            return self.summary
        state = _settled(self._pool.directory)
        if state is None or state != self._counted_at:
            fill = leases.fill(self.summary.name, self._pool)
            self.summary = replace(self.summary, pools=tuple((each.ranges, each.used, each.size) for each in fill))
            self._counted_at = state
        return self.summary


def _network(path: str) -> _Network | None:
    with contextlib.suppress(WeftError):
        return _Network(conflists.load(path))
    return None


def _state(status: os.stat_result) -> _State:
    return status.st_ino, status.st_mtime_ns


def _settled(directory: str) -> _State | None:
    """The state of a directory, (0, 0) where it is missing; None for one changed so lately that another change
    might leave the same mtime.
    """
    try:
        status = os.stat(directory)
    except OSError:
        return 0, 0
    return _state(status) if abs(time.time_ns() - status.st_mtime_ns) > _MTIME_RESOLUTION else None
