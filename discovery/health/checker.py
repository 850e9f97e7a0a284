"""Schedules the checks of this node and updates their status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import resource
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from discovery.catalog import NODES, Catalog, node_checks
from discovery.catalog import node as node_topic
from discovery.health.probes import STALL_SECONDS, Prober, ProbeResult
from discovery.health.status_handler import StatusHandler
from discovery.metrics import Metrics
from discovery.registry import NotRegistered, Registry
from discovery.structs import CheckDefinition, Instance, Status, worst_status
from store import StoreError
from weft.service_options import NETWORK_CHECKS, TTL_CHECK

log = logging.getLogger(__name__)

MAX_CONCURRENT = 4096
"""Checks that run concurrently, if the limit of open files permits: a target that does not answer
holds a socket for its timeout.
"""
_OTHER_FILES = 8192 + 512
"""Open files that are left to the rest of the agent, first of all connections to the API."""
REAP_SECONDS = 5.0
"""Seconds between looking for services to deregister."""
_ALIAS_SECONDS = 600.0
_RETRY_SECONDS = 1.0
_PROBED = (*NETWORK_CHECKS, "grpc")
_MIN_INTERVAL = 0.1  # seconds


class Probing(Protocol):
    """Executes checks, as Prober."""

    async def probe(self, definition: CheckDefinition) -> ProbeResult: ...


class Checker:
    """Runs the checks of a registry. ``scripts`` allows script checks; ``prober`` executes them all."""

    def __init__(
        self,
        registry: Registry,
        catalog: Catalog,
        metrics: Metrics,
        *,
        scripts: bool = False,
        prober: Probing | None = None,
    ) -> None:
        self._registry = registry
        self._catalog = catalog
        self._scripts = scripts
        self._running: dict[str, tuple[CheckDefinition, asyncio.Task[None]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._expiring: set[asyncio.Task[None]] = set()
        self._prober = prober or Prober(concurrent_checks())
        self._runners: dict[str, Callable[[CheckDefinition], Awaitable[None]]] = {
            **dict.fromkeys(_PROBED, self._run_interval),
            "script": self._run_script,
            "alias": self._run_alias,
        }
        self._reaper: asyncio.Task[None] | None = None
        self._started = False
        self._executed = metrics.counter("weft_checks_total", "Health checks executed.", "type", "status")

    async def start(self) -> None:
        """Start all checks, spread over their intervals, and follow the registry."""
        self._registry.subscribe(self._reconcile)
        for check_id in self._registry.definitions():
            self._reconcile(check_id)
        self._started = True
        self._reaper = asyncio.create_task(self._reap())

    async def stop(self) -> None:
        """Stop; checks keep their status."""
        tasks = [*(task for _, task in self._running.values()), *self._expiring]
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        if self._reaper is not None:
            tasks.append(self._reaper)
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reconcile(self, check_id: str) -> None:
        """Start, restart or stop a check as registered."""
        definition = self._registry.definition(check_id)
        running = self._running.get(check_id)
        if running is not None and running[0] != definition:
            running[1].cancel()
            del self._running[check_id]
        if definition is None or definition.type != TTL_CHECK:
            self._cancel_timer(check_id)
        else:
            self._set_timer(check_id)
        if definition is not None and check_id not in self._running and definition.type in self._runners:
            runner = self._runners[definition.type]
            self._running[check_id] = (definition, asyncio.create_task(self._supervise(definition, runner)))

    # TTL checks have a timer each; when it fires, their deadline may have moved

    def _set_timer(self, check_id: str, at_least: float = 0.0) -> None:
        """Have a timer fire no later than the check expires."""
        remaining = self._registry.deadlines.remaining(check_id)
        if remaining is None:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + max(remaining, at_least)
        timer = self._timers.get(check_id)
        if timer is None or timer.when() > due:
            self._cancel_timer(check_id)
            self._timers[check_id] = loop.call_at(due, self._on_timer, check_id)

    def _cancel_timer(self, check_id: str) -> None:
        if (timer := self._timers.pop(check_id, None)) is not None:
            timer.cancel()

    def _on_timer(self, check_id: str) -> None:
        loop = asyncio.get_running_loop()
        timer = self._timers.pop(check_id)
        remaining = self._registry.deadlines.remaining(check_id)
        if remaining is not None and remaining > 0:
            self._set_timer(check_id)
        elif loop.time() - timer.when() > STALL_SECONDS:
            # This process was stopped, or busy: reports of the time before may not be read yet.
            self._timers[check_id] = loop.call_later(_RETRY_SECONDS, self._on_timer, check_id)
        elif remaining is not None:
            task = asyncio.create_task(self._expire(check_id))
            self._expiring.add(task)
            task.add_done_callback(self._expiring.discard)

    async def _expire(self, check_id: str) -> None:
        """Make it critical; the next report sets a timer again."""
        try:
            await self._registry.expire_check(check_id)
        except NotRegistered:
            pass
        except StoreError as error:
            log.warning("check %s: %s", check_id, error)
            self._set_timer(check_id, _RETRY_SECONDS)

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
            status, text = await self._prober.probe(definition)
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

    async def _run_alias(self, definition: CheckDefinition) -> None:
        """Follow the health of another service or node."""
        asked = definition.alias_node or self._registry.node.name
        while True:
            known = self._catalog.node(asked)  # names of nodes are case-insensitive
            node = known.name if known is not None else asked
            topics = (node_topic(node), node_checks(node)) if known is not None else (NODES,)
            seen = self._catalog.changed(*topics)
            target_checks = self._catalog.checks_of(Instance(node, definition.alias_service, ""))
            checks = [check for check in target_checks if check.id != definition.id]
            target = self._catalog.instance(node, definition.alias_service) if definition.alias_service else True
            if target is None:
                status, text = Status.CRITICAL, f"Service {definition.alias_service} could not be found on node {node}"
            else:
                status = worst_status(checks)
                bad = [check.name for check in checks if check.status is status and status is not Status.PASSING]
                text = f"Aliased check {bad[0]!r} is {status.value}" if bad else "All checks passing."
            await self._report(definition, status, text)
            await self._catalog.wait(topics, seen, _ALIAS_SECONDS)

    async def _report(self, definition: CheckDefinition, status: Status, text: str) -> None:
        await self._registry.update_check(definition.id, status, text)

    async def _reap(self) -> None:
        """Deregister services with a check critical for longer than its deregister_after."""
        while True:
            await asyncio.sleep(REAP_SECONDS)
            for check_id, seconds in self._registry.deadlines.critical().items():
                definition = self._registry.definition(check_id)
                if definition is None or not definition.deregister_after or not definition.service_id:
                    continue
                if seconds >= definition.deregister_after:
                    log.warning(
                        "deregistering service %s: check %s critical for %d seconds",
                        *(definition.service_id, check_id, seconds),
                    )
                    with contextlib.suppress(NotRegistered, StoreError):
                        await self._registry.deregister(definition.service_id)


def concurrent_checks() -> int:
    """How many checks the limit of open files permits, after raising it as far as permitted."""
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONCURRENT + _OTHER_FILES
    if files < wanted:
        files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return min(MAX_CONCURRENT, max(files - _OTHER_FILES, 128))
