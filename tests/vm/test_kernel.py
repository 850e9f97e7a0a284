"""The guest's kernel has all that weft can use. So nothing is skipped there for want of it."""

from __future__ import annotations

import pytest

from lab.abilities import ABILITIES, lack


@pytest.mark.parametrize("name", ABILITIES)
def test_the_kernel_has(name: str) -> None:
    assert lack(name) == ""
