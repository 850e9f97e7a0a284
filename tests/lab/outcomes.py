"""Records the outcome of every test of a run, and finds tests that ran in neither of two runs.

A pytest plugin: ``--outcomes FILE`` writes the file. As a program, ``python -m lab.outcomes NETNS
VM`` compares two files, ``python -m lab.outcomes --join FILE PART...`` joins the parts of a run.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

Outcomes = dict[str, tuple[str, str]]
"""By test id: ``passed``, ``failed`` or ``skipped``, and the reason."""


class Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: Outcomes = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The worst outcome of setup, call and teardown counts."""
        if report.failed:
            self._found[report.nodeid] = ("failed", "")
        elif report.skipped:
            # An xfail did run; ``longrepr`` of a skip is file, line and reason.
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
    """Join several files into one; no file is written if a part did not finish."""
    found = [read(part) for part in parts]
    if all(found):
        write(whole, {name: outcome for one in found for name, outcome in one.items()})


def read(path: Path) -> Outcomes:
    """The outcomes of a run; empty if it did not finish."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return {name: (str(outcome), str(reason)) for name, (outcome, reason) in found.items()}


def skipped(found: Outcomes) -> list[str]:
    return [name for name, (outcome, _) in sorted(found.items()) if outcome == "skipped"]


def summary(found: Outcomes) -> str:
    """The number of tests by outcome."""
    counts = Counter(outcome for outcome, _ in found.values())
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()) or "no outcomes"


def ran_nowhere(first: Outcomes, second: Outcomes) -> list[str]:
    """Tests that one run skipped, and the other skipped or did not contain; one line each.

    A test of the error for a missing kernel feature needs a kernel without it. Such a test is
    skipped with the reason ``this kernel has …``, and is not reported.
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
