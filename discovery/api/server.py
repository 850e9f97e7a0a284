"""The HTTP API server: finds the route of each request and runs its handler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from discovery.api.agent_endpoint import AgentEndpoint, Hook
from discovery.api.agent_register_endpoint import AgentRegisterEndpoint
from discovery.api.agent_services_endpoint import AgentServicesEndpoint
from discovery.api.blocking_query import BlockingQueries, encode_json
from discovery.api.catalog_endpoint import CatalogEndpoint
from discovery.api.csrf import own_hosts, rejection_reason
from discovery.api.disabled_endpoint import routes as disabled_routes
from discovery.api.event_endpoint import EventEndpoint
from discovery.api.health_endpoint import HealthEndpoint
from discovery.api.http_connections import HttpConnection, HttpConnections
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest, parse_parameters
from discovery.api.internal_endpoint import InternalEndpoint
from discovery.api.kvs_endpoint import KvsEndpoint
from discovery.api.monitor_endpoint import MonitorEndpoint
from discovery.api.openapi import describe
from discovery.api.query_endpoint import QueryEndpoint
from discovery.api.query_options import check_place
from discovery.api.router import TEXT, HttpResponse, Route, Router, endpoint, routes_of
from discovery.api.schemas import ANY_OBJECT
from discovery.api.session_endpoint import SessionEndpoint
from discovery.api.settings import HttpSettings
from discovery.api.txn_endpoint import TxnEndpoint
from discovery.catalog import Catalog
from discovery.consul.sessions import SessionManager
from discovery.key_watch import KeyWatcher
from discovery.layout import ROOT, watched_name
from discovery.metrics import Metrics
from discovery.registry import Registry
from store import Invalid, Store, StoreError

log = logging.getLogger(__name__)

BACKLOG = 1024
METHODS = ("GET", "PUT", "DELETE", "HEAD", "POST", "OPTIONS", "PATCH")
"""Methods with a metrics label of their own."""
RESERVED_FILES = 256
"""File descriptors reserved for the rest of the process."""


class ApiServer:
    """Consul's HTTP API. ``reload`` and ``leave`` implement agent/reload and agent/leave.

    ``extra_routes`` are served beside its own.
    """

    def __init__(
        self,
        catalog: Catalog,
        registry: Registry,
        store: Store,
        settings: HttpSettings | None = None,
        metrics: Metrics | None = None,
        *,
        reload: Hook | None = None,
        leave: Hook | None = None,
        extra_routes: Iterable[Route] = (),
    ) -> None:
        self._settings = settings = _apply_file_limit(settings or HttpSettings())
        self._metrics = metrics = metrics or Metrics()
        self._node = registry.node
        self._store = store
        self._blocking = blocking_queries = BlockingQueries(catalog, store, metrics)
        self._sessions = SessionManager(catalog, store, registry.node.name)
        self._changes = KeyWatcher(store, ROOT, self._sessions.on_batch, name_of=watched_name)
        node = registry.node
        endpoints = (
            AgentEndpoint(catalog, registry, store, metrics, blocking_queries, reload=reload, leave=leave),
            AgentServicesEndpoint(catalog, registry, blocking_queries),
            AgentRegisterEndpoint(registry, blocking_queries, scripts=settings.scripts),
            HealthEndpoint(catalog, node, blocking_queries),
            CatalogEndpoint(catalog, registry, store, blocking_queries),
            KvsEndpoint(store, self._changes, self._sessions, blocking_queries),
            TxnEndpoint(catalog, store, self._sessions, node, blocking_queries),
            EventEndpoint(store, self._changes, blocking_queries),
            QueryEndpoint(catalog, store, node, blocking_queries),
            MonitorEndpoint(),
            InternalEndpoint(catalog, node, blocking_queries),
            SessionEndpoint(catalog, self._changes, self._sessions, blocking_queries, settings, node.name),
            self,
        )
        self.router = Router(
            (*(route for each in endpoints for route in routes_of(each)), *disabled_routes(), *extra_routes)
        )
        self._hosts = {name.lower().rstrip(".") for name in (*settings.hosts, *own_hosts(node, settings.domains))}
        self._requests = metrics.counter("weft_http_requests_total", "HTTP requests.", "method", "path", "code")
        self._seconds = metrics.histogram("weft_http_request_seconds", "Latency of non-blocking requests.", "method")
        self._server: HttpConnections | None = None
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._pending_writes: set[asyncio.Future[HttpResponse]] = set()
        self.addresses: tuple[str, ...] = ()
        """The listening addresses once started, with the actual port for port 0."""

    async def start(self) -> None:
        """Start listening. Raises StoreError, or OSError that names the address."""
        self._server = HttpConnections(self._handle, self._settings, self._metrics)
        self._sweeper = asyncio.create_task(self._server.sweep())
        loop = asyncio.get_running_loop()
        try:
            self._sessions.start()
            await self._changes.start(self._sessions.load)
            for address in self._settings.listen:
                sock = _listen(address)
                self.addresses += (_format_address(address, sock),)
                self._listeners.append(await loop.create_server(self._server, sock=sock, backlog=BACKLOG))
        except BaseException:
            await self.stop()
            raise
        log.info("HTTP API at %s", ", ".join(self.addresses))

    async def stop(self) -> None:
        """Stop: pending writes are completed, blocking queries are cut off."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for address in self.addresses:
            if address.startswith("/"):
                Path(address).unlink(missing_ok=True)
        self.addresses = ()
        if self._pending_writes:
            await asyncio.wait(set(self._pending_writes), timeout=5)
        if self._server is not None:
            await self._server.shutdown(0.1)
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await self._changes.stop()
        await self._sessions.stop()

    @endpoint("GET", "/v1/openapi.json", "This description", response=ANY_OBJECT)
    async def openapi(self, api_request: HttpRequest) -> HttpResponse:
        return HttpResponse(encode_json(describe(self.router.routes), api_request))

    # One request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, HttpConnection)
        assert self._server is not None
        self._server.mark_busy(connection)
        started = time.monotonic()
        path, close = "other", False
        try:
            route, api_request = self._route_request(request)
            path = route.path
            answer = await self._run(route, api_request)
        except HttpError as problem:
            close = problem.close
            answer = HttpResponse(problem.text.encode("utf-8", "replace"), problem.status, TEXT, problem.headers)
        except Invalid as error:
            answer = HttpResponse(str(error).encode(), 400, TEXT)
        except StoreError as error:
            answer = HttpResponse(str(error).encode(), 500, TEXT)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s %s", request.method, request.rel_url.raw_path[:200])
            answer = HttpResponse(b"internal error; see the agent's log", 500, TEXT)
        finally:
            self._server.mark_idle(connection)
        method = request.method if request.method in METHODS else "other"
        self._requests.add(1, method, path, str(answer.status))
        if "index" not in request.rel_url.raw_query_string:
            self._seconds.observe(time.monotonic() - started, method)
        headers = {"Content-Type": answer.type, **answer.headers}
        if answer.stream is not None:
            return await self._send(answer.stream, request, headers)
        response = web.Response(body=answer.body, status=answer.status, headers=headers)
        # An unread body would be parsed as the next request.
        if close or not request.content.is_eof():
            response.force_close()
        return response

    async def _send(
        self, stream: AsyncIterator[bytes], request: web.BaseRequest, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Send a response of unknown length until it ends or the client disconnects."""
        connection = request.protocol
        assert isinstance(connection, HttpConnection) and self._server is not None
        self._server.mark_busy(connection)  # else it would be closed when idle
        try:
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            async for part in stream:
                await response.write(part)
            await response.write_eof()
        finally:
            self._server.mark_idle(connection)
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()
        return response

    def _route_request(self, request: web.BaseRequest) -> tuple[Route, HttpRequest]:
        """The route and the parsed request. Raises HttpError."""
        length = request.content_length or 0
        if length > self._settings.body_bytes:
            raise self._too_large(length)
        raw_path, _, query = request.raw_path.partition("?")
        if not raw_path.startswith("/"):
            raise HttpError(400, "Invalid request target: must be an absolute path")
        route, name = self.router.find(request.method, raw_path)
        if request.protocol.transport is not None:
            why = rejection_reason(request.headers, self._hosts, writes=route.writes)
            if why and _family(request.protocol.transport) != socket.AF_UNIX:
                raise HttpError(403, why)

        async def read() -> bytes:
            return await self._body(request)

        api_request = HttpRequest(request.method, name, parse_parameters(query), read, request.headers)
        # An agent answers for itself, whatever ?dc says, as in Consul.
        datacenter = self._node.datacenter
        check_place(api_request, datacenter if not route.path.startswith("/v1/agent/") else api_request.get("dc"))
        return route, api_request

    async def _run(self, route: Route, api_request: HttpRequest) -> HttpResponse:
        if not route.writes:
            return await route.handler(api_request)
        # A write is completed even if the client disconnects.
        writing: asyncio.Future[HttpResponse] = asyncio.ensure_future(route.handler(api_request))
        self._pending_writes.add(writing)
        writing.add_done_callback(self._on_write_done)
        return await asyncio.shield(writing)

    def _on_write_done(self, writing: asyncio.Future[HttpResponse]) -> None:
        self._pending_writes.discard(writing)
        if not writing.cancelled():
            writing.exception()  # retrieve it: the client may have disconnected

    async def _body(self, request: web.BaseRequest) -> bytes:
        """Read the body, limited in size and time. Raises HttpError."""
        if request.headers.get("Expect", "").lower() == "100-continue" and request.protocol.transport is not None:
            request.protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        found = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_time):
                async for chunk in request.content.iter_any():
                    found += chunk
                    if len(found) > self._settings.body_bytes:
                        raise self._too_large(len(found))
        except TimeoutError:
            text = f"The body did not come within {self._settings.body_time:g} s"
            raise HttpError(408, text, close=True) from None
        except web.RequestPayloadError:
            raise HttpError(400, "Malformed request body", close=True) from None
        return bytes(found)

    def _too_large(self, size: int) -> HttpError:
        most = self._settings.body_bytes
        return HttpError(413, f"Request body({size} bytes) too large, max size: {most} bytes.", close=True)


def _apply_file_limit(settings: HttpSettings) -> HttpSettings:
    """Limit connections to the file descriptors, after raising RLIMIT_NOFILE as far as
    permitted.
    """
    wanted = settings.connections + RESERVED_FILES
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < wanted:
        files = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    return replace(settings, connections=min(settings.connections, max(files - RESERVED_FILES, 16)))


def _listen(address: str) -> socket.socket:
    """A socket bound to ``HOST:PORT`` or a unix socket path. Raises OSError."""
    try:
        if address.startswith("/"):
            return _listen_unix(Path(address))
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, int(port)))
            undo.pop_all()
        return sock
    except (OSError, ValueError, OverflowError) as error:
        raise OSError(f"the HTTP API cannot listen on {address}: {error}") from error


def _listen_unix(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode) and not _blocking(path):
            path.unlink()  # stale socket of a killed process
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        os.chmod(path, 0o600)  # no connection is possible before listen(2)
    except OSError:
        sock.close()
        raise
    return sock


def _blocking(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def _format_address(address: str, sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return address
    return f"{address.rpartition(':')[0]}:{sock.getsockname()[1]}"


def _family(transport: asyncio.BaseTransport) -> int | None:
    sock = transport.get_extra_info("socket")
    return sock.family if sock is not None else None
