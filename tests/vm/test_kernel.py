"""The guest's kernel has every feature that weft can use, so that no test is skipped there."""

from __future__ import annotations

import pytest

from lab.abilities import ABILITIES, lack


@pytest.mark.parametrize("name", ABILITIES)
def test_the_kernel_has(name: str) -> None:
    assert lack(name) == ""
