"""The contract's subject in this tier."""

from __future__ import annotations

import pytest

from cni_plugin.kernel import Ruleset
from cni_plugin.kernel.fake_rules import FakeRuleset


@pytest.fixture
def rules() -> Ruleset:
    return FakeRuleset()
