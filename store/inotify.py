"""inotify(7) on one file."""

from __future__ import annotations

import contextlib
import ctypes
import os

_IN_MODIFY = 0x2


def open_inotify(path: str) -> int:
    """A descriptor that becomes readable when the file is written to; close it with os.close.

    Raises OSError, for example at the limit fs.inotify.max_user_instances.
    *Equivalent to:* ``inotifywait -m -e modify PATH``.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    if libc.inotify_add_watch(descriptor, os.fsencode(path), ctypes.c_uint32(_IN_MODIFY)) < 0:
        number = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(number, f"inotify_add_watch {path}")
    return descriptor


def drain(descriptor: int) -> None:
    """Discard all pending events."""
    with contextlib.suppress(BlockingIOError):
        while os.read(descriptor, 65536):
            pass
