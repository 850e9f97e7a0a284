"""A TCP proxy in front of a server, which a test cuts, freezes, or lets lose the replies."""

from __future__ import annotations

import asyncio
import contextlib


class Proxy:
    """Forwards a loopback port to ``HOST:PORT``."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()
        self._port = 0
        self.open = asyncio.Event()
        """Cleared: nothing is forwarded, and connections stay."""
        self.replies = asyncio.Event()
        """Cleared: requests are forwarded, replies are not."""
        self.open.set()
        self.replies.set()

    async def __aenter__(self) -> Proxy:
        await self.listen()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.cut()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Refuse connections, and end those that there are."""
        if self._server is not None:
            self._server.close()
        pipes, self._pipes = self._pipes, set()
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        try:
            there, back = await asyncio.open_connection(*self._target)
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._requests(reader, back))
                    both.create_task(self._replies(there, writer))
            finally:
                back.close()
        except (OSError, ExceptionGroup):
            pass
        finally:
            self._pipes.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(65536):
            await self.open.wait()
            writer.write(content)
            await writer.drain()
        raise EOFError

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(65536):
            if not self.replies.is_set():
                continue
            await self.open.wait()
            writer.write(content)
            await writer.drain()
        raise EOFError
