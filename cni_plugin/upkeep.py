"""Looking after what calls leave: collecting garbage, removing networks, putting rules back.

The rule of all of it: freeing too much is worse than leaking. What is freed is looked at again, under its lock,
right before; what somebody works on is left to him; and the kernel is listed before the records are, since
a call writes its record before it makes anything.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from cni_plugin import executor, locks, names, parts
from cni_plugin.drafts import attachment_of
from cni_plugin.errors import Busy, ConfigProblem, Missing, StateDamaged, WeftError
from cni_plugin.kernel import Element, Link
from cni_plugin.names import link_name_problem
from cni_plugin.ops import Elements
from cni_plugin.ops.devices import lent_by_name, marked
from cni_plugin.orphans import dead, idle, marked_elements, orphans
from cni_plugin.plan import Machine, Operation
from cni_plugin.records import Phase, Record
from cni_plugin.service import Service, raise_all
from cni_plugin.types import Attachment, NamespaceId
from cni_plugin.wire.request import Request
from ipam import host_local

_YOUNG = 60.0
"""Seconds for which a lease without a record is left alone: its owner's ADD may be under way elsewhere."""


@dataclass(slots=True)
class Swept:
    """What a sweep took away, for a person to read."""

    attachments: list[str]
    leftovers: list[str]
    errors: list[WeftError]

    @staticmethod
    def nothing() -> Swept:
        return Swept([], [], [])


def collect(service: Service, request: Request) -> None:
    """GC: everything of the request's network that is not among its valid attachments goes, and every orphan.

    Raises the first error after trying everything. Source: CNI specification, "GC: Clean up any stale resources".
    """
    if request.config.valid is None:
        raise ConfigProblem(
            "cni.dev/valid-attachments is missing, and without it everything would go",
            hint="list the attachments to keep, [] for none",
        )
    valid = set(request.config.valid)
    swept = Swept.nothing()
    started = time.clock_gettime(time.CLOCK_BOOTTIME)
    for record in list(service.records.all()):
        attachment = record.attachment
        if (attachment.network, attachment.plugin) != (request.config.name, request.plugin):
            continue
        if (attachment.container, attachment.interface) not in valid and record.made < started:
            _detach(service, record, swept)
    _leases(service, request, valid, swept)
    sweep(service, swept)
    if not any(record.attachment.network == request.config.name for record in service.records.all()):
        with contextlib.suppress(Busy):
            remove_network(service, request.config.name, patience=1.0)
    raise_all(swept.errors)


def sweep_dead(service: Service) -> Swept:
    """What ``weft gc`` does where no runtime says what is valid: attachments whose namespace is gone go, half-made
    ones, orphans, and networks that nobody is attached to any more."""
    swept = Swept.nothing()
    for record in dead(service):
        _detach(service, record, swept)
    sweep(service, swept)
    for network in idle(service):
        try:
            remove_network(service, network, patience=1.0)
            swept.leftovers.append(f"network {network}")
        except WeftError as error:
            swept.errors.append(error)
    return swept


def repair(service: Service) -> None:
    """Put back what networks share and lack, and the rules of all that is attached. Raises the first error."""
    machine = service.machine(None)
    errors: list[WeftError] = []
    with locks.hold(service.records.shared_lock()):
        for operation in dict.fromkeys(one for network in service.records.networks() for one in network.shared):
            try:
                if operation.lacks(machine) is not None:
                    service.watch("apply", operation)
                    operation.apply(machine)
            except WeftError as error:
                errors.append(error)
        restore_rules(service, None)
    raise_all(errors)


def _detach(service: Service, record: Record, swept: Swept) -> None:
    """Remove one attachment, unless it has changed since it was looked at or somebody works on it."""
    attachment = record.attachment
    try:
        with service.locked(attachment, patience=1.0):
            now = service.records.read(attachment)
            # An ADD that was under way when its record was listed, and is done now, is nobody's leftover.
            if now is None or (now.made, now.phase) != (record.made, record.phase):
                return
            errors = service.undo(now)
            swept.errors += errors
            if not errors:
                hand_over(service, now)
                service.records.remove(attachment)
                swept.attachments.append(str(attachment))
    except Busy:
        return


def sweep(service: Service, swept: Swept) -> None:
    """Take away what bears weft's mark and has no record: links, elements, lock files, half-written records."""
    found = orphans(service)
    _sweep_links(service, found.links, swept)
    if found.links:
        # A bridge is nobody's only once its ports are gone.
        _sweep_links(service, orphans(service).links, swept)
    for mark in dict.fromkeys(names.mark_digest(element.mark) for element in found.elements):
        mine = [element for element in found.elements if names.mark_digest(element.mark) == mark]
        _unless_claimed(service, mark, partial(_delete_elements, service, mine, swept))
    for path in found.files:
        _unlink(path, swept)
    _sweep_table(service, swept)


def _sweep_table(service: Service, swept: Swept) -> None:
    """The table itself goes where no network is recorded and nothing is in it."""
    rules = service.kernel.rules
    with contextlib.suppress(Busy), locks.hold(service.records.shared_lock(), patience=0):
        collections = rules.collections()
        if collections and not any(service.records.networks()) and not any(map(rules.elements, collections)):
            rules.remove()
            swept.leftovers.append("table inet weft")


def _unlink(path: str, swept: Swept) -> None:
    """Remove a stray file; a lock that is held, and what is written under it, stays."""
    lock = f"{path.rpartition('.')[0]}.lock"
    try:
        with locks.hold(lock, patience=0):
            record = f"{path.rpartition('.')[0]}.json"
            with contextlib.suppress(FileNotFoundError):
                if path != lock:
                    os.unlink(path)
                    swept.leftovers.append(path)
            if not os.path.exists(record):
                os.unlink(lock)
    except (Busy, OSError):
        return


def _sweep_links(service: Service, links: Iterable[str], swept: Swept) -> None:
    for name in links:
        _unless_claimed(service, _mark_of_link(service, name), partial(_delete_link, service, name, swept))


def _mark_of_link(service: Service, name: str) -> str:
    link = service.kernel.host.link(name)
    return names.mark_digest(link.alias) if link is not None else ""


def _unless_claimed(service: Service, mark: str, take: Callable[[], None]) -> None:
    """Take something away, unless an ADD of the attachment whose mark it bears has begun since it was found."""
    lock = service.records.lock_of(mark)
    with contextlib.suppress(Busy), locks.hold(lock, patience=0):
        if mark and mark not in service.records.digests():
            take()
            with contextlib.suppress(OSError):
                os.unlink(lock)


def _delete_elements(service: Service, elements: list[Element], swept: Swept) -> None:
    with contextlib.suppress(WeftError):
        service.kernel.rules.delete(elements)
        swept.leftovers += [f"{element.collection} {element.key[0]}" for element in elements]


def _delete_link(service: Service, name: str, swept: Swept) -> None:
    with contextlib.suppress(Missing):
        service.kernel.host.delete_link(name)
        swept.leftovers.append(f"link {name}")


def _leases(service: Service, request: Request, valid: set[tuple[str, str]], swept: Swept) -> None:
    """Free the network's leases whose owner is not valid and has no record: an ADD killed before all else, or a
    host-local beside us. Young ones stay, since that host-local keeps no record."""
    assembly = parts.read(request)
    pool = getattr(assembly.lease, "pool", None)
    if pool is None:
        return
    state = service.leases()
    recorded = {
        (record.attachment.container, record.attachment.interface)
        for record in service.records.all()
        if record.attachment.network == pool.network
    }
    for address, owner, modified in list(host_local.owners(pool.directory)):
        pair = (owner.container, owner.interface)
        if pair in valid or pair in recorded or time.time() - modified < _YOUNG:
            continue
        if not owner.interface and any(container == owner.container for container, _ in valid):
            continue
        try:
            if host_local.release_address(pool.directory, address, owner, state):
                swept.leftovers.append(f"lease {address} of {owner}")
        except WeftError as error:
            swept.errors.append(error)


def delete_unrecorded(service: Service, request: Request, asked: NamespaceId) -> list[WeftError]:
    """DEL without a record: the ADD failed, the state was wiped, or another plugin made the attachment.

    What bears the attachment's mark goes, and its leases; the container's link only where the caller's
    prevResult shows by its MAC address that it is meant.
    """
    attachment = attachment_of(request)
    machine = service.machine(None)
    errors: list[WeftError] = []

    def attempt(work: Callable[[], None]) -> None:
        try:
            work()
        except WeftError as error:
            errors.append(error)

    attempt(lambda: _delete_marked_elements(service, attachment))
    attempt(lambda: _delete_marked_link(service, attachment))
    assembly = _tolerant(request)
    driver = assembly.driver if assembly is not None else ""
    # A chained plugin made no link: the one in its prevResult is the attachment of a plugin before it.
    if assembly is None or driver:
        attempt(lambda: _undo_marked_links(service, request, asked, driver))
        if asked.known:
            attempt(lambda: _delete_proven_link(service, request, driver))
    if assembly is not None and assembly.lease is not None:
        lease = assembly.lease
        attempt(lambda: lease.undo(machine))
    return errors


def _tolerant(request: Request) -> parts.Assembly | None:
    """The parts as far as the configuration can be read: a DEL works with what ADD would refuse."""
    try:
        return parts.read(request)
    except (WeftError, ImportError):
        return None


def _delete_marked_elements(service: Service, attachment: Attachment) -> None:
    mark = names.attachment_mark(attachment)
    mine = [element for element in marked_elements(service) if element.mark == mark]
    if mine:
        service.kernel.rules.delete(mine)


def _delete_marked_link(service: Service, attachment: Attachment) -> None:
    link = service.kernel.host.link(names.host_link(attachment))
    if link is not None and names.mark_digest(link.alias) == names.attachment_digest(attachment):
        with contextlib.suppress(Missing):
            service.kernel.host.delete_link(link.name)


def _undo_marked_links(service: Service, request: Request, asked: NamespaceId, driver: str) -> None:
    """Links of the container's own that bear the attachment's mark go; one that the host lent it comes back.

    The host's many links are looked through only where one of them may have come back by itself.
    """
    foreign = asked.known and (request.override or not asked.same(service.kernel.host.id))
    container = service.kernel.open(request.namespace) if foreign else None
    try:
        machine = service.machine(container)
        there = tuple(marked(machine, attachment_of(request), on_host=driver in ("", "host-device")))
        raise_all(executor.remove(there, machine, service.watch))
    finally:
        if container is not None:
            container.close()


def _delete_proven_link(service: Service, request: Request, driver: str) -> None:
    previous = request.config.previous
    proofs = (
        {one.mac for one in previous.interfaces if one.name == request.interface and one.sandbox} if previous else set()
    )
    if not proofs or request.interface == "lo":
        return
    container = service.kernel.open(request.namespace)
    try:
        if container.id.same(service.kernel.host.id) and not request.override:
            return
        link: Link | None = container.link(request.interface)
        if link is None or link.mac not in proofs:
            return
        if driver == "host-device":
            if not link_name_problem(link.alias):
                lent_by_name(link, attachment_of(request)).undo(service.machine(container))
        elif link.kind in ("veth", "macvlan", "ipvlan", "vlan", "dummy", "tun"):
            with contextlib.suppress(Missing):
                container.delete_link(link.name)
    finally:
        container.close()


def remove_network(service: Service, network: str, *, patience: float = locks.PATIENCE) -> None:
    """Remove what belongs to the network itself: its bridge if weft made it, its rules, its record.

    What another network shares stays. Raises Busy while anything is attached or under way.
    """
    records = service.records
    with locks.hold(records.network_lock(network), patience=patience):
        attached = [str(record.attachment) for record in records.all() if record.attachment.network == network]
        if attached:
            raise Busy(
                f"network {network} has active endpoints: {', '.join(sorted(attached))}", hint="detach them first"
            )
        with locks.hold(records.shared_lock(), patience=patience):
            _remove_shared(service, network)
        with contextlib.suppress(OSError):
            os.unlink(records.network_lock(network))


def _remove_shared(service: Service, network: str) -> None:
    """Undo what the network alone has, and forget it; the shared lock is held, and goes with the last network."""
    records = service.records
    record = records.read_network(network)
    others = [other for other in records.networks() if other.network != network]
    kept = {operation for other in others for operation in other.shared}
    places = {place for operation in kept for place in operation.makes}
    mine = [
        operation
        for operation in (record.shared if record is not None else ())
        if operation not in kept and not places.intersection(operation.makes)
    ]
    raise_all(executor.remove(mine, service.machine(None), service.watch))
    records.remove_network(network)
    if not others:
        with contextlib.suppress(OSError):
            os.unlink(records.shared_lock())


def restore_rules(service: Service, current: Attachment | None) -> None:
    """Put back the elements of all networks and attachments after somebody flushed the rules.

    Called under the shared lock. ``current`` puts its own back; an attachment that somebody works on is left to him.
    """
    machine = service.machine(None)
    for network in list(service.records.networks()):
        _apply_elements(network.shared, machine)
    for record in list(service.records.all()):
        if record.attachment != current:
            _restore_elements(service, record)


def hand_over(service: Service, ended: Record) -> None:
    """Give the ports that an attachment had to those of its container that were to have them, too.

    Called when its elements are gone and before its record is, which says REMOVING: so a call that is killed here is
    done again, and of two that end at once neither waits for the other. An ADD may have found the ports taken just
    before, and CHECK holds an attachment as well: they are waited for.
    """
    if not any(isinstance(one, Elements) and one.published for one in ended.operations):
        return
    mine = ended.attachment
    with contextlib.suppress(StateDamaged):
        for record in list(service.records.all()):
            if record.attachment.container == mine.container and record.attachment != mine:
                _restore_elements(service, record, patience=locks.PATIENCE)


def _restore_elements(service: Service, record: Record, *, patience: float = 0) -> None:
    """Add what is missing of an attachment's elements, unless somebody works on it for longer than the patience."""
    if record.phase is Phase.REMOVING:
        return
    lock = service.records.lock(record.attachment)
    with contextlib.suppress(WeftError), locks.hold(lock, patience=patience):
        now = service.records.read(record.attachment)
        if now is None:
            with contextlib.suppress(OSError):
                os.unlink(lock)
        elif now.phase is Phase.ATTACHED:
            _apply_elements(now.operations, service.machine(None))


def _apply_elements(operations: Iterable[Operation], machine: Machine) -> None:
    for operation in operations:
        if isinstance(operation, Elements):
            with contextlib.suppress(WeftError):
                operation.apply(machine)
