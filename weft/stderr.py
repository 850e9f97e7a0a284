"""Sentences for standard error: of this process, or of the caller that a thread works for."""

from __future__ import annotations

import os
from _thread import _local  # without importing threading, which a call of a runtime may not need

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_thread = _local()


def write(text: str | bytes) -> None:
    """Write to standard error, if there is anybody to read it; raises nothing."""
    data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
    listener: Callable[[bytes], None] | None = getattr(_thread, "listener", None)
    if listener is not None:
        listener(data)
        return
    try:  # noqa: SIM105 -- importing contextlib would cost VERSION a third of its time
        os.write(2, data)
    except OSError:
        pass


def redirect(listener: Callable[[bytes], None] | None) -> None:
    """From now on this thread's remarks go there; None: to standard error again."""
    _thread.listener = listener
