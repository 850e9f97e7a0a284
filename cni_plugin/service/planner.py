"""From a request to the record of what an ADD will do: planning, and nothing that changes anything."""

from __future__ import annotations

import time
from dataclasses import replace

from cni_plugin.ops import BaseRules, Elements, PoolLease
from cni_plugin.ops.operation import Operation
from cni_plugin.plan.facts import Look, remembered
from cni_plugin.plan.plan import Context, Facts, Plan, compose
from cni_plugin.service import assemble
from cni_plugin.service.records import Phase, Record
from cni_plugin.wire.request import Request
from cni_plugin.wire.result import check
from weft.kernel.host import Host
from weft.kernel.interface import Kernel, Namespace
from weft.types import Attachment, Result, Side

NOTHING = Plan()


class Drafts:
    """Makes the records of ADDs on a host, as far as they are known at each moment."""

    def __init__(self, kernel: Kernel, host: Host) -> None:
        self._kernel = kernel
        self._host = host

    def begun(self, request: Request, assembly: assemble.Assembly, container: Namespace) -> Record:
        """The record of an ADD that has reserved no address yet."""
        return Record(
            attachment_of(request),
            container.id,
            Phase.ADDING,
            self._host.boot,
            time.clock_gettime(time.CLOCK_BOOTTIME),
            assembly.driver,
            request.config.version,
            operations=(assembly.lease,) if assembly.lease else (),
        )

    def look(self, container: Namespace, host: Namespace | None = None) -> Facts:
        """The facts that a plan may ask for, from the kernel; ``host`` where it was looked at before."""
        return Look(host or self._kernel.host, container)

    def foundation(
        self, record: Record, request: Request, assembly: assemble.Assembly, container: Namespace
    ) -> tuple[Facts, Plan]:
        """What is done before the addresses are known, where they come over the link itself; and what was seen."""
        facts = remembered(self.look(container))
        facts.link(Side.CONTAINER, request.interface)  # the whole plan is to see that it was not there
        context = self._context(record, request, container, facts, Result())
        return facts, compose(replace(context, pending=True), assembly.foundation)

    def _context(self, record: Record, request: Request, container: Namespace, facts: Facts, start: Result) -> Context:
        return Context(
            record.attachment,
            container.id,
            f"{self._host.boot}/{self._kernel.host.id.inode}",
            request.config,
            replace(start, dns=request.config.dns or start.dns),
            facts,
        )

    def planned(
        self,
        record: Record,
        request: Request,
        assembly: assemble.Assembly,
        answer: Result,
        container: Namespace,
        facts: Facts,
        first: Plan = NOTHING,
    ) -> Record:
        """The record with its plan, which is pure but for the look at the kernel that drivers may take.

        ``first`` is what has been done of it already, before the lease.
        """
        config = request.config
        chained = assembly.parts and not assembly.driver
        start = config.previous or Result() if chained else answer
        lease = assembly.lease
        gateways = lease.gateways() if isinstance(lease, PoolLease) else ()
        context = self._context(record, request, container, facts, start)
        plan = compose(replace(context, gateways=gateways), assembly.parts)
        # Not every version can say every result: that must come out before the kernel is touched.
        check(plan.result, config.version)
        return replace(
            record,
            operations=(
                *own_operations(first),
                *((lease.holding(answer),) if lease else ()),
                *own_operations(_rest(plan, first)),
            ),
            shared=shared_operations(plan),
            result=plan.result,
        )


def attachment_of(request: Request) -> Attachment:
    return Attachment(request.config.name, request.container, request.interface, request.plugin)


def own_operations(plan: Plan) -> tuple[Operation, ...]:
    """The attachment's operations. What forbids is there before what is made, and what leads to it after it."""
    guards = (Elements(plan.guards),) if plan.guards else ()
    return (*guards, *plan.operations, *((Elements(plan.elements),) if plan.elements else ()), *plan.after)


def _rest(plan: Plan, first: Plan) -> Plan:
    """What a plan has beside one that has been carried out."""
    return replace(
        plan,
        guards=tuple(element for element in plan.guards if element not in first.guards),
        operations=tuple(operation for operation in plan.operations if operation not in first.operations),
    )


def shared_operations(plan: Plan) -> tuple[Operation, ...]:
    """The network's operations, with the base rules where the plan has any element."""
    rules: tuple[Operation, ...] = (BaseRules(),) if plan.elements or plan.shared_elements or plan.guards else ()
    # One operation each: networks share single elements, and a shared one is taken back with its last network.
    elements = tuple(Elements((element,)) for element in dict.fromkeys(plan.shared_elements))
    return (*plan.shared, *rules, *elements)
