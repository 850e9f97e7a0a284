"""Catalog, registry and HTTP API of an agent on a loopback port, in a thread: clients may block."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cni_plugin.agent.api_front import ApiFront
from discovery import layout_v1
from discovery.api.router import Route
from discovery.api.server import ApiServer, Front
from discovery.api.settings import HttpSettings
from discovery.catalog import Catalog
from discovery.catalog_sync import CatalogSync
from discovery.metrics import Metrics
from discovery.registry import Registry
from discovery.structs import Node
from lab.local_front import LocalFront
from lab.workers import ThreadSpawner
from store import Store
from store.embedded import open_embedded

Result = TypeVar("Result")
More = Callable[[Catalog], Iterable[Route]]

AS_WORKER = os.environ.get("WEFT_TEST_HTTP") == "worker"
"""Whether HTTP is spoken by the worker that does it in an agent; else in the process that answers."""
EXPECTED = 20.0
"""Timeout of expected events, seconds."""


class Reply:
    """An HTTP reply; ``json`` parses the body."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        """The body without floats: Go decodes most of Consul's numbers to int, and fails on 1.0."""
        return json.loads(self.body, parse_float=_refuse)

    @property
    def json_of_floats(self) -> Any:
        """The body of the few endpoints that have floats: metrics and coordinates."""
        return json.loads(self.body)

    @property
    def index(self) -> int:
        return int(self.headers["X-Consul-Index"])


def _refuse(number: str) -> float:
    raise AssertionError(f"{number} is written as a float")


class LabAgent:
    """Service discovery of one node, with its store in a directory."""

    def __init__(self, folder: Path, node: Node, settings: HttpSettings, more: More | None = None) -> None:
        """``more`` returns additional routes."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._thread.start()
        self.folder = folder
        self.node = node
        self.settings = settings
        self._more = more
        self.catalog = Catalog()
        self.metrics = Metrics()
        self.store: Store
        self.registry: Registry
        self.api: ApiServer
        self.call(self._start())
        self.host, _, port = self.api.addresses[0].rpartition(":")
        self.port = int(port)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the event loop of the agent."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    async def _start(self) -> None:
        self.store = await open_embedded(self.folder / "store.db", rename=layout_v1.renamed)
        self._feed = CatalogSync(self.catalog, self.store)
        await self._feed.start()
        self.registry = Registry(self.node, self.store, self.store)
        await self.registry.start()
        more = self._more(self.catalog) if self._more is not None else ()
        self.api = ApiServer(
            self.catalog,
            self.registry,
            self.store,
            self.settings,
            self.metrics,
            new_front=self._new_front,
            extra_routes=more,
        )
        await self.api.start()

    async def _stop(self) -> None:
        await self.api.stop()
        await self.registry.stop()
        await self._feed.stop()
        await self.store.close()

    def stop(self) -> None:
        """Stop the agent and its thread."""
        self.call(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        """Open a connection to the API."""
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def request(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Reply:
        """Send one request on a new connection; a body other than bytes is sent as JSON."""
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = self.connect()
        try:
            connection.request(method, path, sent, dict(headers or {}))
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        """Send a GET request."""
        return self.request("GET", path, headers=headers)

    def put(self, path: str, body: object = None, **headers: str) -> Reply:
        """Send a PUT request."""
        return self.request("PUT", path, body, headers)

    def _new_front(self, settings: HttpSettings, metrics: Metrics) -> Front:
        return ApiFront(ThreadSpawner(), settings, metrics) if AS_WORKER else LocalFront(settings, metrics)

    def connections(self) -> int:
        """The number of open connections."""
        return next(int(number) for _, name, _, number in self.metrics.samples() if name == "weft_http_connections")

    def parked(self) -> int:
        """The number of pending blocking queries."""
        return next(int(number) for _, name, _, number in self.metrics.samples() if name == "weft_http_waiting")


class Waiting:
    """A blocking query in a thread, already pending; ``done`` says whether it was answered."""

    def __init__(self, agent: LabAgent, path: str) -> None:
        self._reply: Reply | None = None
        self._thread = threading.Thread(target=self._run, args=(agent, path), daemon=True)
        before = agent.parked()
        self._thread.start()
        until(lambda: agent.parked() > before or self._reply is not None)

    def _run(self, agent: LabAgent, path: str) -> None:
        self._reply = agent.get(path)

    @property
    def done(self) -> bool:
        return self._reply is not None

    def reply(self) -> Reply:
        """Wait for the reply."""
        self._thread.join(EXPECTED)
        assert self._reply is not None, "the blocking query is still pending"
        return self._reply


def until(test: Callable[[], bool]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + EXPECTED
    while not test():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)
