"""``/v1/session``: sessions, which hold locks on keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from discovery.api import schemas
from discovery.api.blocking_query import BlockingQueries, consul_headers, encode_json
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.kvs_endpoint import wait_event
from discovery.api.router import HttpResponse, endpoint
from discovery.api.settings import HttpSettings
from discovery.catalog import Catalog
from discovery.consul.durations import format_duration
from discovery.consul.json_fields import BadField, Fields
from discovery.consul.sessions import Session, SessionManager, decode_session
from discovery.key_watch import KeyWatcher
from discovery.layout import SESSIONS
from discovery.structs import SERF_HEALTH, Status

READ_PARAMETERS = ("index", "wait", "stale", "consistent", "pretty", "dc")
MAX_TTL = 86400.0
MAX_LOCK_DELAY = 60.0


class SessionEndpoint:
    """Handlers of sessions."""

    def __init__(
        self,
        catalog: Catalog,
        changes: KeyWatcher,
        sessions: SessionManager,
        blocking_queries: BlockingQueries,
        settings: HttpSettings,
        node: str,
    ) -> None:
        self._catalog = catalog
        self._changes = changes
        self._sessions = sessions
        self._blocking = blocking_queries
        self._settings = settings
        self._node = node

    @endpoint(
        "PUT",
        "/v1/session/create",
        "Create a session",
        parameters=("dc",),
        response=schemas.struct("SessionCreated", ID=schemas.STRING),
        request_body=schemas.SESSION_REQUEST,
        writes=True,
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        found = await request.json()
        try:
            session = self._session(Fields({} if found is None else found))
        except BadField as error:
            raise HttpError(400, f"Request decode failed: {error}") from None
        request.acl.require_write("session", session.node)
        session = await self._sessions.create(session)
        return HttpResponse(encode_json({"ID": session.id}, request))

    def _session(self, fields: Fields) -> Session:
        node = fields.name("Node") or self._node
        known = self._catalog.node(node)
        if known is None and node != self._node:
            raise HttpError(400, f'Missing node registration: no node "{node}"')
        node = known.name if known is not None else node
        behavior = fields.text("Behavior") or "release"
        if behavior not in ("release", "delete"):
            raise HttpError(400, f"Invalid Behavior setting '{behavior[:40]}'")
        ttl = fields.duration("TTL")
        if ttl and not self._settings.session_ttl_min <= ttl <= MAX_TTL:
            low, high = format_duration(self._settings.session_ttl_min), format_duration(MAX_TTL)
            raise HttpError(400, f"Invalid Session TTL '{fields.get('TTL')}', must be between [{low}={high}]")
        given = fields.has("Checks", "NodeChecks")
        checks = tuple(dict.fromkeys((*fields.string_list("Checks"), *fields.string_list("NodeChecks"))))
        services = tuple(part.name("ID") for part in fields.objects("ServiceChecks"))
        session = Session(
            id="",
            node=node,
            name=fields.name("Name"),
            ttl=ttl,
            delay=_lock_delay(fields),
            behavior=behavior,
            checks=checks if given else (SERF_HEALTH,),
            service_checks=services,
        )
        self._validate_checks(session)
        return session

    def _validate_checks(self, session: Session) -> None:
        """Validate that the checks of a session exist and are not critical. Raises HttpError."""
        for name in (*session.checks, *session.service_checks):
            found = self._catalog.check(session.node, name)
            # This agent is alive, even if its lease has just expired.
            if found is None and (name != SERF_HEALTH or session.node != self._node):
                raise HttpError(400, f"Missing check '{name}' registration")
            if found is not None and found.status is Status.CRITICAL:
                raise HttpError(400, f"Check '{name}' is in critical state")

    @endpoint(
        "PUT",
        "/v1/session/destroy/:id",
        "Destroy a session and release its locks",
        parameters=("dc",),
        response=schemas.BOOLEAN,
        writes=True,
    )
    async def destroy(self, request: HttpRequest) -> HttpResponse:
        await self._require_write(request, _required_id(request))
        await self._sessions.destroy(request.name)
        return HttpResponse(b"true")

    async def _require_write(self, request: HttpRequest, session_id: str) -> None:
        """Raise PermissionDenied unless the caller may write the node's sessions."""
        entry = await self._sessions.find(session_id)
        if entry is not None:
            request.acl.require_write("session", decode_session(entry).node)

    @endpoint(
        "PUT",
        "/v1/session/renew/:id",
        "Renew a session",
        parameters=("dc",),
        response=schemas.list_of(schemas.SESSION),
        writes=True,
    )
    async def renew(self, request: HttpRequest) -> HttpResponse:
        await self._require_write(request, _required_id(request))
        session = await self._sessions.renew(request.name)
        if session is None:
            raise HttpError(404, f"Session id '{request.name}' not found")
        return HttpResponse(encode_json([_session_json(session)], request))

    @endpoint(
        "GET",
        "/v1/session/info/:id",
        "One session",
        parameters=READ_PARAMETERS,
        response=schemas.list_of(schemas.SESSION),
        blocking=True,
    )
    async def info(self, request: HttpRequest) -> HttpResponse:
        session_id = _required_id(request)
        return await self._blocking_query("info", request, lambda session: session.id == session_id)

    @endpoint(
        "GET",
        "/v1/session/list",
        "All sessions",
        parameters=READ_PARAMETERS,
        response=schemas.list_of(schemas.SESSION),
        blocking=True,
    )
    async def list_(self, request: HttpRequest) -> HttpResponse:
        return await self._blocking_query("list", request, lambda session: True)

    @endpoint(
        "GET",
        "/v1/session/node/:node",
        "The sessions of a node",
        parameters=READ_PARAMETERS,
        response=schemas.list_of(schemas.SESSION),
        blocking=True,
    )
    async def of_node(self, request: HttpRequest) -> HttpResponse:
        if not request.name:
            raise HttpError(400, "Missing node name")
        return await self._blocking_query("node", request, lambda session: session.node.lower() == request.name.lower())

    async def _blocking_query(
        self, kind: str, request: HttpRequest, predicate: Callable[[Session], bool]
    ) -> HttpResponse:
        index, duration = request.blocking_options()
        request.consistency_mode()
        clock = asyncio.get_running_loop().time
        end = clock() + duration
        key = ("session", kind, request.name, request.has("pretty"))
        with self._changes.subscribe(SESSIONS) as changed:
            while True:
                changed.clear()
                read = await self._sessions.all(self._changes.read)
                wanted = [one for one in map(decode_session, read.entries) if predicate(one)]
                listed = request.readable("session", wanted, lambda one: one.node)
                body = encode_json([_session_json(one) for one in listed], request)
                known = self._blocking.cache_response(request, key, body, read.revision)
                if index == 0 or known.index > index or clock() >= end:
                    return HttpResponse(known.body, headers=consul_headers(known.index, request))
                await self._blocking.block(wait_event(changed, end - clock()))


def _required_id(request: HttpRequest) -> str:
    if not request.name:
        raise HttpError(400, "Missing session")
    return request.name


def _lock_delay(fields: Fields) -> float:
    """Seconds; small numbers are seconds, not nanoseconds, as in Consul."""
    if not fields.has("LockDelay"):
        return 15.0
    duration = fields.duration("LockDelay")
    if 0 < duration < 1e-6:
        duration *= 1e9
    return min(max(duration, 0.0), MAX_LOCK_DELAY)


def _session_json(session: Session) -> dict[str, object]:
    return {
        "ID": session.id,
        "Name": session.name,
        "Node": session.node,
        "LockDelay": round(session.delay * 1e9),
        "Behavior": session.behavior,
        "TTL": format_duration(session.ttl) if session.ttl else "",
        "Checks": list(session.checks),
        "NodeChecks": list(session.checks),
        "ServiceChecks": [{"ID": name} for name in session.service_checks],
        "CreateIndex": session.create_index,
        "ModifyIndex": session.modify_index,
    }
