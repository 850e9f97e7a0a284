"""The selection of the vm tier has an existing test of every kind for every driver and feature."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lab.guest.selection import ALWAYS, DRIVERS, FEATURES, IPAM, NOT_YET, Kind

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("folder", "covered"), [("drivers", {*DRIVERS}), ("features", {*FEATURES, *NOT_YET})])
def test_every_driver_and_feature_is_selected(folder: str, covered: set[str]) -> None:
    files = {path.stem for path in (ROOT / "cni_plugin" / folder).glob("*.py")} - {"__init__"}
    assert covered == files


@pytest.mark.parametrize("name", [*DRIVERS, *FEATURES, *IPAM])
def test_each_has_a_test_of_every_kind(name: str) -> None:
    tests = {**DRIVERS, **FEATURES, **IPAM}[name]
    assert [kind.name for kind in Kind if not tests.get(kind)] == []


def test_every_test_exists() -> None:
    """pytest refuses names that it cannot find; a whole file without ``::`` would select too much."""
    assert all("::" in test or test == "tests/vm" for test in ALWAYS)
    command = (sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *ALWAYS)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
