"""Three hosts with their agents, and one etcd cluster, for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from lab.abilities import require
from lab.etcd import Cluster
from lab.hosts import Machines

_numbers = count(11)


@pytest.fixture(scope="module")
def etcd(isolation: None) -> Iterator[Cluster]:
    require("vxlan")
    made = Cluster(next(_numbers))  # the links of the file before may not be gone yet
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def hosts(etcd: Cluster) -> Iterator[Machines]:
    made = Machines(etcd.bridge, f"10.77.{etcd.number}", etcd.endpoints)
    try:
        yield made
    finally:
        made.close()
