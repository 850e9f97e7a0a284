"""The contract tests of weft.kernel run against the real kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from unit.kernel.topology import Topology

from lab.host import Host
from weft.kernel.linux.kernel import LinuxKernel


@pytest.fixture
def topology(host: Host) -> Iterator[Topology]:
    kernel = LinuxKernel()
    paths = host.container("c1"), host.container("c2")
    container, other = kernel.open(paths[0]), kernel.open(paths[1])
    yield Topology(kernel, paths[0], container, other)
    container.close()
    other.close()
    kernel.close()
