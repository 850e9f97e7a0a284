"""Workers of the agent that run in threads of the test's process: what passes between the two is the same."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading

from cni_plugin.agent.api_worker import ApiWorker
from weft.spawner import Spawner


class ThreadSpawner(Spawner):
    """Starts the worker that speaks HTTP in a thread."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = {}

    def start(self, name: str) -> tuple[int, socket.socket]:
        own, other = socket.socketpair()
        number = os.getpid() * 1000 + len(self._running)
        threading.Thread(target=self._run, args=(number, other), daemon=True).start()
        return number, own

    def _run(self, number: int, end: socket.socket) -> None:
        async def serve() -> None:
            task = asyncio.create_task(worker.serve())
            self._running[number] = asyncio.get_running_loop(), task
            with contextlib.suppress(asyncio.CancelledError):
                await task

        with contextlib.suppress(EOFError, OSError):
            worker = ApiWorker(end, lambda why: self.kill(number))
            asyncio.run(serve())

    def kill(self, process: int) -> None:
        """End it as a kill does: its connections are closed."""
        if process in self._running:
            loop, task = self._running.pop(process)
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(task.cancel)
