"""The contract tests run on the fake ruleset in this tier."""

from __future__ import annotations

import pytest

from weft.kernel.fake.rules import FakeRuleset
from weft.kernel.interface import Ruleset


@pytest.fixture
def rules() -> Ruleset:
    return FakeRuleset()
