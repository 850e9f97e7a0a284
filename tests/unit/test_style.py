"""The whole tree passes ruff; all packages, tests/lab and benchmarks pass mypy --strict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("weft", "cni_plugin", "ipam", "store", "discovery", "tests", "benchmarks", "bin", "conf")


def check(*command: str, timeout: float) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    check("ruff", "check", "--quiet", *(name for name in FOLDERS if (ROOT / name).is_dir()), timeout=60)


def test_types_hold() -> None:
    """mypy without arguments checks the folders that pyproject.toml lists."""
    check("mypy", timeout=300)


@pytest.mark.parametrize(
    ("command", "source", "word"),
    [
        (("ruff", "check", "--config", str(ROOT / "pyproject.toml")), "import os\n", "F401"),
        (
            ("mypy", "--config-file", str(ROOT / "pyproject.toml")),
            "def double(number: int) -> int:\n    return str(number)\n",
            "return-value",
        ),
    ],
    ids=["ruff", "mypy"],
)
def test_the_checkers_do_check(tmp_path: Path, command: tuple[str, ...], source: str, word: str) -> None:
    """A misconfigured checker would accept everything."""
    (tmp_path / "wrong.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", *command, "wrong.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert word in done.stdout
