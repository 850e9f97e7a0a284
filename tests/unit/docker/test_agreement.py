"""What the driver keeps for Docker, compared with what Docker's API says that there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from cni_plugin.docker import agreement as module
from cni_plugin.docker.addresses import Addresses
from cni_plugin.docker.agreement import Agreement
from cni_plugin.docker.api import DockerApi, NoDocker
from cni_plugin.docker.calls import link_name
from cni_plugin.docker.driver import Networks
from cni_plugin.docker.state import Endpoint, Kept, Network, Pool
from lab.libnetwork import ENDPOINT, NETWORK, SANDBOX, Fake, address_of, call, created, joined, pool_of
from weft import daemons
from weft.errors import Busy
from weft.section import Problems, Section

_T = TypeVar("_T")


class FakeApi(DockerApi):
    """Docker's networks. ``looks`` are the answers, None: there is none; the last one is repeated."""

    def __init__(self, *looks: list[dict[str, Any]] | None) -> None:
        super().__init__("/nowhere")
        self._looks = list(looks)
        self._listed: list[dict[str, Any]] = []

    async def _get(self, path: str) -> object:
        if path == "/networks":
            look = self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]
            if look is None:
                raise NoDocker("dockerd does not answer")
            self._listed = look
            return [{key: value for key, value in one.items() if key != "Containers"} for one in self._listed]
        return next((one for one in self._listed if path == f"/networks/{one['Id']}"), None)

    async def container(self, name: str) -> Section | None:
        return None


def network(ipam: str = "default", endpoints: tuple[str, ...] = (), **config: object) -> dict[str, Any]:
    containers = {
        str(place): {"EndpointID": one, "IPv4Address": "172.18.0.2/16"} for place, one in enumerate(endpoints)
    }
    given = {"Subnet": "172.18.0.0/16", **config}
    return {
        "Id": NETWORK,
        "Name": "blue",
        "Driver": "weft",
        "IPAM": {"Driver": ipam, "Config": [given]},
        "Options": {"com.docker.network.driver.mtu": "1400"},
        "Containers": containers,
        "Internal": False,
    }


Agree = Callable[..., None]


@pytest.fixture
def agree(
    kept: Kept,
    calls: Fake,
    driver: Networks,
    addresses: Addresses,
    monkeypatch: pytest.MonkeyPatch,
) -> Agree:
    monkeypatch.setattr(module, "GRACE", 0.0)

    async def blocking(work: Callable[[], _T]) -> _T:
        return work()

    def agree(*looks: list[dict[str, Any]]) -> None:
        asyncio.run(Agreement(FakeApi(*looks), kept, calls, driver, addresses, blocking).agree())

    return agree


def test_what_docker_has_is_kept(agree: Agree, driver: Networks, kept: Kept) -> None:
    created(driver)
    joined(driver)
    agree([network(endpoints=(ENDPOINT,))])
    assert [one.id for one in kept.all(Network)] == [NETWORK]
    assert [one.id for one in kept.all(Endpoint)] == [ENDPOINT]


def test_what_docker_does_not_have_is_removed(agree: Agree, driver: Networks, kept: Kept, calls: Fake) -> None:
    created(driver)
    joined(driver)
    agree([network()])
    assert list(kept.all(Endpoint)) == [] and list(calls.service.records.all()) == []
    assert len(list(kept.all(Network))) == 1
    agree([])
    assert list(kept.all(Network)) == [] and list(calls.service.records.networks()) == []


def test_what_docker_is_about_to_have_is_kept(agree: Agree, driver: Networks, kept: Kept) -> None:
    """Docker knows of an endpoint only after the driver's answer: one look that misses it is no reason."""
    created(driver)
    joined(driver)
    agree([network()], [network(endpoints=(ENDPOINT,))])
    assert len(list(kept.all(Endpoint))) == 1
    agree([], [network(endpoints=(ENDPOINT,))])
    assert len(list(kept.all(Network))) == 1


HAS, LACKS = [network(endpoints=(ENDPOINT,))], [network()]


@pytest.mark.parametrize(
    "looks", [(LACKS,), (HAS, HAS, HAS, LACKS), (HAS, HAS, None, HAS, LACKS)], ids=["before", "later", "no answer"]
)
def test_what_docker_gave_up_is_removed_after_the_call(
    kept: Kept,
    calls: Fake,
    driver: Networks,
    addresses: Addresses,
    monkeypatch: pytest.MonkeyPatch,
    looks: tuple[list[dict[str, Any]] | None, ...],
) -> None:
    """Docker no longer waits for a Join, or will not for long; the driver finishes it after both have agreed."""
    for name in ("GRACE", "_AFTER_CALL_SECONDS"):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(module, "_LAST_LOOK_SECONDS", 0.05)
    created(driver)

    async def blocking(work: Callable[[], _T]) -> _T:
        return work()

    async def agree() -> None:
        agreement = Agreement(FakeApi(*looks), kept, calls, driver, addresses, blocking)
        monkeypatch.setattr(agreement._api, "events", events)
        running = asyncio.create_task(agreement.run())
        await asyncio.sleep(0.05)
        joined(driver)
        assert len(list(kept.all(Endpoint))) == 1
        agreement.called()
        async with asyncio.timeout(10):
            while list(kept.all(Endpoint)):
                await asyncio.sleep(0.01)
        kept.remove(Network, NETWORK)
        agreement.called()
        async with asyncio.timeout(10):
            while kept.read(Network, NETWORK) is None:
                await asyncio.sleep(0.01)
        running.cancel()

    async def events() -> AsyncIterator[dict[str, Any]]:
        yield {}
        await asyncio.sleep(60)

    asyncio.run(agree())


def test_what_docker_drops_between_two_looks_is_looked_at_again(
    agree: Agree, driver: Networks, addresses: Addresses, kept: Kept
) -> None:
    created(driver)
    joined(driver)
    pool_of(addresses, "10.9.0.0/24")  # of which Docker has nothing at the first look, so that there is a second
    agree(HAS, LACKS)
    assert list(kept.all(Endpoint)) == [] and list(kept.all(Pool)) == []


def test_a_lost_network_is_kept_again(agree: Agree, driver: Networks, kept: Kept) -> None:
    agree([network(Gateway="172.18.0.9")])
    assert driver.network(NETWORK).gateways == ("172.18.0.9/16",)
    assert driver.network(NETWORK).config["mtu"] == 1400
    kept.remove(Network, NETWORK)
    agree([network(IPRange="172.18.4.0/24")])
    assert driver.network(NETWORK).gateways == ("172.18.4.0/16",)
    kept.remove(Network, NETWORK)
    agree([network()])
    assert driver.network(NETWORK).gateways == ("172.18.0.1/16",)


def test_addresses_and_pools_that_nobody_has(
    agree: Agree,
    driver: Networks,
    kept: Kept,
    addresses: Addresses,
) -> None:
    pool = str(pool_of(addresses, "172.18.0.0/16")["PoolID"])
    address_of(addresses, pool, RequestAddressType="com.docker.network.gateway")
    for text in ("172.18.0.7", "172.18.0.2", "172.18.0.3"):
        address_of(addresses, pool, text)
    seen = network("weft", (ENDPOINT,), AuxiliaryAddresses={"router": "172.18.0.7"})
    agree([seen])
    [found] = kept.all(Pool)
    assert sorted(found.taken) == ["172.18.0.1", "172.18.0.2", "172.18.0.7"]
    # Taken again between the two looks, by a container that Docker is about to start.
    address_of(addresses, pool, "172.18.0.3")
    agree([network("weft", (ENDPOINT,))], [seen | {"Containers": {}}])
    assert "172.18.0.3" not in next(iter(kept.all(Pool))).taken
    agree([])
    assert list(kept.all(Pool)) == []


def test_addresses_of_networks_of_dockers_own_drivers_are_kept(agree: Agree, kept: Kept, addresses: Addresses) -> None:
    """``docker network create -d macvlan --ipam-driver weft``: only the addresses are weft's."""
    pool = str(pool_of(addresses, "172.18.0.0/16")["PoolID"])
    for text in ("172.18.0.2", "172.18.0.3"):
        address_of(addresses, pool, text)
    other = network("default") | {"Id": "c" * 16, "Driver": "bridge"}
    agree([network("weft", (ENDPOINT,)) | {"Driver": "macvlan"}, other])
    [found] = kept.all(Pool)
    assert list(found.taken) == ["172.18.0.2"] and list(kept.all(Network)) == []


def test_unknown_endpoints_of_calls_are_no_error(driver: Networks) -> None:
    driver.leave(call(NetworkID=NETWORK, EndpointID=ENDPOINT))
    driver.delete_endpoint(call(NetworkID=NETWORK, EndpointID=ENDPOINT))


class Events(FakeApi):
    """Docker's events, and containers that run; ``asked`` are those that were inspected."""

    def __init__(self, events: list[tuple[str, str, str]], running: dict[str, str]) -> None:
        super().__init__([])
        self._events = [("", "", ""), *events]
        self._running = running
        self.asked: list[str] = []

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        for kind, action, container in self._events:
            yield {"Type": kind, "Action": action, "Actor": {"ID": container, "Attributes": {"container": container}}}

    async def container(self, name: str) -> Section | None:
        self.asked.append(name)
        joined = {"blue": {"EndpointID": self._running[name]}}
        found = {"Id": name, "Name": f"/{name}", "State": {"Running": True}, "NetworkSettings": {"Networks": joined}}
        return Section(found, "container", Problems())


def test_events_of_other_containers_cost_no_inspection(
    kept: Kept, calls: Fake, driver: Networks, addresses: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link may be found at another container's event, before its own container runs."""
    monkeypatch.setattr(module, "GRACE", 60.0)
    monkeypatch.setattr(daemons.Daemon, "ensure", lambda *_: None)
    created(driver)
    joined(driver)
    calls.kernel.host.change_link(link_name(ENDPOINT), new_name="eth0", namespace=calls.kernel.add(SANDBOX))
    starts = [("container", "start", one) for one in ("other", "own", "third")]
    api = Events([("network", "create", ""), *starts, ("container", "rename", "third")], {
        "other": "d" * 16, "own": ENDPOINT, "third": "e" * 16})  # fmt: skip

    async def blocking(work: Callable[[], _T]) -> _T:
        return work()

    asyncio.run(Agreement(api, kept, calls, driver, addresses, blocking)._follow())
    assert api.asked == ["other", "own", "third"]  # the last at its rename
    network = driver.network(NETWORK)
    assert calls.is_announced(network, driver.endpoint(call(EndpointID=ENDPOINT)))


def test_one_link_that_cannot_be_looked_for_holds_up_no_other(
    kept: Kept, calls: Fake, driver: Networks, addresses: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    created(driver)
    joined(driver)
    kept.write(replace(driver.endpoint(call(EndpointID=ENDPOINT)), id="0" * 16))
    looked: list[str] = []

    def settle(_: Network, endpoint: Endpoint) -> bool:
        looked.append(endpoint.id)
        if len(looked) == 1:
            raise Busy("its lock is held")
        return True

    monkeypatch.setattr(calls, "settle", settle)

    async def blocking(work: Callable[[], _T]) -> _T:
        return work()

    asyncio.run(Agreement(FakeApi([]), kept, calls, driver, addresses, blocking).settle())
    assert sorted(looked) == ["0" * 16, ENDPOINT]


class Unready(FakeApi):
    """Docker, whose first answer nobody has expected. Its events never end."""

    def __init__(self) -> None:
        super().__init__([])
        self.looks = 0

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        yield {}
        await asyncio.sleep(60)

    async def networks(self, driver: str) -> list[Section]:
        self.looks += 1
        if self.looks == 1:
            raise KeyError("Id")
        return []


def test_an_error_is_not_the_last_comparison(
    kept: Kept,
    calls: Fake,
    driver: Networks,
    addresses: Addresses,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.0)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.0)
    created(driver)
    api = Unready()

    async def blocking(work: Callable[[], _T]) -> _T:
        return work()

    async def main() -> None:
        comparing = asyncio.create_task(Agreement(api, kept, calls, driver, addresses, blocking).run())
        async with asyncio.timeout(60):
            while kept.read(Network, NETWORK) is not None:
                await asyncio.sleep(0.01)
        comparing.cancel()

    asyncio.run(main())
    assert "KeyError: 'Id'" in capfd.readouterr().err
