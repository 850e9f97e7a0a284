"""Network namespaces: told from anything else that a path may lead to, opened, and entered for a moment.

Source: ``namespaces(7)``, ``ioctl_ns(2)``, ``setns(2)``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Iterator

from weft.errors import KernelRefused, NamespaceProblem
from weft.types import NamespaceId

CURRENT = "/proc/thread-self/ns/net"
_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "an ordinary file",
}


def open_namespace(path: str) -> tuple[int, NamespaceId]:
    """The namespace the path leads to, as a descriptor for the caller to close, and its identity.

    Nothing but a namespace is ever opened for reading: a FIFO does not hang, a device does not wake.
    Raises NamespaceProblem naming the path and what is there.
    """
    if not path:
        raise NamespaceProblem("no network namespace is given: its path is empty")
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NamespaceProblem(
            f"{path!r} is no network namespace: {reason}", hint="the container may be gone"
        ) from error
    try:
        found = os.fstat(place)
        if found.st_dev != os.stat("/proc/self/ns/net").st_dev:  # every namespace file is in the kernel's one nsfs
            what = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
            raise NamespaceProblem(f"{path!r} is no network namespace: it is {what}")
        descriptor = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceProblem(f"{path!r} cannot be opened as a network namespace: {error.strerror}") from error
    finally:
        os.close(place)
    try:
        kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        os.close(descriptor)
        raise NamespaceProblem(f"{path!r} is no network namespace: it is a namespace of another kind")
    return descriptor, NamespaceId(path, found.st_dev, found.st_ino)


def identify(path: str) -> NamespaceId:
    """Which namespace the path leads to; with device and inode 0 where it leads to none."""
    try:
        descriptor, identity = open_namespace(path)
    except NamespaceProblem:
        return NamespaceId(path)
    os.close(descriptor)
    return identity


@contextlib.contextmanager
def inside(descriptor: int) -> Iterator[None]:
    """Run the block with the calling thread in the namespace, then go back.

    A thread that cannot go back would configure the wrong namespace from then on, so the process ends at once
    (exit status 70, a line on stderr). Raises KernelRefused when the namespace cannot be entered.
    """
    home = os.open(CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            _enter(descriptor)
        except OSError as error:
            raise KernelRefused(
                f"cannot enter the network namespace: the kernel says {error.strerror}",
                hint="this needs CAP_SYS_ADMIN" if error.errno == errno.EPERM else "",
            ) from error
        try:
            yield
        finally:
            try:
                _enter(home)
            except BaseException as error:
                sentence = f"weft: cannot leave a container's network namespace: {error}; ending"
                print(sentence, file=sys.stderr, flush=True)
                os._exit(70)
    finally:
        os.close(home)


def _setns() -> Callable[[int], None]:
    """``setns(2)``, which Python itself has only from 3.12 on."""
    if sys.version_info >= (3, 12):
        return lambda descriptor: os.setns(descriptor, _CLONE_NEWNET)
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).setns

    def call(descriptor: int) -> None:
        if function(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return call


_call: Callable[[int], None] | None = None


def _enter(descriptor: int) -> None:
    global _call
    if _call is None:
        _call = _setns()
    _call(descriptor)
