"""Follows the host: restores what other programs change of what weft has set up.

A thread of the engine and one of the agent, whichever runs: ``nft flush ruleset``, ``iptables -F``, a
reload of firewalld, a deleted bridge, a port that was taken off its bridge. It compares nothing by
itself: notifications tell which objects changed, and ``service.shared`` restores as ``weft doctor
--repair`` does. The time that it takes is bounded, whatever others do.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterable

from cni_plugin.dataplane import guard
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.service import restorations
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.shared import Concerned, Restored, Where, repair, repair_concerned, restore_attachment
from weft import events, releases
from weft.errors import WeftError
from weft.identity import mark_digest
from weft.kernel.host import Host
from weft.kernel.linux.firewalls import is_ufw_busy
from weft.kernel.linux.host_events import EVERYTHING, Changes, HostEvents
from weft.kernel.linux.kernel import LinuxKernel
from weft.kernel.nft.owned import OwnedTable

SETTLE = 0.05
"""Seconds from a notification to the look, so that one look serves a burst of changes."""
SHARE = 0.2
"""The part of one CPU that restoring may take while another program keeps changing things."""
QUIET = 0.5
"""Seconds for which nobody has changed other firewalls' rules, nor held ufw's lock, before weft's are
restored there: a reload that finds other rules than it has just written fails.
"""
LONGEST = 5.0
"""Seconds from a change there to the restoration, however busy other programs are."""
_RETRY = 0.2  # seconds to the next look at attachments that a call held locked, or after an error
_CLAIM = 1.0  # seconds to the next attempt to own the guard's table, whose former owner may not have ended yet
_NEVER = 86400.0  # seconds; select(2) knows no infinity
_LOG_INTERVAL = 10.0  # seconds between two lines


def is_wanted() -> bool:
    """Whether engine and agent follow the host: WEFT_FOLLOW is not "off"."""
    return os.environ.get("WEFT_FOLLOW") != "off"


class Follower:
    """Follows the network namespace of the thread that runs it.

    ``owner``: whose table of constant drops it keeps. ``settle``: SETTLE, or more for one that leaves
    the work to another process while that lives.
    """

    def __init__(self, owner: guard.Owner, log: Callable[[str], None], *, settle: float = SETTLE) -> None:
        self._log = log
        self._owner = str(owner)
        self._settle = settle
        self._logged = float("-inf")
        self._unlogged = 0
        others = (table for other, table in guard.TABLES.items() if other is not owner)
        self._guard = OwnedTable(guard.TABLES[owner], others)
        self._firewalls = _Postponed(QUIET + settle)
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
            self._firewalls.note(pending)
            claim = self._keep_guard(context, pending)
            while pending or events.wait(stop, min(claim, self._firewalls.seconds)):
                # No event wakes this: how many there are must not matter.
                if _is_ready(stop, max(self._settle, again, rested - time.monotonic())):
                    break
                seen = events.read()
                self._firewalls.note(seen)
                pending |= seen
                started = time.thread_time()
                claim = self._keep_guard(context, pending)
                pending, again = self._look(context, pending)
                if not self._firewalls.seconds:  # as it was before the look, which may have taken long
                    seen = events.read()
                    self._firewalls.note(seen | Changes(others=is_ufw_busy()))
                    pending |= seen
                if not self._firewalls.seconds:
                    self._look_at_firewalls(context)
                used = time.thread_time() - started
                rested = time.monotonic() + used / SHARE - used
        finally:
            self._guard.close()
            events.close()
            kernel.close()

    def _keep_guard(self, context: ServiceContext, changes: Changes) -> float:
        """Own the table of constant drops while there are networks; the seconds to the next attempt."""
        try:
            if not any(context.records.networks()):
                if self._guard.owned or changes.deleted:
                    self._guard.remove()
                return _NEVER
            if self._guard.supported and releases.is_current(context.host.run):
                self._guard.claim()
        except WeftError as error:
            self._report(f"the table of constant drops cannot be installed: {error}", 0)
        return _CLAIM if self._guard.supported and not self._guard.owned else _NEVER

    def _look(self, context: ServiceContext, changes: Changes) -> tuple[Changes, float]:
        """Restore what is weft's own; what to look at again, and after how many seconds."""
        restored = self._attempt(context, lambda: self._restore(context, changes))
        if restored is None:
            return changes, _RETRY * 5
        return Changes(marks=restored.locked), _RETRY if restored.locked else 0.0

    def _look_at_firewalls(self, context: ServiceContext) -> None:
        """Restore what weft has in other firewalls' rules."""
        self._firewalls.clear()
        restored = self._attempt(context, lambda: repair(context, where=Where.FIREWALLS))
        if restored is None or restored.locked:
            self._firewalls.note(EVERYTHING)

    def _attempt(self, context: ServiceContext, restore: Callable[[], Restored]) -> Restored | None:
        """Restore, and report it; None where that failed."""
        if not releases.is_current(context.host.run):  # another release's rules are not ours to judge
            return Restored()
        try:
            restored = restore()
        except WeftError as error:
            self._report(f"cannot restore what another program has changed: {error}", 0)
            return None
        if restored.changed:
            restorations.note(context.host.run)
            events.record(context.host.run, "repair", {"changes": restored.changed, "source": self._owner})
            self._report("another program has changed what weft had set up, restored", restored.changed)
        return restored

    def _restore(self, context: ServiceContext, changes: Changes) -> Restored:
        if not changes or not any(context.records.networks()):
            return Restored()
        if changes.deleted or (changes.tables and context.kernel.rules.lacks(TABLES) is not None):
            return repair(context, where=Where.OWN)
        found = Restored()
        # Only the networks that it concerns: with a thousand of them, each new bridge makes notifications.
        marks, links = changes.marks & self._network_marks(context), _names(changes.addresses)
        if marks or links:
            found = repair_concerned(context, Concerned(marks, links))
        for digest in changes.marks:
            record = context.records.read_digest(digest)
            if record is not None:
                found += restore_attachment(context, record, where=Where.OWN)
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


class _Postponed:
    """The look at other firewalls' rules: ``quiet`` seconds after their last change, LONGEST after the
    first that may concern weft's; at once after a change of weft's own chain there alone.
    """

    def __init__(self, quiet: float) -> None:
        self._quiet = quiet
        self._since: float | None = None
        self._last = float("-inf")

    def note(self, changes: Changes) -> None:
        now = time.monotonic()
        if changes.firewalls and self._since is None:
            self._since = now
        if changes.others:
            self._last = now

    def clear(self) -> None:
        self._since = None

    @property
    def seconds(self) -> float:
        """The seconds until it is due, 0 once it is."""
        if self._since is None:
            return _NEVER
        return max(0.0, min(self._last + self._quiet, self._since + LONGEST) - time.monotonic())


def _names(indexes: Iterable[int]) -> frozenset[str]:
    """The names of the links that still exist, in this thread's network namespace."""
    found = set()
    for index in indexes:
        with contextlib.suppress(OSError):
            found.add(socket.if_indextoname(index))
    return frozenset(found)


def _is_ready(descriptor: int, seconds: float) -> bool:
    """Whether the descriptor becomes readable within ``seconds``."""
    return bool(select.select([descriptor], [], [], seconds)[0])
