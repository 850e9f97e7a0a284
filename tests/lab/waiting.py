"""Timeouts of tests: long for expected events, which costs nothing if they occur, else short.

Under load a first packet may be lost or a program start late, and the kernel retransmits a lost SYN
or neighbour solicitation only after a second. So no test may wait less than ``PATIENTLY`` for an
expected event.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENTLY = 10.0
"""Timeout of expected events, seconds."""
BRIEFLY = 0.4
"""Seconds after which an unexpected event counts as absent; it would take milliseconds when idle.
"""


def until(condition: Callable[[], object], seconds: float = PATIENTLY, what: str | Callable[[], str] = "it") -> None:
    """Wait for a condition; raises AssertionError if it does not become true in time. ``what`` is asked
    for only then, if it is a function.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what if isinstance(what, str) else what()} did not come to pass in {seconds} s")
        time.sleep(0.02)
