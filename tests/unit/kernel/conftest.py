"""The contract's subject in this tier: the fake."""

from __future__ import annotations

import pytest
from unit.kernel.place import Place

from weft.kernel.fake.kernel import FakeKernel


@pytest.fixture
def place() -> Place:
    kernel = FakeKernel()
    for path in ("/run/netns/c1", "/run/netns/c2"):
        kernel.add(path)
    return Place(kernel, "/run/netns/c1", kernel.open("/run/netns/c1"), kernel.open("/run/netns/c2"))
