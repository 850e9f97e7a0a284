"""The proxier: computes what each service becomes and syncs it to the kernel (cf. kube-proxy).

Everything blocks, and runs in one thread except where noted.
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
from weft.kernel.netlink.conntrack import Conntrack
from weft.kernel.values import Flow
from weft.service_options import Algorithm

log = logging.getLogger(__name__)

ServiceSnapshot = tuple[str, tuple[Health, ...], tuple[str, ...]]
"""A service in the catalog: name, instances, virtual addresses."""
Problems = dict[str, tuple[str, ...]]
"""Problems by service."""

HAIRPIN_RETRIES = 5
"""How often the bridge port of an instance is looked up, which may need neighbor discovery."""

_FLOWS_PER_DUMP = 500
"""Flows that can be queried singly in the time of one conntrack dump."""


class Proxier:
    """The services balanced on this host, and the kernel's table."""

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
        self._written: list[ElementChange] = []
        """Changes whose connections have not been looked for yet."""

    # Called from any thread

    @property
    def port(self) -> int:
        """The netlink port id of the writing socket; 0 if none is open."""
        return self._table.port if self._table is not None else 0

    @property
    def hairpin_pending(self) -> bool:
        """Whether the bridge port of some instance is still unknown."""
        return bool(self._hairpin_retries)

    def services(self) -> tuple[VirtualService, ...]:
        """The balanced services, by name."""
        return tuple(service for _, service in sorted(self._program.services.items()))

    def count(self) -> int:
        """The number of balanced services."""
        return len(self._program.services)

    def slots(self, frontend: Frontend) -> dict[str, int]:
        """Slots per backend of a frontend."""
        found = self._program.tables.get(frontend)
        return dict(Counter(backend.name for backend in found.slots)) if found else {}

    def draining(self) -> tuple[DrainingBackend, ...]:
        """The draining backends."""
        return self._drainer.all()

    def unblocked(self) -> list[str]:
        """Services blocked on a port that has become free."""
        waiting = list(self._blocked.items())
        return [
            name
            for name, frontend_set in waiting
            if any(not self._program.owner(frontend) for frontend in frontend_set)
        ]

    # Called from the proxier's thread

    def open(self) -> None:
        """Open the kernel sockets. Raises KernelLacks."""
        self._table = KernelTable(self._config.ranges)
        self._installed = False
        if self._table.installed:
            self._ensure_table()

    def _ensure_table(self) -> KernelTable:
        """The table, installed on first use: a host without services has no rules."""
        table = self._open_table()
        if not self._installed:
            for sentence in table.overlapping():
                log.warning("%s, which becomes unreachable there", sentence)
            if table.install():
                log.info("installed table %s", TABLE)
            table.route_virtual_ranges()
            table.links(self._config.outside)
            self._installed = True
        return table

    def sync_all(self, snapshots: Sequence[ServiceSnapshot]) -> int:
        """Compute all services and write the difference to the kernel; returns the elements
        changed.
        """
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
        self._written.append(changed)
        self._drain_connections()
        self._enable_hairpin(*self._program.services.values())
        return count

    @staticmethod
    def _record_start_changes(
        changed: ElementChange, held: dict[Frontend, SlotTable], tables: dict[Frontend, SlotTable]
    ) -> None:
        """Record the frontends and backends that the initial sync changes."""
        for frontend, table in tables.items():
            before = held.get(frontend)
            if before is None:
                changed.added.append(frontend)
            elif gone := frozenset(before.slots) - frozenset(table.slots):
                changed.removed[frontend] = gone

    def apply(self, snapshots: Sequence[ServiceSnapshot]) -> Problems:
        """Sync services, one transaction each; returns their problems.

        Connections are looked for once all are written: that takes longer than to write a service.
        """
        problems: Problems = {}
        try:
            for name, found, virtuals in snapshots:
                service = desired.virtual_service(name, found, virtuals, self._config)
                if service is None and name not in self._program.services:
                    problems[name] = ()
                    continue
                try:
                    problems[name] = self._sync_service(name, service)
                except WeftError:
                    raise
                except Exception as error:  # a bug in one service must not stop the others
                    log.exception("syncing service %s failed", name)
                    problems[name] = (f"sync failed: {error!r}",)
        finally:
            self._drain_connections()
        return problems

    def _sync_service(
        self, name: str, service: VirtualService | None, loads: dict[str, int] | None = None
    ) -> tuple[str, ...]:
        service, busy = self._drop_busy_ports(service) if service else (None, ())
        tables, taken = self._program.tables_for(service, loads) if service else ({}, ())
        change = self._program.change(name, service, tables)
        try:
            self._ensure_table().write(change.delete, change.add)
        except KernelRefused as error:  # changed externally: compare everything
            log.warning("table %s was changed externally: %s", TABLE, error)
            self._program.commit(name, service, tables)
            self.resync()
        else:
            self._program.commit(name, service, tables)
        self._written.append(change)
        self._set_blocked(name, (*taken, *busy))
        self._enable_hairpin(*([service] if service else ()))
        return (
            *(service.problems if service else ()),
            *(f"{frontend} is already in use by another service" for frontend in taken),
        )

    def _drop_busy_ports(self, service: VirtualService) -> tuple[VirtualService, tuple[Frontend, ...]]:
        """The service without published ports that a process listens on, and those ports."""
        busy: dict[Frontend, str] = {}
        for frontend in frontends(service):
            if frontend.address is None and frontend not in self._program.tables and not self._program.owner(frontend):
                for listener in self._open_table().host.listeners(frontend.protocol, (frontend.port,)):
                    if listener.address.version == frontend.version:
                        busy[frontend] = listener.process
        if not busy:
            return service, ()
        groups = (
            PortGroup(tuple(frontend for frontend in group.frontends if frontend not in busy), group.backends)
            for group in service.groups
        )
        sentences = (f"port {frontend} is not published: in use by {who}" for frontend, who in busy.items())
        kept = tuple(group for group in groups if group.frontends)
        return replace(service, groups=kept, problems=(*service.problems, *sentences)), tuple(busy)

    def _set_blocked(self, name: str, taken: tuple[Frontend, ...]) -> None:
        if taken:
            self._blocked[name] = taken
        else:
            self._blocked.pop(name, None)

    def _drain_connections(self) -> None:
        """Drain connections after the changes that were written."""
        changes, self._written = self._written, []
        deadline = time.monotonic() + self._config.drain
        for change in changes:
            for frontend, backends in change.removed.items():
                self._drainer.start(frontend, backends, deadline)
        changed = {frontend for change in changes for frontend in (*change.removed, *change.added)}
        with suppress(KernelRefused):
            self._drainer.flush_stale_udp({one for one in changed if one.protocol == "udp"}, self._serving)

    def _enable_hairpin(self, *services: VirtualService) -> None:
        """Enable hairpin NAT for the instances of this host; bridge ports may be unknown yet."""
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
        """Compare the table with the desired state and write the difference."""
        if not self._installed:
            return 0
        table = self._open_table()
        fresh = table.install()
        table.route_virtual_ranges()
        table.links(self._config.outside)
        return table.make(self._program.elements(), table.read()) + fresh

    def periodic(self) -> int:
        """The periodic sync: interfaces, hairpin, least-connections, draining."""
        if not self._installed:
            return 0
        table = self._open_table()
        table.route_virtual_ranges()
        table.links(self._config.outside)
        self._retry_hairpin()
        for name, service in list(self._program.services.items()):
            if service.policy.algorithm is Algorithm.LEAST_CONNECTIONS:
                self._sync_service(name, service, self._connection_counts(service))
        self._drain_connections()
        return self._drainer.poll(time.monotonic(), self._serving, self._registered)

    def _connection_counts(self, service: VirtualService) -> dict[str, int]:
        """Connections per backend of a service."""
        found: dict[str, int] = {}
        for frontend in frontends(service):
            for flow in self._flows([frontend])[frontend]:
                name = Backend(flow.reply_source, flow.reply_port).name
                found[name] = found.get(name, 0) + 1
        return found

    def _flows(self, frontend_set: Collection[Frontend]) -> dict[Frontend, list[Flow]]:
        """Live connections of frontends, queried singly or by one dump, whichever is cheaper."""
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
        """Problems of all services."""
        return {name: service.problems for name, service in self._program.services.items()}

    def _open_table(self) -> KernelTable:
        if self._table is None:
            raise KernelRefused("the balancer is not running")
        return self._table

    def close(self) -> None:
        """Close the sockets; the kernel keeps balancing."""
        self._conntrack.close()
        if self._table is not None:
            self._table.close()
            self._table = None


def _oldest_first(snapshots: Sequence[ServiceSnapshot]) -> list[ServiceSnapshot]:
    """Oldest services first: they win port conflicts."""
    return sorted(snapshots, key=lambda one: min((health.instance.create_index for health in one[1]), default=0))
