"""Network namespaces made by this process and entered by its threads. setns(2), unshare(2), mount(2)."""

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

    ``tests/private`` writes the name of the namespace it made into the /run it made: whoever reads it there, and is
    in that namespace, is apart from the machine in both. Process 1 is asked as well, where it may be.
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
    """A descriptor of a network namespace; this thread's own if no path is given."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def enter(descriptor: int) -> None:
    """Move this thread into a network namespace."""
    _call(_libc.setns(descriptor, CLONE_NEWNET), "setns")


def unshare() -> None:
    """Move this thread into a new, empty network namespace."""
    _call(_libc.unshare(CLONE_NEWNET), "unshare")


@contextlib.contextmanager
def inside(path: str) -> Iterator[None]:
    """Have this thread in another namespace while the block runs. Sockets made there stay there."""
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
    """A new namespace under /run/netns, as ``ip netns add`` makes it; its path."""
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
    """Forget a namespace; the kernel ends it when nobody is in it any more. Missing is fine."""
    with contextlib.suppress(OSError):
        _call(_libc.umount2(os.fsencode(path), MNT_DETACH), f"umount {path}")
    Path(path).unlink(missing_ok=True)
