"""The selection of the vm tier has an existing test of every kind for every driver and feature."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab import sample
from lab.guest.selection import DRIVERS, EVERY, FEATURES, IPAM, NOT_YET, ROWS, SHORT, Kind, always

ROOT = Path(__file__).parents[2]


def files(folder: str) -> set[str]:
    return {path.stem for path in (ROOT / "cni_plugin" / folder).glob("*.py")} - {"__init__"}


def without_a_row(drivers: set[str]) -> list[str]:
    return [
        f"driver {name.replace('_', '-')} has no Case: add a row to DRIVERS" for name in sorted(drivers - {*DRIVERS})
    ]


def test_every_driver_is_selected() -> None:
    assert without_a_row(files("drivers")) == []
    assert {*DRIVERS} == files("drivers")


def test_a_driver_without_a_row_is_named() -> None:
    assert without_a_row({"bridge", "no_such"}) == ["driver no-such has no Case: add a row to DRIVERS"]


@pytest.mark.parametrize("name", sorted(files("drivers")))
def test_a_driver_has_a_netns_test_file(name: str) -> None:
    assert (ROOT / f"tests/netns/test_{name}.py").is_file(), f"tests/netns/test_{name}.py is missing"


def test_every_feature_is_selected() -> None:
    assert {*FEATURES, *NOT_YET} == files("features")


@pytest.mark.parametrize("name", DRIVERS)
def test_the_conflist_of_a_driver_exists(name: str) -> None:
    [test] = DRIVERS[name][Kind.CONFLIST]
    conflist = test.partition("[")[2].removesuffix("]")
    assert (ROOT / f"conf/{conflist}.conflist").is_file(), f"conf/{conflist}.conflist is missing"


@pytest.mark.parametrize("name", [*DRIVERS, *FEATURES, *IPAM])
def test_each_has_a_test_of_every_kind(name: str) -> None:
    tests = {**DRIVERS, **FEATURES, **IPAM}[name]
    assert [kind.name for kind in Kind if not tests.get(kind)] == []


def test_every_test_exists() -> None:
    """pytest refuses names that it cannot find; a whole file without ``::`` would select too much."""
    assert all("::" in test or test == "tests/vm" for test in EVERY)
    command = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *EVERY)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_run_takes_all_short_tests_and_a_sample_of_the_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {test for row in ROWS.values() for kind, tests in row.items() if kind in SHORT for test in tests}
    seen: set[str] = set()
    sizes = []
    for number in range(200):
        monkeypatch.setenv(sample.SEED, str(number))
        sample.seed.cache_clear()
        run = always()
        assert short <= {*run} <= {*EVERY}
        assert run == always()
        sizes.append(len(run))
        seen |= {*run}
    sample.seed.cache_clear()
    assert seen == {*EVERY}, "every test is in the sample of some commit"
    assert max(sizes) < len(EVERY) * 0.8
