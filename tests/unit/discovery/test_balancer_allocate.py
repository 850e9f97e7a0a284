"""Allocation of virtual addresses, with a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from discovery import layout
from discovery.balancer.allocate import MAX_CANDIDATES, Allocator, candidates
from discovery.balancer.settings import RANGES, BalancerSettings, Mode
from discovery.catalog import Catalog
from discovery.catalog_sync import CatalogSync
from discovery.metrics import Metrics
from discovery.structs import Instance, Node, ServiceAddress, VirtualAddress
from lab.services import instance
from store import Delete, Put, Store
from store.embedded import open_embedded

NODES = [Node("n1", "192.0.2.1"), Node("n2", "192.0.2.2")]


class Host:
    """A node: its allocator, and its catalog of the shared store."""

    def __init__(self, store: Store, node: str, **settings: object) -> None:
        self.catalog, self.store = Catalog(), store
        self.feed = CatalogSync(self.catalog, store)
        config = BalancerSettings(**{"node": node, "mode": Mode.ALL, **settings})  # type: ignore[arg-type]
        self.allocator = Allocator(self.catalog, store, config, Metrics(), lambda: [ip_network("10.79.9.0/24")])

    async def start(self) -> None:
        await self.feed.start()
        await self.allocator.start()

    async def stop(self) -> None:
        await self.allocator.stop()
        await self.feed.stop()

    async def put(self, *values: Instance | Node | VirtualAddress) -> None:
        await self.store.transact([], [Put(layout.store_key(value), layout.encode(value)) for value in values])

    async def drop(self, *values: Instance) -> None:
        await self.store.transact([], [Delete(layout.store_key(value)) for value in values])

    def addresses(self, name: str = "web") -> list[str]:
        return [one.address for one in self.catalog.virtual_addresses(name)]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)


def run(path: Path, work: Callable[..., Awaitable[None]], *nodes: str, **settings: object) -> None:
    async def main() -> None:
        store = await open_embedded(path / "store" / "data")
        hosts = [Host(store, node, **settings) for node in nodes or ("n1",)]
        await hosts[0].put(*NODES)
        for host in hosts:
            await host.start()
        try:
            await work(*hosts)
        finally:
            for host in hosts:
                await host.stop()
            await store.close()

    asyncio.run(main())


def asking(address: str, name: str = "web", **rest: object) -> Instance:
    return instance(name, "10.0.0.1", tagged_addresses={"virtual": ServiceAddress(address)}, **rest)


def test_a_service_gets_an_address_of_each_family_of_its_instances(tmp_path: Path) -> None:
    async def work(host: Host) -> None:
        await host.put(instance("web", "10.0.0.1"), instance("both", "10.0.0.2"), instance("both", "fd00::2"))
        await host.put(instance("both", "10.0.0.3", tagged_addresses={"lan_ipv6": ServiceAddress("fd00::3")}))
        await host.until(lambda: len(host.addresses()) == 1 and len(host.addresses("both")) == 2)
        found = [ip_address(one) for one in (*host.addresses(), *host.addresses("both"))]
        assert [one.version for one in found] == [4, 4, 6]
        assert all(one in RANGES[one.version == 6] for one in found)

    run(tmp_path, work)


@pytest.mark.parametrize("mode", list(Mode))
def test_the_mode_selects_the_services_with_an_address(tmp_path: Path, mode: Mode) -> None:
    async def work(host: Host) -> None:
        await host.put(
            instance("plain", "10.0.0.1"), instance("container", "10.0.0.2", owner="weft:1"), asking("", "asked")
        )
        await host.until(lambda: host.addresses("asked"))
        await asyncio.sleep(0.05)
        got = {name for name in ("plain", "container", "asked") if host.addresses(name)}
        assert (
            got
            == {
                Mode.ALL: {"plain", "container", "asked"},
                Mode.ATTACHED: {"container", "asked"},
                Mode.ASKED: {"asked"},
            }[mode]
        )

    run(tmp_path, work, mode=mode)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("8.8.8.8", "is not in a configured range"),
        ("10.79.9.7", "is in use on this host"),
        ("127.0.0.1", "is not in a configured range"),
        ("10.79.255.255", "is the network or broadcast address"),
        ("10.79.1.300", "is not a valid address"),
        ("10.79.3.3", "is in use by service db"),
    ],
)
def test_invalid_and_taken_requested_addresses_are_refused(tmp_path: Path, address: str, said: str) -> None:
    async def work(host: Host) -> None:
        await host.put(VirtualAddress("db", "10.79.3.3"), asking(address))
        await host.until(lambda: host.allocator.errors)
        assert said in host.allocator.errors["web"]
        assert address not in host.addresses()
        await host.put(asking("10.79.3.4"))
        await host.until(lambda: "10.79.3.4" in host.addresses())
        assert not host.allocator.errors

    run(tmp_path, work)


def test_a_service_that_returns_keeps_its_address(tmp_path: Path) -> None:
    async def work(host: Host) -> None:
        await host.put(instance("web", "10.0.0.1"))
        await host.until(host.addresses)
        before = host.addresses()
        await host.drop(instance("web", "10.0.0.1"))
        await host.until(lambda: not host.catalog.instances("web"))
        await asyncio.sleep(0.1)
        assert host.addresses() == before
        await host.put(instance("web", "10.0.0.9"))
        await asyncio.sleep(0.1)
        assert host.addresses() == before

    run(tmp_path, work)


def test_the_address_of_a_removed_service_is_freed_later_and_chosen_again(tmp_path: Path) -> None:
    async def work(one: Host, other: Host) -> None:
        await one.put(instance("web", "10.0.0.1"))
        await one.until(one.addresses)
        before = one.addresses()
        await one.drop(instance("web", "10.0.0.1"))
        await one.until(lambda: not one.addresses() and not other.addresses())
        await one.put(instance("web", "10.0.0.1"))
        await one.until(one.addresses)
        assert one.addresses() == before

    run(tmp_path, work, "n1", "n2", keep=0.1)


def test_many_services_on_two_nodes_get_distinct_addresses(tmp_path: Path) -> None:
    async def work(one: Host, other: Host) -> None:
        wanted = [f"s{number}" for number in range(60)]
        for name in wanted:
            mine = instance(name, "10.0.0.1")
            await one.put(mine, Instance("n2", f"{name}-2", name, "10.0.0.2", 80))
        await one.until(lambda: all(one.addresses(name) for name in wanted))
        await asyncio.sleep(0.1)
        found = [address for name in wanted for address in one.addresses(name)]
        assert len(found) == len(set(found)) == len(wanted)

    run(tmp_path, work, "n1", "n2", ranges=(ip_network("10.79.0.0/24"),))


def test_an_exhausted_range_is_reported(tmp_path: Path) -> None:
    async def work(host: Host) -> None:
        for number in range(12):
            await host.put(instance(f"s{number}", "10.0.0.1"))
        await host.until(lambda: host.allocator.errors)
        assert "larger range" in next(iter(host.allocator.errors.values()))
        assert sum(len(host.addresses(f"s{number}")) for number in range(12)) <= 5

    run(tmp_path, work, ranges=(ip_network("10.79.0.0/29"),))


def test_candidates_depend_on_the_name_and_exclude_network_and_broadcast() -> None:
    network = ip_network("10.79.0.0/29")
    found = list(candidates("web", network))
    assert len(found) == MAX_CANDIDATES and found == list(candidates("web", network)) != list(candidates("db", network))
    assert {str(one) for one in found} == {f"10.79.0.{number}" for number in range(2, 7)}
    assert list(candidates("web", ip_network("10.79.0.0/30"))) == []
