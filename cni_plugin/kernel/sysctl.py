"""The network's sysctls, as files under /proc/sys of the calling thread's namespace. Source: ``sysctl(8)``."""

from __future__ import annotations

import errno
import os

from cni_plugin.errors import KernelRefused, Missing

_ROOT = "/proc/sys/"
_LONGEST = 1 << 16


def read(key: str) -> str | None:
    """The value without its line end, None if there is no such key; tabs between several values are kept.

    Raises KernelRefused for a key outside ``net/`` and for one that cannot be read.
    *Equivalent to:* ``sysctl -n KEY``.
    """
    try:
        descriptor = os.open(_path(key), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(descriptor, _LONGEST).decode("ascii", "replace").rstrip("\n")
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelRefused(f"cannot read the sysctl {key}: the kernel says {error.strerror}") from error


def write(key: str, value: str) -> None:
    """Set a value. Raises Missing for no such key, KernelRefused otherwise, naming key and value.

    *Equivalent to:* ``sysctl -w KEY=VALUE``.
    """
    path = _path(key)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode("utf-8", "surrogateescape"))
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise Missing(f"cannot set the sysctl {key} to {value!r}: there is no such sysctl in this namespace") from error
    except OSError as error:
        hint = {
            errno.EROFS: "/proc/sys is mounted read-only",
            errno.EACCES: "it is read-only",
            errno.EPERM: "this needs CAP_NET_ADMIN",
        }.get(error.errno or 0, "")
        raise KernelRefused(
            f"cannot set the sysctl {key} to {value!r}: the kernel says {error.strerror}", hint=hint
        ) from error


def problem(key: str) -> str:
    """What is wrong with a key, "" if nothing is: it must lie under net/ and nowhere else."""
    parts = key.split("/")
    if parts[0] != "net" or len(parts) < 2:
        return "must begin with net/"
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        return "must be a plain path, with slashes, without '.' and '..'"
    return ""


def _path(key: str) -> str:
    wrong = problem(key)
    if wrong:
        raise KernelRefused(f"cannot use the sysctl {key!r}: it {wrong}")
    return _ROOT + key
