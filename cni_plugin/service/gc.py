"""Garbage collection: removes what interrupted calls left behind.

Freeing too much is worse than leaking. So everything is checked again under its lock right before it is
freed, attachments that are locked are skipped, and the kernel is listed before the records, since a
call writes its record before it changes the kernel.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from functools import partial

from cni_plugin.dataplane.tables import in_use
from cni_plugin.ops import ForeignLease, PoolLease
from cni_plugin.ops.firewalls import remove_rules
from cni_plugin.service import assemble
from cni_plugin.service.context import ServiceContext, raise_all
from cni_plugin.service.holders import Holders
from cni_plugin.service.orphans import collections, element_text, orphans, stale_attachments, unused_networks
from cni_plugin.service.records import Record
from cni_plugin.service.removal import remove_network, remove_networks
from cni_plugin.service.shared import end, shared_locked
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from ipam.directory import LeaseFile
from ipam.leases import open_locked
from ipam.ranges import Pool
from weft import events, identity, locks, stderr
from weft.errors import Busy, ConfigProblem, Missing, WeftError
from weft.kernel.values import Element
from weft.types import Attachment


@dataclass(slots=True)
class Swept:
    """What a collection has removed, as text."""

    attachments: list[str]
    leftovers: list[str]
    errors: list[WeftError]

    @staticmethod
    def empty() -> Swept:
        return Swept([], [], [])


def collect(context: ServiceContext, request: Request) -> None:
    """GC: remove every attachment of the network that is not among the valid ones, and every orphan.

    Raises the first error after everything has been tried.
    Source: CNI specification, "GC: Clean up any stale resources".
    """
    if request.config.valid is None:
        raise ConfigProblem(
            "cni.dev/valid-attachments is missing",
            hint="list the attachments to keep; an empty list [] removes all",
        )
    valid = set(request.config.valid)
    swept = Swept.empty()
    started = time.clock_gettime(time.CLOCK_BOOTTIME)
    for record in list(context.records.all()):
        attachment = record.attachment
        if (attachment.network, attachment.plugin) != (request.config.name, request.plugin):
            continue
        if (attachment.container, attachment.interface) not in valid and record.made < started:
            _detach(context, record, swept)
    sweep(context, swept, request.config.name, valid)
    _free_leases(context, request, valid, swept)
    # The record of a valid attachment may be lost.
    if not valid and not any(record.attachment.network == request.config.name for record in context.records.all()):
        with contextlib.suppress(Busy):
            remove_network(context, request.config.name, timeout=1.0)
    raise_all(swept.errors)


def collect_stale(context: ServiceContext) -> Swept:
    """``weft gc``, without a runtime's list of valid attachments: remove attachments whose namespace is
    gone, partial ones, orphans, and networks without attachments.
    """
    swept = Swept.empty()
    for record in stale_attachments(context.reading_once()):
        _detach(context, record, swept)
    sweep(context, swept)
    unused = unused_networks(context.reading_once())
    # A network that is locked is in use. The engine holds what networks share while it compares all of them, as it
    # does after a collection of thousands of attachments.
    errors = remove_networks(context, unused, timeout=1.0, shared_timeout=locks.TIMEOUT)
    swept.leftovers += [f"network {network}" for network in unused if network not in errors]
    swept.errors += dict.fromkeys(errors.values())  # one for all whose shared lock was held
    return swept


def _detach(context: ServiceContext, record: Record, swept: Swept, *, timeout: float = 1.0) -> None:
    """Remove one attachment, unless it is locked or its record has changed since it was listed."""
    attachment = record.attachment
    try:
        with context.locked(attachment, timeout=timeout):
            current = context.records.read(attachment)
            # An ADD whose record was listed while it ran may have finished meanwhile.
            if current is None or (current.made, current.phase) != (record.made, record.phase):
                return
            started = time.monotonic()
            errors = end(context, current)
            swept.errors += errors
            if not errors:
                swept.attachments.append(str(attachment))
            _record(context, attachment, started, errors)
    except Busy:
        return


def _record(context: ServiceContext, attachment: Attachment, started: float, errors: list[WeftError]) -> None:
    fields: dict[str, events.Value] = {
        "network": attachment.network,
        "container": attachment.container,
        "interface": attachment.interface,
        "plugin": "" if attachment.plugin == OWN_NAME else attachment.plugin,
        "source": "gc",
    }
    events.record(context.host.run, "del", fields | events.outcome(started, context.caller, errors))


def sweep(context: ServiceContext, swept: Swept, ended: str = "", valid: Set[tuple[str, str]] = frozenset()) -> None:
    """Remove what has weft's mark and no record: links, elements, stale lock files, unfinished records. ``ended`` and
    ``valid`` as for ``orphans``.
    """
    found = orphans(context.reading_once(), ended, valid)
    _sweep_links(context, found.links, swept)
    if found.links:
        # A bridge is an orphan only once its ports are deleted.
        _sweep_links(context, orphans(context.reading_once(), ended, valid).links, swept)
    for mark in dict.fromkeys(identity.mark_digest(element.mark) for element in found.elements):
        marked = [element for element in found.elements if identity.mark_digest(element.mark) == mark]
        _unless_recorded(context, mark, partial(_delete_elements, context, marked, swept))
    for mark in found.rules:
        _unless_recorded(context, identity.mark_digest(mark), partial(_delete_rules, context, mark, swept))
    for path in found.files:
        _unlink(path, swept)
    _sweep_table(context, swept)


def _sweep_table(context: ServiceContext, swept: Swept) -> None:
    """Delete the table itself where no network is recorded and it has no elements."""
    rules = context.kernel.rules
    with contextlib.suppress(Busy), shared_locked(context, timeout=0):
        if collections(context) and not any(context.records.networks()) and not in_use(rules):
            rules.remove()
            swept.leftovers.append("table inet weft")


def _unlink(path: str, swept: Swept) -> None:
    """Unlink a stray file, unless its lock is held."""
    lock = f"{path.rpartition('.')[0]}.lock"
    try:
        with locks.hold(lock, timeout=0):
            record = f"{path.rpartition('.')[0]}.json"
            with contextlib.suppress(FileNotFoundError):
                if path != lock:
                    if os.path.isdir(path) and not os.path.islink(path):
                        os.rmdir(path)
                    else:
                        os.unlink(path)
                    swept.leftovers.append(path)
            if not os.path.exists(record):
                os.unlink(lock)
    except (Busy, OSError):
        return


def _sweep_links(context: ServiceContext, links: Iterable[str], swept: Swept) -> None:
    for name in links:
        _unless_recorded(context, _mark_of_link(context, name), partial(_delete_link, context, name, swept))


def _mark_of_link(context: ServiceContext, name: str) -> str:
    link = context.kernel.host.link(name)
    return identity.mark_digest(link.alias) if link is not None else ""


def _unless_recorded(context: ServiceContext, mark: str, take: Callable[[], None]) -> None:
    """Call ``take``, unless the marked attachment is locked or has a record. Without a mark (the link is
    gone) there is nothing to take.

    An ADD may have started since the listing.
    """
    if not mark:
        return
    lock = context.records.lock_of(mark)
    with contextlib.suppress(Busy), locks.hold(lock, timeout=0):
        if not context.records.is_recorded(mark):
            take()
            with contextlib.suppress(OSError):
                os.unlink(lock)


def _delete_elements(context: ServiceContext, elements: list[Element], swept: Swept) -> None:
    with contextlib.suppress(WeftError):
        context.kernel.rules.delete(elements)
        swept.leftovers += [element_text(element) for element in elements]


def _delete_link(context: ServiceContext, name: str, swept: Swept) -> None:
    with contextlib.suppress(Missing):
        context.kernel.host.delete_link(name)
        swept.leftovers.append(f"link {name}")


def _delete_rules(context: ServiceContext, mark: str, swept: Swept) -> None:
    """Delete rules from other firewalls' chains, unless a network has got them since the listing."""
    with contextlib.suppress(WeftError), locks.hold(context.records.shared_lock()):
        if mark in orphans(context).rules:
            remove_rules(context.kernel.host, {mark})
            swept.leftovers.append(f"iptables rules with the comment {mark}")


def _free_leases(context: ServiceContext, request: Request, valid: set[tuple[str, str]], swept: Swept) -> None:
    """Free the network's leases that are neither of a valid attachment nor held otherwise: of a killed
    ADD, or of the reference host-local, which keeps no records. Another IPAM plugin does so itself.
    """
    try:
        lease = assemble.read(request).lease
        if isinstance(lease, ForeignLease):
            lease.collect(context.machine(None))
        elif isinstance(lease, PoolLease):
            freed = free_leases(context, lease.pool, valid=frozenset(valid))
            swept.leftovers += [f"lease {one.address} of {one.owner}" for one in freed]
    except WeftError as error:
        swept.errors.append(error)


def unheld_leases(holders: Holders, pool: Pool, leases: Iterable[LeaseFile]) -> list[LeaseFile]:
    """The leases of a pool that nothing holds."""
    return [lease for lease in leases if not holders.holder(pool.network, lease)]


def free_leases(
    context: ServiceContext,
    pool: Pool,
    *,
    valid: frozenset[tuple[str, str]] = frozenset(),
    besides: Attachment | None = None,
) -> list[LeaseFile]:
    """Free the leases of a pool that nothing holds and that are not of a ``valid`` container and
    interface; those that were freed.

    The directory is locked from before they are looked at, so that none changes its owner meanwhile.
    Raises Busy and StateDamaged.
    """
    with contextlib.suppress(FileNotFoundError), open_locked(pool.directory, pool.network, context.leases()) as leases:
        found = [lease for lease in leases.directory.scan() if lease.owner and not _is_valid(lease, valid)]
        unheld = unheld_leases(Holders(context.reading_once(), besides), pool, found)
        return [lease for lease in unheld if lease.owner and leases.free(lease.address, lease.owner)]
    return []


def _is_valid(lease: LeaseFile, valid: frozenset[tuple[str, str]]) -> bool:
    owner = lease.owner
    if owner is None or (owner.container, owner.interface) in valid:
        return True
    return not owner.interface and any(container == owner.container for container, _ in valid)


def make_room(context: ServiceContext, pool: Pool, attachment: Attachment) -> list[str]:
    """For an ADD that got no address: remove the network's attachments whose namespace is gone, and
    free the leases that nothing holds; what that was. Raises StateDamaged.

    ``attachment`` is the one being added. Those that are locked by another call are skipped.
    """
    swept = Swept.empty()
    for record in stale_attachments(context.reading_once()):
        if record.attachment.network == pool.network and record.attachment != attachment:
            _detach(context, record, swept, timeout=0)
    freed = [
        *swept.attachments,
        *(f"{one.address} of {one.owner}" for one in free_leases(context, pool, besides=attachment)),
    ]
    if freed:
        stderr.write(f"weft: freed on {pool.network}, whose containers are gone: {', '.join(freed)}\n")
    return freed
