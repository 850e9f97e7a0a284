"""Compares weft with the reference plugins: the same networks, alternating calls, on the same machine.

Run by ``benchmarks/run`` in private namespaces. Only ratios are meaningful: both sides see the same
load.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import podman_runs
from calls import ENGINE, IN_PROCESS, REFERENCE_PLUGINS, ROOT, Call, Chain, Contender, run_concurrently
from cases import CONCURRENT, MANY_PORTS, SERIAL, VERSION, Case
from growth import growth
from guards import guards
from long import endurance, pools

from lab import namespaces

Times = dict[str, list[float]]
CONTENDERS = (REFERENCE_PLUGINS, ENGINE, IN_PROCESS)
COUNTS = (0, 100, 250, 500, 1000, 2000)
REFERENCE_UNTIL = 500
"""Most attachments measured with the reference: creating more takes many minutes."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ConcurrentCalls:
    """Concurrent calls."""

    contender: Contender
    calls: list[Call]


Side = TypeVar("Side", Chain, ConcurrentCalls)


class Numbers:
    """Unique networks, containers and ports for all measurements."""

    def __init__(self) -> None:
        self._network = 0
        self._container = 0

    def network(self) -> int:
        self._network += 1
        return self._network

    def container(self) -> tuple[str, str]:
        """A container's id and its new namespace."""
        self._container += 1
        name = f"bench-{self._container}"
        return name, namespaces.make(name)


def serial(case: Case, rounds: int, contenders: Sequence[Contender], numbers: Numbers) -> Row:
    """Sequential ADD and DEL, alternating between the contenders; the first round is not counted."""
    chains = []
    for place, contender in enumerate(contenders):
        name, netns = numbers.container()
        members = case.members(contender, numbers.network())
        chains.append(Chain(contender, members, name, netns, case.runtime(10000 + 1000 * place)))
    times: dict[str, Times] = {"ADD": {}, "DEL": {}}
    for turn, chain in alternate(chains, rounds):
        added, deleted = chain.add(), chain.delete()
        if turn:
            times["ADD"].setdefault(chain.contender.name, []).append(added)
            times["DEL"].setdefault(chain.contender.name, []).append(deleted)
    return row(case.name, times)


def alternate(sides: Sequence[Side], rounds: int) -> Iterator[tuple[int, Side]]:
    """The sides alternating, each first equally often; calls without an engine separately, afterwards.

    A call without an engine runs 160 ms of Python and evicts the processor caches, which slows the next
    call down.
    """
    others = [one for one in sides if one.contender is not IN_PROCESS]
    alone = [one for one in sides if one.contender is IN_PROCESS]
    for group in filter(None, (others, alone)):
        for turn in range(rounds + 1):
            for one in group[turn % len(group) :] + group[: turn % len(group)]:
                yield turn, one


def concurrent(case: Case, many: int, rounds: int, contenders: Sequence[Contender], numbers: Numbers) -> Row:
    """``many`` concurrent ADDs, then as many DELs: the time until the last one has exited."""
    sides: list[ConcurrentCalls] = []
    for contender in contenders:
        (conf,) = case.members(contender, numbers.network())
        calls = [Call(contender, conf["type"], conf, *numbers.container()) for _ in range(many)]
        sides.append(ConcurrentCalls(contender, calls))
    times: dict[str, Times] = {"ADD": {}, "DEL": {}}
    for turn, side in alternate(sides, rounds):
        for command in ("ADD", "DEL"):
            elapsed = run_concurrently(side.calls, command)
            if turn:
                times[command].setdefault(side.contender.name, []).append(elapsed)
    return row(f"{case.name}, {many} at once", times)


def version(rounds: int, contenders: Sequence[Contender]) -> Row:
    times: Times = {}
    for turn in range(rounds + 1):
        for contender in contenders:
            elapsed, _ = Call(contender, "bridge", {"cniVersion": VERSION}, "", "").timed("VERSION")
            if turn:
                times.setdefault(contender.name, []).append(elapsed)
    return row("VERSION", {"ADD": times})


def floor(rounds: int, numbers: Numbers) -> Row:
    from floor import Floor

    ground = Floor(numbers.container()[1])
    times: dict[str, Times] = {"ADD": {"floor": []}, "DEL": {"floor": []}}
    for turn in range(rounds + 1):
        added, deleted = ground.add(), ground.delete()
        if turn:
            times["ADD"]["floor"].append(added)
            times["DEL"]["floor"].append(deleted)
    ground.close()
    return row("floor (netlink alone)", times)


def row(name: str, times: dict[str, Times]) -> Row:
    """Medians in milliseconds, and the ratio of weft to the reference."""
    found: Row = {"case": name}
    for command, each in times.items():
        medians = {who: statistics.median(values) * 1000 for who, values in each.items()}
        found[command] = {"ms": medians}
        if "reference" in medians:
            own = [who for who in medians if who != "reference"]
            found[command]["ratio"] = {who: medians[who] / medians["reference"] for who in own}
    show(found)
    return found


def show(found: Row) -> None:
    for command in ("ADD", "DEL", "run"):
        if command in found:
            parts = [f"{who} {value:8.2f} ms" for who, value in found[command]["ms"].items()]
            parts += [f"{who}/reference {value:.3f}" for who, value in found[command].get("ratio", {}).items()]
            print(f"{found['case']:32} {command}  {'  '.join(parts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks/run", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=25, help="measurements of each kind, after one that is not counted"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--without", action="append", default=[], help="skip a contender: reference, weft, in process")
    parser.add_argument("--long", action="store_true", help="also measure growth, large pools and endurance")
    parser.add_argument("--pairs", type=int, default=20000, help="ADD and DEL pairs of the endurance run")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="measure only what the guards cost: ratios to the checkout DIR"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE as JSON")
    options = parser.parse_args()
    if problem := namespaces.isolation_problem():
        sys.exit(f"benchmarks: {problem}; use benchmarks/run")
    if options.against is not None:
        rows = guards(options.against.resolve(), options.rounds)
        if options.json:
            Path(options.json).write_text(json.dumps({"load": os.getloadavg(), "rows": rows}, indent=2) + "\n")
        return
    contenders = [each for each in CONTENDERS if each.name not in options.without]
    numbers = Numbers()
    rounds = options.rounds
    few = max(2, rounds // 8)
    jobs: list[tuple[str, Callable[[], Row]]] = [("VERSION", lambda: version(rounds * 2, contenders))]
    jobs.append(("floor", lambda: floor(rounds * 2, numbers)))
    for case in SERIAL:
        jobs.append((case.name, lambda case=case: serial(case, rounds, contenders, numbers)))  # type: ignore[misc]
    jobs.append((MANY_PORTS.name, lambda: serial(MANY_PORTS, few, contenders, numbers)))
    for case in CONCURRENT:
        jobs.append(
            (f"{case.name}, 64 at once", lambda case=case: concurrent(case, 64, few, contenders, numbers))  # type: ignore[misc]
        )
    for release in (4, 5):
        for name in podman_runs.cases(release):
            jobs.append((name, lambda name=name: row(name, {"run": podman_runs.measure(name, rounds)})))  # type: ignore[misc]
    engine = start_engine() if ENGINE in contenders else None
    try:
        rows = [job() for name, job in jobs if options.only in name]
        if options.long and engine is not None:
            for name, job in long_jobs(options, contenders, engine.pid):
                if options.only in name:
                    rows += job()
    finally:
        if engine is not None:
            engine.terminate()
            engine.wait()
    if options.json:
        Path(options.json).write_text(json.dumps({"load": os.getloadavg(), "rows": rows}, indent=2) + "\n")


def long_jobs(
    options: argparse.Namespace, contenders: Sequence[Contender], engine: int
) -> list[tuple[str, Callable[[], list[Row]]]]:
    few = max(2, options.rounds // 8)
    warm = [each for each in contenders if each != IN_PROCESS]
    until = REFERENCE_UNTIL if REFERENCE_PLUGINS in contenders else 0
    return [
        ("growth", lambda: growth(COUNTS, options.rounds, until, start_engine)),
        ("IPAM", lambda: pools((10, 65000), few * 2, warm)),
        ("endurance", lambda: endurance(options.pairs, engine)),
    ]


def start_engine() -> subprocess.Popen[bytes]:
    """Start the engine of this network namespace and wait until it listens."""
    engine = subprocess.Popen([ROOT / ".venv" / "bin" / "weft-engine"], env={"MALLOC_ARENA_MAX": "2"})
    place = Path(f"/run/weft/{os.stat('/proc/self/ns/net').st_ino}/engine.sock")
    deadline = time.monotonic() + 20
    while not place.exists():
        if engine.poll() is not None or time.monotonic() > deadline:
            sys.exit("benchmarks: the engine did not start")
        time.sleep(0.01)
    return engine
