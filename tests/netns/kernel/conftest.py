"""The contract's subject in this tier: the kernel, in the host that tests/netns makes for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from unit.kernel.place import Place

from lab.host import Host
from weft.kernel.linux.kernel import LinuxKernel


@pytest.fixture
def place(host: Host) -> Iterator[Place]:
    kernel = LinuxKernel()
    paths = host.container("c1"), host.container("c2")
    box, other = kernel.open(paths[0]), kernel.open(paths[1])
    yield Place(kernel, paths[0], box, other)
    box.close()
    other.close()
    kernel.close()
