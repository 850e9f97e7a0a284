"""The balancer: keeps the kernel in sync with the catalog.

Catalog changes mark services dirty; one thread syncs them to the kernel, a transaction each. The
kernel state outlives this process: nothing is removed on exit, and on start only differences are
written. When another process changes the table, everything is compared and repaired.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from typing import TypeVar

from discovery.balancer.desired import Frontend, VirtualService
from discovery.balancer.draining import DrainingBackend
from discovery.balancer.proxier import Problems, Proxier, ServiceSnapshot
from discovery.balancer.rules import TABLE
from discovery.balancer.settings import BalancerSettings
from discovery.balancer.table import KernelTable
from discovery.catalog import Catalog, Topic
from discovery.metrics import Metrics
from weft.errors import WeftError
from weft.kernel.nft.batch import TableWatch

log = logging.getLogger(__name__)

T = TypeVar("T")

BATCH = 64
"""Services synced per call to the thread."""
SETTLE_SECONDS = 0.05
"""Debounce of external changes to the table, in seconds."""
RETRY_SECONDS = 1.0
HAIRPIN_RETRY_SECONDS = 0.2
_TOPIC_KINDS = ("health", "virtual")


class Balancer:
    """The load balancer of one host."""

    def __init__(self, catalog: Catalog, config: BalancerSettings, metrics: Metrics) -> None:
        self._catalog = catalog
        self._config = config
        self._proxier = Proxier(config)
        self._watch: TableWatch | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._unsubscribe: Callable[[], None] = lambda: None
        self._dirty: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._hairpin_retry = asyncio.Event()
        self._resync_needed = False
        self._idle = asyncio.Event()
        self._logged: Problems = {}
        self._seconds = metrics.histogram(
            "weft_balancer_change_seconds", "Latency from a catalog change to the kernel."
        )
        self._changes = metrics.counter("weft_balancer_changes_total", "Service changes synced to the kernel.")
        self._failures = metrics.counter("weft_balancer_failures_total", "Failed syncs.")
        self._repairs = metrics.counter("weft_balancer_repairs_total", "Repairs of the table after external changes.")
        self._ended = metrics.counter("weft_balancer_ended_total", "Connections to deregistered instances terminated.")
        metrics.gauge("weft_balancer_services", "Services balanced.", read=lambda: self._proxier.count())
        metrics.gauge("weft_balancer_draining", "Instances draining.", read=lambda: len(self._proxier.draining()))

    # Public

    async def start(self) -> None:
        """Sync the kernel with the catalog, then follow it. Raises KernelRefused, including
        KernelLacks.
        """
        self._proxier = Proxier(self._config)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="balancer")
        self._unsubscribe = self._catalog.subscribe(self._changed)
        try:
            await self._run(self._proxier.open)
            names = {*self._catalog.names(), *(one.service for one in self._catalog.all_virtual_addresses().values())}
            snapshots = []
            for number, name in enumerate(sorted(names)):
                snapshots.append(self._snapshot(name))
                if number % BATCH == BATCH - 1:
                    await asyncio.sleep(0)
            changed = await self._run(lambda: self._proxier.sync_all(snapshots))
            log.info("balancing %d services, %d elements changed", self._proxier.count(), changed)
            self._watch = await self._run(lambda: TableWatch(TABLE))
        except BaseException:
            await self.stop()
            raise
        self._log_problems(await self._run(self._proxier.problems))
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._on_nft_event)
        self._tasks = [asyncio.create_task(self._sync_loop()), asyncio.create_task(self._periodic_loop())]
        self._wake.set()

    async def stop(self) -> None:
        """Stop; the kernel keeps balancing."""
        self._unsubscribe()
        self._unsubscribe = lambda: None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None
        if self._thread is not None:
            await self._run(self._proxier.close)
            self._thread.shutdown(wait=False)
            self._thread = None

    async def wait_synced(self) -> None:
        """Wait until all catalog changes so far are synced."""
        while self._dirty or self._resync_needed or not self._idle.is_set():
            await self._idle.wait()
            await asyncio.sleep(0)

    def services(self) -> tuple[VirtualService, ...]:
        """The balanced services, by name."""
        return self._proxier.services()

    def table(self, address: str, port: int, protocol: str = "tcp") -> dict[str, int]:
        """Slots per instance of a virtual address: ``{"10.0.0.1#80": 6}``."""
        found = ip_address(address)
        return self._proxier.slots(Frontend(found, found.version, protocol, port))

    def draining(self) -> tuple[DrainingBackend, ...]:
        """The draining instances."""
        return self._proxier.draining()

    # Event loop

    async def _run(self, work: Callable[[], T]) -> T:
        assert self._thread is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _changed(self, revision: int, topics: frozenset[Topic]) -> None:
        now = time.perf_counter()
        for kind, name in topics:
            if kind in _TOPIC_KINDS:
                self._dirty.setdefault(name, now)
        if self._dirty:
            self._wake.set()

    def _on_nft_event(self) -> None:
        if self._watch is not None and self._watch.changed_by_others(self._proxier.port):
            self._resync_needed = True
            self._wake.set()

    def _snapshot(self, name: str) -> ServiceSnapshot:
        addresses = tuple(one.address for one in self._catalog.virtual_addresses(name))
        return name, self._catalog.health(name), addresses

    async def _sync_loop(self) -> None:
        """Sync dirty services at once, then repair after external changes."""
        failed = False
        while True:
            self._idle.set()
            await self._wake.wait()
            self._wake.clear()
            self._idle.clear()
            batch: dict[str, float] = {}
            try:
                if failed:
                    await self._resync()
                    failed = False
                while self._dirty:
                    batch.update(list(self._dirty.items())[:BATCH])
                    for name in batch:
                        del self._dirty[name]
                    await self._apply(batch)
                    batch.clear()
                if self._resync_needed:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(SETTLE_SECONDS):
                            await self._wake.wait()
                    if not self._dirty:
                        await self._resync()
                    self._wake.set()
            except Exception as error:
                self._failures.add()
                if isinstance(error, WeftError):
                    log.warning("sync failed, retrying: %s", error)
                else:  # a bug must not stop all balancing
                    log.exception("sync failed, retrying")
                await asyncio.sleep(RETRY_SECONDS)
                self._dirty.update(batch)
                failed = self._resync_needed = True
                self._wake.set()

    async def _apply(self, batch: dict[str, float]) -> None:
        snapshots = [self._snapshot(name) for name in batch]
        self._log_problems(await self._run(lambda: self._proxier.apply(snapshots)))
        if self._proxier.hairpin_pending:
            self._hairpin_retry.set()
        now = time.perf_counter()
        for since in batch.values():
            self._changes.add()
            self._seconds.observe(now - since)

    async def _resync(self) -> None:
        self._resync_needed = False
        if changed := await self._run(self._proxier.resync):
            self._repairs.add()
            log.warning("table %s was changed externally: %d elements repaired", TABLE, changed)

    async def _periodic_loop(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.interval):  # wait_for of 3.11 can swallow a cancellation
                    await self._hairpin_retry.wait()
            if self._hairpin_retry.is_set():
                self._hairpin_retry.clear()
                await asyncio.sleep(HAIRPIN_RETRY_SECONDS)
            try:
                self._ended.add(await self._run(self._proxier.periodic))
                if self._proxier.hairpin_pending:
                    self._hairpin_retry.set()
            except WeftError as error:
                log.warning("periodic sync failed: %s", error)
            except Exception:
                log.exception("periodic sync failed")
            self._dirty.update(dict.fromkeys(self._proxier.unblocked(), time.perf_counter()))
            if self._dirty:
                self._wake.set()

    def _log_problems(self, problems: Problems) -> None:
        """Log new problems once."""
        for name, sentences in problems.items():
            for sentence in sentences:
                if sentence not in self._logged.get(name, ()):
                    log.warning("service %s: %s", name, sentence)
            if sentences:
                self._logged[name] = sentences
            else:
                self._logged.pop(name, None)


def served() -> int:
    """How many virtual addresses the kernel serves in this thread's namespace, with or without an agent.

    Raises KernelRefused. *Equivalent to:* ``nft list set inet weft-services virtual_ips4``.
    """
    table = KernelTable(())
    try:
        return len(table.virtual_addresses()) if table.installed else 0
    finally:
        table.close()


def remove_all() -> None:
    """Remove table and device in this thread's namespace; new connections to services then fail.

    *Equivalent to:* ``nft delete table inet weft-services; ip link delete weft-services``.
    """
    table = KernelTable(())
    try:
        table.remove()
    finally:
        table.close()
