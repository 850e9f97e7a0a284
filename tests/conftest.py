"""What all tiers share."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from lab.sample import taken

pytest_plugins = ("lab.outcomes",)
TIERS = ("netns", "conformance", "vm")
SHARE = 5
"""A run takes one in five of the tests that are marked long."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--long",
        choices=("none", "sample", "all"),
        default="sample",
        help=f"tests marked long: one in {SHARE}, chosen by the commit, unless they are named one by one",
    )
    parser.addoption("--sid", action="store_true", help="only the tests in a Debian sid root, which others leave out")
    parser.addoption("--part", metavar="K/N", default="1/1", help="run one of N parts of the tests, by their names")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test gets the mark of the tier whose folder it is in; other parts and long tests are left out."""
    for item in items:
        for tier in TIERS:
            if Path(__file__).parent / tier in item.path.parents:
                item.add_marker(tier)
    mine, parts = map(int, config.getoption("--part").split("/"))
    others = [
        item
        for item in items
        if zlib.crc32(item.nodeid.encode()) % parts != mine - 1
        or _too_long(config, item)
        or (item.get_closest_marker("sid") is not None) is not config.getoption("--sid")
    ]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]


def _too_long(config: pytest.Config, item: pytest.Item) -> bool:
    """Whether a long test is left to ``bin/test long``."""
    which = config.getoption("--long")
    if which == "all" or item.get_closest_marker("long") is None:
        return False
    if any("::" in argument and item.nodeid.startswith(argument.removeprefix("./")) for argument in config.args):
        return False
    return which == "none" or not taken(item.nodeid, SHARE)
