"""A /proc of this process's own, for a process that looks into many namespaces one after the other.

The kernel keeps ``/proc/sys/net/ipv4`` of all namespaces in one chain of its name cache, and goes along all of it when
a new container is looked into for the first time: 3 ms beside 1,500 containers. A /proc of one's own starts with an
empty chain; it is mounted nowhere, and replaced when the chain has become long.
Source: ``proc_sys_compare`` in ``fs/proc/proc_sysctl.c``, ``fsopen(2)``.
"""

from __future__ import annotations

import ctypes
import os
import threading

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every architecture
_CLOEXEC = 1
_CREATE = 6
_RESTRICTED = 2 | 4 | 8  # no set-user-id, no devices, no programs
_LONGEST_CHAIN = 64


class OwnProc:
    """Opens files below /proc; any thread may call."""

    def __init__(self) -> None:
        """Raises OSError where the kernel or its policy gives none, or where /proc/sys is not to be written to."""
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._lock = threading.Lock()
        self._opened = 0
        if os.statvfs("/proc/sys").f_flag & os.ST_RDONLY:
            raise PermissionError("/proc/sys is mounted read-only")
        self._root = self._mount()

    def open(self, path: str, flags: int) -> int:
        """A descriptor of what is at the path below /proc, as the thread's namespace has it. Raises OSError."""
        with self._lock:
            if self._opened >= _LONGEST_CHAIN:
                new = self._mount()
                os.close(self._root)
                self._root, self._opened = new, 0
            self._opened += 1
            return os.open(path, flags | os.O_CLOEXEC, dir_fd=self._root)

    def close(self) -> None:
        os.close(self._root)

    def _mount(self) -> int:
        context = self._checked(_FSOPEN, b"proc", _CLOEXEC)
        try:
            self._checked(_FSCONFIG, context, _CREATE, None, None, 0)
            return self._checked(_FSMOUNT, context, _CLOEXEC, _RESTRICTED)
        finally:
            os.close(context)

    def _checked(self, number: int, *arguments: object) -> int:
        found: int = self._call(number, *arguments)
        if found < 0:
            problem = ctypes.get_errno()
            raise OSError(problem, os.strerror(problem))
        return found
