"""``weft`` commands that the agent runs, each in a process of its own: what they read and compute must not
delay names and checks.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from weft import processes
from weft.processes import Finished

SECONDS = 30.0
"""After which a command is killed."""
_PROGRAM = (
    "import sys; sys.path[:] = eval(sys.argv.pop(1)); sys.argv[0] = 'weft'; from cni_plugin.cli import main; main()"
)


class Commands:
    """Runs one at a time; others wait."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()

    async def run(self, arguments: Sequence[str]) -> Finished:
        """Run ``weft`` to its end. Raises OSError, TimeoutError."""
        argv = [sys.executable, "-IBSc", _PROGRAM, repr(sys.path), *arguments]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        async with self._one:
            return await asyncio.to_thread(processes.run, argv, b"", environment=environment, timeout=SECONDS)
