"""Three hosts with their agents, and one etcd cluster, for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.abilities import require
from lab.etcd import Cluster
from lab.hosts import Machines


@pytest.fixture(scope="module")
def etcd(isolation: None) -> Iterator[Cluster]:
    require("vxlan")
    made = Cluster(1)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def hosts(etcd: Cluster) -> Iterator[Machines]:
    made = Machines(etcd.bridge, "10.77.1", etcd.endpoints)
    try:
        yield made
    finally:
        made.close()
