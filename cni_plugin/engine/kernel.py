"""The kernel as a worker of the engine sees it: sockets that stay open, and the namespace that came with a request."""

from __future__ import annotations

import contextlib
import fcntl
import os

from weft.kernel.interface import Link, Namespace, Ruleset
from weft.kernel.linux.kernel import LinuxKernel, LinuxNamespace
from weft.kernel.netlink.batch_deletion import BatchDeleter
from weft.types import NamespaceId

_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000


_indexes: dict[str, int] = {}
_seen: dict[str, tuple[float, Link]] = {}
"""What all workers know of the host's links; each verifies it whenever it is used."""


class WorkerKernel(LinuxKernel):
    """One for each thread: its socket to the host's namespace is its own, the rules are everybody's."""

    def __init__(self, rules: Ruleset, link_deleter: BatchDeleter) -> None:
        super().__init__()
        self._rules = rules
        if isinstance(self.host, LinuxNamespace):
            self.host.link_deleter = link_deleter
            self.host.share(_indexes, _seen)
        self._given: tuple[str, int, NamespaceId] | None = None

    def give(self, path: str, descriptor: int) -> None:
        """From now on the path means this open namespace, whatever it leads to; -1: what it leads to."""
        self._given = None
        if descriptor >= 0 and _is_network(descriptor):
            about = os.fstat(descriptor)
            self._given = (path, descriptor, NamespaceId(path, about.st_dev, about.st_ino))

    def identify(self, path: str) -> NamespaceId:
        if self._given is not None and path == self._given[0]:
            return self._given[2]
        return super().identify(path)

    def open(self, path: str) -> Namespace:
        if self._given is not None and path == self._given[0]:
            return LinuxNamespace(os.dup(self._given[1]), self._given[2])
        return super().open(path)


def _is_network(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET
    return False
