"""A mount namespace of a daemon's own: files are read-only but for what it writes, as by its unit.

For a daemon that a call has started. What the host mounts later, the namespaces of containers, appears
in it as well. Sources: mount_namespaces(7), mount_setattr(2).
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections.abc import Iterable

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_MOUNT_SETATTR = 442  # on all architectures
_AT_FDCWD, _ATTR_RDONLY = -100, 1
_KERNELS = ("/dev", "/proc", "/sys")
_PROPAGATED = ("/", "/run")
"""Where runtimes mount the namespaces of containers."""


def make(writable: Iterable[str]) -> bool:
    """Enter a new mount namespace and make all files read-only but those below ``writable`` and the kernel's;
    whether that was possible.

    Call it before the first thread starts. Raises nothing: not where mounts of the host would not appear
    (its mounts are private, as without systemd), nor where the kernel or an inherited filter of system
    calls refuses. *Equivalent to:* ``unshare --mount --propagation slave``, ``mount -o bind,ro``.
    """
    kept = [os.path.realpath(one) for one in writable if os.path.isdir(one)]
    mounts = _mounts()
    if not all(_is_shared(mounts, path) for path in _PROPAGATED):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        return False
    if libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None):
        return False
    points = {path for path, _ in mounts}
    for path in sorted({*kept} - points, key=len):
        libc.mount(os.fsencode(path), os.fsencode(path), None, ctypes.c_ulong(_MS_BIND | _MS_REC), None)
    attributes = struct.pack("4Q", _ATTR_RDONLY, 0, 0, 0)
    done = True
    for path, _ in _mounts():
        if not any(path == one or path.startswith(f"{one}/") for one in (*_KERNELS, *kept)):
            refused = libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), 0, attributes, len(attributes))
            done = done and not refused
    return done


def _mounts() -> list[tuple[str, bool]]:
    """Each mount point of this process, and whether it is shared. Source: proc_pid_mountinfo(5)."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.partition(" - ")[0].split(" ")
            path = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[4])
            found.append((path, any(one.startswith("shared:") for one in fields[6:])))
    return found


def _is_shared(mounts: list[tuple[str, bool]], path: str) -> bool:
    """Whether the mount that has a path is shared; of several at one place the last counts."""
    over = [one for one in mounts if path == one[0] or path.startswith(f"{one[0].rstrip('/')}/")]
    return bool(over) and sorted(over, key=lambda one: len(one[0]))[-1][1]
