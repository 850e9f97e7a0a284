"""Refuses to run where a test could change the machine's own network, as tests/netns does."""

from __future__ import annotations

import pytest

from lab.namespaces import isolation_problem


@pytest.fixture(scope="session", autouse=True)
def isolation() -> None:
    if problem := isolation_problem():
        pytest.exit(f"tests/vm: {problem}; run bin/vm test", returncode=3)
