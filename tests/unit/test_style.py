"""ruff passes for the whole tree, its formatter for packages and tests, mypy --strict for packages,
tests/lab and benchmarks.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("weft", "cni_plugin", "ipam", "store", "discovery", "cluster", "tests", "benchmarks", "bin", "conf")


ANY_ALLOWED = ("weft.kernel.netlink",)
"""Where untyped data is read: attributes of pyroute2."""


def importers_of_any(package: str) -> Iterator[str]:
    """The modules of a package that import ``typing.Any`` or use ``typing``'s attribute."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = isinstance(node, ast.ImportFrom) and node.module == "typing" and "Any" in map(_name, node.names)
            if imported or (isinstance(node, ast.Attribute) and ast.unparse(node) == "typing.Any"):
                yield ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _name(alias: ast.alias) -> str:
    return alias.name


def _is_in(module: str, rows: tuple[str, ...]) -> bool:
    return any(module == row or module.startswith(f"{row}.") for row in rows)


def test_any_is_used_only_where_data_comes_in() -> None:
    found = {module for package in FOLDERS[:5] for module in importers_of_any(package)}
    assert {module for module in found if not _is_in(module, ANY_ALLOWED)} == set()
    assert [row for row in ANY_ALLOWED if not any(_is_in(module, (row,)) for module in found)] == []


def check(*command: str, timeout: float) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    check("ruff", "check", "--quiet", *(name for name in FOLDERS if (ROOT / name).is_dir()), timeout=60)


def test_code_is_formatted() -> None:
    check("ruff", "format", "--check", "--quiet", *FOLDERS[:6], timeout=60)


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
def test_the_linters_find_planted_errors(tmp_path: Path, command: tuple[str, ...], source: str, word: str) -> None:
    """A misconfigured linter would accept everything."""
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
