"""What the web page shows of this host beside names and services: attachments, by their records, and
networks, by their files.
"""

from __future__ import annotations

import contextlib
import os
import time

from cni_plugin.dataplane.packets import INTERNAL_LINKS
from cni_plugin.networks import conflists, leases
from cni_plugin.networks.attachments import published
from cni_plugin.networks.conflists import NetworkList
from cni_plugin.ops import Elements
from cni_plugin.service.records import Phase, Record, Records
from discovery.page.overview import AttachmentSummary, NetworkSummary
from weft.errors import StateDamaged, WeftError
from weft.identity import attachment_digest


class Recorded:
    """The attachments of this host by their records. A record is parsed when its file has changed."""

    def __init__(self, run: str) -> None:
        self._folder = os.path.join(run, "attachments")
        self._records = Records(run)
        self._known: dict[str, tuple[tuple[int, int], AttachmentSummary | None]] = {}

    def read(self) -> list[AttachmentSummary]:
        """Every attached interface once: of a chain of plugins, what the last one has answered."""
        now = {}
        try:
            entries = [one for one in os.scandir(self._folder) if one.name.endswith(".json")]
        except OSError:
            entries = []
        for entry in entries:
            try:
                about = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            state = about.st_ino, about.st_mtime_ns
            known = self._known.get(entry.name)
            now[entry.name] = known if known and known[0] == state else (state, self._summary(entry.name))
        self._known = now
        found: dict[tuple[str, str, str], AttachmentSummary] = {}
        for one in sorted((each for _, each in now.values() if each is not None), key=lambda each: each.since):
            found[one.network, one.container, one.interface] = one
        return list(found.values())

    def _summary(self, name: str) -> AttachmentSummary | None:
        try:
            record = self._records.read_digest(name.removesuffix(".json"))
        except StateDamaged:
            return None
        return summary(record) if record is not None and record.phase is Phase.ATTACHED else None


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
    """The networks of this host by their files. A file is parsed when it has changed; the leases are counted each
    time.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, int], NetworkList | None]] = {}

    def read(self) -> list[NetworkSummary]:
        """Every network whose file is valid, by name; of two files of one name the first, as runtimes do."""
        now: dict[str, tuple[tuple[int, int], NetworkList | None]] = {}
        for path in conflists.paths(self._folder):
            with contextlib.suppress(OSError):
                about = os.stat(path)
                state = about.st_ino, about.st_mtime_ns
                known = self._known.get(path)
                now[path] = known if known and known[0] == state else (state, _network(path))
        self._known = now
        found: dict[str, NetworkSummary] = {}
        for _, one in now.values():
            if one is not None and one.name not in found:
                found[one.name] = _configured(one)
        return list(found.values())


def _network(path: str) -> NetworkList | None:
    with contextlib.suppress(WeftError):
        return conflists.load(path)
    return None


def _configured(one: NetworkList) -> NetworkSummary:
    return NetworkSummary(
        one.name,
        one.driver,
        tuple(map(str, conflists.subnets(one))),
        tuple((each.ranges, each.used, each.size) for each in leases.fill(one)),
        one.internal,
    )
