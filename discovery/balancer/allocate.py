"""Allocates virtual addresses to services, in the store.

The node of a service's oldest instance allocates, so that no two nodes do. An address is claimed by
a transaction that fails if it is taken. Candidates are derived from the service's name, so that a
service that returns gets the same address if it is free. Addresses of services without instances
are released after a while.
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
"""Candidates tried before the range counts as exhausted."""
RETRY_SECONDS = 1.0
BATCH = 32
"""Services reconciled before the event loop runs others."""
_TAGS = {4: "lan_ipv4", 6: "lan_ipv6"}


def candidates(name: str, network: Network) -> Iterator[Address]:
    """Candidate addresses of a service, the same on every host; at most MAX_CANDIDATES.

    The first, second and last address of the range are excluded.
    """
    size = network.num_addresses
    if size < 8:
        return
    for turn in range(MAX_CANDIDATES):
        text = f"{name}\0{turn}".encode("utf-8", "surrogateescape")
        number = int.from_bytes(blake2b(text, digest_size=8, person=b"weft-vip").digest(), "big")
        yield network[2 + number % (size - 3)]


class Allocator:
    """Allocates and releases virtual addresses.

    ``occupied`` returns the networks that this host has addresses in, which may not be requested.
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
        """Services whose request failed, and why."""
        metrics.gauge(
            "weft_virtual_addresses", "Virtual addresses allocated.", read=lambda: len(catalog.all_virtual_addresses())
        )

    async def start(self) -> None:
        """Reconcile all services, then follow the catalog."""
        self._unsubscribe = self._catalog.subscribe(self._changed)
        self._changed(0, frozenset({SERVICES}))
        self._tasks = [asyncio.create_task(self._reconcile_loop()), asyncio.create_task(self._release_loop())]

    async def stop(self) -> None:
        """Stop; addresses remain allocated."""
        self._unsubscribe()
        self._unsubscribe = lambda: None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def requested(self, name: str) -> tuple[tuple[Address, ...], tuple[int, ...]]:
        """The addresses requested by a service, and the families of which it gets any."""
        found = self._catalog.instances(name)
        if not found:
            return (), ()
        asked = [one.tagged_addresses[VIRTUAL_TAG].address for one in found if VIRTUAL_TAG in one.tagged_addresses]
        addresses: list[Address] = []
        for text in dict.fromkeys(filter(None, asked)):
            try:
                addresses.append(ip_address(text))
            except ValueError:
                self._set_error(name, f"tagged address {VIRTUAL_TAG} {text!r} is not a valid address")
        mode = self._config.mode
        if not (asked or mode is Mode.ALL or (mode is Mode.ATTACHED and any(one.owner for one in found))):
            return (), ()
        families = {version for one in found for version in self._families(one)} - {one.version for one in addresses}
        return tuple(addresses), tuple(sorted(families))

    # Reconciliation

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
                    log.warning("failed to allocate a virtual address for service %s, retrying: %s", name, error)
                    self._dirty[name] = None
                    await asyncio.sleep(RETRY_SECONDS)
                await asyncio.sleep(0)

    async def _reconcile(self, name: str) -> None:
        """Claim the addresses that a service lacks."""
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
            fields = {"service": name, "error": self.errors[name]}
            log.warning("service %s: %s", name, self.errors[name], extra={"event": "refusal", "fields": fields})

    async def _claim_requested(self, name: str, address: Address) -> None:
        networks = await asyncio.to_thread(self._occupied)
        problem = virtual_address_error(address, self._config, networks)
        owner = self._catalog.virtual_address_service(str(address))
        if problem:
            self._set_error(name, problem)
        elif owner or not await self._claim(name, address):
            self._set_error(name, f"virtual address {address} is in use by service {owner or 'another'}")

    async def _claim_any(self, name: str, version: int) -> None:
        for network in self._config.ranges:
            if network.version != version:
                continue
            for address in candidates(name, network):
                owner = self._catalog.virtual_address_service(str(address))
                if owner == name or (not owner and await self._claim(name, address)):
                    return
        if any(network.version == version for network in self._config.ranges):
            self._set_error(name, f"no free IPv{version} virtual address; configure a larger range")

    async def _claim(self, name: str, address: Address) -> bool:
        """Claim an address; whether the service has it now."""
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
        """Release the addresses of services without instances for ``keep`` seconds."""
        pause = max(min(self._config.keep / 4, 60.0), 0.05)
        while True:
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # spread over hosts
            before = time.monotonic() - self._config.keep
            for name in [name for name, since in self._unused_since.items() if since <= before]:
                if self._catalog.instances(name):
                    del self._unused_since[name]
                    continue
                with suppress(StoreError):
                    for one in self._catalog.virtual_addresses(name):
                        key = layout.store_key(one)
                        await self._store.transact([Compare(key, "create", one.create_index)], [Delete(key)])
                        why = f"the service had no instance for {self._config.keep:g} s"
                        fields = {"service": name, "addresses": one.address, "why": why}
                        said = {"event": "released", "fields": fields}
                        log.info("released %s of service %s", one.address, name, extra=said)
                    del self._unused_since[name]


def host_networks() -> list[Network]:
    """The networks of this namespace's interface addresses, without weft's own device."""
    from discovery.balancer.table import LINK
    from weft.kernel.linux.kernel import LinuxKernel

    kernel = LinuxKernel()
    try:
        found = kernel.host.all_addresses()
        return [ip_network(ip_interface(str(address)).network) for link, address in found if link != LINK]
    finally:
        kernel.close()
