"""What all tiers share."""

from __future__ import annotations

import signal
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
    parser.addoption("--part", metavar="K/N", default="1/1", help="run one of N parts of the tests, in turn")


def pytest_configure() -> None:
    """A shell starts background jobs with SIGINT ignored, which programs that tests start would inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test gets the mark of the tier whose folder it is in; other parts and long tests are left out."""
    for item in items:
        for tier in TIERS:
            if Path(__file__).parent / tier in item.path.parents:
                item.add_marker(tier)
    left_out = {item for item in items if _too_long(config, item) or _is_sid(item) is not config.getoption("--sid")}
    kept = [item for item in items if item not in left_out]
    mine, parts = map(int, config.getoption("--part").split("/"))
    taken_here = _in_turn(kept, parts)[mine - 1]
    chosen = {*taken_here}
    if len(chosen) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = taken_here


def _in_turn(items: list[pytest.Item], parts: int) -> list[list[pytest.Item]]:
    """The parts of the tests: a test each in turn, since the slow cases of a test follow each other. Tests of a
    file that is marked ``in_order`` build on one another, and are in one part.
    """
    made: list[list[pytest.Item]] = [[] for _ in range(parts)]
    number, before = -1, None
    for item in items:
        if item.get_closest_marker("in_order") is None or item.path != before:
            number = (number + 1) % parts
        made[number].append(item)
        before = item.path
    return made


def _is_sid(item: pytest.Item) -> bool:
    return item.get_closest_marker("sid") is not None


def _too_long(config: pytest.Config, item: pytest.Item) -> bool:
    """Whether a long test is left to ``bin/test long``."""
    which = config.getoption("--long")
    marks = [*item.iter_markers("long")]
    parameters = getattr(item, "callspec", None)
    if parameters is not None and getattr(parameters.params.get("case"), "long", False):
        marks.append(pytest.mark.long.mark)
    if which == "all" or not marks:
        return False
    if any("::" in argument and item.nodeid.startswith(argument.removeprefix("./")) for argument in config.args):
        return False
    sampled = all(mark.kwargs.get("sampled", True) for mark in marks)
    return which == "none" or not sampled or not taken(item.nodeid, SHARE)
