"""From a request to the record of an ADD: plans it, and changes nothing."""

from __future__ import annotations

import time
from dataclasses import replace

from cni_plugin.ops import BaseRules, Elements, PoolLease
from cni_plugin.ops.operation import Operation
from cni_plugin.plan.cached import snapshot
from cni_plugin.plan.facts import KernelFacts
from cni_plugin.plan.plan import Context, Facts, Plan, compose
from cni_plugin.service import assemble
from cni_plugin.service.records import Phase, Record
from cni_plugin.wire.request import Request
from cni_plugin.wire.result import check
from weft.kernel.host import Host
from weft.kernel.interface import Kernel, Namespace
from weft.types import Attachment, NamespaceId, Result, Side

EMPTY_PLAN = Plan()


class Planner:
    """Makes the records of ADDs on one host, step by step as addresses and facts become known."""

    def __init__(self, kernel: Kernel, host: Host) -> None:
        self._kernel = kernel
        self._host = host

    def new_record(self, request: Request, assembly: assemble.Assembly, namespace: NamespaceId) -> Record:
        """The record of an ADD before it reserves addresses."""
        return Record(
            attachment_of(request),
            namespace,
            Phase.ADDING,
            self._host.boot,
            time.clock_gettime(time.CLOCK_BOOTTIME),
            assembly.driver,
            request.config.version,
            operations=(assembly.lease,) if assembly.lease else (),
        )

    def facts(self, container: Namespace | None, host: Namespace | None = None) -> Facts:
        """What a plan may read of host and container; ``host`` may be a cached one (``plan.cached``)."""
        return KernelFacts(host or self._kernel.host, container, lambda: self._kernel.rules)

    def plan_link(
        self, record: Record, request: Request, assembly: assemble.Assembly, container: Namespace | None
    ) -> tuple[Facts, Plan]:
        """The plan for a lease that needs the link first (DHCP), and the facts that it was planned on."""
        facts = snapshot(self.facts(container))
        facts.link(Side.CONTAINER, request.interface)  # for the full plan, which must not see the link that this makes
        context = self._context(record, request, facts, Result())
        return facts, compose(replace(context, pending=True), assembly.link_parts)

    def plan_shared(self, record: Record, request: Request, assembly: assemble.Assembly) -> Record:
        """The record with what the network shares, for no container and without addresses."""
        context = self._context(record, request, snapshot(self.facts(None)), Result())
        plan = compose(replace(context, pending=True), assembly.link_parts)
        return replace(record, shared=shared_operations(plan))

    def _context(self, record: Record, request: Request, facts: Facts, start: Result) -> Context:
        return Context(
            record.attachment,
            record.namespace,
            f"{self._host.boot}/{self._kernel.host.id.inode}",
            request.config,
            start if request.config.dns is None else replace(start, dns=request.config.dns),
            facts,
            handed_over=request.handed_over,
        )

    def plan_record(
        self,
        record: Record,
        request: Request,
        assembly: assemble.Assembly,
        answer: Result,
        facts: Facts,
        link_plan: Plan = EMPTY_PLAN,
    ) -> Record:
        """The record with its plan; the only impure input are the facts.

        ``link_plan`` is the part that was applied before the lease.
        """
        config = request.config
        start = config.previous or Result() if assembly.follows else answer
        lease = assembly.lease
        gateways = lease.gateways() if isinstance(lease, PoolLease) else ()
        context = self._context(record, request, facts, start)
        plan = compose(replace(context, gateways=gateways), assembly.parts)
        # Not every CNI version can express every result; that must fail before the kernel is changed.
        check(plan.result, config.version)
        return replace(
            record,
            operations=(
                # What comes after a link's other operations comes after the addresses, again.
                *own_operations(replace(link_plan, after=())),
                *((lease.holding(answer),) if lease else ()),
                *own_operations(_without(plan, link_plan)),
            ),
            shared=shared_operations(plan),
            result=plan.result,
        )


def attachment_of(request: Request) -> Attachment:
    return Attachment(request.config.name, request.container, request.interface, request.plugin)


def own_operations(plan: Plan) -> tuple[Operation, ...]:
    """The attachment's own operations in order: elements that restrict a link come before it, the
    others after it.
    """
    guards = (Elements(plan.guards),) if plan.guards else ()
    return (*guards, *plan.operations, *((Elements(plan.elements),) if plan.elements else ()), *plan.after)


def _without(plan: Plan, applied: Plan) -> Plan:
    """The plan without the operations of one that has been applied."""
    return replace(
        plan,
        guards=tuple(element for element in plan.guards if element not in applied.guards),
        operations=tuple(operation for operation in plan.operations if operation not in applied.operations),
    )


def shared_operations(plan: Plan) -> tuple[Operation, ...]:
    """The operations of the network, with the base rules where the plan has any element."""
    uses = (plan.elements or plan.shared_elements or plan.guards) and BaseRules() not in plan.shared
    rules: tuple[Operation, ...] = (BaseRules(),) if uses else ()
    # One operation each: networks share single elements, and one is removed with the last network that has
    # it.
    elements = tuple(Elements((element,)) for element in dict.fromkeys(plan.shared_elements))
    return (*plan.shared, *rules, *elements)
