"""How long a test waits: long for what it expects, since that costs nothing where it comes, and briefly for the rest.

A machine that has other work to do loses a first packet or runs a program late, and the kernel repeats a lost SYN or
neighbour solicitation only after a second. So no test may expect anything to happen in less than ``PATIENTLY``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENTLY = 10.0
"""Seconds for what is expected to happen."""
BRIEFLY = 0.4
"""Seconds after which what is not expected counts as not happening: on a quiet machine it takes milliseconds."""


def until(condition: Callable[[], object], seconds: float = PATIENTLY, what: str = "it") -> None:
    """Wait for a condition; raises AssertionError where it does not come to pass."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come to pass in {seconds} s"
        time.sleep(0.02)
