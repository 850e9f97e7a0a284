"""The contract tests run on the fake kernel in this tier."""

from __future__ import annotations

import pytest
from unit.kernel.topology import Topology

from weft.kernel.fake.kernel import FakeKernel


@pytest.fixture
def topology() -> Topology:
    kernel = FakeKernel()
    for path in ("/run/netns/c1", "/run/netns/c2"):
        kernel.add(path)
    return Topology(kernel, "/run/netns/c1", kernel.open("/run/netns/c1"), kernel.open("/run/netns/c2"))
