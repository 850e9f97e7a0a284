"""Garbage collection: what calls left behind is removed.

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

from cni_plugin.service import assemble
from cni_plugin.service.context import ServiceContext, raise_all
from cni_plugin.service.orphans import dead, element_text, idle, orphans
from cni_plugin.service.records import Record
from cni_plugin.service.shared import hand_over, remove_network
from cni_plugin.wire.request import Request
from ipam import host_local
from weft import identity, locks
from weft.errors import Busy, ConfigProblem, Missing, WeftError
from weft.kernel.interface import Element

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


def collect(context: ServiceContext, request: Request) -> None:
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
    for record in list(context.records.all()):
        attachment = record.attachment
        if (attachment.network, attachment.plugin) != (request.config.name, request.plugin):
            continue
        if (attachment.container, attachment.interface) not in valid and record.made < started:
            _detach(context, record, swept)
    _leases(context, request, valid, swept)
    sweep(context, swept)
    if not any(record.attachment.network == request.config.name for record in context.records.all()):
        with contextlib.suppress(Busy):
            remove_network(context, request.config.name, timeout=1.0)
    raise_all(swept.errors)


def sweep_dead(context: ServiceContext) -> Swept:
    """What ``weft gc`` does where no runtime says what is valid: attachments whose namespace is gone go, half-made
    ones, orphans, and networks that nobody is attached to any more."""
    swept = Swept.nothing()
    for record in dead(context):
        _detach(context, record, swept)
    sweep(context, swept)
    for network in idle(context):
        try:
            remove_network(context, network, timeout=1.0)
            swept.leftovers.append(f"network {network}")
        except WeftError as error:
            swept.errors.append(error)
    return swept


def _detach(context: ServiceContext, record: Record, swept: Swept) -> None:
    """Remove one attachment, unless it has changed since it was looked at or somebody works on it."""
    attachment = record.attachment
    try:
        with context.locked(attachment, timeout=1.0):
            now = context.records.read(attachment)
            # An ADD that was under way when its record was listed, and is done now, is nobody's leftover.
            if now is None or (now.made, now.phase) != (record.made, record.phase):
                return
            errors = context.undo(now)
            swept.errors += errors
            if not errors:
                hand_over(context, now)
                context.records.remove(attachment)
                swept.attachments.append(str(attachment))
    except Busy:
        return


def sweep(context: ServiceContext, swept: Swept) -> None:
    """Take away what bears weft's mark and has no record: links, elements, lock files, half-written records."""
    found = orphans(context)
    _sweep_links(context, found.links, swept)
    if found.links:
        # A bridge is nobody's only once its ports are gone.
        _sweep_links(context, orphans(context).links, swept)
    for mark in dict.fromkeys(identity.mark_digest(element.mark) for element in found.elements):
        mine = [element for element in found.elements if identity.mark_digest(element.mark) == mark]
        _unless_claimed(context, mark, partial(_delete_elements, context, mine, swept))
    for path in found.files:
        _unlink(path, swept)
    _sweep_table(context, swept)


def _sweep_table(context: ServiceContext, swept: Swept) -> None:
    """The table itself goes where no network is recorded and nothing is in it."""
    rules = context.kernel.rules
    with contextlib.suppress(Busy), locks.hold(context.records.shared_lock(), timeout=0):
        collections = rules.collections()
        if collections and not any(context.records.networks()) and not any(map(rules.elements, collections)):
            rules.remove()
            swept.leftovers.append("table inet weft")


def _unlink(path: str, swept: Swept) -> None:
    """Remove a stray file; a lock that is held, and what is written under it, stays."""
    lock = f"{path.rpartition('.')[0]}.lock"
    try:
        with locks.hold(lock, timeout=0):
            record = f"{path.rpartition('.')[0]}.json"
            with contextlib.suppress(FileNotFoundError):
                if path != lock:
                    os.unlink(path)
                    swept.leftovers.append(path)
            if not os.path.exists(record):
                os.unlink(lock)
    except (Busy, OSError):
        return


def _sweep_links(context: ServiceContext, links: Iterable[str], swept: Swept) -> None:
    for name in links:
        _unless_claimed(context, _mark_of_link(context, name), partial(_delete_link, context, name, swept))


def _mark_of_link(context: ServiceContext, name: str) -> str:
    link = context.kernel.host.link(name)
    return identity.mark_digest(link.alias) if link is not None else ""


def _unless_claimed(context: ServiceContext, mark: str, take: Callable[[], None]) -> None:
    """Take something away, unless an ADD of the attachment whose mark it bears has begun since it was found."""
    lock = context.records.lock_of(mark)
    with contextlib.suppress(Busy), locks.hold(lock, timeout=0):
        if mark and mark not in context.records.digests():
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


def _leases(context: ServiceContext, request: Request, valid: set[tuple[str, str]], swept: Swept) -> None:
    """Free the network's leases whose owner is not valid and has no record: an ADD killed before all else, or a
    host-local beside us. Young ones stay, since that host-local keeps no record."""
    assembly = assemble.read(request)
    pool = getattr(assembly.lease, "pool", None)
    if pool is None:
        return
    state = context.leases()
    recorded = {
        (record.attachment.container, record.attachment.interface)
        for record in context.records.all()
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
