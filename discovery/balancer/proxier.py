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
from discovery.balancer.desired import Backend, Frontend, PortGroup, VirtualService
from discovery.balancer.draining import ConnectionDrainer, DrainingBackend
from discovery.balancer.program import ElementChange, Program, SlotTable, frontends
from discovery.balancer.rules import TABLE
from discovery.balancer.settings import Address, BalancerSettings
from discovery.balancer.table import KernelTable
from discovery.structs import Health
from weft.errors import KernelRefused, WeftError
from weft.kernel.interface import Flow
from weft.kernel.netlink.conntrack import Conntrack
from weft.service_options import Algorithm

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
        self._installed = False
        self._conntrack = Conntrack()
        self._drainer = ConnectionDrainer(self._flows, self._conntrack.delete)
        self._hairpin_enabled: set[Address] = set()
        self._hairpin_retries: dict[Address, int] = {}
        self._blocked: dict[str, tuple[Frontend, ...]] = {}

    # Questions that any thread may ask

    @property
    def port(self) -> int:
        """The netlink port that elements are written from; 0 where nothing is open."""
        return self._table.port if self._table is not None else 0

    @property
    def hairpin_pending(self) -> bool:
        """Whether it is still to be found out by which port some instances are reached."""
        return bool(self._hairpin_retries)

    def services(self) -> tuple[VirtualService, ...]:
        """What is balanced, by name."""
        return tuple(service for _, service in sorted(self._program.services.items()))

    def count(self) -> int:
        """How many services are balanced."""
        return len(self._program.services)

    def slots(self, frontend: Frontend) -> dict[str, int]:
        """How many slots each instance has behind a frontend."""
        found = self._program.tables.get(frontend)
        return dict(Counter(backend.name for backend in found.slots)) if found else {}

    def draining(self) -> tuple[DrainingBackend, ...]:
        """The instances that have old connections only."""
        return self._drainer.all()

    def unblocked(self) -> list[str]:
        """The services that wait for a port that belongs to no other service now."""
        waiting = list(self._blocked.items())
        return [
            name
            for name, frontend_set in waiting
            if any(not self._program.owner(frontend) for frontend in frontend_set)
        ]

    # Work

    def open(self) -> None:
        """Open what leads to the kernel. Raises KernelLacks."""
        self._table = KernelTable(self._config.ranges)
        self._installed = False
        if self._table.installed:
            self._ensure_table()

    def _ensure_table(self) -> KernelTable:
        """The table, installed when first needed: a host without services has no rules and no device for them."""
        table = self._open_table()
        if not self._installed:
            for sentence in table.overlapping():
                log.warning("%s; what is sent there is balanced or refused", sentence)
            if table.install():
                log.info("the table %s was installed", TABLE)
            table.route_virtual_ranges()
            table.links(self._config.outside)
            self._installed = True
        return table

    def sync_all(self, snapshots: Sequence[ServiceSnapshot]) -> int:
        """Compute all, compare with what is there, and write the difference; how many elements changed."""
        kernel = self._open_table().read() if self._installed else {}
        self._program.adopt(kernel)
        held = dict(self._program.tables)
        changed = ElementChange()
        for name, found, virtuals in _oldest_first(snapshots):
            service = desired.virtual_service(name, found, virtuals, self._config)
            if service is not None:
                service, busy = self._drop_busy_ports(service)
                tables, taken = self._program.tables_for(service)
                self._set_blocked(name, (*taken, *busy))
                self._record_start_changes(changed, held, tables)
                self._program.commit(name, service, tables)
        mine = {frontend for service in self._program.services.values() for frontend in frontends(service)}
        for frontend in [frontend for frontend in self._program.tables if frontend not in mine]:
            changed.removed[frontend] = frozenset(self._program.tables.pop(frontend).slots)
        wanted = self._program.elements()
        count = self._ensure_table().make(wanted, kernel) if wanted or kernel else 0
        self._drain_connections(changed)
        self._enable_hairpin(*self._program.services.values())
        return count

    @staticmethod
    def _record_start_changes(
        changed: ElementChange, held: dict[Frontend, SlotTable], tables: dict[Frontend, SlotTable]
    ) -> None:
        """What the start changes for connections that there are."""
        for frontend, table in tables.items():
            before = held.get(frontend)
            if before is None:
                changed.added.append(frontend)
            elif gone := frozenset(before.slots) - frozenset(table.slots):
                changed.removed[frontend] = gone

    def apply(self, snapshots: Sequence[ServiceSnapshot]) -> Problems:
        """Bring services up to date, one transaction each; what could not be done."""
        problems: Problems = {}
        for name, found, virtuals in snapshots:
            service = desired.virtual_service(name, found, virtuals, self._config)
            if service is None and name not in self._program.services:
                problems[name] = ()
                continue
            try:
                problems[name] = self._sync_service(name, service)
            except WeftError:
                raise
            except Exception as error:  # a bug about one service must not end the others'
                log.exception("service %s cannot be balanced", name)
                problems[name] = (f"cannot be balanced: {error!r}",)
        return problems

    def _sync_service(
        self, name: str, service: VirtualService | None, loads: dict[str, int] | None = None
    ) -> tuple[str, ...]:
        service, busy = self._drop_busy_ports(service) if service else (None, ())
        tables, taken = self._program.tables_for(service, loads) if service else ({}, ())
        change = self._program.change(name, service, tables)
        try:
            self._ensure_table().write(change.delete, change.add)
        except KernelRefused as error:  # not as it was believed to be: compare all
            log.warning("the table %s is not as it had been left: %s", TABLE, error)
            self._program.commit(name, service, tables)
            self.resync()
        else:
            self._program.commit(name, service, tables)
        self._set_blocked(name, (*taken, *busy))
        self._drain_connections(change)
        self._enable_hairpin(*([service] if service else ()))
        return (
            *(service.problems if service else ()),
            *(f"{frontend} is another service's already" for frontend in taken),
        )

    def _drop_busy_ports(self, service: VirtualService) -> tuple[VirtualService, tuple[Frontend, ...]]:
        """The service without the ports of this host at which a process listens, and those; what it has it keeps."""
        busy: dict[Frontend, str] = {}
        for frontend in frontends(service):
            if frontend.address is None and frontend not in self._program.tables and not self._program.owner(frontend):
                for address, who in self._open_table().host.listeners(frontend.protocol, frontend.port):
                    if address.version == frontend.version:
                        busy[frontend] = who
        if not busy:
            return service, ()
        groups = (
            PortGroup(tuple(frontend for frontend in group.frontends if frontend not in busy), group.backends)
            for group in service.groups
        )
        sentences = (f"port {frontend} is not published: {who} listens there" for frontend, who in busy.items())
        kept = tuple(group for group in groups if group.frontends)
        return replace(service, groups=kept, problems=(*service.problems, *sentences)), tuple(busy)

    def _set_blocked(self, name: str, taken: tuple[Frontend, ...]) -> None:
        if taken:
            self._blocked[name] = taken
        else:
            self._blocked.pop(name, None)

    def _drain_connections(self, change: ElementChange) -> None:
        """Look after the connections that a change concerns."""
        deadline = time.monotonic() + self._config.drain
        for frontend, backends in change.removed.items():
            self._drainer.start(frontend, backends, deadline)
        for frontend in {*change.removed, *change.added}:
            if frontend.protocol == "udp":
                with suppress(KernelRefused):
                    self._drainer.flush_stale_udp(frontend, self._serving(frontend))

    def _enable_hairpin(self, *services: VirtualService) -> None:
        """Let the instances of this host reach themselves; the kernel may have to look for them first."""
        groups = (group for service in services for group in service.groups)
        local = {backend.address for group in groups for backend, _ in group.backends if backend.local}
        if new := {
            address
            for address in local
            if address not in self._hairpin_enabled and address not in self._hairpin_retries
        }:
            unknown = self._open_table().enable_hairpin(new)
            self._hairpin_enabled |= new - unknown
            self._hairpin_retries.update(dict.fromkeys(unknown, HAIRPIN_RETRIES))

    def _retry_hairpin(self) -> None:
        present = {backend.address for service in self._program.services.values() for backend in service.registered}
        self._hairpin_enabled &= present
        unknown = self._open_table().enable_hairpin(self._hairpin_retries.keys())
        tries = {
            address: left - 1 for address, left in self._hairpin_retries.items() if address in unknown and left > 1
        }
        self._hairpin_enabled |= self._hairpin_retries.keys() - tries.keys()
        self._hairpin_retries = tries

    def resync(self) -> int:
        """Compare all with what there is, and write the difference."""
        if not self._installed:
            return 0
        table = self._open_table()
        fresh = table.install()
        table.route_virtual_ranges()
        table.links(self._config.outside)
        return table.make(self._program.elements(), table.read()) + fresh

    def periodic(self) -> int:
        """What is done every few seconds."""
        if not self._installed:
            return 0
        table = self._open_table()
        table.route_virtual_ranges()
        table.links(self._config.outside)
        self._retry_hairpin()
        for name, service in list(self._program.services.items()):
            if service.policy.algorithm is Algorithm.LEAST_CONNECTIONS:
                self._sync_service(name, service, self._connection_counts(service))
        return self._drainer.poll(time.monotonic(), self._serving, self._registered)

    def _connection_counts(self, service: VirtualService) -> dict[str, int]:
        """The connections to each instance of a service."""
        found: dict[str, int] = {}
        for frontend in frontends(service):
            for flow in self._flows([frontend])[frontend]:
                name = Backend(flow.reply_source, flow.reply_port).name
                found[name] = found.get(name, 0) + 1
        return found

    def _flows(self, frontend_set: Collection[Frontend]) -> dict[Frontend, list[Flow]]:
        """The connections by each of the frontends that go on; all are asked for where that is less than each's."""
        found: dict[Frontend, list[Flow]] = {frontend: [] for frontend in frontend_set}
        if len(frontend_set) < 2 or len(frontend_set) * _FLOWS_PER_DUMP < self._conntrack.count():
            asked = {
                frontend: self._conntrack.flows(frontend.protocol, frontend.port, frontend.address, live=True)
                for frontend in frontend_set
            }
            for frontend, flows in asked.items():
                found[frontend] = [flow for flow in flows if flow.destination.version == frontend.version]
            return found
        for protocol in {frontend.protocol for frontend in frontend_set}:
            for flow in self._conntrack.flows(protocol, live=True):
                for address in (flow.destination, None):
                    frontend = Frontend(address, flow.destination.version, protocol, flow.port)
                    if frontend in found:
                        found[frontend].append(flow)
        return found

    def _serving(self, frontend: Frontend) -> Collection[Backend]:
        table = self._program.tables.get(frontend)
        return frozenset(table.slots) if table else frozenset()

    def _registered(self, frontend: Frontend) -> Collection[Backend]:
        service = self._program.services.get(self._program.owner(frontend))
        return service.registered if service else frozenset()

    def problems(self) -> Problems:
        """What could not be done."""
        return {name: service.problems for name, service in self._program.services.items()}

    def _open_table(self) -> KernelTable:
        if self._table is None:
            raise KernelRefused("the balancer is not running")
        return self._table

    def close(self) -> None:
        """Close it; the kernel goes on balancing as it was told."""
        self._conntrack.close()
        if self._table is not None:
            self._table.close()
            self._table = None


def _oldest_first(snapshots: Sequence[ServiceSnapshot]) -> list[ServiceSnapshot]:
    """The oldest services first: a port that two want is the older one's."""
    return sorted(snapshots, key=lambda one: min((health.instance.create_index for health in one[1]), default=0))
