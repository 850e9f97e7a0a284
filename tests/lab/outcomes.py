"""How every test of a run ended, in a file, and whether two runs leave a test that ran in neither.

A pytest plugin: ``--outcomes FILE`` writes. As a program: ``python -m lab.outcomes NETNS VM`` compares, and
``python -m lab.outcomes --join FILE PART...`` makes one file of those of a run's parts.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

Outcomes = dict[str, tuple[str, str]]
"""By a test's full name: ``passed``, ``failed`` or ``skipped``, and why."""


class Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: Outcomes = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The worst of set-up, call and tear-down counts."""
        if report.failed:
            self._found[report.nodeid] = ("failed", "")
        elif report.skipped:
            # An expected failure did run; a skip tells file, line and reason.
            ran = hasattr(report, "wasxfail")
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self._found[report.nodeid] = ("passed", "") if ran else ("skipped", reason.removeprefix("Skipped: "))
        elif report.when == "call":
            self._found.setdefault(report.nodeid, ("passed", ""))

    def pytest_sessionfinish(self) -> None:
        write(self._path, self._found)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", metavar="FILE", help="write how every test ended into a JSON file")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--outcomes"):
        config.pluginmanager.register(Recorder(Path(os.path.abspath(path))))


def write(path: Path, found: Outcomes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def join(whole: Path, parts: list[Path]) -> None:
    """One file of several, and none where one of them did not come to its end."""
    found = [read(part) for part in parts]
    if all(found):
        write(whole, {name: outcome for one in found for name, outcome in one.items()})


def read(path: Path) -> Outcomes:
    """What a run wrote; nothing if it did not come to its end."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return {name: (str(outcome), str(reason)) for name, (outcome, reason) in found.items()}


def skipped(found: Outcomes) -> list[str]:
    return [name for name, (outcome, _) in sorted(found.items()) if outcome == "skipped"]


def summary(found: Outcomes) -> str:
    """How many tests ended in which way."""
    counts = Counter(outcome for outcome, _ in found.values())
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()) or "no outcomes"


def ran_nowhere(first: Outcomes, second: Outcomes) -> list[str]:
    """The tests that one run skipped and the other skipped or did not have, a line each.

    A test of what weft says where the kernel lacks something needs such a kernel, which not every machine has: it
    gives ``this kernel has …`` as its reason, and is let off.
    """
    lines = []
    for name in sorted({*skipped(first), *skipped(second)}):
        if not any(found.get(name, ("skipped", ""))[0] in ("passed", "failed") for found in (first, second)):
            reason = next(found[name][1] for found in (first, second) if name in found)
            if not reason.startswith("this kernel has ") or reason.startswith("this kernel has no "):
                lines.append(f"{name}: {reason}")
    return lines


def main(first: str, second: str) -> int:
    runs = [read(Path(path)) for path in (first, second)]
    for path, found in zip((first, second), runs, strict=True):
        if not found:
            print(f"no outcomes in {path}", file=sys.stderr)
            return 1
    missed = ran_nowhere(*runs)
    for line in missed:
        print(f"ran in no tier: {line}")
    if not missed:
        print(f"no test was skipped in both ({len(skipped(runs[0]))} in the first)")
    return 1 if missed else 0


if __name__ == "__main__":
    if sys.argv[1] == "--join":
        join(Path(sys.argv[2]), [Path(path) for path in sys.argv[3:]])
        sys.exit(0)
    sys.exit(main(*sys.argv[1:]))
