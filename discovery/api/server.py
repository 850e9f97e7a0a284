"""The HTTP API: finds the route of each request and runs its handler. HTTP itself is ``http_front``'s."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Protocol

from discovery.acl.authorizer import Authorizer, PermissionDenied
from discovery.acl.records import ACLS, BOOTSTRAP, acl_key, encode_acl
from discovery.acl.rules import Access
from discovery.acl.tokens import Tokens
from discovery.api import listeners
from discovery.api.acl_policy_endpoint import AclPolicyEndpoint
from discovery.api.acl_token_endpoint import AclTokenEndpoint, management_token
from discovery.api.acl_writer import AclWriter
from discovery.api.agent_endpoint import AgentEndpoint, Hook
from discovery.api.agent_register_endpoint import AgentRegisterEndpoint
from discovery.api.agent_services_endpoint import AgentServicesEndpoint
from discovery.api.blocking_query import BlockingQueries, encode_json
from discovery.api.callers import Callers, secret_of
from discovery.api.catalog_endpoint import CatalogEndpoint
from discovery.api.csrf import own_hosts, rejection_reason
from discovery.api.disabled_endpoint import routes as disabled_routes
from discovery.api.event_endpoint import EventEndpoint
from discovery.api.exchange import BrokenBody, Connection, HttpMessage
from discovery.api.health_endpoint import HealthEndpoint
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest, parse_parameters
from discovery.api.internal_endpoint import InternalEndpoint
from discovery.api.kvs_endpoint import KvsEndpoint
from discovery.api.listening import Listening
from discovery.api.monitor_endpoint import MonitorEndpoint
from discovery.api.openapi import describe
from discovery.api.query_endpoint import QueryEndpoint
from discovery.api.query_options import check_place
from discovery.api.refusals import Refusals
from discovery.api.router import TEXT, HttpResponse, Route, Router, endpoint, routes_of
from discovery.api.schemas import ANY_OBJECT
from discovery.api.session_endpoint import SessionEndpoint
from discovery.api.settings import HttpSettings
from discovery.api.snapshot_endpoint import SnapshotEndpoint
from discovery.api.txn_endpoint import TxnEndpoint
from discovery.catalog import Catalog
from discovery.consul.json_fields import BadField
from discovery.consul.sessions import SessionManager
from discovery.key_watch import KeyWatcher
from discovery.layout import ROOT, watched_name
from discovery.metrics import Metrics
from discovery.registry import Registry
from store import Batch, Compare, Invalid, Put, Store, StoreError

log = logging.getLogger(__name__)

METHODS = ("GET", "PUT", "DELETE", "HEAD", "POST", "OPTIONS", "PATCH")
"""Methods with a metrics label of their own."""
RESERVED_FILES = 256
"""File descriptors reserved for the rest of the process."""


class Front(Protocol):
    """What speaks HTTP with clients: ``http_front`` in this process, or a worker."""

    async def start(self, answer: Callable[[Connection, HttpMessage], Awaitable[HttpResponse]]) -> None:
        """Start; requests are answered by ``answer``. Raises WeftError."""

    def open(self, sock: socket.socket, connection: Connection) -> bool:
        """Serve an accepted connection, whose socket is its from now on; False: it takes no more for now."""

    async def stop(self, seconds: float) -> None:
        """Close all connections, after as many seconds at the latest."""


NewFront = Callable[[HttpSettings, Metrics], Front]


class ApiServer:
    """Consul's HTTP API. ``reload`` and ``leave`` implement agent/reload and agent/leave.

    ``extra_routes`` are served beside its own. ``tokens`` it fills from the store. ``new_front``
    makes what speaks HTTP.
    """

    def __init__(
        self,
        catalog: Catalog,
        registry: Registry,
        store: Store,
        settings: HttpSettings | None = None,
        metrics: Metrics | None = None,
        *,
        new_front: NewFront,
        reload: Hook | None = None,
        leave: Hook | None = None,
        extra_routes: Iterable[Route] = (),
        tokens: Tokens | None = None,
    ) -> None:
        self._settings = settings = _apply_file_limit(settings or HttpSettings())
        self._metrics = metrics = metrics or Metrics()
        self._node = registry.node
        self._store = store
        self._registry = registry
        self._blocking = blocking_queries = BlockingQueries(catalog, store, metrics)
        self._sessions = SessionManager(catalog, store, registry.node.name)
        self._changes = KeyWatcher(store, ROOT, self._on_batch, name_of=watched_name)
        node = registry.node
        acl = settings.acl
        self._tokens = tokens or Tokens(allow=acl.allow, default=acl.default, datacenter=node.datacenter)
        acls = AclWriter(store, self._changes, enabled=acl.enabled)
        endpoints = (
            AgentEndpoint(catalog, registry, store, metrics, blocking_queries, reload=reload, leave=leave),
            AgentServicesEndpoint(registry, blocking_queries),
            AgentRegisterEndpoint(registry, blocking_queries, scripts=settings.scripts),
            HealthEndpoint(catalog, node, blocking_queries),
            CatalogEndpoint(catalog, registry, store, blocking_queries),
            KvsEndpoint(store, self._changes, self._sessions, blocking_queries),
            TxnEndpoint(catalog, store, self._sessions, node, blocking_queries),
            EventEndpoint(store, self._changes, blocking_queries),
            SnapshotEndpoint(store, self._sessions, blocking_queries),
            QueryEndpoint(catalog, store, self._sessions, node, blocking_queries),
            MonitorEndpoint(),
            InternalEndpoint(catalog, node, blocking_queries),
            SessionEndpoint(catalog, self._changes, self._sessions, blocking_queries, settings, node.name),
            AclTokenEndpoint(self._tokens, acls, acl, node.name),
            AclPolicyEndpoint(self._tokens, acls),
            self,
        )
        own = tuple(route for each in endpoints for route in routes_of(each))
        self.router = Router((*own, *disabled_routes(acls=acl.enabled), *extra_routes))
        self._hosts = {name.lower().rstrip(".") for name in (*settings.hosts, *own_hosts(node, settings.domains))}
        self._requests = metrics.counter("weft_http_requests_total", "HTTP requests.", "method", "path", "code")
        self._seconds = metrics.histogram("weft_http_request_seconds", "Latency of non-blocking requests.", "method")
        self._refusals = Refusals()
        self._front = new_front(settings, metrics)
        self._callers: Callers | None = None
        self._listening: Listening | None = None
        self._pending_writes: set[asyncio.Future[HttpResponse]] = set()
        self._refused: tuple[str, ...] = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """The listening addresses once started, with the actual port for port 0."""
        return self._listening.addresses if self._listening is not None else ()

    @property
    def problems(self) -> tuple[str, ...]:
        """Why it does not listen at some address that is configured."""
        return (*self._refused, *(self._listening.problems if self._listening is not None else ()))

    async def start(self) -> None:
        """Start listening, at an address that is in use once it is free. Raises StoreError, and OSError for TLS
        files.
        """
        self._callers = Callers(self._settings)
        try:
            self._sessions.start()
            await self._make_management_token()
            await self._changes.start(self._load)
            await self._front.start(self._answer)
            listen, self._refused = listeners.allowed(self._settings)
            self._listening = Listening(listen, self._accepted)
            await self._listening.start()
        except BaseException:
            await self.stop()
            raise

    def _accepted(self, sock: socket.socket, is_remote: bool) -> bool:
        """Ask the kernel whose connection it is, before anything of it is read."""
        assert self._callers is not None
        is_local = sock.family == socket.AF_UNIX
        caller = self._callers.identify(sock)
        # A user of this host is one client, whatever address of loopback it connects from.
        client = f"uid {caller.uid}" if caller.uid is not None else "unix" if is_local else _address(sock)
        has_tls = is_remote and self._settings.tls is not None
        return self._front.open(sock, Connection(caller, client, is_local, has_tls))

    async def stop(self) -> None:
        """Stop: pending writes are completed, blocking queries are cut off."""
        if self._listening is not None:
            await self._listening.stop()
        if self._pending_writes:
            await asyncio.wait(set(self._pending_writes), timeout=5)
        await self._front.stop(0.1)
        await self._changes.stop()
        await self._sessions.stop()
        if self._callers is not None:
            self._callers.close()

    @endpoint("GET", "/v1/openapi.json", "This description", response=ANY_OBJECT)
    async def openapi(self, api_request: HttpRequest) -> HttpResponse:
        return HttpResponse(encode_json(describe(self.router.routes), api_request))

    # Changes of the store

    async def _make_management_token(self) -> None:
        """Make the token that the configuration names, once; then there is no bootstrap."""
        if not self._settings.acl.enabled or not (secret := self._settings.acl.initial_management):
            return
        token = management_token(secret, "Initial Management Token")
        made = [Put(acl_key(token), encode_acl(token))]
        if (await self._store.transact([Compare(acl_key(token), "mod", 0)], made)).succeeded:
            await self._store.transact([Compare(BOOTSTRAP, "mod", 0)], [Put(BOOTSTRAP, b"{}")])

    async def _load(self) -> int:
        found = await self._store.range(ACLS)
        self._tokens.load(found.entries)
        return min(found.revision, await self._sessions.load())

    def _on_batch(self, batch: Batch) -> None:
        self._sessions.on_batch(batch)
        self._tokens.on_batch(batch)

    # One request

    async def _answer(self, connection: Connection, message: HttpMessage) -> HttpResponse:
        started = time.monotonic()
        path, close = "other", False
        try:
            authorize = await self._authorize(connection, message)
            route, api_request = self._route_request(connection, message, authorize)
            path = route.path
            answer = await self._run(route, api_request)
            if api_request.filtered:
                answer = replace(answer, headers={**answer.headers, "X-Consul-Results-Filtered-By-ACLs": "true"})
        except HttpError as problem:
            close = problem.close
            answer = HttpResponse(problem.text.encode("utf-8", "replace"), problem.status, TEXT, problem.headers)
        except PermissionDenied as error:
            self._refusals.note(connection, f"{message.method} {path}", str(error), started)
            answer = HttpResponse(str(error).encode("utf-8", "replace"), 403, TEXT)
        except BadField as error:
            answer = HttpResponse(str(error).encode("utf-8", "replace"), 400, TEXT)
        except Invalid as error:
            answer = HttpResponse(str(error).encode(), 400, TEXT)
        except StoreError as error:
            answer = HttpResponse(str(error).encode(), 500, TEXT)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s %s", message.method, message.path[:200])
            answer = HttpResponse(b"internal error; see the agent's log", 500, TEXT)
        method = message.method if message.method in METHODS else "other"
        self._requests.add(1, method, path, str(answer.status))
        if "index" not in message.query:
            self._seconds.observe(time.monotonic() - started, method)
        return replace(answer, close=True) if close else answer

    async def _authorize(self, connection: Connection, message: HttpMessage) -> Callable[[], Authorizer]:
        """What tells the caller's permissions: its token, if tokens are used and it sent one, else who
        it is. Raises PermissionDenied.
        """
        assert self._callers is not None
        caller = connection.caller
        if not self._settings.acl.enabled:
            authorizer = await self._callers.authorizer(caller)
            return lambda: authorizer
        secret = secret_of(message.headers, message.query)
        if not secret and (caller.owner or caller.uid is not None):
            authorizer = await self._callers.authorizer(caller)
            if authorizer.manages or authorizer.level:
                return lambda: authorizer
        return partial(self._tokens.authorizer, secret)

    def _route_request(
        self, connection: Connection, message: HttpMessage, authorize: Callable[[], Authorizer]
    ) -> tuple[Route, HttpRequest]:
        """The route and the parsed request. Raises HttpError."""
        if not message.path.startswith("/"):
            raise HttpError(400, "Invalid request target: must be an absolute path")
        route, name = self.router.find(message.method, message.path)
        most = route.body_bytes or self._settings.body_bytes
        if message.length > most:
            raise _too_large(message.length, most)
        why = rejection_reason(message.headers, self._hosts, writes=route.writes)
        # With TLS the browser has compared the page's name with the certificate.
        if why and not connection.is_local and not connection.has_tls:
            raise HttpError(403, why)

        async def read() -> bytes:
            return await self._body(message, most)

        query = message.query
        api_request = HttpRequest(
            message.method, name, parse_parameters(query), read, authorize, message.headers, query
        )
        # An agent answers for itself, whatever ?dc says, as in Consul.
        datacenter = self._node.datacenter
        check_place(api_request, datacenter if not route.path.startswith("/v1/agent/") else api_request.get("dc"))
        return route, api_request

    async def _run(self, route: Route, api_request: HttpRequest) -> HttpResponse:
        if route.path.startswith("/v1/agent/") or (route.writes and route.path.startswith("/v1/catalog/")):
            await self._registry.restored()
        if not route.writes:
            return await route.handler(api_request)
        if api_request.acl.local_user:
            raise api_request.acl.denied(f"{route.method} {route.path}", api_request.name, Access.WRITE)
        # A write is completed even if the client disconnects.
        writing: asyncio.Future[HttpResponse] = asyncio.ensure_future(route.handler(api_request))
        self._pending_writes.add(writing)
        writing.add_done_callback(self._on_write_done)
        return await asyncio.shield(writing)

    def _on_write_done(self, writing: asyncio.Future[HttpResponse]) -> None:
        self._pending_writes.discard(writing)
        if not writing.cancelled():
            writing.exception()  # retrieve it: the client may have disconnected

    async def _body(self, message: HttpMessage, most: int) -> bytes:
        """Read the body, limited in size and time. Raises HttpError."""
        found = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_time):
                while chunk := await message.next_chunk():
                    found += chunk
                    if len(found) > most:
                        raise _too_large(len(found), most)
        except TimeoutError:
            text = f"The body did not come within {self._settings.body_time:g} s"
            raise HttpError(408, text, close=True) from None
        except BrokenBody:
            raise HttpError(400, "Malformed request body", close=True) from None
        return bytes(found)


def _too_large(size: int, most: int) -> HttpError:
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


def _address(sock: socket.socket) -> str:
    try:
        return str(sock.getpeername()[0])
    except OSError:  # it has disconnected
        return ""
