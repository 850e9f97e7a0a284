"""The kernel of one worker thread: netlink sockets that stay open, and the namespace passed with a
request.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from weft.kernel.interface import Namespace, Ruleset
from weft.kernel.linux.kernel import LinuxKernel, LinuxNamespace
from weft.kernel.netlink.batch_deletion import BatchDeleter
from weft.kernel.values import Link
from weft.types import NamespaceId

_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000


_indexes: dict[str, int] = {}
_links: dict[str, tuple[float, Link]] = {}
"""Caches of the host's links, shared by all workers; every use verifies the entry."""


class WorkerKernel(LinuxKernel):
    """The kernel for one thread: its own netlink socket to the host's namespace, the process's one
    nftables client.
    """

    def __init__(self, rules: Ruleset, link_deleter: BatchDeleter) -> None:
        super().__init__()
        self._rules = rules
        if isinstance(self.host, LinuxNamespace):
            self.host.link_deleter = link_deleter
            self.host.share(_indexes, _links)
        self._passed: tuple[str, int, NamespaceId] | None = None

    def bind_namespace(self, path: str, descriptor: int) -> None:
        """Resolve ``path`` to this open namespace, even if the path changes meanwhile; -1 ends that.

        It is the client's CNI_NETNS, which the client has opened in its own mount namespace.
        """
        self._passed = None
        if descriptor >= 0 and _is_network_namespace(descriptor):
            status = os.fstat(descriptor)
            self._passed = (path, descriptor, NamespaceId(path, status.st_dev, status.st_ino))

    def identify(self, path: str) -> NamespaceId:
        if self._passed is not None and path == self._passed[0]:
            return self._passed[2]
        return super().identify(path)

    def open(self, path: str) -> Namespace:
        if self._passed is not None and path == self._passed[0]:
            return LinuxNamespace(os.dup(self._passed[1]), self._passed[2])
        return super().open(path)


def _is_network_namespace(descriptor: int) -> bool:
    with contextlib.suppress(OSError):
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET
    return False
