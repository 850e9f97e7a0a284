"""Files, tests and links that the documents name exist, and prose is wrapped at 100 columns."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md")
BASES = ("", "cni_plugin", "discovery", "tests")
"""Directories that paths in documents are relative to."""
FOLDERS = "|".join(
    sorted({path.name for base in BASES for path in (ROOT / base).iterdir() if path.is_dir() and path.name[0] != "."})
)
EXCLUDED = ("build/", "bin/cni")
GENERATED = (ROOT / "docs" / "ruleset.md",)
COLUMNS = 100


def prose(page: Path) -> list[str]:
    """Lines outside code blocks."""
    lines, code = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        code ^= line.startswith("```")
        if not code and not line.startswith("    "):
            lines.append(line)
    return lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_refers_to_an_existing_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", "\n".join(prose(page)))
    broken = [each for each in targets if "://" not in each and not (page.parent / each).exists()]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_path_exists(page: Path) -> None:
    paths = re.findall(rf"`((?:{FOLDERS})/(?:[\w./-]*(?:\.\w+|/))?)(?:::\w+)?`", "\n".join(prose(page)))
    missing = [
        each
        for each in paths
        if not each.startswith(EXCLUDED)
        and "NAME" not in each
        and not any((ROOT / base / each).exists() for base in BASES)
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_named_test_exists(page: Path) -> None:
    named = re.findall(r"`((?:unit|netns|conformance|clients)/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not (file := ROOT / "tests" / path).is_file()
        or not re.search(rf"^(async )?def {name}\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED], ids=lambda page: page.stem)
def test_prose_is_wrapped(page: Path) -> None:
    long = [line for line in prose(page) if len(line) > COLUMNS and line[0] not in "|!" and " " in line[:COLUMNS]]
    assert long == []
