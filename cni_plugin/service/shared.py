"""What belongs to networks: removing it with the network, and putting rules back that somebody flushed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from cni_plugin.ops import Elements
from cni_plugin.ops.operation import Machine, Operation
from cni_plugin.service import executor
from cni_plugin.service.context import ServiceContext, raise_all
from cni_plugin.service.records import Phase, Record
from weft import locks
from weft.errors import Busy, StateDamaged, WeftError
from weft.types import Attachment


def repair(context: ServiceContext) -> None:
    """Put back what networks share and lack, and the rules of all that is attached. Raises the first error."""
    machine = context.machine(None)
    errors: list[WeftError] = []
    with locks.hold(context.records.shared_lock()):
        for operation in dict.fromkeys(one for network in context.records.networks() for one in network.shared):
            try:
                if operation.mismatch(machine) is not None:
                    context.watch("apply", operation)
                    operation.apply(machine)
            except WeftError as error:
                errors.append(error)
        restore_rules(context, None)
    raise_all(errors)


def remove_network(context: ServiceContext, network: str, *, timeout: float = locks.TIMEOUT) -> None:
    """Remove what belongs to the network itself: its bridge if weft made it, its rules, its record.

    What another network shares stays. Raises Busy while anything is attached or under way.
    """
    records = context.records
    with locks.hold(records.network_lock(network), timeout=timeout):
        attached = [str(record.attachment) for record in records.all() if record.attachment.network == network]
        if attached:
            raise Busy(
                f"network {network} has active endpoints: {', '.join(sorted(attached))}", hint="detach them first"
            )
        with locks.hold(records.shared_lock(), timeout=timeout):
            _remove_shared(context, network)
        with contextlib.suppress(OSError):
            os.unlink(records.network_lock(network))


def _remove_shared(context: ServiceContext, network: str) -> None:
    """Undo what the network alone has, and forget it; the shared lock is held, and goes with the last network."""
    records = context.records
    record = records.read_network(network)
    others = [other for other in records.networks() if other.network != network]
    kept = {operation for other in others for operation in other.shared}
    places = {place for operation in kept for place in operation.creates}
    mine = [
        operation
        for operation in (record.shared if record is not None else ())
        if operation not in kept and not places.intersection(operation.creates)
    ]
    raise_all(executor.remove(mine, context.machine(None), context.watch))
    records.remove_network(network)
    if not others:
        with contextlib.suppress(OSError):
            os.unlink(records.shared_lock())


def restore_rules(context: ServiceContext, current: Attachment | None) -> None:
    """Put back the elements of all networks and attachments after somebody flushed the rules.

    Called under the shared lock. ``current`` puts its own back; an attachment that somebody works on is left to him.
    """
    machine = context.machine(None)
    for network in list(context.records.networks()):
        _apply_elements(network.shared, machine)
    for record in list(context.records.all()):
        if record.attachment != current:
            _restore_elements(context, record)


def hand_over(context: ServiceContext, ended: Record) -> None:
    """Give the ports that an attachment had to those of its container that were to have them, too.

    Called when its elements are gone and before its record is, which says REMOVING: so a call that is killed here is
    done again, and of two that end at once neither waits for the other. An ADD may have found the ports taken just
    before, and CHECK holds an attachment as well: they are waited for.
    """
    if not any(isinstance(one, Elements) and one.published for one in ended.operations):
        return
    mine = ended.attachment
    with contextlib.suppress(StateDamaged):
        for record in list(context.records.all()):
            if record.attachment.container == mine.container and record.attachment != mine:
                _restore_elements(context, record, timeout=locks.TIMEOUT)


def _restore_elements(context: ServiceContext, record: Record, *, timeout: float = 0) -> None:
    """Add what is missing of an attachment's elements, unless somebody works on it for longer than the timeout."""
    if record.phase is Phase.REMOVING:
        return
    lock = context.records.lock(record.attachment)
    with contextlib.suppress(WeftError), locks.hold(lock, timeout=timeout):
        now = context.records.read(record.attachment)
        if now is None:
            with contextlib.suppress(OSError):
                os.unlink(lock)
        elif now.phase is Phase.ATTACHED:
            _apply_elements(now.operations, context.machine(None))


def _apply_elements(operations: Iterable[Operation], machine: Machine) -> None:
    for operation in operations:
        if isinstance(operation, Elements):
            with contextlib.suppress(WeftError):
                operation.apply(machine)
