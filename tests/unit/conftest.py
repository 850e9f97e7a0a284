"""Settings of all unit tests. hypothesis is imported here only, as its import is slow."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# No deadline: the duration of an example depends on the load of the machine.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """A test that leaves a process fails itself, and not another one that comes after it."""
    yield
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    raise AssertionError("the test has left a process")
