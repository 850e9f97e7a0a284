"""Which virtual address a service gets: asked for, or the first free one of an order of its own; kept in the store.

The node of a service's oldest instance sees to it, so that two nodes do not give it two. An address is taken by a
transaction that succeeds only where nobody has it. The order follows from the service's name: a service that comes back
gets the address that it had, if that is still free. An address is given back when nobody has offered the service for a
while.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from ipaddress import ip_address, ip_interface, ip_network

from discovery import layout
from discovery.balancer.desired import VIRTUAL_TAG, oldest_instance
from discovery.balancer.settings import Address, BalancerSettings, Mode, Network, virtual_address_error
from discovery.catalog import SERVICES, Catalog, Topic
from discovery.metrics import Metrics
from discovery.structs import Instance, VirtualAddress
from store import Compare, Delete, Put, Store, StoreError

log = logging.getLogger(__name__)

MAX_CANDIDATES = 64
"""Addresses that are looked at for a service before its range counts as full."""
RETRY_SECONDS = 1.0
BATCH = 32
"""Services that are seen to before others may run."""
_TAGS = {4: "lan_ipv4", 6: "lan_ipv6"}


def candidates(name: str, network: Network) -> Iterator[Address]:
    """The addresses of a range in a service's own order, the same on every host; at most TRIES of them.

    The first and the last of the range, and the first that people would give to a router, are left out.
    """
    size = network.num_addresses
    if size < 8:
        return
    for turn in range(MAX_CANDIDATES):
        text = f"{name}\0{turn}".encode("utf-8", "surrogateescape")
        number = int.from_bytes(blake2b(text, digest_size=8, person=b"weft-vip").digest(), "big")
        yield network[2 + number % (size - 3)]


class Allocator:
    """Gives services their virtual addresses, and takes them back.

    ``occupied`` tells the networks that this host has addresses in: nobody may ask for an address of those.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        config: BalancerSettings,
        metrics: Metrics,
        occupied: Callable[[], Iterable[Network]] | None = None,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._config = config
        self._occupied = occupied or host_networks
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._unsubscribe: Callable[[], None] = lambda: None
        self._unused_since: dict[str, float] = {}
        self.errors: dict[str, str] = {}
        """Services that did not get what they asked for, and why."""
        metrics.gauge("weft_virtual_addresses", "Virtual addresses.", read=lambda: len(catalog.all_virtual_addresses()))

    async def start(self) -> None:
        """Look at all services, then follow the catalog."""
        self._unsubscribe = self._catalog.subscribe(self._changed)
        self._changed(0, frozenset({SERVICES}))
        self._tasks = [asyncio.create_task(self._reconcile_loop()), asyncio.create_task(self._release_loop())]

    async def stop(self) -> None:
        """End; addresses stay whose they are."""
        self._unsubscribe()
        self._unsubscribe = lambda: None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def requested(self, name: str) -> tuple[tuple[Address, ...], tuple[int, ...]]:
        """The addresses that a service asks for by number, and the families of which it should get any."""
        found = self._catalog.instances(name)
        if not found:
            return (), ()
        asked = [one.tagged_addresses[VIRTUAL_TAG].address for one in found if VIRTUAL_TAG in one.tagged_addresses]
        addresses: list[Address] = []
        for text in dict.fromkeys(filter(None, asked)):
            try:
                addresses.append(ip_address(text))
            except ValueError:
                self._set_error(name, f"tagged address {VIRTUAL_TAG} {text!r} is no address")
        mode = self._config.mode
        if not (asked or mode is Mode.ALL or (mode is Mode.ATTACHED and any(one.owner for one in found))):
            return (), ()
        families = {version for one in found for version in self._families(one)} - {one.version for one in addresses}
        return tuple(addresses), tuple(sorted(families))

    # How

    def _families(self, instance: Instance) -> Iterator[int]:
        node = self._catalog.node(instance.node)
        text = instance.address or (node.address if node else "")
        with suppress(ValueError):
            yield ip_address(text).version
        yield from (version for version, tag in _TAGS.items() if tag in instance.tagged_addresses)

    def _changed(self, revision: int, topics: frozenset[Topic]) -> None:
        for kind, name in topics:
            if kind in ("service", "virtual"):
                self._dirty[name] = None
            elif not revision and (kind, name) == SERVICES:
                self._dirty.update(dict.fromkeys(self._catalog.names()))
                self._dirty.update(dict.fromkeys(one.service for one in self._catalog.all_virtual_addresses().values()))
        if self._dirty:
            self._wake.set()

    async def _reconcile_loop(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty:
                name = next(iter(self._dirty))
                del self._dirty[name]
                try:
                    await self._reconcile(name)
                except StoreError as error:
                    log.warning("service %s has no virtual address yet: %s", name, error)
                    self._dirty[name] = None
                    await asyncio.sleep(RETRY_SECONDS)
                await asyncio.sleep(0)

    async def _reconcile(self, name: str) -> None:
        """Give one service what it lacks."""
        found = self._catalog.instances(name)
        if not found:
            if self._catalog.virtual_addresses(name):
                self._unused_since.setdefault(name, time.monotonic())
            self.errors.pop(name, None)
            return
        self._unused_since.pop(name, None)
        if oldest_instance(found).node != self._config.node:
            return
        held = [ip_address(one.address) for one in self._catalog.virtual_addresses(name)]
        errors = self.errors.pop(name, "")
        addresses, families = self.requested(name)
        for address in addresses:
            if address not in held:
                await self._claim_requested(name, address)
        for version in families:
            if not any(address.version == version for address in held):
                await self._claim_any(name, version)
        if name in self.errors and self.errors[name] != errors:
            log.warning("service %s: %s", name, self.errors[name])

    async def _claim_requested(self, name: str, address: Address) -> None:
        networks = await asyncio.to_thread(self._occupied)
        problem = virtual_address_error(address, self._config, networks)
        owner = self._catalog.virtual_address_service(str(address))
        if problem:
            self._set_error(name, problem)
        elif owner or not await self._claim(name, address):
            self._set_error(name, f"virtual address {address} belongs to service {owner or 'another'}; ask for another")

    async def _claim_any(self, name: str, version: int) -> None:
        for network in self._config.ranges:
            if network.version != version:
                continue
            for address in candidates(name, network):
                owner = self._catalog.virtual_address_service(str(address))
                if owner == name or (not owner and await self._claim(name, address)):
                    return
        if any(network.version == version for network in self._config.ranges):
            self._set_error(name, f"no virtual address of IPv{version} is free; give services a larger range")

    async def _claim(self, name: str, address: Address) -> bool:
        """Whether the address is the service's now."""
        value = VirtualAddress(name, str(address))
        key = layout.store_key(value)
        done = await self._store.transact([Compare(key, "create", 0)], [Put(key, layout.encode(value))])
        if done.succeeded:
            return True
        stored = await self._store.get(key)
        return stored is not None and layout.decode(stored) == VirtualAddress(
            name, str(address), stored.create_revision
        )

    def _set_error(self, name: str, sentence: str) -> None:
        self.errors[name] = sentence

    async def _release_loop(self) -> None:
        """Give back the addresses of services that have been gone for long enough; and those that nobody asks for."""
        pause = max(min(self._config.keep / 4, 60.0), 0.05)
        while True:
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # hosts take turns
            before = time.monotonic() - self._config.keep
            for name in [name for name, since in self._unused_since.items() if since <= before]:
                if self._catalog.instances(name):
                    del self._unused_since[name]
                    continue
                with suppress(StoreError):
                    for one in self._catalog.virtual_addresses(name):
                        key = layout.store_key(one)
                        await self._store.transact([Compare(key, "create", one.create_index)], [Delete(key)])
                        log.info("service %s is gone; %s is free", name, one.address)
                    del self._unused_since[name]


def host_networks() -> list[Network]:
    """The networks that the links of the calling thread's namespace have addresses in, but for weft's own device."""
    from discovery.balancer.table import LINK
    from weft.kernel.linux.kernel import LinuxKernel

    kernel = LinuxKernel()
    try:
        host = kernel.host
        return [
            ip_network(ip_interface(str(address)).network)
            for link in host.links()
            if link.name != LINK
            for address in host.addresses(link.name)
        ]
    finally:
        kernel.close()
