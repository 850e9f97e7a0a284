"""DEL of an attachment that is on no record: only what proves to be its own is removed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from cni_plugin.ops.devices import leftovers, lent_by_name
from cni_plugin.plan import modules
from cni_plugin.plan.traits import Parent
from cni_plugin.service import assemble, executor
from cni_plugin.service.context import ServiceContext, raise_all
from cni_plugin.service.orphans import marked_elements
from cni_plugin.service.planner import attachment_of
from cni_plugin.wire.request import Request
from weft import identity
from weft.errors import Missing, WeftError
from weft.identity import link_name_problem
from weft.kernel.interface import Link
from weft.types import Attachment, NamespaceId


def delete_unrecorded(context: ServiceContext, request: Request, asked: NamespaceId) -> list[WeftError]:
    """DEL without a record: the ADD failed, the state was wiped, or another plugin made the attachment.

    What bears the attachment's mark goes, and its leases; the container's link only where the caller's
    prevResult shows by its MAC address that it is meant.
    """
    attachment = attachment_of(request)
    machine = context.machine(None)
    errors: list[WeftError] = []

    def attempt(work: Callable[[], None]) -> None:
        try:
            work()
        except WeftError as error:
            errors.append(error)

    attempt(lambda: _delete_marked_elements(context, attachment))
    attempt(lambda: _delete_marked_link(context, attachment))
    assembly = _tolerant(request)
    driver = assembly.driver if assembly is not None else ""
    # A chained plugin made no link: the one in its prevResult is the attachment of a plugin before it.
    if assembly is None or driver:
        attempt(lambda: _undo_marked_links(context, request, asked, driver))
        if asked.known:
            attempt(lambda: _delete_proven_link(context, request, driver))
    if assembly is not None and assembly.lease is not None:
        lease = assembly.lease
        attempt(lambda: lease.undo(machine))
    return errors


def _tolerant(request: Request) -> assemble.Assembly | None:
    """The parts as far as the configuration can be read: a DEL works with what ADD would refuse."""
    try:
        return assemble.read(request)
    except (WeftError, ImportError):
        return None


def _delete_marked_elements(context: ServiceContext, attachment: Attachment) -> None:
    mark = identity.attachment_mark(attachment)
    mine = [element for element in marked_elements(context) if element.mark == mark]
    if mine:
        context.kernel.rules.delete(mine)


def _delete_marked_link(context: ServiceContext, attachment: Attachment) -> None:
    link = context.kernel.host.link(identity.host_link(attachment))
    if link is not None and identity.mark_digest(link.alias) == identity.attachment_digest(attachment):
        with contextlib.suppress(Missing):
            context.kernel.host.delete_link(link.name)


def _undo_marked_links(context: ServiceContext, request: Request, asked: NamespaceId, driver: str) -> None:
    """Links of the container's own that bear the attachment's mark go; one that the host lent it comes back.

    The host's many links are looked through only where one of them may have come back by itself.
    """
    foreign = asked.known and (request.override or not asked.same(context.kernel.host.id))
    container = context.kernel.open(request.namespace) if foreign else None
    try:
        machine = context.machine(container)
        there = tuple(leftovers(machine, attachment_of(request), on_host=_may_be_lent(driver)))
        raise_all(executor.remove(there, machine, context.watch))
    finally:
        if container is not None:
            container.close()


def _delete_proven_link(context: ServiceContext, request: Request, driver: str) -> None:
    previous = request.config.previous
    proofs = (
        {one.mac for one in previous.interfaces if one.name == request.interface and one.sandbox} if previous else set()
    )
    if not proofs or request.interface == "lo":
        return
    container = context.kernel.open(request.namespace)
    try:
        if container.id.same(context.kernel.host.id) and not request.override:
            return
        link: Link | None = container.link(request.interface)
        if link is None or link.mac not in proofs:
            return
        if driver and _may_be_lent(driver):
            if not link_name_problem(link.alias):
                lent_by_name(link, attachment_of(request)).undo(context.machine(container))
        elif link.kind and link.kind in _kinds(driver):
            with contextlib.suppress(Missing):
                container.delete_link(link.name)
    finally:
        container.close()


def _may_be_lent(driver: str) -> bool:
    """Whether the container's link may be one of the host's; so it may where the driver is not known."""
    return not driver or modules.declared(driver).parent is Parent.LENT


def _kinds(driver: str) -> frozenset[str | None]:
    """The kinds of links that the driver makes; those of all drivers where it is not known which it was."""
    return frozenset(modules.declared(name).link_kind for name in ((driver,) if driver else modules.drivers()))
