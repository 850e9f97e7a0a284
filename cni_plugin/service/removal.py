"""Removes what belongs to networks: bridges that weft has created, their elements, their records.

Many networks are removed together: records are read once for all of them, and not once for each.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from cni_plugin.ops import OverlayRows
from cni_plugin.ops.operation import LinkRef, Operation
from cni_plugin.service import restorations
from cni_plugin.service.context import ServiceContext, raise_all
from cni_plugin.service.holders import lost_attachments
from weft import locks, overlay
from weft.errors import Busy, StateDamaged, WeftError

_TOGETHER = 32
"""Networks that are removed under one hold of the shared lock: others wait for it meanwhile."""
_HELD_SECONDS = 1.0
"""How long networks stay locked while the shared lock is waited for: an ADD to one of them waits that long."""
_PAUSE_SECONDS = 0.1
"""Between two tries, so that it gets the lock of its network: more than waiters sleep."""


class SharedOperations:
    """The shared operations of networks, counted, so that it costs the same to tell what one of them
    shares with ten others or with thousands.
    """

    def __init__(self, networks: Iterable[Sequence[Operation]]) -> None:
        self._operations: Counter[Operation] = Counter()
        self._links: Counter[LinkRef] = Counter()
        self._alike: dict[object, Counter[Operation]] = {}
        for shared in networks:
            self.add(shared)

    def add(self, shared: Sequence[Operation]) -> None:
        """Count those of one network more."""
        self._count(shared, 1)

    def discard(self, shared: Sequence[Operation]) -> None:
        """Count those of one network less."""
        self._count(shared, -1)

    def _count(self, shared: Sequence[Operation], number: int) -> None:
        for operation in dict.fromkeys(shared):
            for counts in (self._operations, self._alike.setdefault(_kind(operation), Counter())):
                counts[operation] += number
                if not counts[operation]:
                    del counts[operation]
            for link in operation.creates:
                self._links[link] += number

    def without(self, operations: Iterable[Operation]) -> list[Operation]:
        """What may be undone of ``operations``: nothing that these networks have, or have a link for."""
        found = []
        for operation in operations:
            if operation not in self._operations and not any(self._links[link] for link in operation.creates):
                for kept in self._alike.get(_kind(operation), ()):
                    operation = operation.sparing(kept)
                found.append(operation)
        return found


def _kind(operation: Operation) -> object:
    """Operations that have parts in common are of one class, and for one link."""
    return type(operation), getattr(operation, "link", "")


def is_kept(shared: Iterable[Operation]) -> bool:
    """Whether these are the shared operations of a network that this host has also without containers: the
    cluster's agent removes it.
    """
    return any(isinstance(one, OverlayRows) and overlay.is_kept(one.path) for one in shared)


def undo_shared(
    context: ServiceContext, network: str, operations: Sequence[Operation], staying: Sequence[Operation]
) -> list[WeftError]:
    """Undo shared operations of a network, except for what its ``staying`` ones or another network
    share. The caller holds the shared lock.
    """
    others = (other.shared for other in context.records.networks() if other.network != network)
    kept = SharedOperations((staying, *others))
    return context.remove(kept.without(operations), context.machine(None))


def remove_network(context: ServiceContext, network: str, *, timeout: float = locks.TIMEOUT) -> None:
    """Remove what belongs to the network: its bridge if weft has created it, its elements, its record.

    What another network shares stays. Raises Busy while the network has attachments or a call holds its
    lock.
    """
    raise_all([*remove_networks(context, [network], timeout=timeout).values()])


def remove_networks(
    context: ServiceContext,
    networks: Sequence[str],
    *,
    timeout: float = locks.TIMEOUT,
    shared_timeout: float | None = None,
) -> dict[str, WeftError]:
    """Remove what belongs to each of the networks, as ``remove_network`` does; the errors by network.

    ``timeout`` is for the networks' own locks, and for that of what networks share without ``shared_timeout``.
    """
    errors: dict[str, WeftError] = {}
    recorded = {network: shared for network in networks if (shared := context.recorded_shared(network))}
    lost = lost_attachments(context) if recorded else []
    for network, shared in recorded.items() if lost else ():
        if names := ", ".join(sorted(one.name for one in lost if one.may_need(network, shared))):
            errors[network] = Busy(
                f"network {network} is not removed while records of running containers are lost: {names}",
                hint="restart these containers, or weft detach them",
            )
    networks = [network for network in networks if network not in errors]
    seconds = timeout if shared_timeout is None else shared_timeout
    ordered = sorted(networks)  # two that remove many wait for each other's locks in one order
    for first in range(0, len(ordered), _TOGETHER):
        together = ordered[first : first + _TOGETHER]
        end = time.monotonic() + seconds
        while True:
            left = max(end - time.monotonic(), 0.0)
            failed, waiting = _remove_together(context, together, timeout, min(left, _HELD_SECONDS))
            if not waiting or not left:
                break
            errors |= {network: error for network, error in failed.items() if network not in waiting}
            together = waiting
            time.sleep(_PAUSE_SECONDS)
        errors |= failed
    return errors


def _remove_together(
    context: ServiceContext, networks: Sequence[str], timeout: float, shared_timeout: float
) -> tuple[dict[str, WeftError], list[str]]:
    """The errors, and the networks for which only the shared lock was missing."""
    records = context.records
    errors: dict[str, WeftError] = {}
    end = time.monotonic() + timeout  # for all, since those that are locked wait for the others
    with contextlib.ExitStack() as stack:
        for network in networks:
            left = max(end - time.monotonic(), 0.0)
            try:
                stack.enter_context(locks.hold(records.network_lock(network), timeout=left))
            except (Busy, StateDamaged) as error:
                errors[network] = error
        locked = [network for network in networks if network not in errors]
        for network, attached in _attached(context, locked).items():
            names = ", ".join(sorted(attached))
            errors[network] = Busy(f"network {network} has active endpoints: {names}", hint="detach them first")
        for network in locked:
            if network not in errors and is_kept(context.recorded_shared(network)):
                errors[network] = Busy(f"network {network} is one of the cluster's", hint="weft network rm removes it")
        unused = [network for network in locked if network not in errors]
        try:
            with locks.hold(records.shared_lock(), timeout=shared_timeout):
                errors |= _remove_shared(context, unused)
        except StateDamaged as error:
            return errors | dict.fromkeys(unused, error), []
        except Busy as error:
            return errors | dict.fromkeys(unused, error), unused
        for network in unused:
            if network not in errors:
                with contextlib.suppress(OSError):
                    os.unlink(records.network_lock(network))
    return errors, []


def _attached(context: ServiceContext, networks: Sequence[str]) -> dict[str, list[str]]:
    """The attachments of those of the networks that have any."""
    wanted = frozenset(networks)
    found: dict[str, list[str]] = {}
    for record in context.records.all():
        if record.attachment.network in wanted:
            found.setdefault(record.attachment.network, []).append(str(record.attachment))
    return found


def _remove_shared(context: ServiceContext, networks: Sequence[str]) -> dict[str, WeftError]:
    """Undo what no other network shares and delete the records. The caller holds the shared lock, whose
    file goes with the last network.
    """
    records = context.records
    shared = {record.network: record.shared for record in records.networks()}
    kept = SharedOperations(shared.values())
    errors: dict[str, WeftError] = {}
    for network in networks:
        mine = shared.get(network, ())
        kept.discard(mine)
        try:
            raise_all(context.remove(kept.without(mine), context.machine(None)))
            records.remove_network(network)
        except WeftError as error:
            errors[network] = error
            kept.add(mine)
    if not any(records.networks()):
        restorations.forget(context.host.run)
        with contextlib.suppress(OSError):
            os.unlink(records.shared_lock())
    return errors
