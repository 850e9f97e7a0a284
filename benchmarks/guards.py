"""What the guards cost: traffic and calls of this checkout and of another one, in turn, as ratios.

In each round both sides do each measurement, in alternating order, so that both see the same load. Shown are the
median of the rounds' ratios and its 95 % interval, by order statistics: no distribution is assumed.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RATES = (
    "TCP in the bridge",
    "TCP through the host",
    "datagrams in the bridge",
    "datagrams through the host",
    "connections through the host",
)
WORST = 0.03
"""A guard may cost so much; the interval decides whether more is shown."""
Row = dict[str, Any]


class Worker:
    """A process whose host has the weft of a checkout."""

    def __init__(self, tree: Path) -> None:
        script = ROOT / "benchmarks" / "guards_worker.py"
        self._process = subprocess.Popen(
            [ROOT / "tests" / "private", sys.executable, "-I", script, tree],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, what: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"benchmarks: {what} failed")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def workers(*trees: Path) -> Iterator[tuple[Worker, ...]]:
    made = tuple(Worker(tree) for tree in trees)
    try:
        for one in made:
            one.measure("ready")
        yield made
    finally:
        for one in made:
            one.close()


def guards(against: Path, rounds: int) -> list[Row]:
    """Ratios of this checkout to ``against``: of rates, and of durations turned over, so that 1.05 is 5 % better."""
    ratios: dict[str, list[float]] = {name: [] for name in (*RATES, "ADD", "DEL")}
    values: dict[str, list[tuple[float, float]]] = {name: [] for name in ratios}
    with workers(ROOT, against) as (new, old):
        for turn in range(rounds + 1):
            order = (new, old) if turn % 2 else (old, new)
            for what in (*RATES, "attach"):
                found = {one: one.measure(what) for one in order}
                if not turn:
                    continue
                if what != "attach":
                    _note(ratios, values, what, found[new], found[old])
                    continue
                for name, mine, theirs in zip(("ADD", "DEL"), found[new], found[old], strict=True):
                    _note(ratios, values, name, mine, theirs, inverted=True)
    return [_row(name, ratios[name], values[name]) for name in ratios]


def _note(
    ratios: dict[str, list[float]],
    values: dict[str, list[tuple[float, float]]],
    name: str,
    mine: float,
    theirs: float,
    *,
    inverted: bool = False,
) -> None:
    values[name].append((mine, theirs))
    ratios[name].append(theirs / mine if inverted else mine / theirs)


def _row(name: str, ratios: Sequence[float], values: Sequence[tuple[float, float]]) -> Row:
    low, high = interval(ratios)
    median = statistics.median(ratios)
    new, old = (statistics.median(each) for each in zip(*values, strict=True))
    verdict = "worse" if high < 1 - WORST else "ok"
    if len(ratios) < 20:
        verdict += ", but fewer than 20 rounds"
    shown = f"{median:.3f} [{low:.3f}, {high:.3f}] {verdict}"
    print(f"{name:30} {_amount(new)} against {_amount(old)}: {shown}", flush=True)
    return {"case": name, "new": new, "old": old, "ratio": median, "interval": [low, high], "rounds": len(ratios)}


def _amount(value: float) -> str:
    if value < 1:
        return f"{value * 1000:9.2f} ms "
    return f"{value:9.2f} Gbit/s" if value < 200 else f"{value:9.0f} /s "


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median: the order statistics that enclose it so often.

    Source: David and Nagaraja, Order Statistics, 7.1: P(X(k) < median < X(n-k+1)) by the binomial distribution.
    """
    ordered, count = sorted(values), len(values)
    outside, rank = 0.0, 0
    while rank < count // 2:
        outside += math.comb(count, rank) / 2**count
        if 2 * outside > 0.05:
            break
        rank += 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[count - rank]
