"""What all tiers share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something about the machine's other work, and nothing about weft.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

pytest_plugins = ("lab.outcomes",)
TIERS = ("netns", "conformance", "vm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test bears the mark of the tier whose folder it is in."""
    for item in items:
        for tier in TIERS:
            if Path(__file__).parent / tier in item.path.parents:
                item.add_marker(tier)
