"""Calls of Docker's that the driver serves at the same time, in several threads."""

from __future__ import annotations

import contextlib
import threading

import pytest

from cni_plugin.docker.driver import Networks
from cni_plugin.docker.state import Endpoint, Kept, Network
from lab.libnetwork import ENDPOINT, NETWORK, SANDBOX, Fake, call, created
from weft.errors import InUse, Missing

_PATIENCE = 0.3


def test_an_endpoint_that_is_deleted_during_its_join_leaves_nothing(
    driver: Networks, calls: Fake, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dockerd was killed while it waited for Join, and the next one deletes what is left."""
    created(driver)
    driver.create_endpoint(call(NetworkID=NETWORK, EndpointID=ENDPOINT, Interface={"Address": "172.18.0.2/16"}))
    joining = call(NetworkID=NETWORK, EndpointID=ENDPOINT, SandboxKey=SANDBOX)
    deleting = threading.Thread(target=driver.delete_endpoint, args=(call(EndpointID=ENDPOINT),))
    order: list[str] = []

    def add(*_: object) -> None:
        deleting.start()
        deleting.join(_PATIENCE)
        order.append("made")

    monkeypatch.setattr(calls, "add", add)
    monkeypatch.setattr(calls, "remove", lambda *_: order.append("removed"))
    driver.join(joining)
    deleting.join()
    assert order == ["made", "removed"] and list(kept.all(Endpoint)) == []
    with pytest.raises(Missing):
        driver.join(joining)


def test_of_two_networks_that_want_one_bridge_at_once_one_is_refused(
    driver: Networks, calls: Fake, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    refused: list[str] = []

    def preview(*_: object) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(_PATIENCE)

    def create(number: int) -> None:
        try:
            created(driver, number, "b" * number, **{"com.docker.network.bridge.name": "blue0"})
        except InUse as error:
            refused.append(str(error))

    monkeypatch.setattr(calls, "preview", preview)
    threads = [threading.Thread(target=create, args=(number,)) for number in (18, 19)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    [sentence] = refused
    assert "bridge blue0 is already in use" in sentence and len(list(kept.all(Network))) == 1
