"""Follows the host: restores what other programs change of what weft has set up.

A thread of the engine and one of the agent, whichever runs: ``nft flush ruleset``, ``iptables -F``, a
reload of firewalld, a deleted bridge, a port that was taken off its bridge. It compares nothing by
itself: notifications tell which objects changed, and ``service.shared`` restores as ``weft doctor
--repair`` does. The time that it takes is bounded, whatever others do.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from cni_plugin.dataplane import guard
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.service import restorations
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.shared import Restored, repair, restore_attachment
from weft import releases
from weft.errors import WeftError
from weft.identity import mark_digest
from weft.kernel.host import Host
from weft.kernel.linux.host_events import EVERYTHING, Changes, HostEvents
from weft.kernel.linux.kernel import LinuxKernel
from weft.kernel.nft.owned import OwnedTable

SETTLE = 0.05
"""Seconds from a notification to the look, so that one look serves a burst of changes."""
SHARE = 0.2
"""The part of one CPU that restoring may take while another program keeps changing things."""
_RETRY = 0.2  # seconds to the next look at attachments that a call held locked, or after an error
_AFTERWARDS = 1.0  # seconds to one more look at the rules of other firewalls, which a reload takes
_CLAIM = 1.0  # seconds between two attempts to own the guard table, which the owner's death ends silently
_LOG_INTERVAL = 10.0  # seconds between two lines


def is_wanted() -> bool:
    """Whether engine and agent follow the host: WEFT_FOLLOW is not "off"."""
    return os.environ.get("WEFT_FOLLOW") != "off"


class Follower:
    """Follows the network namespace of the thread that runs it.

    ``settle``: SETTLE, or more for one that leaves the work to another process while that lives.
    """

    def __init__(self, log: Callable[[str], None], *, settle: float = SETTLE) -> None:
        self._log = log
        self._settle = settle
        self._logged = float("-inf")
        self._unlogged = 0
        self._guard = OwnedTable(guard.TABLE)
        self._networks: tuple[int, frozenset[str]] = (0, frozenset())

    def run(self, stop: int) -> None:
        """Follow until the descriptor ``stop`` becomes readable. Raises nothing: what cannot be followed is
        logged, and the next ADD restores.
        """
        try:
            self._follow(stop)
        except Exception as error:
            self._log(f"changes of the host are not followed: {error!r}")

    def _follow(self, stop: int) -> None:
        kernel = LinuxKernel(TABLES)
        context = ServiceContext(kernel, Host.current(kernel))
        events = HostEvents(TABLES.names)
        try:
            pending, again, rested = EVERYTHING, 0.0, 0.0
            while pending or events.wait(stop, None if self._guard.owned else _CLAIM):
                # No event wakes this: how many there are must not matter.
                if _is_ready(stop, max(self._settle, again, rested - time.monotonic())):
                    break
                pending |= events.read()
                started = time.thread_time()
                seen = pending
                pending, again = self._look(context, pending) if pending else (pending, 0.0)
                self._keep_guard(context, seen)
                used = time.thread_time() - started
                rested = time.monotonic() + used / SHARE - used
        finally:
            self._guard.close()
            events.close()
            kernel.close()

    def _look(self, context: ServiceContext, changes: Changes) -> tuple[Changes, float]:
        """Restore what was changed; what to look at again, and after how many seconds."""
        if not releases.is_current(context.host.run):  # another release's rules are not ours to judge
            return Changes(), 0.0
        try:
            restored = self._restore(context, changes)
        except WeftError as error:
            self._report(f"cannot restore what another program has changed: {error}", 0)
            return changes, _RETRY * 5
        if restored.changed:
            restorations.note(context.host.run)
            self._report("another program has changed what weft had set up, restored", restored.changed)
        if restored.locked:
            return Changes(marks=restored.locked), _RETRY
        if changes.firewalls and restored.changed:
            return Changes(firewalls=True), _AFTERWARDS
        return Changes(), 0.0

    def _keep_guard(self, context: ServiceContext, changes: Changes) -> None:
        """Own the table of constant drops while there are networks, as soon as no other process does."""
        try:
            if any(context.records.networks()):
                if self._guard.supported and releases.is_current(context.host.run):
                    self._guard.claim()
            elif self._guard.owned or changes.deleted:
                self._guard.remove()
        except WeftError as error:
            self._report(f"the table {guard.TABLE} cannot be installed: {error}", 0)

    def _restore(self, context: ServiceContext, changes: Changes) -> Restored:
        if not any(context.records.networks()):
            return Restored()
        rules = changes.deleted or (changes.tables and context.kernel.rules.lacks(TABLES) is not None)
        networks = self._network_marks(context)
        if rules or not changes.marks.isdisjoint(networks):
            return repair(context)
        found = Restored()
        if changes.firewalls or changes.addresses:
            found = repair(context, attachments=False)
        for digest in changes.marks:
            record = context.records.read_digest(digest)
            if record is not None:
                found += restore_attachment(context, record)
        return found

    def _network_marks(self, context: ServiceContext) -> frozenset[str]:
        """The digests in the marks of what networks share; read again when a network's record was
        written.
        """
        written = context.records.networks_written()
        if written != self._networks[0]:
            shared = (one for network in context.records.networks() for one in network.shared)
            self._networks = written, frozenset(mark_digest(mark) for one in shared for mark in one.marks)
        return self._networks[1]

    def _report(self, sentence: str, changed: int) -> None:
        """A line in the log, at most one in ten seconds."""
        self._unlogged += changed
        now = time.monotonic()
        if now - self._logged >= _LOG_INTERVAL:
            self._log(f"{sentence}: {self._unlogged}" if self._unlogged else sentence)
            self._logged, self._unlogged = now, 0


def _is_ready(descriptor: int, seconds: float) -> bool:
    """Whether the descriptor becomes readable within ``seconds``."""
    return bool(select.select([descriptor], [], [], seconds)[0])
