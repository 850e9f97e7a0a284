"""A new host namespace for each test; refuses to run on the machine's own network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import engine
from lab.callers import started_daemons
from lab.host import Host
from lab.namespaces import isolation_problem
from lab.plugins import Cni, chosen_folder


@pytest.fixture(scope="session", autouse=True)
def isolation() -> None:
    if problem := isolation_problem():
        pytest.exit(f"tests/netns: {problem}; run bin/test netns, or tests/private COMMAND", returncode=3)


@pytest.fixture
def host(isolation: None) -> Iterator[Host]:
    """Run the test in a new network namespace, which is its host; earlier state is removed."""
    made = Host()
    try:
        if engine.wanted():
            engine.ready()
        yield made
    finally:
        engine.stop()
        made.close()


@pytest.fixture
def cni() -> Cni:
    """Calls the executables in bin/cni, or in the directory that WEFT_TEST_PLUGINS names."""
    return Cni(chosen_folder())


@pytest.fixture
def folder(host: Host) -> Iterator[Path]:
    """The folder of the host's state; daemons that a call has started there are ended."""
    with started_daemons() as found:
        yield found
