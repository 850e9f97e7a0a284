"""Writing to standard error: the process's own, or per thread that of the client being served."""

from __future__ import annotations

import os
from _thread import _local  # threading is not imported: it costs a short-lived call more

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_thread = _local()


def write(text: str | bytes) -> None:
    """Write to standard error, or to this thread's ``redirect`` target. Ignores errors."""
    data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
    target: Callable[[bytes], None] | None = getattr(_thread, "target", None)
    if target is not None:
        target(data)
        return
    try:  # noqa: SIM105 -- importing contextlib would cost VERSION a third of its time
        os.write(2, data)
    except OSError:
        pass


def redirect(target: Callable[[bytes], None] | None) -> None:
    """Send what this thread writes to ``target``; None restores standard error."""
    _thread.target = target
