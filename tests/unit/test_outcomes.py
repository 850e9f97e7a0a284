"""The recorded outcomes of a test run, and the check that no test is skipped in every tier."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.outcomes import join, main, ran_nowhere, read, summary, write

LACKS = "this kernel has no VLAN filtering on bridges"
TESTS = """
import pytest

@pytest.fixture
def skips():
    pytest.skip("nothing to stand on")

@pytest.fixture
def breaks():
    yield
    raise RuntimeError

def test_good(): pass
def test_bad(): assert False
def test_skipped(): pytest.skip("no such kernel")
def test_skipped_in_setup(skips): pass
def test_broken_afterwards(breaks): pass
@pytest.mark.skip(reason="marked")
def test_marked(): pass
@pytest.mark.xfail
def test_expected_to_fail(): assert False
"""


def test_outcomes_of_a_run_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    report = tmp_path / "deep" / "er" / "report.json"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = (sys.executable, "-m", "pytest", "-q", "-p", "lab.outcomes", "--outcomes", str(report))
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert {name.partition("::")[2]: outcome for name, outcome in read(report).items()} == {
        "test_good": ("passed", ""),
        "test_bad": ("failed", ""),
        "test_skipped": ("skipped", "no such kernel"),
        "test_skipped_in_setup": ("skipped", "nothing to stand on"),
        "test_broken_afterwards": ("failed", ""),
        "test_marked": ("skipped", "marked"),
        "test_expected_to_fail": ("passed", ""),
    }


@pytest.mark.parametrize("there", [("passed", ""), ("failed", "")])
def test_a_test_skipped_here_and_run_in_the_other_tier_is_fine(there: tuple[str, str]) -> None:
    assert ran_nowhere({"a": ("skipped", LACKS)}, {"a": there}) == []
    assert ran_nowhere({"a": there}, {"a": ("skipped", LACKS)}) == []


def test_a_test_that_ran_in_no_tier_is_listed() -> None:
    skips = ("skipped", LACKS)
    assert ran_nowhere({"a": skips}, {"a": skips}) == [f"a: {LACKS}"]
    assert ran_nowhere({"a": skips}, {"b": ("passed", "")}) == [f"a: {LACKS}"]
    assert ran_nowhere({"b": ("passed", "")}, {"a": skips}) == [f"a: {LACKS}"]


def test_a_test_about_a_missing_kernel_feature_may_be_skipped_everywhere() -> None:
    assert ran_nowhere({"a": ("skipped", "this kernel has VLAN filtering; this is about its lack")}, {}) == []


def test_the_program_fails_for_tests_that_ran_nowhere_and_for_unfinished_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.write_text(json.dumps({"a": ["skipped", LACKS]}))
    assert main(str(here), str(there)) == 1
    there.write_text(json.dumps({"a": ["skipped", LACKS]}))
    assert main(str(here), str(there)) == 1
    assert f"ran in no tier: a: {LACKS}" in capsys.readouterr().out
    there.write_text(json.dumps({"a": ["passed", ""]}))
    assert main(str(here), str(there)) == 0


def test_parts_of_a_run_are_joined_only_if_all_finished(tmp_path: Path) -> None:
    first, second, whole = (tmp_path / name for name in ("1.json", "2.json", "whole.json"))
    write(first, {"a": ("passed", "")})
    join(whole, [first, second])
    assert not whole.exists()
    write(second, {"b": ("skipped", "no such kernel")})
    join(whole, [first, second])
    assert read(whole) == {"a": ("passed", ""), "b": ("skipped", "no such kernel")}


def test_a_summary_counts_outcomes() -> None:
    found = {"a": ("passed", ""), "b": ("skipped", "why"), "c": ("passed", "")}
    assert summary(found) == "2 passed, 1 skipped"
    assert summary({}) == "no outcomes"
