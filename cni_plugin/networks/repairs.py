"""``weft doctor --repair`` of attachments: makes again what differs of those whose containers run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from cni_plugin.networks import attachments
from cni_plugin.networks.attachments import Endpoint, State
from cni_plugin.ops.operation import Operation
from cni_plugin.service import executor
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.records import Phase, Record
from weft.errors import WeftError
from weft.identity import attachment_digest
from weft.types import NamespaceId

_LOCK_SECONDS = 2.0
"""How long each lock is waited for: a DEL that has one of them may wait for another one."""


def repair(context: ServiceContext) -> list[WeftError]:
    """Repair all attachments; the errors. What networks share has been repaired before."""
    listed = context.comparing_all()
    attached = [one for one in attachments.endpoints(listed) if one.state is State.ATTACHED]
    found = attachments.of_each(listed, attached, lambda part: [_is_repairable(listed, one) for one in part])
    broken = [one for one, is_repairable in zip(attached, found, strict=True) if is_repairable]
    errors: list[WeftError] = []
    for container in dict.fromkeys(one.container for one in broken):
        try:
            errors += _repair_container(context, container)
        except WeftError as error:
            errors.append(error)
    return errors


def _is_repairable(context: ServiceContext, one: Endpoint) -> bool:
    return any(is_repairable for _, is_repairable in attachments.differences(context, one, shared=False))


def _repair_container(context: ServiceContext, name: str) -> list[WeftError]:
    """All attachments of a container together: what one has made may be on another one's link."""
    recorded = list(context.records.of_container(name))
    with contextlib.ExitStack() as locked:
        for record in sorted(recorded, key=lambda one: attachment_digest(one.attachment)):
            locked.enter_context(context.locked(record.attachment, timeout=_LOCK_SECONDS))
        current = (context.records.read(one.attachment) for one in recorded)
        records = [one for one in current if one is not None and one.phase is Phase.ATTACHED]
        return [error for namespace, those in _by_namespace(records) for error in _repair(context, namespace, those)]


def _by_namespace(records: Sequence[Record]) -> Iterator[tuple[NamespaceId, list[Record]]]:
    """The records in each network namespace, in the order of their ADDs."""
    ordered = sorted(records, key=lambda one: one.made)
    for namespace in dict.fromkeys(one.namespace for one in ordered):
        yield namespace, [one for one in ordered if one.namespace == namespace]


def _repair(context: ServiceContext, namespace: NamespaceId, records: Sequence[Record]) -> list[WeftError]:
    container = context.open_same(namespace)
    if container is None and namespace.known:
        return []
    endpoints: dict[tuple[str, str], list[Operation]] = {}
    for record in records:
        endpoints.setdefault((record.attachment.network, record.attachment.interface), []).extend(record.operations)
    try:
        return executor.repair(list(endpoints.values()), context.machine(container), context.watch, context.log)
    finally:
        if container is not None:
            container.close()
