"""The same refusal as in tests/netns to run where a test could touch the machine's own network."""

from __future__ import annotations

import pytest

from lab.namespaces import isolation_problem


@pytest.fixture(scope="session", autouse=True)
def isolation() -> None:
    if problem := isolation_problem():
        pytest.exit(f"tests/vm: {problem}; run bin/vm test", returncode=3)
