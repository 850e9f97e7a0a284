"""What all verbs share on one host: its kernel and records, the machine that operations act on, and the
locks.

Locks are taken in one order: the network's (shared), the attachment's, then the one of what networks
share.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cache
from typing import Self, TypeVar

from cni_plugin.ops.operation import Delegate, Machine, Operation
from cni_plugin.service import executor
from cni_plugin.service.planner import Planner
from cni_plugin.service.records import Phase, Record, Records, RecordsOnce
from ipam.leases import HostState, Owner
from weft import identity, locks
from weft.errors import Busy, StateDamaged, WeftError
from weft.kernel.host import Host
from weft.kernel.interface import Kernel, Namespace, Ruleset
from weft.types import Attachment, NamespaceId

_T = TypeVar("_T")


def foreign(name: str, command: str, variables: Mapping[str, str], stdin: bytes) -> bytes:
    """Run another project's plugin; subprocess is imported only where a configuration names one."""
    from cni_plugin.service.delegate import call

    return call(name, command, variables, stdin)


class ServiceContext:
    """A kernel, a host, and the records of what is attached there.

    ``watch`` is called before every step; ``begin`` whenever an attachment's lock has been acquired,
    and may raise to cancel the call; ``log`` gets a line for every step. ``caller`` is the process that
    a runtime has started for the call, 0 if there is none.

    ``current`` is set where the kernel is a list of it (``comparing_all``): the context that asks the
    kernel itself. ``known`` is what was found for shared operations, then.
    """

    def __init__(
        self,
        kernel: Kernel,
        host: Host,
        *,
        watch: executor.Watch = executor.unwatched,
        begin: Callable[[], None] = lambda: None,
        delegate: Delegate = foreign,
        log: executor.Log | None = None,
        caller: int = 0,
    ) -> None:
        self.kernel = kernel
        self.host = host
        self.caller = caller
        self.records: Records = Records(host.run)
        self.planner = Planner(kernel, host)
        self.watch = watch
        self.log = log
        self.current: ServiceContext | None = None
        self.known: executor.Known | None = None
        self._begin = begin
        self._delegate = delegate

    def reading_once(self) -> Self:
        """The same with the records as they are now: for a look at everything that changes nothing."""
        if isinstance(self.records, RecordsOnce):
            return self
        found = copy(self)
        found.records = RecordsOnce(self.host.run, self.records)
        return found

    def comparing_all(self) -> Self:
        """``reading_once`` of the kernel, too: for comparing every attachment with what was set up."""
        if self.current is not None:
            return self
        from weft.kernel.once import once  # for tools only

        found, current = copy(self.reading_once()), copy(self)
        found.kernel, found.current = once(self.kernel), current
        found.known, current.known = executor.Known(), executor.Known()
        return found

    def compared(self, compare: Callable[[ServiceContext], list[_T]]) -> list[_T]:
        """What differs from what was set up; what the lists show is asked of the kernel itself once more,
        since they are some seconds old.
        """
        found = compare(self)
        return compare(self.current) if found and self.current is not None else found

    def machine(self, container: Namespace | None) -> Machine:
        """What the operations of one call act on."""
        host, leases = self.kernel.host, self.leases()
        return Machine(
            host, container, self._rules, leases, self._delegate, self._sibling_marks, self.caller, self._others
        )

    def _others(self) -> Iterator[Namespace]:
        for path in self.kernel.others():
            with contextlib.suppress(WeftError):  # it may end meanwhile
                namespace = self.kernel.open(path)
                try:
                    yield namespace
                finally:
                    namespace.close()

    def _sibling_marks(self, mark: str) -> frozenset[str]:
        """The marks of the other attachments of the same container."""
        record = self.records.read_digest(identity.mark_digest(mark))
        others = self.records.of_container(record.attachment.container) if record is not None else ()
        return frozenset(identity.attachment_mark(other.attachment) for other in others) - {mark}

    def _rules(self) -> Ruleset:
        return self.kernel.rules

    def leases(self) -> HostState:
        """What IPAM has to know about this host: its folder, the time of boot, and which leases are in
        use.
        """
        leased = cache(self._leased)  # read once, and only where a lease is older than the boot
        return HostState(
            os.path.join(self.host.run, "ipam"),
            self.host.booted,
            lambda network, owner: (network, owner) in leased(),
            lambda network: not any(each == network for each, _ in leased()),
        )

    def _leased(self) -> frozenset[tuple[str, Owner]]:
        """The networks and owners of the leases that attachments of this boot have been answered; not of
        one whose ADD has no addresses yet.
        """
        return frozenset(
            (record.attachment.network, Owner(record.attachment.container, record.attachment.interface))
            for record in self.records.all()
            if record.boot == self.host.boot and record.result.ips
        )

    @contextlib.contextmanager
    def locked(self, attachment: Attachment, *, timeout: float = locks.TIMEOUT) -> Iterator[None]:
        """Lock the attachment exclusively, and its network shared, so that it is not removed. Raises
        Busy.
        """
        records = self.records
        try:
            with (
                locks.hold(records.network_lock(attachment.network), shared=True, timeout=timeout),
                locks.hold(records.lock(attachment), timeout=timeout),
            ):
                try:
                    self._begin()
                    yield
                finally:
                    if not os.path.exists(records.path(attachment)):
                        with contextlib.suppress(OSError):
                            os.unlink(records.lock(attachment))
        finally:
            self._unlink_network_lock(attachment.network)

    @contextlib.contextmanager
    def network_locked(self, network: str) -> Iterator[None]:
        """Lock the network shared, so that it is not removed. Raises Busy."""
        try:
            with locks.hold(self.records.network_lock(network), shared=True, timeout=locks.TIMEOUT):
                yield
        finally:
            self._unlink_network_lock(network)

    def _unlink_network_lock(self, network: str) -> None:
        """Unlink the lock file of a network without a record: nothing is shared, or it has been
        removed.
        """
        path, record = self.records.network_lock(network), self.records.network_path(network)
        if os.path.exists(record):
            return
        with contextlib.suppress(Busy, StateDamaged, OSError), locks.hold(path, timeout=0):
            if not os.path.exists(record):
                self.records.remove_network(network)  # an unfinished file of a killed writer
                os.unlink(path)

    def recorded_shared(self, network: str) -> tuple[Operation, ...]:
        """The shared operations in the network's record, if it is of this boot."""
        record = self.records.read_network(network)
        return record.shared if record is not None and record.boot == self.host.boot else ()

    def undo(self, record: Record) -> list[WeftError]:
        """Undo all operations of a record, whose lock is held; the errors, [] when everything is
        undone.
        """
        # On ENOSPC the removal goes on: an interrupted one is finished from the old record as well.
        with contextlib.suppress(StateDamaged):
            self.records.write(replace(record, phase=Phase.REMOVING))
        container = self.open_same(record.namespace)
        try:
            return self.remove(record.operations, self.machine(container))
        finally:
            if container is not None:
                container.close()

    def remove(self, operations: Sequence[Operation], machine: Machine) -> list[WeftError]:
        """Undo operations in reverse, continuing after errors, which are returned."""
        return executor.remove(operations, machine, self.watch, self.log)

    def is_alive(self, namespace: NamespaceId) -> bool:
        """Whether the path still leads to the same namespace (device and inode)."""
        return self.kernel.identify(namespace.path).same(namespace)

    def is_gone(self, namespace: NamespaceId) -> bool:
        """Whether there was such a namespace, and is no longer."""
        return namespace.known and not self.is_alive(namespace)

    def open_same(self, namespace: NamespaceId) -> Namespace | None:
        """The record's namespace, None if it no longer exists."""
        try:
            found = self.kernel.open(namespace.path)
        except WeftError:
            return None
        if found.id.same(namespace):
            return found
        found.close()
        return None


def raise_all(errors: Sequence[WeftError]) -> None:
    """Raise the first error, with the messages of the others in its hint."""
    if errors:
        first = errors[0]
        others = "; ".join(error.message for error in errors[1:])
        first.hint = "; ".join(filter(None, (first.hint, others)))
        raise first
