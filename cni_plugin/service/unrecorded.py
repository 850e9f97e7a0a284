"""DEL without a record: removes only what is provably the attachment's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from cni_plugin.ops.devices import leftovers, lent_by_name
from cni_plugin.plan import modules
from cni_plugin.plan.traits import Parent
from cni_plugin.service import assemble
from cni_plugin.service.context import ServiceContext, raise_all
from cni_plugin.service.orphans import marked_elements
from cni_plugin.service.planner import attachment_of
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from weft import identity
from weft.errors import Missing, WeftError
from weft.identity import link_name_problem
from weft.kernel.values import Link
from weft.types import Attachment, NamespaceId


def delete_unrecorded(context: ServiceContext, request: Request, asked: NamespaceId) -> list[WeftError]:
    """DEL without a record: the ADD failed, the state was wiped, or another plugin made the attachment.

    Removes what has the attachment's mark, and its leases; the container's link without a mark only if
    its MAC address is the one in the caller's prevResult.
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
    assembly = _lenient_assembly(request)
    driver = assembly.driver if assembly is not None else ""
    # A chained plugin creates no link: the one in prevResult belongs to an earlier plugin.
    if driver or (assembly is None and request.plugin in (OWN_NAME, *modules.drivers())):
        attempt(lambda: _undo_marked_links(context, request, asked, driver))
        if asked.known:
            attempt(lambda: _delete_link_of_previous(context, request, driver))
    if assembly is not None and assembly.lease is not None:
        lease = assembly.lease
        attempt(lambda: lease.undo(machine))
    return errors


def _lenient_assembly(request: Request) -> assemble.Assembly | None:
    """The parts, as far as the configuration is valid: DEL must work with a configuration that ADD
    refuses.
    """
    try:
        return assemble.read(request)
    except (WeftError, ImportError):
        return None


def _delete_marked_elements(context: ServiceContext, attachment: Attachment) -> None:
    mark = identity.attachment_mark(attachment)
    marked_with_it = [element for element in marked_elements(context) if element.mark == mark]
    if marked_with_it:
        context.kernel.rules.delete(marked_with_it)


def _delete_marked_link(context: ServiceContext, attachment: Attachment) -> None:
    link = context.kernel.host.link(identity.host_link(attachment))
    if link is not None and identity.mark_digest(link.alias) == identity.attachment_digest(attachment):
        with contextlib.suppress(Missing):
            context.kernel.host.delete_link(link.name)


def _undo_marked_links(context: ServiceContext, request: Request, asked: NamespaceId, driver: str) -> None:
    """Undo links with the attachment's mark: delete the container's own, return one of the host.

    The links of the host are only listed for drivers that move one of them into the container.
    """
    foreign = asked.known and (request.override or not asked.same(context.kernel.host.id))
    container = context.kernel.open(request.namespace) if foreign else None
    try:
        machine = context.machine(container)
        there = tuple(leftovers(machine, attachment_of(request), on_host=_may_be_lent(driver)))
        raise_all(context.remove(there, machine))
    finally:
        if container is not None:
            container.close()


def _delete_link_of_previous(context: ServiceContext, request: Request, driver: str) -> None:
    previous = request.config.previous
    macs = (
        {one.mac for one in previous.interfaces if one.name == request.interface and one.sandbox} if previous else set()
    )
    if not macs or request.interface == "lo":
        return
    container = context.kernel.open(request.namespace)
    try:
        if container.id.same(context.kernel.host.id) and not request.override:
            return
        link: Link | None = container.link(request.interface)
        if link is None or link.mac not in macs:
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
    """The kinds of links that the driver makes; those of all drivers where it is not known which it
    was.
    """
    return frozenset(modules.declared(name).link_kind for name in ((driver,) if driver else modules.drivers()))
