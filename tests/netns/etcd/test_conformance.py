"""The store's conformance suite (tests/unit/store/conformance) on a real cluster of three members."""

from __future__ import annotations

from unit.store.conformance.test_keys import *  # noqa: F403
from unit.store.conformance.test_leases import *  # noqa: F403
from unit.store.conformance.test_model import run_model
from unit.store.conformance.test_transactions import *  # noqa: F403
from unit.store.conformance.test_watches import *  # noqa: F403
from unit.store.etcd_engine import Etcd

from lab.etcd import Cluster


def test_the_store_behaves_as_the_model(cluster: Cluster) -> None:
    run_model(lambda folder: Etcd(folder, cluster.endpoints), 3)
