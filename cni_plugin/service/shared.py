"""What belongs to networks: removed with the network, and restored after the ruleset was flushed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from enum import Flag, auto

from cni_plugin.dataplane.nat import PORTS
from cni_plugin.ops import BaseRules, Elements, Gateways, Port, Veth, groups
from cni_plugin.ops.operation import Machine, Operation
from cni_plugin.service import executor
from cni_plugin.service.context import ServiceContext, raise_all
from cni_plugin.service.holders import lost_attachments
from cni_plugin.service.records import NetworkRecord, Phase, Record
from cni_plugin.service.removal import remove_network, undo_shared
from weft import locks
from weft.errors import Busy, StateDamaged, WeftError
from weft.identity import attachment_digest, mark_digest
from weft.types import Attachment

_TRANSACTION = 8192  # elements, about a MiB
_WITHDRAWAL_TIMEOUT = 5.0
"""Seconds that a failed ADD waits to take back what it added to its network."""


class Where(Flag):
    """What to restore: what is weft's own, and what is in other firewalls' rules."""

    OWN = auto()
    FIREWALLS = auto()

    def of(self, operations: Iterable[Operation]) -> list[Operation]:
        """The operations that have their effect there."""
        return [one for one in operations if (Where.FIREWALLS if one.in_firewalls else Where.OWN) in self]


ANYWHERE = Where.OWN | Where.FIREWALLS


@dataclass(frozen=True, slots=True)
class Restored:
    """How many operations were applied again, and the digests of attachments that calls hold locked."""

    changed: int = 0
    locked: frozenset[str] = frozenset()

    def __add__(self, other: Restored) -> Restored:
        return Restored(self.changed + other.changed, self.locked | other.locked)


def repair(context: ServiceContext, *, attachments: bool = True, where: Where = ANYWHERE) -> Restored:
    """Restore what networks share, and what of all attachments needs no new ADD. Raises the first error.

    Calls wait for what networks share, but not for a look at every attachment.
    """
    machine = context.machine(None)
    errors: list[WeftError] = []
    found = Restored()
    if not any(context.records.networks()):
        return found
    with shared_locked(context):
        shared = dict.fromkeys(one for network in context.records.networks() for one in network.shared)
        tables = [one for one in where.of(shared) if isinstance(one, BaseRules)]
        found += _reapply(context, tables, errors)
        if attachments and tables:
            found += restore_elements(context)
        found += _reapply(context, [one for one in where.of(shared) if one not in tables], errors)
        for network in context.records.networks():
            _set_attributes(network.shared, machine)
            if attachments:
                found += Restored(executor.restore(where.of(network.shared), machine))
    if attachments:
        found += _restore_attachments(context, list(context.records.all()), where)
    raise_all(errors)
    return found


@dataclass(frozen=True, slots=True)
class Concerned:
    """The networks that share an object with one of these digests in its mark, or something on one of these
    links of the host.
    """

    marks: Set[str]
    links: Set[str]

    def __contains__(self, network: NetworkRecord) -> bool:
        return any(
            (one.on_link is not None and one.on_link[1] in self.links)
            or any(mark_digest(mark) in self.marks for mark in one.marks)
            for one in network.shared
        )


def repair_concerned(context: ServiceContext, concerned: Concerned) -> Restored:
    """Restore what these networks share; where something was missing, also what of their attachments needs
    no new ADD. Looks at nothing of other networks, and not in other firewalls' rules. Raises the first error.
    """
    machine, where = context.machine(None), Where.OWN
    errors: list[WeftError] = []
    with shared_locked(context):
        networks = [one for one in context.records.networks() if one in concerned]
        found = _reapply(context, where.of(dict.fromkeys(one for each in networks for one in each.shared)), errors)
        for network in networks:
            _set_attributes(network.shared, machine)
            found += Restored(executor.restore(where.of(network.shared), machine))
    if found.changed:
        names = {network.network for network in networks}
        attached = [one for one in context.records.all() if one.attachment.network in names]
        found += _restore_attachments(context, attached, where)
    raise_all(errors)
    return found


def _reapply(context: ServiceContext, operations: Sequence[Operation], errors: list[WeftError]) -> Restored:
    """Apply the operations that the kernel lacks; errors are added to the list."""
    machine, changed = context.machine(None), 0
    for operation in operations:
        try:
            if operation.mismatch(machine) is not None:
                executor.apply(operation, machine, context.watch, context.log)
                changed += 1
        except WeftError as error:
            errors.append(error)
    return Restored(changed)


@contextlib.contextmanager
def shared_locked(context: ServiceContext, *, timeout: float = locks.TIMEOUT) -> Iterator[None]:
    """Lock what networks share. Without a network the lock file is removed: the last one's has gone, and
    this call has made another.
    """
    with locks.hold(context.records.shared_lock(), timeout=timeout):
        try:
            yield
        finally:
            if not any(context.records.networks()):
                with contextlib.suppress(OSError):
                    os.unlink(context.records.shared_lock())


def withdraw(context: ServiceContext, network: str, before: Sequence[Operation]) -> None:
    """Take back what a failed ADD has added to its network: all but ``before`` and what attachments
    use.

    The network's record is reduced first, then the attachments' records are read. A concurrent ADD does
    the opposite, so that it is either seen here, or finds its operations unrecorded, and waits for the
    lock to apply them.
    """
    records = context.records
    added = context.recorded_shared(network)
    if all(each in before for each in added):
        return
    if any(one.may_need(network, added) for one in lost_attachments(context)):
        return
    with locks.hold(records.shared_lock(), timeout=_WITHDRAWAL_TIMEOUT):
        now = context.recorded_shared(network)
        _write_shared(context, network, tuple(each for each in now if each in before))
        used = {each for one in records.all() if one.attachment.network == network for each in one.shared}
        staying = tuple(each for each in now if each in before or each in used)
        _write_shared(context, network, staying)
        if undo_shared(context, network, [each for each in now if each not in staying], staying):
            _write_shared(context, network, now)
    if not context.recorded_shared(network):
        remove_network(context, network, timeout=0)


def retire(context: ServiceContext, network: str, shared: Sequence[Operation]) -> None:
    """Remove the bridges that have a subnet which ``shared`` gives to another bridge: those of networks
    without attachments, and the network's own of before it was changed, unless an attachment uses it.

    Runtimes call no plugin when a network is removed, or created again with another bridge. Of two
    bridges with one subnet the host uses the older, where nobody is. The caller does not hold the
    shared lock.
    """
    gateways = [each for each in shared if isinstance(each, Gateways)]
    for other in list(context.records.networks()):
        theirs = [each for each in other.shared if isinstance(each, Gateways)]
        if not any(one.excludes(each) for one in gateways for each in theirs):
            continue
        if other.network == network:
            _retire_former(context, network, shared)
        else:
            with contextlib.suppress(WeftError):  # it is in use, or a call is just about to
                remove_network(context, other.network, timeout=0)


def _retire_former(context: ServiceContext, network: str, shared: Sequence[Operation]) -> None:
    """Undo the shared operations of the network that neither ``shared`` nor an attachment has."""
    records = context.records
    with locks.hold(records.shared_lock()):
        now = context.recorded_shared(network)
        used = {each for one in records.all() if one.attachment.network == network for each in one.shared}
        staying = tuple(each for each in now if each in shared or each in used)
        if not undo_shared(context, network, [each for each in now if each not in staying], (*staying, *shared)):
            _write_shared(context, network, staying)


def _write_shared(context: ServiceContext, network: str, shared: tuple[Operation, ...]) -> None:
    context.records.write_network(NetworkRecord(network, context.host.boot, shared))


def undo_replaced(
    context: ServiceContext, attachment: Attachment, shared: Sequence[Operation], machine: Machine
) -> None:
    """Undo what the network's former configuration set up and ``shared`` replaces, such as a bridge's
    gateway before the network got another subnet. What another attachment or network uses stays.

    The caller holds the shared lock.
    """
    recorded = context.recorded_shared(attachment.network)
    replaced = [old for old in recorded if any(new.replaces(old) for new in shared)]
    if not replaced:
        return
    used = {one for record in context.records.all() if record.attachment != attachment for one in record.shared}
    used |= {one for other in context.records.networks() if other.network != attachment.network for one in other.shared}
    ended = [old for old in replaced if old not in used]
    raise_all(context.remove(ended, machine))
    kept = tuple(one for one in recorded if one not in ended)
    context.records.write_network(NetworkRecord(attachment.network, context.host.boot, kept))


def restore_elements(context: ServiceContext) -> Restored:
    """Add the missing elements of all networks and attachments in one transaction, those first that close
    networks: what takes longer comes afterwards. Published ports are left to ``restore_all``, since another
    container may have taken them.

    The caller holds the shared lock, but of no attachment: what a removal has undone meanwhile is deleted
    again. Raises nothing: ``restore_all`` tries each operation by itself.
    """
    rules = context.machine(None).rules()
    attached = [record for record in context.records.all() if record.phase is Phase.ATTACHED]
    every = [one.shared for one in context.records.networks()] + [one.operations for one in attached]
    operations = [one for each in every for one in each if isinstance(one, Elements)]
    elements = dict.fromkeys(one for each in operations for one in each.elements if one.collection not in PORTS)
    closing_first = sorted(elements, key=lambda one: one.collection not in groups.POLICIES)
    try:
        missing = rules.missing(closing_first)
        for start in range(0, len(missing), _TRANSACTION):
            rules.add(missing[start : start + _TRANSACTION])
        if missing:
            gone = [one for one in attached if not _is_attached(context, one.attachment)]
            marks = {mark for record in gone for one in record.operations for mark in one.marks}
            rules.delete(one for one in missing if one.mark in marks)
            missing = tuple(one for one in missing if one.mark not in marks)
    except WeftError:
        return Restored()
    return Restored(sum(not set(missing).isdisjoint(one.elements) for one in operations))


def _is_attached(context: ServiceContext, attachment: Attachment) -> bool:
    current = context.records.read(attachment)
    return current is not None and current.phase is Phase.ATTACHED


def restore_all(context: ServiceContext, current: Attachment, link: str = "") -> None:
    """Restore the elements of all networks, and what of their attachments needs no new ADD.

    The caller holds the shared lock. Skips ``current``, whose ADD applies its own, and attachments that
    are locked. ``link``: only what networks and attachments have on that bridge.
    """
    machine = context.machine(None)
    for network in list(context.records.networks()):
        if not link:
            executor.restore(network.shared, machine)
    others = [one for one in context.records.all() if one.attachment != current and (not link or _is_on(one, link))]
    _restore_attachments(context, others, ANYWHERE)


def _restore_attachments(context: ServiceContext, attached: Iterable[Record], where: Where) -> Restored:
    found = Restored()
    for record in attached:
        found += restore_attachment(context, record, where=where)
    return found


def _is_on(record: Record, bridge: str) -> bool:
    return any(isinstance(one, Veth) and one.bridge == bridge for one in record.operations)


def end(context: ServiceContext, record: Record) -> list[WeftError]:
    """Undo an attachment, whose lock is held, and remove its record; the errors, with which it stays."""
    errors = context.undo(record)
    if not errors:
        pass_on_ports(context, record)
        context.records.remove(record.attachment)
    return errors


def pass_on_ports(context: ServiceContext, ended: Record) -> None:
    """Publish the ports of a removed attachment by the container's other attachments that ask for the
    same ports.

    Called after its elements are deleted and before its record, which says REMOVING: a call that is
    killed here is repeated, and two removals at once do not wait for each other. Locks of the others
    are waited for: an ADD may just have found the ports in use, and CHECK takes the lock as well.
    """
    if not any(isinstance(operation, Elements) and operation.published for operation in ended.operations):
        return
    attachment = ended.attachment
    with contextlib.suppress(StateDamaged):
        for record in list(context.records.of_container(attachment.container)):
            if record.attachment != attachment:
                restore_attachment(context, record, timeout=locks.TIMEOUT)


def restore_attachment(
    context: ServiceContext, record: Record, *, timeout: float = 0, where: Where = ANYWHERE
) -> Restored:
    """Restore what of an attachment needs no new ADD; skip it where its lock is held for longer than
    ``timeout``.
    """
    if record.phase is Phase.REMOVING or not where.of(record.operations):
        return Restored()
    lock = context.records.lock(record.attachment)
    try:
        with locks.hold(lock, timeout=timeout):
            current = context.records.read(record.attachment)
            if current is None:
                with contextlib.suppress(OSError):
                    os.unlink(lock)
            elif current.phase is Phase.ATTACHED:
                machine = context.machine(None)
                restored = Restored(executor.restore(where.of(current.operations), machine))
                _set_attributes(current.operations, machine)
                return restored
    except Busy:
        return Restored(locked=frozenset({attachment_digest(record.attachment)}))
    except WeftError:
        pass
    return Restored()


def _set_attributes(operations: Sequence[Operation], machine: Machine) -> None:
    """Set the flag of ports and the groups of links that an earlier release has created."""
    ports = [Port(one.host, reserved=True) for one in operations if isinstance(one, Veth) and one.bridge]
    executor.restore((*ports, *groups.of_elements(operations)), machine)
