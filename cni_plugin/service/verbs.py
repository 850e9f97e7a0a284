"""What weft does when a runtime calls: ADD, DEL, CHECK, GC, STATUS.

``handle`` is the whole of it, and the same function whether a process of its own or a long-lived one runs it.
Locks are taken in one order: the network's (shared), the attachment's, then what networks share.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cni_plugin.ops import BaseRules, Elements
from cni_plugin.ops.operation import Machine, Operation
from cni_plugin.plan import modules
from cni_plugin.plan.facts import seen
from cni_plugin.service import assemble, executor
from cni_plugin.service.context import ServiceContext, raise_all
from cni_plugin.service.planner import NOTHING, attachment_of, own_operations, shared_operations
from cni_plugin.service.records import NetworkRecord, Phase, Record
from cni_plugin.service.shared import hand_over, remove_network, restore_rules
from cni_plugin.wire.request import Command, Request
from weft import locks
from weft.errors import (
    NOT_AVAILABLE,
    ConfigProblem,
    Conflict,
    NamespaceProblem,
    NotAsPlanned,
    UnknownContainer,
    WeftError,
)
from weft.kernel.host import Host
from weft.kernel.interface import Namespace
from weft.types import Attachment, NamespaceId, Result


class Service(ServiceContext):
    """The verbs of CNI: ``handle`` does one request."""

    def handle(self, request: Request) -> Result | None:
        """Do what the request asks; the result of an ADD, None for all else. Raises WeftError."""
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
                raise AssertionError("VERSION is answered before a service is made")
        return None

    # The verbs

    def add(self, request: Request) -> Result:
        """Attach; all of it or nothing."""
        assembly = self._read(request)
        attachment = attachment_of(request)
        first = not os.path.exists(self.records.network_path(attachment.network))
        try:
            return self._attach(request, assembly, attachment)
        except BaseException:
            if first and self.records.read_network(attachment.network) is not None:
                with contextlib.suppress(WeftError):
                    remove_network(self, attachment.network, timeout=0)
            raise

    def _attach(self, request: Request, assembly: assemble.Assembly, attachment: Attachment) -> Result:
        with self._container(request, assembly) as container, self.locked(attachment):
            machine = self.machine(container)
            self._clear_the_way(attachment, container.id)
            record = self.drafts.begun(request, assembly, container)
            attempt = executor.Attempt(machine, self.watch)
            try:
                with attempt:
                    self.records.write(record)
                    host = seen(self.kernel.host)
                    facts, first = self.drafts.look(container, host), NOTHING
                    if assembly.lease and assembly.lease.needs_link:
                        facts, first = self.drafts.foundation(record, request, assembly, container)
                        record = replace(
                            record,
                            operations=(*own_operations(first), assembly.lease),
                            shared=shared_operations(first),
                        )
                        self.records.write(record)
                        self._ensure(attachment, record.shared, machine)
                        attempt.apply(record.operations[:-1])
                    answer = attempt.reserve(assembly.lease) if assembly.lease else assembly.answer
                    done = len(record.operations)
                    record = self.drafts.planned(record, request, assembly, answer, container, facts, first)
                    self.records.write(record)
                    planned_on = replace(machine, host=host) if first is NOTHING else machine
                    self._ensure(attachment, record.shared, machine, planned_on)
                    attempt.apply(record.operations[done:])
                    self.records.write(replace(record, phase=Phase.ATTACHED))
            except BaseException as error:
                if isinstance(error, Conflict):
                    error.message = self.records.named(error.message)
                if not attempt.left:
                    self.records.remove(attachment)
                raise
            return record.result

    def delete(self, request: Request) -> None:
        """Detach. What is gone already is fine; what is another's is left alone; errors stop nothing."""
        attachment = attachment_of(request)
        asked = self.kernel.identify(request.namespace) if request.namespace else NamespaceId("")
        with self.locked(attachment):
            record = self.records.read(attachment)
            if record is None:
                from cni_plugin.service.unrecorded import delete_unrecorded

                errors = delete_unrecorded(self, request, asked)
            elif self._is_anothers(record, asked):
                return
            else:
                errors = self.undo(record)
            raise_all(errors)
            if record is not None and any(isinstance(one, Elements) and one.published for one in record.operations):
                hand_over(self, record)
            self.records.remove(attachment)

    def check(self, request: Request) -> None:
        """Raises NotAsPlanned naming everything that is not as ADD left it, UnknownContainer without an ADD."""
        assembly = self._read(request)
        attachment = attachment_of(request)
        with self._container(request, assembly) as container, self.locked(attachment):
            record = self.records.read(attachment)
            if record is None or record.phase is not Phase.ATTACHED:
                raise UnknownContainer(
                    f"{attachment} is not attached" if record is None else f"{attachment} is only half attached",
                    hint="no ADD has succeeded since this host booted; DEL and ADD it again",
                )
            sentences = []
            if not record.namespace.same(container.id):
                sentences.append(f"{attachment} is attached in {record.namespace.path}, not in {request.namespace}")
            operations = (*record.shared, *record.operations)
            sentences += executor.mismatches(operations, self.machine(container), self._changed_later(attachment))
            sentences += _not_in_previous(record, request)
        if sentences:
            raise NotAsPlanned("; ".join(sentences), hint="DEL and ADD it again, or see weft check")

    def _changed_later(self, attachment: Attachment) -> tuple[Operation, ...]:
        """The operations of those plugins of the chain that change what another one made."""
        chained = (replace(attachment, plugin=name) for name in modules.features() if name != attachment.plugin)
        others = (self.records.read(one) for one in chained)
        return tuple(operation for record in others if record is not None for operation in record.operations)

    def status(self, request: Request) -> None:
        """Raises a WeftError with code 50 when an ADD could not be served now."""
        assembly = self._read(request)
        try:
            rules = self.kernel.rules
            rules.collections()
        except WeftError as error:
            raise WeftError(f"nftables cannot be used: {error.message}", hint=error.hint, code=NOT_AVAILABLE) from error
        if assembly.lease:
            assembly.lease.available(self.machine(None))

    def preview(self, request: Request) -> Record:
        """What an ADD would do now, as the record it would leave; nothing is changed."""
        assembly = self._read(request)
        with self._container(request, assembly) as container:
            answer = assembly.lease.preview(self.machine(container)) if assembly.lease else assembly.answer
            begun, facts = self.drafts.begun(request, assembly, container), self.drafts.look(container)
            return self.drafts.planned(begun, request, assembly, answer, container, facts)

    # What the verbs share

    def _read(self, request: Request) -> assemble.Assembly:
        assembly = assemble.read(request)
        request.config.keys.problems.raise_any()
        chained = not assembly.driver and assembly.parts and request.command in (Command.ADD, Command.CHECK)
        if chained and request.config.previous is None:
            raise ConfigProblem(
                f"prevResult is missing: {request.plugin} without a driver must follow another plugin",
                hint="put it after the plugin that makes the interface",
            )
        return assembly

    @contextlib.contextmanager
    def _container(self, request: Request, assembly: assemble.Assembly) -> Iterator[Namespace]:
        """The container's namespace; raises NamespaceProblem when it is none, or the host's own (or must be it)."""
        container = self.kernel.open(request.namespace)
        try:
            own = container.id.same(self.kernel.host.id)
            if assembly.on_host and not own:
                raise NamespaceProblem(
                    f"CNI_NETNS {request.namespace} is a network namespace of its own",
                    hint=f"driver {assembly.driver} is for containers that share the host's",
                )
            if own and not assembly.on_host and not request.override:
                raise NamespaceProblem(
                    f"CNI_NETNS {request.namespace} is the host's own network namespace",
                    hint="give the container a namespace of its own, or set CNI_NETNS_OVERRIDE=1",
                )
            yield container
        finally:
            container.close()

    def _clear_the_way(self, attachment: Attachment, namespace: NamespaceId) -> None:
        """Finish what a killed call left of the attachment; raises Conflict where it is alive."""
        record = self.records.read(attachment)
        if record is None:
            return
        if record.phase is Phase.ATTACHED and record.boot == self.host.boot:
            here = record.namespace.same(namespace)
            if here and self._stands(record):
                raise Conflict(f"{attachment} is attached already", hint="DEL it first")
            if not here and self.lives(record.namespace):
                raise Conflict(
                    f"{attachment} is attached already, in the network namespace {record.namespace.path}",
                    hint="DEL it there first, or use another container id",
                )
        raise_all(self.undo(record))
        self.records.remove(attachment)

    def _stands(self, record: Record) -> bool:
        """Whether the links that the record made are there."""
        makers = [operation for operation in record.operations if operation.creates]
        container = self.open_same(record.namespace)
        try:
            return bool(makers) and not executor.mismatches(makers, self.machine(container))
        finally:
            if container is not None:
                container.close()

    def _is_anothers(self, record: Record, asked: NamespaceId) -> bool:
        """Whether a DEL that names another namespace must leave this living attachment alone."""
        if not asked.path or asked.path == record.namespace.path or asked.same(record.namespace):
            return False
        return self.lives(record.namespace)

    def _ensure(
        self, attachment: Attachment, shared: Sequence[Operation], machine: Machine, planned_on: Machine | None = None
    ) -> None:
        """Do what is lacking of the shared operations, one caller at a time; the network's record knows first.

        ``planned_on`` is the machine as planning saw it a moment ago, for the first look.
        """
        first = planned_on or machine
        if self._unknown(attachment.network, shared) or any(operation.mismatch(first) for operation in shared):
            with locks.hold(self.records.shared_lock()):
                self._remember(attachment.network, self._unknown(attachment.network, shared))
                for operation in shared:
                    if operation.mismatch(machine) is not None:
                        self._apply_shared(operation, attachment, machine)

    def _apply_shared(self, operation: Operation, attachment: Attachment, machine: Machine) -> None:
        self.watch("apply", operation)
        operation.apply(machine)
        if isinstance(operation, BaseRules):
            restore_rules(self, attachment)

    def _known(self, network: str) -> tuple[Operation, ...]:
        """The shared operations that the network's record holds, of this boot."""
        record = self.records.read_network(network)
        return record.shared if record is not None and record.boot == self.host.boot else ()

    def _unknown(self, network: str, shared: Sequence[Operation]) -> tuple[Operation, ...]:
        known = self._known(network)
        return tuple(operation for operation in shared if operation not in known)

    def _remember(self, network: str, fresh: tuple[Operation, ...]) -> None:
        if fresh:
            self.records.write_network(NetworkRecord(network, self.host.boot, self._known(network) + fresh))


def _not_in_previous(record: Record, request: Request) -> list[str]:
    """The addresses that ADD answered and the caller's prevResult does not have.

    It is the last plugin's, who may not have passed on the interface: in Nomad's list loopback is before bridge.
    """
    if request.config.previous is None:
        return []
    there = {ip.address for ip in request.config.previous.ips}
    told = {one.name for one in request.config.previous.interfaces}
    lacking = [ip for ip in record.result.ips if ip.address not in there]
    if told:
        made = record.result.interfaces
        lacking = [ip for ip in lacking if ip.interface is None or made[ip.interface].name in told]
    return [f"prevResult lacks the address {ip.address}" for ip in lacking]


def handle(request: Request) -> Result | None:
    """One request in a process of its own."""
    from weft.kernel.linux.kernel import LinuxKernel

    kernel = LinuxKernel()
    try:
        return Service(kernel, Host.current(kernel)).handle(request)
    finally:
        kernel.close()
