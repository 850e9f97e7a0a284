"""Create network namespaces, and enter them per thread. setns(2), unshare(2), mount(2)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MNT_DETACH = 2
OWN = "/proc/thread-self/ns/net"
FOLDER = Path("/run/netns")
MARK = Path("/run/weft-tests")

_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def isolation_problem(network: str = "/proc/self/ns/net", mark: Path = MARK) -> str:
    """Why tests that change the network must not run here, "" if they may.

    ``tests/private`` writes the id of its new network namespace into its new /run: a process that
    reads it there, and is in that namespace, is isolated in both. Process 1 is compared, too, if
    permitted.
    """
    if os.geteuid() != 0:
        return "these tests make network namespaces and need root"
    try:
        name = os.readlink(network)
        if mark.read_text().strip() != name:
            return "this is not the network namespace that tests/private made"
    except FileNotFoundError as error:
        return f"neither the network nor /run are known to be private ({error.filename} is missing)"
    with contextlib.suppress(PermissionError):
        if name == os.readlink("/proc/1/ns/net"):
            return "this is the machine's own network namespace"
    return ""


def open_namespace(path: str = OWN) -> int:
    """A file descriptor of a network namespace; of the current one without a path."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def enter(descriptor: int) -> None:
    """Move this thread into a network namespace."""
    _call(_libc.setns(descriptor, CLONE_NEWNET), "setns")


def unshare() -> None:
    """Move this thread into a new, empty network namespace."""
    _call(_libc.unshare(CLONE_NEWNET), "unshare")


@contextlib.contextmanager
def inside(path: str) -> Iterator[None]:
    """Run the block in another namespace. Sockets created there stay there."""
    back = open_namespace()
    there = -1
    try:
        there = open_namespace(path)
        enter(there)
        yield
    finally:
        enter(back)
        os.close(back)
        if there >= 0:
            os.close(there)


def make(name: str) -> str:
    """Create a namespace under /run/netns, as ``ip netns add`` does; its path."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / name
    path.touch(exist_ok=False)
    back = open_namespace()
    try:
        unshare()
        _call(_libc.mount(OWN.encode(), os.fsencode(path), b"none", MS_BIND, None), f"mount {path}")
    finally:
        enter(back)
        os.close(back)
    return str(path)


def remove(path: str) -> None:
    """Unmount and unlink a namespace, as ``ip netns del`` does. Missing is no error."""
    with contextlib.suppress(OSError):
        _call(_libc.umount2(os.fsencode(path), MNT_DETACH), f"umount {path}")
    Path(path).unlink(missing_ok=True)
