"""What all verbs share on one host: its kernel and records, what operations act on, and the locks.

Locks are taken in one order: the network's (shared), the attachment's, then what networks share.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from cni_plugin.ops.operation import Delegate, Machine
from cni_plugin.service import executor
from cni_plugin.service.planner import Drafts
from cni_plugin.service.records import Phase, Record, Records
from ipam.leases import HostState, Owner
from weft import identity, locks
from weft.errors import Busy, StateDamaged, WeftError
from weft.kernel.host import Host
from weft.kernel.interface import Kernel, Namespace, Ruleset
from weft.types import Attachment, NamespaceId


def foreign(name: str, command: str, variables: Mapping[str, str], stdin: bytes) -> bytes:
    """Run a plugin that is not weft's; imported only where a configuration names one."""
    from cni_plugin.service.delegate import call

    return call(name, command, variables, stdin)


class ServiceContext:
    """A kernel and a host, and what weft remembers of it.

    ``watch`` sees every step before it is taken; ``begin`` is called whenever an attachment's lock has been taken, and
    may raise to have nothing done.
    """

    def __init__(
        self,
        kernel: Kernel,
        host: Host,
        *,
        watch: executor.Watch = executor.unwatched,
        begin: Callable[[], None] = lambda: None,
        delegate: Delegate = foreign,
    ) -> None:
        self.kernel = kernel
        self.host = host
        self.records = Records(host.run)
        self.drafts = Drafts(kernel, host)
        self.watch = watch
        self._begin = begin
        self._delegate = delegate

    def machine(self, container: Namespace | None) -> Machine:
        """What operations act on, for one call."""
        return Machine(self.kernel.host, container, self._rules, self.leases(), self._delegate, self._sibling_marks)

    def _sibling_marks(self, mark: str) -> frozenset[str]:
        """The marks of the other attachments that the container of an attachment has."""
        every = {
            identity.attachment_mark(record.attachment): record.attachment.container for record in self.records.all()
        }
        return frozenset(other for other, container in every.items() if container == every.get(mark) and other != mark)

    def _rules(self) -> Ruleset:
        return self.kernel.rules

    def leases(self) -> HostState:
        """What IPAM needs to know of this host."""
        return HostState(os.path.join(self.host.run, "ipam"), self.host.booted, self._alive)

    def _alive(self, network: str, owner: Owner) -> bool:
        """Whether an attachment of this boot holds the lease, and not one that is only about to be made."""
        return any(
            (record.attachment.network, record.attachment.container, record.attachment.interface)
            == (network, owner.container, owner.interface)
            for record in self.records.all()
            if record.boot == self.host.boot and record.result.ips
        )

    @contextlib.contextmanager
    def locked(self, attachment: Attachment, *, timeout: float = locks.TIMEOUT) -> Iterator[None]:
        """Hold the attachment, and keep its network from being removed meanwhile."""
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
            self._drop_lock(attachment.network)

    def _drop_lock(self, network: str) -> None:
        """Remove the lock of a network that has no record: nothing is shared, no ADD has succeeded, or it is gone."""
        path, record = self.records.network_lock(network), self.records.network_path(network)
        if os.path.exists(record):
            return
        with contextlib.suppress(Busy, StateDamaged, OSError), locks.hold(path, timeout=0):
            if not os.path.exists(record):
                self.records.remove_network(network)  # what a writer that was killed left of it
                os.unlink(path)

    def undo(self, record: Record) -> list[WeftError]:
        """Take back everything of a record, its lock held; the errors, [] if nothing is left."""
        # Without room for the tombstone the removal goes on: the record as it is leads there too.
        with contextlib.suppress(StateDamaged):
            self.records.write(replace(record, phase=Phase.REMOVING))
        container = self.open_same(record.namespace)
        try:
            return executor.remove(record.operations, self.machine(container), self.watch)
        finally:
            if container is not None:
                container.close()

    def lives(self, namespace: NamespaceId) -> bool:
        """Whether the path still leads to that very namespace."""
        return self.kernel.identify(namespace.path).same(namespace)

    def open_same(self, namespace: NamespaceId) -> Namespace | None:
        """The record's namespace if it is still there."""
        if not self.lives(namespace):
            return None
        try:
            return self.kernel.open(namespace.path)
        except WeftError:
            return None


def raise_all(errors: Sequence[WeftError]) -> None:
    """Raise the first error, its hint naming the others."""
    if errors:
        first = errors[0]
        others = "; ".join(error.message for error in errors[1:])
        first.hint = "; ".join(filter(None, (first.hint, others)))
        raise first
