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

from calls import ENGINE, REFERENCE_PLUGINS, Call, Contender, run_concurrently
from cases import Case

from lab import namespaces
from lab.commands import run

Row = dict[str, Any]
PORTS_OF_A_BRIDGE = 500
_CONCURRENT = 50  # concurrent ADDs while a host is filled
_CASE = Case("growth", masquerade=True)


@dataclass(slots=True)
class Side:
    """A host with its own engine and one container to measure with. ``limit``: attachments to create."""

    contender: Contender
    number: int
    limit: int
    attached: int = 0
    host: str = field(init=False)
    engine: subprocess.Popen[bytes] | None = None
    probe: Call | None = None

    def _new_container(self) -> None:
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
        """Attach containers until there are ``count`` in addition to the measured one."""
        while self.attached < count:
            many = min(_CONCURRENT, count - self.attached)
            bridge = self.number + 1 + self.attached // PORTS_OF_A_BRIDGE
            (conf,) = _CASE.members(self.contender, bridge)
            names = [f"grown-{self.number}-{self.attached + each}" for each in range(many)]
            calls = [Call(self.contender, conf["type"], conf, name, namespaces.make(name)) for name in names]
            with namespaces.inside(self.host):
                run_concurrently(calls, "ADD")
            self.attached += many

    def timed(self, command: str) -> tuple[float, float]:
        """Seconds of a call, and its CPU seconds including the engine's; every ADD is for a new
        container.
        """
        if command == "ADD":
            self._new_container()
        assert self.probe is not None
        with namespaces.inside(self.host):
            before = self._cpu_seconds()
            elapsed, used, _ = self.probe.measured(command)
            return elapsed, used + self._cpu_seconds() - before

    def _cpu_seconds(self) -> float:
        """CPU seconds of the engine and its children."""
        return 0.0 if self.engine is None else sum(map(cpu_time, with_children(self.engine.pid)))


def with_children(process: int) -> list[int]:
    """The pids of a process and its children."""
    found = [process]
    for task in Path(f"/proc/{process}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def cpu_time(process: int) -> float:
    """Seconds, with the resolution of clock_gettime(2): MAKE_PROCESS_CPUCLOCK of the kernel's
    posix-timers.h.
    """
    return time.clock_gettime(~process << 3 | 2)


def growth(
    counts: Sequence[int], rounds: int, reference_until: int, start_engine: Callable[[], subprocess.Popen[bytes]]
) -> list[Row]:
    """Serial ADD and DEL with ipMasq at each count of attachments: milliseconds, and the ratio to an
    empty host.
    """
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
            taking_part = [side for side in sides if count <= side.limit or side.limit == 0]
            if count > reference_until:
                taking_part = [side for side in taking_part if side.contender == ENGINE]
            for side in taking_part:
                side.fill(min(count, side.limit))
            found.append(_row(count, _measure(taking_part, rounds)))
    finally:
        for side in sides:
            if side.engine is not None:
                side.engine.terminate()
                side.engine.wait()
    return found


Times = dict[tuple[str, str], list[tuple[float, float]]]  # by (contender, command): wall-clock and CPU seconds


def _measure(sides: Sequence[Side], rounds: int) -> Times:
    times: Times = {}
    for turn in range(rounds + 2):
        shift = turn % len(sides)
        for side in [*sides[shift:], *sides[:shift]]:
            contender = side.contender.name + ("" if side.limit else " on an empty host")
            for command in ("ADD", "DEL"):
                taken = side.timed(command)
                if turn > 1:
                    times.setdefault((contender, command), []).append(taken)
    return times


def _row(count: int, times: Times) -> Row:
    """Medians: ``ms`` is wall-clock time; ``processor ms`` is CPU time, which other load affects least."""
    row: Row = {"case": "growth", "attachments": count, "load": os.getloadavg()[0]}
    for command in ("ADD", "DEL"):
        medians = {
            name: [statistics.median(column) * 1000 for column in zip(*values, strict=True)]
            for (name, which), values in times.items()
            if which == command
        }
        row[command], parts = {}, []
        for place, unit in enumerate(("ms", "processor ms")):
            values = {name: both[place] for name, both in medians.items()}
            factors = {
                name: value / values[f"{name} on an empty host"]
                for name, value in values.items()
                if f"{name} on an empty host" in values
            }
            row[command] |= {unit: values, f"growth of {unit}": factors}
            parts += [f"{name} {values[name]:.2f} {unit}, x {factor:.2f}" for name, factor in factors.items()]
        print(f"with {count:5} attachments  {command}  {'  '.join(parts)}", flush=True)
    return row
