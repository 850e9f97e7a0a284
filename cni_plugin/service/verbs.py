"""The verbs that a runtime calls: ADD, DEL, CHECK, GC, STATUS.

``handle`` serves one request, in the engine and in a call's own process alike. Locks are taken in one
order: the network's (shared), the attachment's, then the one of what networks share.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from cni_plugin.dataplane.tables import TABLES
from cni_plugin.ops import BaseRules, Bridge, Elements, Gateways, PoolLease
from cni_plugin.ops.operation import Lease, Machine, Operation
from cni_plugin.plan import modules
from cni_plugin.plan.cached import link_cache
from cni_plugin.service import assemble, executor, overlaps
from cni_plugin.service.context import ServiceContext, raise_all
from cni_plugin.service.planner import EMPTY_PLAN, attachment_of, own_operations, shared_operations
from cni_plugin.service.records import NetworkRecord, Phase, Record, following
from cni_plugin.service.shared import end, restore_all, restore_elements, retire, undo_replaced, withdraw
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Command, Request
from weft import events, locks
from weft.errors import (
    INTERNAL,
    NOT_AVAILABLE,
    ConfigProblem,
    Conflict,
    KernelLacks,
    NamespaceProblem,
    NotAsPlanned,
    PoolExhausted,
    UnknownContainer,
    WeftError,
)
from weft.kernel.host import Host
from weft.kernel.interface import Namespace
from weft.types import Attachment, NamespaceId, Result

_RECORDED = (Command.ADD, Command.DEL, Command.GC)


class Service(ServiceContext):
    """The verbs of CNI: ``handle`` serves one request."""

    def handle(self, request: Request) -> Result | None:
        """Serve the request; the result of an ADD, None for every other command. Raises WeftError.

        Each ADD, DEL and GC is an event, and every other command that fails (``weft.events``).
        """
        started = time.monotonic()
        try:
            result = self._serve(request)
        except BaseException as error:
            self._record(request, started, error=error)
            raise
        if request.command in _RECORDED:
            self._record(request, started, result)
        return result

    def _record(
        self, request: Request, started: float, result: Result | None = None, error: BaseException | None = None
    ) -> None:
        fields: dict[str, events.Value] = {
            "network": request.config.name,
            "container": request.container,
            "interface": request.interface,
            "plugin": "" if request.plugin == OWN_NAME else request.plugin,
            "addresses": ", ".join(str(ip.address) for ip in result.ips) if result is not None else "",
            **events.outcome(started, self.caller),
        }
        if error is not None:
            fields["code"] = error.code if isinstance(error, WeftError) else INTERNAL
            fields["error"] = error.message if isinstance(error, WeftError) else f"{type(error).__name__}: {error}"
        events.record(self.host.run, str(request.command).lower(), fields)

    def _serve(self, request: Request) -> Result | None:
        self.records.prepare()
        match request.command:
            case Command.ADD:
                return self.add(request)
            case Command.DEL:
                self.delete(request)
            case Command.CHECK:
                self.check(request)
            case Command.GC:
                from cni_plugin.service.gc import collect

                collect(self, request)
            case Command.STATUS:
                self.status(request)
            case Command.VERSION:
                raise AssertionError("VERSION is answered without a service")
        return None

    # The verbs

    def add(self, request: Request) -> Result:
        """Attach. On an error everything is undone, also what this call has added to the network."""
        assembly = self._assemble(request)
        try:
            return self._attach_or_withdraw(request, assembly)
        except KernelLacks:
            if not assembly.unasked:
                raise
            return self._attach_or_withdraw(request, assembly.without_unasked())

    def _attach_or_withdraw(self, request: Request, assembly: assemble.Assembly) -> Result:
        attachment = attachment_of(request)
        before = self.recorded_shared(attachment.network)
        try:
            return self._attach(request, assembly, attachment)
        except BaseException:
            with contextlib.suppress(WeftError):
                withdraw(self, attachment.network, before)
            raise

    def _attach(self, request: Request, assembly: assemble.Assembly, attachment: Attachment) -> Result:
        with self._container(request, assembly) as (namespace, container), self.locked(attachment):
            machine = self.machine(container)
            former = self._finish_previous(request, assembly, attachment, namespace, machine)
            record = self.planner.new_record(request, assembly, namespace)
            attempt = executor.Attempt(machine, self.watch, self.log)
            try:
                with attempt:
                    self.records.write(following(former, record))
                    host = link_cache(self.kernel.host)
                    facts, link_plan = self.planner.facts(container, host), EMPTY_PLAN
                    if assembly.lease and assembly.lease.needs_link:
                        facts, link_plan = self.planner.plan_link(record, request, assembly, container)
                        record = replace(
                            record,
                            operations=(*own_operations(link_plan), assembly.lease),
                            shared=shared_operations(link_plan),
                        )
                        self.records.write(record)
                        self.ensure_shared(attachment, record.shared, machine)
                        attempt.apply(record.operations[:-1])
                    answer = self._reserve(attempt, assembly.lease, attachment) if assembly.lease else assembly.answer
                    done = len(record.operations) - len(link_plan.after)
                    record = self.planner.plan_record(record, request, assembly, answer, facts, link_plan)
                    self.records.write(following(former, record))
                    planned_on = replace(machine, host=host) if link_plan is EMPTY_PLAN else machine
                    whole = record
                    self.ensure_shared(
                        attachment, record.shared, machine, planned_on, lambda: overlaps.refuse(self, request, whole)
                    )
                    there = former.operations if former is not None else ()
                    attempt.apply([one for one in record.operations[done:] if one not in there])
                    self.records.write(replace(following(former, record), phase=Phase.ATTACHED))
            except BaseException as error:
                if isinstance(error, Conflict):
                    error.message = self.records.name_marks(error.message)
                if not attempt.not_undone:
                    self.records.remove(attachment) if former is None else self.records.write(former)
                raise
            return record.result

    def _reserve(self, attempt: executor.Attempt, lease: Lease, attachment: Attachment) -> Result:
        """Reserve addresses; where a pool has none, or one is leased to a container that is gone, once
        more after its leases that nothing holds are freed.
        """
        try:
            return attempt.reserve(lease)
        except (Conflict, PoolExhausted):
            if not isinstance(lease, PoolLease):
                raise
            from cni_plugin.service.gc import make_room

            started = time.monotonic()
            if not (freed := make_room(self, lease.pool, attachment)):
                raise
            self._record_takeover(attachment, ", ".join(freed), "their containers are gone", started)
        return attempt.reserve(lease)

    def delete(self, request: Request) -> None:
        """Detach. What is missing already is fine. Errors are raised after everything has been tried.

        Nothing happens where CNI_NETNS names a namespace, and the attachment is in another one that
        exists, too. A CNI_NETNS that names none is no reason: runtimes unmount its path first.
        """
        attachment = attachment_of(request)
        requested = self.kernel.identify(request.namespace) if request.namespace else NamespaceId("")
        with self.locked(attachment):
            record = self.records.read(attachment)
            if record is None:
                from cni_plugin.service.unrecorded import delete_unrecorded

                raise_all(delete_unrecorded(self, request, requested))
                self.records.remove(attachment)  # what a killed writer has left of it
            elif not self._lives_elsewhere(record, requested):
                raise_all(end(self, record))

    def check(self, request: Request) -> None:
        """Raises NotAsPlanned naming every difference from what ADD set up, UnknownContainer without an
        ADD.
        """
        assembly = self._assemble(request)
        attachment = attachment_of(request)
        with self._container(request, assembly) as (namespace, container), self.locked(attachment):
            record = self.records.read(attachment)
            if record is None or record.phase is not Phase.ATTACHED:
                raise UnknownContainer(
                    f"{attachment} is not attached" if record is None else f"{attachment} is only partially attached",
                    hint="no ADD has succeeded since this host booted; DEL and ADD it again",
                )
            sentences = []
            if container is not None and not record.namespace.same(namespace):
                sentences.append(f"{attachment} is attached in {record.namespace.path}, not in {request.namespace}")
            operations = (*record.shared, *record.operations)
            sentences += executor.mismatches(operations, self.machine(container), self._later_operations(attachment))
            sentences += _missing_from_previous(record, request)
        if sentences:
            raise NotAsPlanned("; ".join(sentences), hint="DEL and ADD it again, or run weft check")

    def _later_operations(self, attachment: Attachment) -> tuple[Operation, ...]:
        """The operations of the chain's plugins that may have changed what this attachment's plugin set
        up.
        """
        chained = (replace(attachment, plugin=name) for name in modules.features() if name != attachment.plugin)
        records = (self.records.read(each) for each in chained)
        return tuple(operation for record in records if record is not None for operation in record.operations)

    def status(self, request: Request) -> None:
        """Raises a WeftError with code 50 when an ADD could not be served now."""
        assembly = self._assemble(request)
        try:
            if assembly.uses_rules:
                self.kernel.rules.collections()
        except WeftError as error:
            raise WeftError(f"nftables cannot be used: {error.message}", hint=error.hint, code=NOT_AVAILABLE) from error
        if assembly.lease:
            self._available(assembly.lease, attachment_of(request))

    def _available(self, lease: Lease, attachment: Attachment) -> None:
        machine = self.machine(None)
        try:
            lease.available(machine)
        except PoolExhausted:
            if not isinstance(lease, PoolLease):
                raise
            from cni_plugin.service.gc import make_room

            if not make_room(self, lease.pool, attachment):
                raise
            lease.available(machine)

    def preview(self, request: Request) -> Record:
        """A dry run of ADD: the record that it would write."""
        assembly = self._assemble(request)
        with self._container(request, assembly) as (namespace, container):
            answer = assembly.lease.preview(self.machine(container)) if assembly.lease else assembly.answer
            record, facts = self.planner.new_record(request, assembly, namespace), self.planner.facts(container)
            return self.planner.plan_record(record, request, assembly, answer, facts)

    # Helpers of the verbs

    def _assemble(self, request: Request) -> assemble.Assembly:
        assembly = assemble.read(request)
        request.config.keys.problems.raise_any()
        chained = assembly.follows and request.command in (Command.ADD, Command.CHECK)
        if chained and request.config.previous is None:
            raise ConfigProblem(
                f"prevResult is missing: {request.plugin} without a driver must follow another plugin",
                hint="put it after the plugin that makes the interface, or set its driver",
            )
        return assembly

    @contextlib.contextmanager
    def _container(
        self, request: Request, assembly: assemble.Assembly
    ) -> Iterator[tuple[NamespaceId, Namespace | None]]:
        """Open the container's network namespace; None for an IPAM plugin called alone, which needs
        none.

        Raises NamespaceProblem where CNI_NETNS is no network namespace, or is the host's and must not
        be (or must be).
        """
        if assembly.addresses_only:
            yield self.kernel.identify(request.namespace), None
            return
        container = self.kernel.open(request.namespace)
        try:
            own = container.id.same(self.kernel.host.id)
            if assembly.on_host and not own:
                raise NamespaceProblem(
                    f"CNI_NETNS {request.namespace} is not the host's network namespace",
                    hint=f"driver {assembly.driver} is for containers that share the host's network namespace",
                )
            if own and not assembly.on_host and not request.override:
                raise NamespaceProblem(
                    f"CNI_NETNS {request.namespace} is the host's own network namespace",
                    hint="create a network namespace for the container, or set CNI_NETNS_OVERRIDE=1",
                )
            yield container.id, container
        finally:
            container.close()

    def _finish_previous(
        self,
        request: Request,
        assembly: assemble.Assembly,
        attachment: Attachment,
        namespace: NamespaceId,
        machine: Machine,
    ) -> Record | None:
        """Undo what an interrupted call has left of the attachment; raises Conflict where it is
        attached. What an earlier entry of the same plugin in the list has set up stays: its record.
        """
        record = self.records.read(attachment)
        if record is None:
            return None
        if record.phase is Phase.ATTACHED and record.boot == self.host.boot:
            same_namespace = record.namespace.same(namespace) or not record.namespace.known
            addresses = ", ".join(str(ip.address.ip) for ip in record.result.ips)
            attached = f"{attachment} is already attached" + (f" with {addresses}" if addresses else "")
            if same_namespace and assembly.follows and self._is_earlier(record, request, machine):
                return record
            if same_namespace and self._is_in_effect(record):
                raise Conflict(attached, hint="DEL it first")
            if not same_namespace and self.is_alive(record.namespace):
                raise Conflict(
                    f"{attached} in network namespace {record.namespace.path}",
                    hint="DEL it there first, or use another container id",
                )
        started = time.monotonic()
        raise_all(self.undo(record))
        self.records.remove(attachment)
        what = ", ".join(str(ip.address.ip) for ip in record.result.ips) or record.phase.value
        why = "its namespace is gone" if record.phase is Phase.ATTACHED else "an earlier call did not end"
        self._record_takeover(attachment, f"{what} of {record.namespace.path or 'no namespace'}", why, started)
        return None

    def _record_takeover(self, attachment: Attachment, before: str, why: str, started: float) -> None:
        """An ADD has taken what another attachment, or an earlier call, had."""
        fields: dict[str, events.Value] = {
            "network": attachment.network,
            "container": attachment.container,
            "interface": attachment.interface,
            "from": before,
            "why": why,
            **events.outcome(started, self.caller),
        }
        events.record(self.host.run, "takeover", {"what": "addresses", **fields})

    def _is_earlier(self, record: Record, request: Request, machine: Machine) -> bool:
        """Whether the record is of an earlier entry of the same plugin in the list: its addresses are in
        prevResult, and what was set up is there.
        """
        before = request.config.previous.ips if request.config.previous is not None else ()
        if not {ip.address for ip in record.result.ips} <= {ip.address for ip in before}:
            return False
        return not executor.mismatches(record.operations, machine, self._later_operations(record.attachment))

    def _is_in_effect(self, record: Record) -> bool:
        """Whether the links that the record's operations create exist, or its lease where it creates
        none.

        Of a chained plugin, which has neither, an ADD may be repeated.
        """
        signs = [operation for operation in record.operations if operation.creates]
        signs = signs or [operation for operation in record.operations if isinstance(operation, Lease)]
        container = self.open_same(record.namespace)
        try:
            return bool(signs) and not executor.mismatches(signs, self.machine(container))
        finally:
            if container is not None:
                container.close()

    def _lives_elsewhere(self, record: Record, requested: NamespaceId) -> bool:
        """Whether the attachment's namespace exists and is not the one that DEL names: then DEL must
        not touch it.
        """
        if not requested.known or requested.same(record.namespace):
            return False
        return self.is_alive(record.namespace)

    def ensure_shared(
        self,
        attachment: Attachment,
        shared: Sequence[Operation],
        machine: Machine,
        planned_on: Machine | None = None,
        refuse: Callable[[], None] = lambda: None,
    ) -> None:
        """Apply the shared operations that are lacking, under the shared lock; they are recorded first.

        ``planned_on`` is the machine with the links as the planner saw them, for the check without the
        lock. ``refuse`` is called where there are new ones, before they are recorded; it may raise.
        """
        seen = planned_on or machine
        new = self._unrecorded(attachment.network, shared)
        if any(isinstance(each, Gateways) for each in new):
            retire(self, attachment.network, shared)
        if new or _any_is_missing(shared, seen):
            with locks.hold(self.records.shared_lock()):
                if new:
                    refuse()
                undo_replaced(self, attachment, shared, machine)
                new = self._unrecorded(attachment.network, shared)
                remade: list[str] = []
                self._record_shared(attachment.network, new)
                for operation in shared:
                    if (operation.hidden and operation in new) or operation.mismatch(machine) is not None:
                        self._apply_shared(operation, attachment, machine)
                        if isinstance(operation, Bridge) and operation not in new:  # somebody has deleted it
                            remade.append(operation.name)
                for bridge in remade:
                    restore_all(self, attachment, bridge)

    def _apply_shared(self, operation: Operation, attachment: Attachment, machine: Machine) -> None:
        executor.apply(operation, machine, self.watch, self.log)
        if isinstance(operation, BaseRules):
            restore_elements(self)
            restore_all(self, attachment)

    def _unrecorded(self, network: str, shared: Sequence[Operation]) -> tuple[Operation, ...]:
        recorded = self.recorded_shared(network)
        if recorded == tuple(shared):  # nearly always, and much less to compare
            return ()
        return tuple(operation for operation in shared if operation not in recorded)

    def _record_shared(self, network: str, new: tuple[Operation, ...]) -> None:
        if new:
            self.records.write_network(NetworkRecord(network, self.host.boot, self.recorded_shared(network) + new))


def _missing_from_previous(record: Record, request: Request) -> list[str]:
    """The addresses in ADD's result that are missing from the caller's prevResult.

    For CHECK that is the result of the last plugin, which may not have passed on every interface: in
    Nomad's list loopback comes before bridge. Addresses of interfaces that it does not have are not
    compared.
    """
    if request.config.previous is None:
        return []
    addresses = {ip.address for ip in request.config.previous.ips}
    names = {interface.name for interface in request.config.previous.interfaces}
    lacking = [ip for ip in record.result.ips if ip.address not in addresses]
    if names:
        interfaces = record.result.interfaces
        lacking = [ip for ip in lacking if ip.interface is None or interfaces[ip.interface].name in names]
    return [f"prevResult lacks the address {ip.address}" for ip in lacking]


def handle(request: Request) -> Result | None:
    """Serve one request in the call's own process."""
    from weft.kernel.linux.kernel import LinuxKernel

    log = None
    if request.environment.get("WEFT_LOG"):
        from cni_plugin.service.log import Level, level, operation_log, write

        log = operation_log(request, write) if level(request.environment) is Level.DEBUG else None
    kernel = LinuxKernel(TABLES)
    try:
        return Service(kernel, Host.current(kernel), log=log, caller=os.getpid()).handle(request)
    finally:
        kernel.close()


def _any_is_missing(shared: Sequence[Operation], machine: Machine) -> bool:
    """Whether one of a network's operations has to be applied; all its elements are looked up at once."""
    elements = [each for operation in shared if isinstance(operation, Elements) for each in operation.elements]
    rest = (operation for operation in shared if not isinstance(operation, Elements))
    return any(operation.is_missing(machine) for operation in rest) or bool(
        elements and machine.rules().missing(elements)
    )
