"""Cost of ADD and DEL on a host with many attachments, compared with a host without any.

Each contender has two hosts (network namespaces), one full and one empty, and calls alternate between
them, so that other load on the machine does not affect the ratio. The full host has several bridges:
Linux limits one to 1,023 ports.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calls import ENGINE, REFERENCE_PLUGINS, Call, Contender, together
from cases import Case

from lab import namespaces
from lab.commands import run

Row = dict[str, Any]
PORTS_OF_A_BRIDGE = 500
_AT_ONCE = 50  # concurrent ADDs while a host is filled
_CASE = Case("growth", masquerade=True)


@dataclass(slots=True)
class Side:
    """A host with its own engine and one container to measure with. ``most``: attachments to create."""

    contender: Contender
    number: int
    most: int
    there: int = 0
    host: str = field(init=False)
    engine: subprocess.Popen[bytes] | None = None
    probe: Call | None = None

    def _renew(self) -> None:
        """A new container, for which the kernel has no cached dentries yet."""
        if self.probe is not None:
            namespaces.remove(self.probe.netns)
        name = f"probe-{self.number}"
        (conf,) = _CASE.members(self.contender, self.number)
        self.probe = Call(self.contender, conf["type"], conf, name, namespaces.make(name))

    def open(self, start_engine: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.host = namespaces.make(f"host-{self.number}")
        with namespaces.inside(self.host):
            run("ip", "link", "set", "lo", "up")
            if self.contender == ENGINE:
                self.engine = start_engine()

    def fill(self, count: int) -> None:
        """Attach containers until there are ``count`` beside the measured one."""
        while self.there < count:
            many = min(_AT_ONCE, count - self.there)
            bridge = self.number + 1 + self.there // PORTS_OF_A_BRIDGE
            (conf,) = _CASE.members(self.contender, bridge)
            names = [f"grown-{self.number}-{self.there + each}" for each in range(many)]
            calls = [Call(self.contender, conf["type"], conf, name, namespaces.make(name)) for name in names]
            with namespaces.inside(self.host):
                together(calls, "ADD")
            self.there += many

    def timed(self, command: str) -> tuple[float, float]:
        """Seconds of a call, and its CPU seconds including the engine's; every ADD is for a new container."""
        if command == "ADD":
            self._renew()
        assert self.probe is not None
        with namespaces.inside(self.host):
            before = self._worked()
            elapsed, used, _ = self.probe.accounted(command)
            return elapsed, used + self._worked() - before

    def _worked(self) -> float:
        """CPU seconds of the engine and its children."""
        return 0.0 if self.engine is None else sum(map(processor_time, family(self.engine.pid)))


def family(process: int) -> list[int]:
    """The pids of a process and its children."""
    found = [process]
    for task in Path(f"/proc/{process}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def processor_time(process: int) -> float:
    """Seconds, with the resolution of clock_gettime(2): MAKE_PROCESS_CPUCLOCK of the kernel's posix-timers.h."""
    return time.clock_gettime(~process << 3 | 2)


def growth(
    counts: Sequence[int], rounds: int, reference_until: int, start_engine: Callable[[], subprocess.Popen[bytes]]
) -> list[Row]:
    """Serial ADD and DEL with ipMasq at each count of attachments: milliseconds, and the ratio to an empty host."""
    most = max(counts)
    full, empty = Side(ENGINE, 100, most), Side(ENGINE, 120, 0)
    sides = [full, empty]
    if reference_until:
        sides += [Side(REFERENCE_PLUGINS, 140, min(most, reference_until)), Side(REFERENCE_PLUGINS, 160, 0)]
    found: list[Row] = []
    try:
        for side in sides:
            side.open(start_engine)
        for count in counts:
            taking_part = [side for side in sides if count <= side.most or side.most == 0]
            if count > reference_until:
                taking_part = [side for side in taking_part if side.contender == ENGINE]
            for side in taking_part:
                side.fill(min(count, side.most))
            found.append(_row(count, _measured(taking_part, rounds)))
    finally:
        for side in sides:
            if side.engine is not None:
                side.engine.terminate()
                side.engine.wait()
    return found


Times = dict[tuple[str, str], list[tuple[float, float]]]  # by (contender, command): wall-clock and CPU seconds


def _measured(sides: Sequence[Side], rounds: int) -> Times:
    times: Times = {}
    for turn in range(rounds + 2):
        shift = turn % len(sides)
        for side in [*sides[shift:], *sides[:shift]]:
            whose = side.contender.name + ("" if side.most else " beside none")
            for command in ("ADD", "DEL"):
                taken = side.timed(command)
                if turn > 1:
                    times.setdefault((whose, command), []).append(taken)
    return times


def _row(count: int, times: Times) -> Row:
    """Medians: ``ms`` is wall-clock time; ``processor ms`` is CPU time, which other load affects least."""
    row: Row = {"case": "growth", "attachments": count, "load": os.getloadavg()[0]}
    for command in ("ADD", "DEL"):
        medians = {
            whose: [statistics.median(column) * 1000 for column in zip(*values, strict=True)]
            for (whose, which), values in times.items()
            if which == command
        }
        row[command], parts = {}, []
        for place, unit in enumerate(("ms", "processor ms")):
            values = {whose: both[place] for whose, both in medians.items()}
            factors = {
                whose: value / values[f"{whose} beside none"]
                for whose, value in values.items()
                if f"{whose} beside none" in values
            }
            row[command] |= {unit: values, f"growth of {unit}": factors}
            parts += [f"{whose} {values[whose]:.2f} {unit}, x {factor:.2f}" for whose, factor in factors.items()]
        print(f"beside {count:5} attachments  {command}  {'  '.join(parts)}", flush=True)
    return row
