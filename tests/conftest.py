"""What all tiers share."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

pytest_plugins = ("lab.outcomes",)
TIERS = ("netns", "conformance", "vm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", metavar="K/N", default="1/1", help="run one of N parts of the tests, by their names")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test bears the mark of the tier whose folder it is in; those of another part are left out."""
    for item in items:
        for tier in TIERS:
            if Path(__file__).parent / tier in item.path.parents:
                item.add_marker(tier)
    mine, parts = map(int, config.getoption("--part").split("/"))
    others = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts != mine - 1]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]
