"""A cluster restored from an older snapshot: the store refuses to act until the operator accepts it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.etcd import Cluster
from store import Unavailable
from store.etcd.client import open_etcd
from store.etcd.record import WrongCluster
from store.etcd.settings import EtcdSettings


@pytest.fixture
def own(isolation: None) -> Iterator[Cluster]:
    made = Cluster(3)
    try:
        yield made
    finally:
        made.close()


async def test_an_older_snapshot(own: Cluster, tmp_path: Path) -> None:
    settings = EtcdSettings(own.endpoints, str(tmp_path / "state"), call_seconds=20)
    store = await open_etcd(settings)
    await store.put("k", b"old")
    snapshot = tmp_path / "snapshot"
    await asyncio.to_thread(own.ctl, "snapshot", "save", str(snapshot), endpoint=0)
    await store.put("k", b"new")
    seen = await store.put("k", b"newer")

    # While the store is open ...
    watch = store.watch("", seen)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    await asyncio.to_thread(own.replace_data, snapshot)
    with pytest.raises(WrongCluster, match="restored from an older snapshot") as caught:
        await asyncio.wait_for(waiting, 60)
    assert f"rm -r {tmp_path}/state" in caught.value.hint
    with pytest.raises(WrongCluster):
        await store.put("k", b"lost")
    await store.close()

    # ... when it is opened, although the revision has grown beyond the one seen ...
    for number in range(8):
        await asyncio.to_thread(own.ctl, "put", "other", str(number))
    store = await open_etcd(settings)
    with pytest.raises(WrongCluster, match="has forgotten what this host wrote"):
        await store.put("k", b"lost")
    await store.close()
    assert (await asyncio.to_thread(own.ctl, "get", "k", "--print-value-only")).stdout.strip() == "old"

    # ... until the operator has accepted it.
    shutil.rmtree(tmp_path / "state")
    store = await open_etcd(settings)
    assert await store.put("k", b"accepted") > seen
    await store.close()


async def test_no_member_at_the_first_start(tmp_path: Path) -> None:
    """The store opens, so that an agent can start before its cluster; calls fail in time."""
    store = await open_etcd(EtcdSettings(("127.0.0.1:9",), str(tmp_path / "state"), call_seconds=0.5))
    with pytest.raises(Unavailable, match=r"get 'k': no member .* within 0.5 s: 127.0.0.1:9: connection refused"):
        await store.get("k")
    await store.close()
