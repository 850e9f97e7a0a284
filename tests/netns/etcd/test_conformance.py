"""The store's conformance suite (tests/unit/store/conformance) on a real cluster of three members."""

from __future__ import annotations

import pytest
from unit.store.conformance.test_keys import *  # noqa: F403
from unit.store.conformance.test_leases import *  # noqa: F403
from unit.store.conformance.test_model import run_model
from unit.store.conformance.test_transactions import *  # noqa: F403
from unit.store.conformance.test_watches import *  # noqa: F403
from unit.store.engines import Engine
from unit.store.etcd_engine import Etcd

from lab.etcd import Cluster
from store.etcd import client


async def test_pages_that_are_left_out_are_not_the_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PAGE", 2)
    async with engine.open() as store:
        for key in ("a/1", "a/2", "a/3", "b/session/1", "c/1", "c/2", "c/3", "d/session/2"):
            await store.put(key, b"")
        for limit, expected in ((0, ["b/session/1", "d/session/2"]), (1, ["b/session/1"])):
            found = await store.range("", limit=limit, containing="/session/")
            assert [one.key for one in found.entries] == expected
        assert [one.key for one in (await store.range("", without="a/")).entries][:2] == ["b/session/1", "c/1"]


def test_the_store_behaves_as_the_model(cluster: Cluster) -> None:
    run_model(lambda folder: Etcd(folder, cluster.endpoints), 3)
