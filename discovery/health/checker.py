"""Schedules the checks of this node and updates their status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable

from discovery.catalog import Catalog, node_checks
from discovery.health.probes import probe
from discovery.health.status_handler import StatusHandler
from discovery.metrics import Metrics
from discovery.registry import NotRegistered, Registry
from discovery.structs import CheckDefinition, Status, worst_status
from store import StoreError
from weft.service_options import NETWORK_CHECKS, TTL_CHECK

log = logging.getLogger(__name__)

MAX_CONCURRENT = 64
"""Checks that run concurrently."""
REAP_SECONDS = 5.0
"""Seconds between looking for services to deregister."""
_ALIAS_SECONDS = 600.0
_MIN_INTERVAL = 0.1  # seconds


class Checker:
    """Runs the checks of a registry. ``scripts`` allows script checks."""

    def __init__(self, registry: Registry, catalog: Catalog, metrics: Metrics, *, scripts: bool = False) -> None:
        self._registry = registry
        self._catalog = catalog
        self._scripts = scripts
        self._running: dict[str, tuple[CheckDefinition, asyncio.Task[None]]] = {}
        self._ttl_resets: dict[str, asyncio.Event] = {}
        self._reporting: set[str] = set()
        self._critical_since: dict[str, float] = {}
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._reaper: asyncio.Task[None] | None = None
        self._started = False
        self._executed = metrics.counter("weft_checks_total", "Health checks executed.", "type", "status")

    async def start(self) -> None:
        """Start all checks, spread over their intervals, and follow the registry."""
        self._registry.subscribe(self._reconcile)
        self._registry.subscribe_updates(self._on_update)
        self._reconcile()
        self._started = True
        self._reaper = asyncio.create_task(self._reap())

    async def stop(self) -> None:
        """Stop; checks keep their status."""
        tasks = [task for _, task in self._running.values()]
        if self._reaper is not None:
            tasks.append(self._reaper)
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reconcile(self) -> None:
        """Start and stop checks as registered."""
        wanted = self._registry.definitions()
        for name, (definition, task) in list(self._running.items()):
            if wanted.get(name) != definition:
                task.cancel()
                del self._running[name]
                self._critical_since.pop(name, None)
                self._ttl_resets.pop(name, None)
        for name, definition in wanted.items():
            if name not in self._running and definition.type in self._runners():
                runner = self._runners()[definition.type]
                self._running[name] = (definition, asyncio.create_task(self._supervise(definition, runner)))

    def _runners(self) -> dict[str, Callable[[CheckDefinition], Awaitable[None]]]:
        return {
            **dict.fromkeys(NETWORK_CHECKS, self._run_interval),
            "script": self._run_script,
            TTL_CHECK: self._run_ttl,
            "alias": self._run_alias,
        }

    async def _supervise(
        self, definition: CheckDefinition, runner: Callable[[CheckDefinition], Awaitable[None]]
    ) -> None:
        """Run a check, restarting it after errors."""
        while True:
            try:
                await runner(definition)
            except NotRegistered:
                return  # deregistered meanwhile
            except StoreError as error:
                log.warning("check %s: %s", definition.id, error)
            except Exception:
                log.exception("check %s failed, restarting it", definition.id)
            await asyncio.sleep(max(definition.interval, 1.0))

    async def _run_interval(self, definition: CheckDefinition) -> None:
        """Probe every interval: new checks at once, those present at start after a random delay."""
        handler = StatusHandler(definition)
        interval = max(definition.interval, _MIN_INTERVAL)
        if not self._started:
            await asyncio.sleep(random.uniform(0, interval))
        due = time.monotonic()
        while True:
            async with self._slots:
                status, text = await probe(definition)
            self._executed.add(1, definition.type, status.value)
            new_status = handler.update(status)
            if new_status is not None:
                await self._report(definition, new_status, text)
            due = max(due + interval, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def _run_script(self, definition: CheckDefinition) -> None:
        if self._scripts:
            await self._run_interval(definition)
            return
        await self._report(definition, Status.CRITICAL, "script checks are disabled on this agent")
        await asyncio.Event().wait()

    async def _run_ttl(self, definition: CheckDefinition) -> None:
        """Set a TTL check critical when it has not been updated in time."""
        ttl_reset = self._ttl_resets[definition.id] = asyncio.Event()
        while True:
            ttl_reset.clear()
            try:
                async with asyncio.timeout(definition.ttl):
                    await ttl_reset.wait()
            except TimeoutError:
                await self._report(definition, Status.CRITICAL, "TTL expired")
                await ttl_reset.wait()

    async def _run_alias(self, definition: CheckDefinition) -> None:
        """Follow the health of another service or node."""
        node = definition.alias_node or self._registry.node.name
        while True:
            seen = self._catalog.changed(node_checks(node))
            checks = [
                check
                for check in self._catalog.node_checks(node)
                if check.service_id in ("", definition.alias_service) and check.id != definition.id
            ]
            target = self._catalog.instance(node, definition.alias_service) if definition.alias_service else True
            if target is None:
                status, text = Status.CRITICAL, f"Service {definition.alias_service} could not be found on node {node}"
            else:
                status = worst_status(checks)
                bad = [check.name for check in checks if check.status is status and status is not Status.PASSING]
                text = f"Aliased check {bad[0]!r} is {status.value}" if bad else "All checks passing."
            await self._report(definition, status, text)
            await self._catalog.wait((node_checks(node),), seen, _ALIAS_SECONDS)

    async def _report(self, definition: CheckDefinition, status: Status, text: str) -> None:
        self._reporting.add(definition.id)
        try:
            await self._registry.update_check(definition.id, status, text)
        finally:
            self._reporting.discard(definition.id)

    def _on_update(self, check_id: str, status: Status) -> None:
        """A check was updated, by a client (which resets the TTL) or by this checker."""
        if check_id not in self._reporting and check_id in self._ttl_resets:
            self._ttl_resets[check_id].set()
        self._track_critical(check_id, status)

    def _track_critical(self, check_id: str, status: Status) -> None:
        """Remember since when a check is critical."""
        if status is Status.CRITICAL:
            self._critical_since.setdefault(check_id, time.monotonic())
        else:
            self._critical_since.pop(check_id, None)

    async def _reap(self) -> None:
        """Deregister services with a check critical for longer than its deregister_after."""
        while True:
            await asyncio.sleep(REAP_SECONDS)
            now = time.monotonic()
            for check_id, since in list(self._critical_since.items()):
                definition = self._registry.definitions().get(check_id)
                if definition is None or not definition.deregister_after or not definition.service_id:
                    continue
                if now - since >= definition.deregister_after:
                    log.warning(
                        "deregistering service %s: check %s critical for %d seconds",
                        *(definition.service_id, check_id, now - since),
                    )
                    self._critical_since.pop(check_id, None)
                    with contextlib.suppress(NotRegistered, StoreError):
                        await self._registry.deregister(definition.service_id)
