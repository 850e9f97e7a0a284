"""Opening a network namespace by path, and entering it temporarily.

Source: ``namespaces(7)``, ``ioctl_ns(2)``, ``setns(2)``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from weft.errors import Exists, KernelRefused, Missing, NamespaceProblem
from weft.types import NamespaceId

if TYPE_CHECKING:
    from ctypes import CDLL

CURRENT = "/proc/thread-self/ns/net"
_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SHARED = 0x100000
_MNT_DETACH = 2

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "an ordinary file",
}


def open_namespace(path: str) -> tuple[int, NamespaceId]:
    """Open the namespace at a path: a descriptor for the caller to close, and its identity.

    The path is opened with O_PATH and checked first, since opening a FIFO could block and opening a
    device have side effects. Raises NamespaceProblem, naming the path and the type of its file.
    """
    if not path:
        raise NamespaceProblem("the path of the network namespace is empty")
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise NamespaceProblem(
            f"{path!r} is not a network namespace: {reason}", hint="the container may have exited"
        ) from error
    try:
        found = os.fstat(handle)
        if found.st_dev != os.stat("/proc/self/ns/net").st_dev:  # namespace files are all in nsfs
            what = _KINDS.get(stat.S_IFMT(found.st_mode), "a file of another type")
            raise NamespaceProblem(f"{path!r} is not a network namespace: it is {what}")
        descriptor = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceProblem(f"{path!r} cannot be opened as a network namespace: {error.strerror}") from error
    finally:
        os.close(handle)
    try:
        kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != _CLONE_NEWNET:
        os.close(descriptor)
        raise NamespaceProblem(f"{path!r} is not a network namespace: it is a namespace of another type")
    return descriptor, NamespaceId(path, found.st_dev, found.st_ino)


def identify(path: str) -> NamespaceId:
    """The identity of the namespace at a path; device and inode are 0 if it is not one."""
    try:
        descriptor, identity = open_namespace(path)
    except NamespaceProblem:
        return NamespaceId(path)
    os.close(descriptor)
    return identity


def others(own: NamespaceId) -> tuple[str, ...]:
    """A path of every network namespace but ``own`` that a process is in or a mount keeps.

    Processes and mounts that this process cannot see (of another PID or mount namespace) are missing.
    Source: ``proc(5)``, ``lsns(8)``.
    """
    found = {(own.device, own.inode): ""}
    for path in (*_of_processes(), *_mounted()):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found.setdefault((status.st_dev, status.st_ino), path)
    return tuple(filter(None, found.values()))


def _of_processes() -> Iterator[str]:
    return (f"/proc/{name}/ns/net" for name in os.listdir("/proc") if name.isdigit())


def _mounted() -> Iterator[str]:
    """The mount points of network namespaces, as ``ip netns`` and container runtimes make them."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            if fields[3].startswith("net:["):
                yield re.sub(r"\\([0-7]{3})", lambda escaped: chr(int(escaped[1], 8)), fields[4])


@contextlib.contextmanager
def entered(namespace: NamespaceId) -> Iterator[None]:
    """``inside`` a namespace by its path. Raises NamespaceProblem if the path is another one now, KernelRefused."""
    descriptor, found = open_namespace(namespace.path)
    try:
        if not found.same(namespace):
            raise NamespaceProblem(f"{namespace.path} is another network namespace now")
        with inside(descriptor):
            yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def inside(descriptor: int) -> Iterator[None]:
    """Run the block with the calling thread in the namespace, then return to the previous one.

    If returning fails, the process exits (status 70, a line on stderr), since the thread would
    configure the wrong namespace. Raises KernelRefused if the namespace cannot be entered.
    """
    home = os.open(CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            _enter(descriptor)
        except OSError as error:
            raise KernelRefused(
                f"cannot enter the network namespace: the kernel says {error.strerror}",
                hint="CAP_SYS_ADMIN is required" if error.errno == errno.EPERM else "",
            ) from error
        try:
            yield
        finally:
            try:
                _enter(home)
            except BaseException as error:
                sentence = f"weft: cannot leave a container's network namespace: {error}; exiting"
                print(sentence, file=sys.stderr, flush=True)
                os._exit(70)
    finally:
        os.close(home)


def add(path: str) -> None:
    """A new network namespace, mounted at a path that does not exist. Raises Exists and KernelRefused.

    Source: ``ip-netns(8)``.
    """
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        _share(folder)
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except FileExistsError as error:
        raise Exists(f"{path} exists already") from error
    except OSError as error:
        raise KernelRefused(f"cannot make {path}: {error.strerror}") from error
    descriptor = os.open(CURRENT, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with inside(descriptor):  # which returns to this namespace from the new one
            _checked(_libc().unshare(_CLONE_NEWNET))
            _checked(_libc().mount(os.fsencode(CURRENT), os.fsencode(path), b"none", _MS_BIND, None))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise KernelRefused(f"cannot make the network namespace {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _share(folder: str) -> None:
    """Make the folder a shared mount, as the first ``ip netns add`` does. Raises OSError.

    Bound to itself later, it would mount each namespace in it a second time, and neither could be removed
    where /run is a private mount. So it is left as it is where it has namespaces already.
    """
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)  # ip's, too
        if any(os.path.dirname(one) == os.path.realpath(folder) for one in _mounted()):
            return
        where, libc = os.fsencode(folder), _libc()
        if libc.mount(b"none", where, b"none", _MS_SHARED | _MS_REC, None) != 0:  # it is no mount point
            _checked(libc.mount(where, where, b"none", _MS_BIND | _MS_REC, None))
            _checked(libc.mount(b"none", where, b"none", _MS_SHARED | _MS_REC, None))
    finally:
        os.close(place)


def remove(path: str) -> None:
    """Unmount and unlink what ``add`` has mounted. Raises Missing and KernelRefused."""
    try:
        _checked(_libc().umount2(os.fsencode(path), _MNT_DETACH))
        os.unlink(path)
    except FileNotFoundError as error:
        raise Missing(f"there is no namespace {path}") from error
    except OSError as error:
        raise KernelRefused(f"cannot remove the network namespace {path}: {error.strerror}") from error


def _libc() -> CDLL:
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_void_p]
    return library


def _checked(answer: int) -> None:
    """Raise OSError where a function of libc has failed."""
    import ctypes

    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _setns() -> Callable[[int], None]:
    """``setns(2)``; ``os.setns`` needs Python 3.12."""
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
