"""What every worker does first: it makes the descriptors of its event loop, then confines itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine

from weft import confinement

AGENTS_BYTES = 256 << 20
"""The size of the agent's largest message to a worker: the agent is trusted."""


def serve(work: Callable[[], Coroutine[object, object, None]], *, threads: bool = False) -> None:
    """Run a worker's coroutine without privileges; see ``confinement.confine_worker``."""
    with asyncio.Runner() as runner:
        runner.get_loop()  # its descriptors
        confinement.confine_worker(threads=threads)
        runner.run(work())


def end(why: str) -> None:
    """End this worker: its agent has closed the pair."""
    os._exit(0)
