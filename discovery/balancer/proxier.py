"""The thread that alone talks to the kernel: it computes what a service becomes, writes it, and looks after the rest.

Everything here blocks. All of it runs in one thread but for the questions that say otherwise.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace

from discovery.balancer import desired
from discovery.balancer.desired import Algorithm, Backend, Frontend, PortGroup, VirtualService
from discovery.balancer.draining import ConnectionDrainer, DrainingBackend
from discovery.balancer.program import ElementChange, Program, SlotTable, frontends
from discovery.balancer.rules import TABLE
from discovery.balancer.settings import Address, BalancerSettings
from discovery.balancer.table import KernelTable
from discovery.structs import Health
from weft.errors import KernelRefused, WeftError
from weft.kernel.interface import Flow
from weft.kernel.netlink.conntrack import Conntrack

log = logging.getLogger(__name__)

ServiceSnapshot = tuple[str, tuple[Health, ...], tuple[str, ...]]
"""What the catalog knows of a service: its name, its instances, its virtual addresses."""
Problems = dict[str, tuple[str, ...]]
"""Sentences about what could not be done, by service."""

HAIRPIN_RETRIES = 5
"""So often the kernel is asked by which port an instance is reached, which it may have to find out first."""

_FLOWS_PER_DUMP = 500
"""Connections that are read in the time that the kernel takes to go through its table."""


class Proxier:
    """What is balanced on this host, and the kernel's table for it."""

    def __init__(self, config: BalancerSettings) -> None:
        self._config = config
        self._program = Program()
        self._table: KernelTable | None = None
        self._ready = False
        self._conntrack = Conntrack()
        self._drains = ConnectionDrainer(self._flows, self._conntrack.delete)
        self._turned: set[Address] = set()
        self._unturned: dict[Address, int] = {}
        self._waiting: dict[str, tuple[Frontend, ...]] = {}

    # Questions that any thread may ask

    @property
    def port(self) -> int:
        """The netlink port that elements are written from; 0 where nothing is open."""
        return self._table.port if self._table is not None else 0

    @property
    def turning(self) -> bool:
        """Whether it is still to be found out by which port some instances are reached."""
        return bool(self._unturned)

    def services(self) -> tuple[VirtualService, ...]:
        """What is balanced, by name."""
        return tuple(service for _, service in sorted(self._program.services.items()))

    def count(self) -> int:
        """How many services are balanced."""
        return len(self._program.services)

    def slots(self, front: Frontend) -> dict[str, int]:
        """How many slots each instance has behind a frontend."""
        found = self._program.tables.get(front)
        return dict(Counter(backend.name for backend in found.slots)) if found else {}

    def draining(self) -> tuple[DrainingBackend, ...]:
        """The instances that have old connections only."""
        return self._drains.all()

    def freed(self) -> list[str]:
        """The services that wait for a port that belongs to no other service now."""
        waiting = list(self._waiting.items())
        return [name for name, fronts in waiting if any(not self._program.owner(front) for front in fronts)]

    # Work

    def open(self) -> None:
        """Open what leads to the kernel. Raises KernelLacks."""
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

    def begin(self, known: Sequence[ServiceSnapshot]) -> int:
        """Compute all, compare with what is there, and write the difference; how many elements changed."""
        there = self._kernel().read() if self._ready else {}
        self._program.adopt(there)
        held = dict(self._program.tables)
        changed = ElementChange()
        for name, found, virtuals in _by_age(known):
            service = desired.virtual_service(name, found, virtuals, self._config)
            if service is not None:
                service, busy = self._free(service)
                tables, taken = self._program.tables_for(service)
                self._note(name, (*taken, *busy))
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
    def _left(changed: ElementChange, held: dict[Frontend, SlotTable], tables: dict[Frontend, SlotTable]) -> None:
        """What the start changes for connections that there are."""
        for front, table in tables.items():
            before = held.get(front)
            if before is None:
                changed.began.append(front)
            elif gone := frozenset(before.slots) - frozenset(table.slots):
                changed.left[front] = gone

    def apply(self, known: Sequence[ServiceSnapshot]) -> Problems:
        """Bring services up to date, one transaction each; what could not be done."""
        problems: Problems = {}
        for name, found, virtuals in known:
            service = desired.virtual_service(name, found, virtuals, self._config)
            if service is None and name not in self._program.services:
                problems[name] = ()
                continue
            try:
                problems[name] = self._set(name, service)
            except WeftError:
                raise
            except Exception as error:  # a bug about one service must not end the others'
                log.exception("service %s cannot be balanced", name)
                problems[name] = (f"cannot be balanced: {error!r}",)
        return problems

    def _set(self, name: str, service: VirtualService | None, loads: dict[str, int] | None = None) -> tuple[str, ...]:
        service, busy = self._free(service) if service else (None, ())
        tables, taken = self._program.tables_for(service, loads) if service else ({}, ())
        change = self._program.change(name, service, tables)
        try:
            self._prepare().write(change.delete, change.add)
        except KernelRefused as error:  # not as it was believed to be: compare all
            log.warning("the table %s is not as it had been left: %s", TABLE, error)
            self._program.commit(name, service, tables)
            self.repair()
        else:
            self._program.commit(name, service, tables)
        self._note(name, (*taken, *busy))
        self._settle(change)
        self._turn(*([service] if service else ()))
        return (*(service.problems if service else ()), *(f"{front} is another service's already" for front in taken))

    def _free(self, service: VirtualService) -> tuple[VirtualService, tuple[Frontend, ...]]:
        """The service without the ports of this host at which a process listens, and those; what it has it keeps."""
        busy: dict[Frontend, str] = {}
        for front in frontends(service):
            if front.address is None and front not in self._program.tables and not self._program.owner(front):
                for address, who in self._kernel().host.listeners(front.protocol, front.port):
                    if address.version == front.version:
                        busy[front] = who
        if not busy:
            return service, ()
        groups = (
            PortGroup(tuple(front for front in group.frontends if front not in busy), group.backends)
            for group in service.groups
        )
        sentences = (f"port {front} is not published: {who} listens there" for front, who in busy.items())
        kept = tuple(group for group in groups if group.frontends)
        return replace(service, groups=kept, problems=(*service.problems, *sentences)), tuple(busy)

    def _note(self, name: str, taken: tuple[Frontend, ...]) -> None:
        if taken:
            self._waiting[name] = taken
        else:
            self._waiting.pop(name, None)

    def _settle(self, change: ElementChange) -> None:
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
        groups = (group for service in services for group in service.groups)
        local = {backend.address for group in groups for backend, _ in group.backends if backend.local}
        if new := {address for address in local if address not in self._turned and address not in self._unturned}:
            unknown = self._kernel().turn(new)
            self._turned |= new - unknown
            self._unturned.update(dict.fromkeys(unknown, HAIRPIN_RETRIES))

    def _turn_again(self) -> None:
        present = {backend.address for service in self._program.services.values() for backend in service.registered}
        self._turned &= present
        unknown = self._kernel().turn(self._unturned.keys())
        tries = {address: left - 1 for address, left in self._unturned.items() if address in unknown and left > 1}
        self._turned |= self._unturned.keys() - tries.keys()
        self._unturned = tries

    def repair(self) -> int:
        """Compare all with what there is, and write the difference."""
        if not self._ready:
            return 0
        table = self._kernel()
        fresh = table.install()
        table.way()
        table.links(self._config.outside)
        return table.make(self._program.elements(), table.read()) + fresh

    def look(self) -> int:
        """What is done every few seconds."""
        if not self._ready:
            return 0
        table = self._kernel()
        table.way()
        table.links(self._config.outside)
        self._turn_again()
        for name, service in list(self._program.services.items()):
            if service.policy.algorithm is Algorithm.LEAST_CONNECTIONS:
                self._set(name, service, self._loads(service))
        return self._drains.look(time.monotonic(), self._serving, self._registered)

    def _loads(self, service: VirtualService) -> dict[str, int]:
        """The connections to each instance of a service."""
        found: dict[str, int] = {}
        for front in frontends(service):
            for flow in self._flows([front])[front]:
                name = Backend(flow.reply_source, flow.reply_port).name
                found[name] = found.get(name, 0) + 1
        return found

    def _flows(self, fronts: Collection[Frontend]) -> dict[Frontend, list[Flow]]:
        """The connections by each of the frontends that go on; all are asked for where that is less than each's."""
        found: dict[Frontend, list[Flow]] = {front: [] for front in fronts}
        if len(fronts) < 2 or len(fronts) * _FLOWS_PER_DUMP < self._conntrack.count():
            asked = {
                front: self._conntrack.flows(front.protocol, front.port, front.address, live=True) for front in fronts
            }
            for front, flows in asked.items():
                found[front] = [flow for flow in flows if flow.destination.version == front.version]
            return found
        for protocol in {front.protocol for front in fronts}:
            for flow in self._conntrack.flows(protocol, live=True):
                for address in (flow.destination, None):
                    front = Frontend(address, flow.destination.version, protocol, flow.port)
                    if front in found:
                        found[front].append(flow)
        return found

    def _serving(self, front: Frontend) -> Collection[Backend]:
        table = self._program.tables.get(front)
        return frozenset(table.slots) if table else frozenset()

    def _registered(self, front: Frontend) -> Collection[Backend]:
        service = self._program.services.get(self._program.owner(front))
        return service.registered if service else frozenset()

    def problems(self) -> Problems:
        """What could not be done."""
        return {name: service.problems for name, service in self._program.services.items()}

    def _kernel(self) -> KernelTable:
        if self._table is None:
            raise KernelRefused("the balancer is not running")
        return self._table

    def close(self) -> None:
        """Close it; the kernel goes on balancing as it was told."""
        self._conntrack.close()
        if self._table is not None:
            self._table.close()
            self._table = None


def _by_age(known: Sequence[ServiceSnapshot]) -> list[ServiceSnapshot]:
    """The oldest services first: a port that two want is the older one's."""
    return sorted(known, key=lambda one: min((health.instance.create_index for health in one[1]), default=0))
