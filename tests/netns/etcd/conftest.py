"""One etcd cluster for all tests of a file; each has a store of its own on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as the agent does

from unit.store.conftest import pytest_pyfunc_call
from unit.store.etcd_engine import Etcd

from lab.etcd import Cluster

__all__ = ["pytest_pyfunc_call"]


@pytest.fixture(scope="module")
def cluster(isolation: None) -> Iterator[Cluster]:
    """Three members. More operations a transaction than by default: the suite has 128, weft adds one."""
    made = Cluster(1, options=("--max-txn-ops", "129"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def engine(cluster: Cluster, tmp_path: Path) -> Iterator[Etcd]:
    """For the tests of the conformance suite."""
    made = Etcd(tmp_path, cluster.endpoints)
    yield made
    made.close()
