"""``/v1/agent/monitor``: the agent's log as it is written."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable

from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import TEXT, HttpResponse, endpoint

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "err": logging.ERROR,
    "error": logging.ERROR,
}
MAX_PENDING = 512
"""Lines that a client may be behind; further ones are dropped, as in Consul."""
MAX_CLIENTS = 16


class _LogQueue(logging.Handler):
    """Passes log records to a client in the event loop. Records may come from any thread."""

    def __init__(self, level: int, written: Callable[[logging.LogRecord], bytes]) -> None:
        super().__init__(level)
        self.lines: asyncio.Queue[bytes] = asyncio.Queue(MAX_PENDING)
        self._written = written
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        line = self._written(record)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._put, line)

    def _put(self, line: bytes) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self.lines.put_nowait(line)


class MonitorEndpoint:
    """The handler of agent/monitor."""

    def __init__(self) -> None:
        self._clients = 0

    @endpoint(
        "GET",
        "/v1/agent/monitor",
        "The agent's log, from now on until the client disconnects",
        parameters=("loglevel", "logjson"),
    )
    async def monitor(self, request: HttpRequest) -> HttpResponse:
        request.acl.require("operator")
        name = request.get("loglevel") or "info"
        level = _LEVELS.get(name.lower())
        if level is None:
            raise HttpError(400, f"Unknown log level: {name[:40]}")
        if self._clients >= MAX_CLIENTS:
            raise HttpError(429, f"there are {MAX_CLIENTS} clients of agent/monitor already")
        written = _json_line if request.boolean("logjson") else _text_line
        return HttpResponse(type=TEXT, stream=self._follow(level, written))

    async def _follow(self, level: int, written: Callable[[logging.LogRecord], bytes]) -> AsyncIterator[bytes]:
        handler = _LogQueue(level, written)
        root = logging.getLogger()
        root.addHandler(handler)
        self._clients += 1
        try:
            while True:
                yield await handler.lines.get()
        finally:
            self._clients -= 1
            root.removeHandler(handler)


def _stamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"


def _text_line(record: logging.LogRecord) -> bytes:
    """A line as Consul writes it: ``2024-05-01T10:00:00.000Z [WARN]  agent: …``."""
    level = f"[{_level(record)}]"
    return f"{_stamp(record)} {level:7} {record.name}: {record.getMessage()}\n".encode("utf-8", "replace")


def _json_line(record: logging.LogRecord) -> bytes:
    found = {
        "@level": _level(record).lower(),
        "@message": record.getMessage(),
        "@module": record.name,
        "@timestamp": _stamp(record),
    }
    return json.dumps(found).encode() + b"\n"


def _level(record: logging.LogRecord) -> str:
    return "WARN" if record.levelno == logging.WARNING else record.levelname
