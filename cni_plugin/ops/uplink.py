"""Scheduling of the uplink: an HTB on it, another on the link that downloads pass, and their classes.

Rates are bytes per second. Class 1 has the whole rate, class 2 what belongs to no other, of a network
its own number and the next one, of a container its own.
Sources: tc-htb(8), ``net/sched/sch_htb.c``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cni_plugin.dataplane.uplink import DEFAULT, DOWNLOAD_LINK, MAJOR, UPLINK_CLASSES, class_owner, classid
from cni_plugin.ops.operation import LinkRef, Machine, Operation, reapply
from weft.errors import ConfigProblem, Conflict, Missing
from weft.kernel.interface import Namespace
from weft.kernel.values import TrafficClass
from weft.types import Side
from weft.uplink import configured, rate_text

ROOT = 1
FIRST, LAST = 0x10, 0x7700
"""Numbers of the classes of networks and containers: even ones, since a network has two."""
NO_FLOOR = 1000
"""The rate of a class without a guaranteed one, which HTB does not allow: 8 kbit/s."""
USUAL_PRIORITY = 4
_HTB = f"htb {MAJOR:x}:"
_FAST = 25_000_000
_SLOW_TURN, _FAST_TURN = 10_100, 65_600


def turn(rate: int) -> int:
    """The bytes that a class of weight 1 sends in its turn on an uplink of that rate: the largest packet
    that there is. Smaller turns would all be one packet, whatever the weights.
    """
    return _FAST_TURN if rate >= _FAST else _SLOW_TURN


def _root(classes: Iterable[TrafficClass]) -> TrafficClass | None:
    return next((one for one in classes if one.number == ROOT), None)


@dataclass(frozen=True, slots=True)
class UplinkScheduler(Operation):
    """HTB as the root qdisc of the uplink, or of the link that downloads pass, with the rate and the
    default weight that weft.toml has now.

    The rate is the host's, not a network's: it is read when the operation is applied or checked, so
    that no record keeps a former one. A root qdisc that somebody else has set is left alone.
    """

    link: str
    download: bool = False

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    @property
    def _key(self) -> str:
        return "down" if self.download else "up"

    def _wanted(self) -> tuple[TrafficClass, ...]:
        """The root class, and for uploads the default class; () where weft.toml has no rate."""
        settings = configured()
        rate = (settings.down if self.download else settings.up) // 8
        if not rate:
            return ()
        root = TrafficClass(ROOT, 0, rate, rate, turn(rate), 0)
        rest = TrafficClass(DEFAULT, ROOT, NO_FLOOR, rate, settings.weight * turn(rate), USUAL_PRIORITY)
        return (root,) if self.download else (root, rest)

    def apply(self, machine: Machine) -> bool:
        host = machine.host
        there = host.root_qdisc(self.link)
        if there not in ("", _HTB):
            raise Conflict(
                f"{self.link} has the root qdisc {there} of another program, which weft does not replace",
                hint=f"delete it (tc qdisc del dev {self.link} root), or name another link in [uplink] of weft.toml",
            )
        wanted = self._wanted()
        if not wanted:
            raise ConfigProblem(f"weft.toml has no rate uplink.{self._key}", hint="set it, or remove the key uplink")
        classes = host.classes(self.link) if there else ()
        rate = wanted[0].rate
        floors = sum(one.rate for one in classes if one.parent == ROOT and one.rate > NO_FLOOR)
        if floors > rate:
            raise ConfigProblem(
                f"uplink.{self._key} {rate_text(rate * 8)} in weft.toml is less than what is guaranteed"
                f" to networks on {self.link}: {rate_text(floors * 8)}",
                hint="set a higher rate, or lower the floors of networks first",
            )
        if not there:
            host.add_scheduler(self.link, MAJOR, 0 if self.download else DEFAULT)
        before = _root(classes)
        for one in wanted:
            host.set_class(self.link, MAJOR, one, leaf=one.number == DEFAULT)
        if before is not None and before.rate != rate:
            self._rescale(host, classes, before.rate, rate)
        return True

    def _rescale(self, host: Namespace, classes: Sequence[TrafficClass], before: int, rate: int) -> None:
        """Give the other classes the same shares of a changed rate."""
        for one in classes:
            if one.number not in (ROOT, DEFAULT):
                ceil = rate if one.ceil == before else max(min(one.ceil, rate), one.rate)
                quantum = max(one.quantum // turn(before), 1) * turn(rate)
                leaf = all(other.parent != one.number for other in classes)
                host.set_class(self.link, MAJOR, replace(one, ceil=ceil, quantum=quantum), leaf=leaf)

    def undo(self, machine: Machine) -> None:
        with contextlib.suppress(Missing):
            machine.host.delete_scheduler(self.link, MAJOR)

    def mismatch(self, machine: Machine) -> str | None:
        there = machine.host.root_qdisc(self.link)
        if there != _HTB:
            return f"{self.link} has the root qdisc {there or 'of the kernel'} instead of {_HTB}"
        wanted = self._wanted()
        if not wanted:
            return f"weft.toml has no rate uplink.{self._key} any more"
        classes = {one.number: one for one in machine.host.classes(self.link)}
        for one in wanted:
            if one.number not in classes:
                return f"{self.link} lacks the class {MAJOR:x}:{one.number}"
            found = classes[one.number]
            if (found.rate, found.ceil) != (one.rate, one.ceil):
                return f"the rate of {self.link} is {rate_text(found.ceil * 8)} instead of {rate_text(one.ceil * 8)}"
            if one.number == DEFAULT and found.quantum != one.quantum:
                return f"the default weight on {self.link} is not that of weft.toml"
        return None

    def replaces(self, earlier: Operation) -> bool:
        return isinstance(earlier, UplinkScheduler) and earlier.download == self.download and earlier.link != self.link

    def commands(self, namespace: str) -> tuple[str, ...]:
        default = 0 if self.download else DEFAULT
        made = f"tc qdisc add dev {self.link} root handle {MAJOR:x}: htb default {default}"
        return (
            made,
            *(command for one in self._wanted() for command in _commands(self.link, one, one.number == DEFAULT)),
        )


@dataclass(frozen=True, slots=True)
class UplinkClass(Operation):
    """The class of a network (``parent`` is the root class), or that of a container below its network's.

    ``floor`` is what it gets in any case, ``ceil`` the most that it gets (0 for no bound of its own).
    What is left goes to those with the lowest ``priority`` first, by ``weight``. Below a network's class
    is one with the next number, for its containers that have none of their own.
    """

    link: str
    owner: str
    number: int
    parent: int = ROOT
    weight: int = 1
    floor: int = 0
    ceil: int = 0
    priority: int = USUAL_PRIORITY

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    @property
    def _of_network(self) -> bool:
        return self.parent == ROOT

    @property
    def leaf(self) -> int:
        """The number of the class that packets are in."""
        return self.number + 1 if self._of_network else self.number

    def _wanted(self, rate: int) -> tuple[TrafficClass, ...]:
        """The classes on a link of that rate; the last one has a queue."""
        floor, ceil = max(self.floor, NO_FLOOR), min(self.ceil or rate, rate)
        made = TrafficClass(self.number, self.parent, floor, ceil, self.weight * turn(rate), self.priority)
        if not self._of_network:
            return (made,)
        return (made, replace(made, number=self.leaf, parent=self.number, rate=NO_FLOOR))

    def apply(self, machine: Machine) -> bool:
        classes = machine.host.classes(self.link)
        root = _root(classes)
        if root is None or all(one.number != self.parent for one in classes):
            lacking = "scheduler of weft's" if root is None else f"class {MAJOR:x}:{self.parent:x}"
            raise Missing(f"{self.link} has no {lacking}", hint="run weft doctor --repair")
        self._require_floor(machine, classes)
        wanted = self._wanted(root.rate)
        for one in wanted:
            machine.host.set_class(self.link, MAJOR, one, leaf=one is wanted[-1])
        try:
            # Looked for again, so that of two calls at once at least one sees the other.
            self._require_floor(machine, machine.host.classes(self.link))
        except Conflict:
            self.undo(machine)
            raise
        return True

    def _require_floor(self, machine: Machine, classes: Iterable[TrafficClass]) -> None:
        """Raises Conflict where others have been guaranteed too much for this floor."""
        if not self.floor:
            return
        found = {one.number: one for one in classes}
        whole = found[self.parent].rate if self.parent in found else 0
        others = {
            one.number: one.rate
            for one in found.values()
            if one.parent == self.parent and one.number != self.number and one.rate > NO_FLOOR
        }
        left = max((whole if whole > NO_FLOOR else 0) - sum(others.values()), 0)
        if self.floor <= left:
            return
        marks = {one.key[0]: one.mark for one in machine.rules().elements(UPLINK_CLASSES)} if others else {}
        holders = [
            f"{class_owner(marks.get(classid(one), ''))} has {rate_text(rate * 8)}" for one, rate in others.items()
        ]
        of = f"the uplink's {rate_text(whole * 8)}" if self._of_network else "its network's floor"
        raise Conflict(
            f"uplink.floor {rate_text(self.floor * 8)} of {self.owner} on {self.link} is more than is left of {of}:"
            f" {rate_text(left * 8)}{''.join(f'; {one}' for one in holders)}",
            hint="lower this floor or another one"
            + ("" if self._of_network else ", or give the network a higher floor"),
        )

    def undo(self, machine: Machine) -> None:
        with contextlib.suppress(Missing):
            if not self.number or machine.host.root_qdisc(self.link) != _HTB:
                return
            below = [one.number for one in machine.host.classes(self.link) if one.parent == self.number]
            for number in (*below, self.number):
                machine.host.delete_class(self.link, MAJOR, number)

    def mismatch(self, machine: Machine) -> str | None:
        classes = {one.number: one for one in machine.host.classes(self.link)}
        root = classes.get(ROOT)
        for one in self._wanted(root.rate) if root is not None else ():
            there = classes.get(one.number)
            if there is None:
                return f"{self.link} lacks the class {MAJOR:x}:{one.number:x} of {self.owner}"
            if self._of_network and one.number == self.number:
                # Of a class with others below it the kernel neither uses nor changes these.
                one = replace(one, quantum=there.quantum, priority=there.priority)
            if there != one:
                name = f"the class {MAJOR:x}:{one.number:x} of {self.owner} on {self.link}"
                return f"{name} has {_settings(there)} instead of {_settings(one)}"
        return None if root is not None else f"{self.link} has no scheduler of weft's"

    def restore(self, machine: Machine) -> bool:
        return reapply(self, machine)

    def replaces(self, earlier: Operation) -> bool:
        return (
            isinstance(earlier, UplinkClass)
            and self._of_network
            and earlier != self
            and earlier.owner == self.owner
            and (earlier.link == DOWNLOAD_LINK) == (self.link == DOWNLOAD_LINK)
        )

    def sparing(self, kept: Operation) -> Operation:
        if isinstance(kept, UplinkClass) and (kept.link, kept.number) == (self.link, self.number):
            return replace(self, number=0)
        return self

    def commands(self, namespace: str) -> tuple[str, ...]:
        settings = configured()
        rate = (settings.down if self.link == DOWNLOAD_LINK else settings.up) // 8
        wanted = self._wanted(rate) if rate else ()
        return tuple(command for one in wanted for command in _commands(self.link, one, one is wanted[-1]))


def _settings(one: TrafficClass) -> str:
    """The settings of a class as tc has them; ``bps`` are bytes per second there."""
    return f"rate {one.rate}bps ceil {one.ceil}bps quantum {one.quantum} prio {one.priority}"


def _commands(link: str, one: TrafficClass, queue: bool) -> tuple[str, ...]:
    """The commands that add a class, and its queue if it has one."""
    parent = f"{MAJOR:x}:{one.parent:x}" if one.parent else f"{MAJOR:x}:"
    made = f"tc class replace dev {link} parent {parent} classid {MAJOR:x}:{one.number:x} htb {_settings(one)}"
    queued = f"tc qdisc add dev {link} parent {MAJOR:x}:{one.number:x} fq_codel"
    return (made, queued) if queue else (made,)
