"""The balancer: programs the kernel with what the catalog says, and keeps it so.

A change of the catalog marks services; a thread that alone talks to the kernel then takes them, one transaction each.
What is in the kernel outlives this process: nothing is taken away when it ends, and when it starts it reads what
there is and changes only what is not right. When somebody else has touched the table, all of it is compared and
repaired.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from typing import TypeVar

from cni_plugin.errors import KernelRefused, WeftError
from cni_plugin.kernel import Flow, conntrack
from cni_plugin.kernel.nft_batch import Watch
from discovery.balancer import desired
from discovery.balancer.desired import Algorithm, Backend, Frontend, VirtualService
from discovery.balancer.draining import Draining, Drains
from discovery.balancer.program import Change, Program, Table, frontends
from discovery.balancer.rules import TABLE
from discovery.balancer.settings import Address, BalancerConfig
from discovery.balancer.table import KernelTable
from discovery.catalog import Catalog, Topic
from discovery.metrics import Metrics
from discovery.values import Health

log = logging.getLogger(__name__)

T = TypeVar("T")
Known = tuple[str, tuple[Health, ...], tuple[str, ...]]
"""What the catalog knows of a service: its name, its instances, its virtual addresses."""

TOGETHER = 64
"""Services that the thread takes before it answers."""
SETTLE_SECONDS = 0.05
"""So long after somebody touched the table it is looked at."""
RETRY_SECONDS = 1.0
TURNS = 5
"""So often the kernel is asked by which port an instance is reached, which it may have to find out first."""
TURN_SECONDS = 0.2
_CONCERNED = ("health", "virtual")


class Balancer:
    """The services of one host in its kernel. Give it the catalog; ``start`` and ``stop`` it."""

    def __init__(self, catalog: Catalog, config: BalancerConfig, metrics: Metrics) -> None:
        self._catalog = catalog
        self._config = config
        self._program = Program()
        self._table: KernelTable | None = None
        self._ready = False
        self._turned: set[Address] = set()
        self._unturned: dict[Address, int] = {}
        self._soon = asyncio.Event()
        self._watch: Watch | None = None
        self._drains = Drains(_flows, conntrack.forget)
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._unsubscribe: Callable[[], None] = lambda: None
        self._dirty: dict[str, float] = {}
        self._wake = asyncio.Event()
        self._suspect = False
        self._idle = asyncio.Event()
        self._waiting: dict[str, tuple[Frontend, ...]] = {}
        self._said: dict[str, tuple[str, ...]] = {}
        self._seconds = metrics.histogram(
            "weft_balancer_change_seconds", "Time from a change of the catalog until the kernel has it."
        )
        self._changes = metrics.counter("weft_balancer_changes_total", "Changes of services that the kernel took.")
        self._failures = metrics.counter("weft_balancer_failures_total", "Changes that the kernel refused.")
        self._repairs = metrics.counter("weft_balancer_repairs_total", "Times that the rules were not as left.")
        self._ended = metrics.counter("weft_balancer_ended_total", "Connections to instances that left, ended.")
        metrics.gauge("weft_balancer_services", "Services with a virtual address or a port.", read=self._count)
        metrics.gauge("weft_balancer_draining", "Instances with old connections only.", read=lambda: len(self._drains))

    # From outside

    async def start(self) -> None:
        """Make the kernel be as the catalog says, then follow it. Raises KernelRefused, KernelLacks among them."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="balancer")
        self._unsubscribe = self._catalog.subscribe(self._changed)
        try:
            await self._run(self._open)
            names = {*self._catalog.names(), *(one.service for one in self._catalog.all_virtual_addresses().values())}
            known = []
            for number, name in enumerate(sorted(names)):
                known.append(self._known(name))
                if number % TOGETHER == TOGETHER - 1:
                    await asyncio.sleep(0)
            changed = await self._run(lambda: self._begin(known))
            log.info("%d services are balanced; %d elements were changed", self._count(), changed)
            self._watch = await self._run(lambda: Watch(TABLE))
        except BaseException:
            await self.stop()
            raise
        self._say(await self._run(self._problems))
        asyncio.get_running_loop().add_reader(self._watch.fileno(), self._touched)
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._tick())]
        self._wake.set()

    async def stop(self) -> None:
        """End; the kernel goes on balancing as it was told."""
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
            if self._table is not None:
                await self._run(self._table.close)
                self._table = None
            self._thread.shutdown(wait=False)
            self._thread = None

    async def settled(self) -> None:
        """Wait until the kernel has all that the catalog said before."""
        while self._dirty or self._suspect or not self._idle.is_set():
            await self._idle.wait()
            await asyncio.sleep(0)

    def services(self) -> tuple[VirtualService, ...]:
        """What is balanced, by name."""
        return tuple(service for _, service in sorted(self._program.services.items()))

    def table(self, address: str, port: int, protocol: str = "tcp") -> dict[str, int]:
        """How many slots each instance has behind a virtual address: ``{"10.0.0.1#80": 6}``."""
        version = 6 if ":" in address else 4
        found = self._program.tables.get(Frontend(ip_address(address), version, protocol, port))
        return dict(Counter(backend.name for backend in found.slots)) if found else {}

    def draining(self) -> tuple[Draining, ...]:
        """The instances that have old connections only."""
        return self._drains.all()

    # The loop's side

    async def _run(self, work: Callable[[], T]) -> T:
        assert self._thread is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _changed(self, revision: int, topics: frozenset[Topic]) -> None:
        now = time.perf_counter()
        for kind, name in topics:
            if kind in _CONCERNED:
                self._dirty.setdefault(name, now)
        if self._dirty:
            self._wake.set()

    def _touched(self) -> None:
        watch, table = self._watch, self._table
        if watch is not None and table is not None and watch.touched(table.port):
            self._suspect = True
            self._wake.set()

    def _known(self, name: str) -> Known:
        addresses = tuple(one.address for one in self._catalog.virtual_addresses(name))
        return name, self._catalog.health(name), addresses

    async def _work(self) -> None:
        while True:
            self._idle.set()
            await self._wake.wait()
            self._wake.clear()
            self._idle.clear()
            try:
                if self._suspect:
                    await asyncio.sleep(SETTLE_SECONDS)
                    self._suspect = False
                    if changed := await self._run(self._repair):
                        self._repairs.add()
                        log.warning("the table %s was not as it had been left: %d elements repaired", TABLE, changed)
                while self._dirty:
                    taken = dict(list(self._dirty.items())[:TOGETHER])
                    for name in taken:
                        del self._dirty[name]
                    known = [self._known(name) for name in taken]
                    self._say(await self._run(lambda known=known: self._apply(known)))  # type: ignore[misc]
                    if self._unturned:
                        self._soon.set()
                    now = time.perf_counter()
                    for since in taken.values():
                        self._changes.add()
                        self._seconds.observe(now - since)
            except WeftError as error:
                self._failures.add()
                log.warning("services cannot be balanced: %s; trying again", error)
                await asyncio.sleep(RETRY_SECONDS)
                self._suspect = True
                self._wake.set()

    async def _tick(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), self._config.interval)
            if self._soon.is_set():
                self._soon.clear()
                await asyncio.sleep(TURN_SECONDS)
            try:
                self._ended.add(await self._run(self._look))
                if self._unturned:
                    self._soon.set()
            except WeftError as error:
                log.warning("connections cannot be looked at: %s", error)
            self._dirty.update(
                dict.fromkeys((name for name in self._waiting if self._freed(name)), time.perf_counter())
            )
            if self._dirty:
                self._wake.set()

    def _freed(self, name: str) -> bool:
        """Whether a frontend that this service waits for belongs to nobody now."""
        return any(not self._program.owner(front) for front in self._waiting[name])

    def _say(self, problems: dict[str, tuple[str, ...]]) -> None:
        """Say once what could not be done."""
        for name, sentences in problems.items():
            for sentence in sentences:
                if sentence not in self._said.get(name, ()):
                    log.warning("service %s: %s", name, sentence)
            if sentences:
                self._said[name] = sentences
            else:
                self._said.pop(name, None)

    def _count(self) -> float:
        return len(self._program.services)

    # The thread's side

    def _open(self) -> None:
        self._table = KernelTable(self._config.ranges)
        self._ready = False
        if self._table.there:
            self._prepare()

    def _prepare(self) -> KernelTable:
        """The table, installed when first needed: a host without services has no rules and no device for them."""
        table = self._kernel()
        if not self._ready:
            for sentence in table.overlapping():
                log.warning("%s; what is sent there is balanced or refused", sentence)
            if table.install():
                log.info("the table %s was installed", TABLE)
            table.way()
            table.links(self._config.outside)
            self._ready = True
        return table

    def _begin(self, known: Sequence[Known]) -> int:
        """Compute all, compare with what is there, and write the difference; how many elements changed."""
        there = self._kernel().read() if self._ready else {}
        self._program.adopt(there)
        held = dict(self._program.tables)
        changed = Change()
        for name, found, virtuals in _by_age(known):
            service = desired.service(name, found, virtuals, self._config)
            if service is not None:
                tables, taken = self._program.tables_for(service)
                self._note(name, taken)
                self._left(changed, held, tables)
                self._program.commit(name, service, tables)
        mine = {front for service in self._program.services.values() for front in frontends(service)}
        for front in [front for front in self._program.tables if front not in mine]:
            changed.left[front] = frozenset(self._program.tables.pop(front).slots)
        wanted = self._program.elements()
        count = self._prepare().make(wanted, there) if wanted or there else 0
        self._settle(changed)
        self._turn(*self._program.services.values())
        return count

    @staticmethod
    def _left(changed: Change, held: dict[Frontend, Table], tables: dict[Frontend, Table]) -> None:
        """What the start changes for connections that there are."""
        for front, table in tables.items():
            before = held.get(front)
            if before is None:
                changed.began.append(front)
            elif gone := frozenset(before.slots) - frozenset(table.slots):
                changed.left[front] = gone

    def _apply(self, known: Sequence[Known]) -> dict[str, tuple[str, ...]]:
        """Bring services up to date, one transaction each; what could not be done."""
        problems: dict[str, tuple[str, ...]] = {}
        for name, found, virtuals in known:
            service = desired.service(name, found, virtuals, self._config)
            if service is None and name not in self._program.services:
                problems[name] = ()
                continue
            problems[name] = self._set(name, service)
        return problems

    def _set(self, name: str, service: VirtualService | None, loads: dict[str, int] | None = None) -> tuple[str, ...]:
        tables, taken = self._program.tables_for(service, loads) if service else ({}, ())
        change = self._program.change(name, service, tables)
        try:
            self._prepare().write(change.delete, change.add)
        except KernelRefused as error:  # not as it was believed to be: compare all
            log.warning("the table %s is not as it had been left: %s", TABLE, error)
            self._program.commit(name, service, tables)
            self._repair()
        else:
            self._program.commit(name, service, tables)
        self._note(name, taken)
        self._settle(change)
        self._turn(*([service] if service else ()))
        return (*(service.problems if service else ()), *(f"{front} is another service's already" for front in taken))

    def _note(self, name: str, taken: tuple[Frontend, ...]) -> None:
        if taken:
            self._waiting[name] = taken
        else:
            self._waiting.pop(name, None)

    def _settle(self, change: Change) -> None:
        """Look after the connections that a change concerns."""
        deadline = time.monotonic() + self._config.drain
        for front, backends in change.left.items():
            self._drains.begin(front, backends, deadline)
        for front in {*change.left, *change.began}:
            if front.protocol == "udp":
                with suppress(KernelRefused):
                    self._drains.move(front, self._serving(front))

    def _turn(self, *services: VirtualService) -> None:
        """Let the instances of this host reach themselves; the kernel may have to look for them first."""
        for group in (group for service in services for group in service.groups):
            local = {backend.address for backend, _ in group.backends if backend.local} - self._turned
            self._unturned.update(dict.fromkeys(local - self._unturned.keys(), TURNS))
        if self._unturned:
            unknown = self._kernel().turn(self._unturned.keys())
            tries = {address: left - 1 for address, left in self._unturned.items() if address in unknown and left > 1}
            self._turned |= self._unturned.keys() - tries.keys()
            self._unturned = tries

    def _repair(self) -> int:
        """Compare all with what there is, and write the difference."""
        if not self._ready:
            return 0
        table = self._kernel()
        fresh = table.install()
        table.way()
        table.links(self._config.outside)
        return table.make(self._program.elements(), table.read()) + fresh

    def _look(self) -> int:
        """What is done every few seconds."""
        if not self._ready:
            return 0
        table = self._kernel()
        table.way()
        table.links(self._config.outside)
        present = {backend.address for service in self._program.services.values() for backend in service.registered}
        self._turned &= present
        self._turn()
        for name, service in list(self._program.services.items()):
            if service.policy.algorithm is Algorithm.LEAST_CONNECTIONS:
                self._set(name, service, self._loads(service))
        return self._drains.look(time.monotonic(), self._serving, self._registered)

    def _loads(self, service: VirtualService) -> dict[str, int]:
        """The connections to each instance of a service."""
        found: dict[str, int] = {}
        for front in frontends(service):
            for flow in _flows(front):
                name = Backend(flow.answers, flow.answers_port).name
                found[name] = found.get(name, 0) + 1
        return found

    def _serving(self, front: Frontend) -> Collection[Backend]:
        table = self._program.tables.get(front)
        return frozenset(table.slots) if table else frozenset()

    def _registered(self, front: Frontend) -> Collection[Backend]:
        service = self._program.services.get(self._program.owner(front))
        return service.registered if service else frozenset()

    def _problems(self) -> dict[str, tuple[str, ...]]:
        return {name: service.problems for name, service in self._program.services.items()}

    def _kernel(self) -> KernelTable:
        if self._table is None:
            raise KernelRefused("the balancer is not running")
        return self._table


def remove_all() -> None:
    """Take all of it from the kernel, in the calling thread's namespace; new connections to services fail from then on.

    *Equivalent to:* ``nft delete table inet weft-services; ip link delete weft-services``.
    """
    table = KernelTable(())
    try:
        table.remove()
    finally:
        table.close()


def _by_age(known: Sequence[Known]) -> list[Known]:
    """The oldest services first: a port that two want is the older one's."""
    return sorted(known, key=lambda one: min((health.instance.create_index for health in one[1]), default=0))


def _flows(front: Frontend) -> tuple[Flow, ...]:
    """The connections by a frontend that go on."""
    found = conntrack.flows(front.protocol, front.port, front.address, live=True)
    return tuple(flow for flow in found if flow.destination.version == front.version)
