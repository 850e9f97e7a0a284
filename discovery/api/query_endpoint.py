"""``/v1/query``: prepared queries."""

from __future__ import annotations

import uuid
from dataclasses import replace

from discovery.acl.authorizer import Authorizer
from discovery.api import schemas, serialize
from discovery.api.blocking_query import BlockingQueries, consul_headers, encode_json
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse, endpoint
from discovery.api.session_endpoint import READ_PARAMETERS
from discovery.api.visibility import visible_health
from discovery.catalog import QUERIES, Catalog
from discovery.consul.durations import format_duration
from discovery.consul.json_fields import BadField, Fields
from discovery.consul.sessions import SessionManager
from discovery.layout import encode, store_key
from discovery.prepared_queries import PREFIX_MATCH, VARIABLE, VARIABLES, execute, find_query
from discovery.structs import MAX_TTL, Node, PreparedQuery
from store import Store

MAX_QUERIES = 10_000


class QueryEndpoint:
    """Handlers of prepared queries."""

    def __init__(
        self, catalog: Catalog, store: Store, sessions: SessionManager, node: Node, blocking_queries: BlockingQueries
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._sessions = sessions
        self._node = node
        self._blocking = blocking_queries

    @endpoint(
        "PUT",
        "/v1/query",
        "Create a prepared query",
        parameters=("dc",),
        response=schemas.struct("QueryCreated", ID=schemas.STRING),
        request_body=schemas.QUERY_REQUEST,
        writes=True,
        deprecated_methods=("POST",),
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        if len(self._catalog.queries()) >= MAX_QUERIES:
            raise HttpError(400, f"there are {MAX_QUERIES} prepared queries; delete some")
        query = await self._parsed(request, str(uuid.uuid4()))
        _require_write(request, query)
        await self._write(query)
        return HttpResponse(encode_json({"ID": query.id}, request))

    @endpoint(
        "GET",
        "/v1/query",
        "All prepared queries",
        parameters=READ_PARAMETERS,
        response=schemas.list_of(schemas.QUERY),
        blocking=True,
    )
    async def list_(self, request: HttpRequest) -> HttpResponse:
        def build() -> object:
            acl = request.acl
            acl.require_list("query")
            found = [one for _, one in sorted(self._catalog.queries().items())]
            return [_json(one) for one in request.visible(found, lambda one: _is_readable(acl, one))]

        return await self._blocking.serve(request, ("queries", request.has("pretty")), (QUERIES,), build)

    @endpoint(
        "GET",
        "/v1/query/:query",
        "One prepared query, by id",
        parameters=READ_PARAMETERS,
        response=schemas.list_of(schemas.QUERY),
        blocking=True,
    )
    async def get(self, request: HttpRequest) -> HttpResponse:
        def build() -> object:
            query = self._required(request, by_id=True)
            _require_read(request, query)
            return [_json(query)]

        return await self._blocking.serve(request, ("query", request.name, request.has("pretty")), (QUERIES,), build)

    @endpoint(
        "PUT",
        "/v1/query/:query",
        "Replace a prepared query, by id",
        parameters=("dc",),
        request_body=schemas.QUERY_REQUEST,
        writes=True,
    )
    async def update(self, request: HttpRequest) -> HttpResponse:
        old = self._required(request, by_id=True)
        _require_write(request, old)
        query = await self._parsed(request, old.id)
        _require_write(request, query)
        await self._write(query)
        return HttpResponse()

    @endpoint("DELETE", "/v1/query/:query", "Delete a prepared query, by id", parameters=("dc",), writes=True)
    async def delete(self, request: HttpRequest) -> HttpResponse:
        known = self._catalog.queries().get(request.name)
        _require_write(request, known or PreparedQuery(request.name))
        await self._store.delete(store_key(PreparedQuery(request.name)))
        await self._blocking.wait_for_catalog()
        return HttpResponse()

    @endpoint(
        "GET",
        "/v1/query/:query/execute",
        "The healthy instances that a prepared query finds, by its id or name",
        parameters=("near", "limit", "dc", "pretty"),
        response=schemas.QUERY_RESULT,
    )
    async def execute(self, request: HttpRequest) -> HttpResponse:
        query = self._required(request)
        near = request.get("near") or query.near
        found = execute(self._catalog, query, self._node.name if near == "_agent" else near)
        found = list(visible_health(request, found))
        if limit := request.number("limit"):
            del found[limit:]
        result = {
            "Service": query.service,
            "Nodes": [serialize.health(one) for one in found],
            "DNS": _dns(query),
            "Datacenter": self._node.datacenter,
            "Failovers": 0,
        }
        return HttpResponse(encode_json(result, request))

    @endpoint(
        "GET",
        "/v1/query/:query/explain",
        "The prepared query that a name means, the variables of its template replaced",
        response=schemas.struct("QueryExplained", Query=schemas.QUERY),
    )
    async def explain(self, request: HttpRequest) -> HttpResponse:
        query = self._required(request)
        _require_read(request, query)
        return HttpResponse(encode_json({"Query": _json(query)}, request))

    def _required(self, request: HttpRequest, *, by_id: bool = False) -> PreparedQuery:
        queries = self._catalog.queries()
        found = queries.get(request.name) if by_id else find_query(queries, request.name)
        if found is None:
            raise HttpError(404, "Query not found", headers=consul_headers(self._catalog.index, request))
        return found

    async def _parsed(self, request: HttpRequest, query_id: str) -> PreparedQuery:
        try:
            query = _parse(Fields(await request.json()), query_id)
        except BadField as error:
            raise HttpError(400, f"Request decode failed: {error}") from None
        for other in self._catalog.queries().values():
            if query.name and other.id != query.id and other.name.lower() == query.name.lower():
                raise HttpError(400, f"name '{query.name}' aliases an existing query name")
        if query.session and await self._sessions.find(query.session) is None:
            raise HttpError(400, f"invalid session {query.session[:60]!r}")
        return query

    async def _write(self, query: PreparedQuery) -> None:
        await self._store.put(store_key(query), encode(query))
        await self._blocking.wait_for_catalog()


def _is_readable(acl: Authorizer, query: PreparedQuery) -> bool:
    """A query without a name is for whoever knows its id, and listed for those who manage all."""
    return acl.allows("query", query.name) if query.name else acl.manages or acl.local_user


def _require_read(request: HttpRequest, query: PreparedQuery) -> None:
    if query.name or request.acl.local_user:
        request.acl.require("query", query.name)


def _require_write(request: HttpRequest, query: PreparedQuery) -> None:
    """Raise PermissionDenied; unlike Consul's also without a name, so that not everybody can fill the store."""
    request.acl.require_write("query", query.name)


def _parse(fields: Fields, query_id: str) -> PreparedQuery:
    """A query as clients write it. Raises BadField."""
    empty = Fields({})
    service, dns = fields.object_("Service") or empty, fields.object_("DNS") or empty
    if not service.name("Service"):
        raise BadField("Must provide a Service name to query")
    if fields.text("Token"):
        raise BadField("Token is not supported: a query is executed with the permissions of whoever executes it")
    failover = service.get("Failover") or {}
    if not isinstance(failover, dict):
        service.invalid("Failover", failover, "is not an object")
    query = PreparedQuery(
        id=query_id,
        name=fields.name("Name"),
        service=service.name("Service"),
        tags=service.string_list("Tags"),
        only_passing=service.boolean("OnlyPassing"),
        ignore_checks=service.string_list("IgnoreCheckIDs"),
        near=service.name("Near"),
        node_meta=service.string_map("NodeMeta"),
        service_meta=service.string_map("ServiceMeta"),
        ttl=_ttl(dns),
        failover=failover,
        session=fields.text("Session"),
    )
    if service.boolean("Connect"):
        service.invalid("Connect", True, "is not supported: weft has no Connect")
    template = fields.object_("Template")
    return _with_template(query, template) if template is not None and template.text("Type") else query


def _ttl(dns: Fields) -> float | None:
    """The TTL of DNS, in seconds; None without one. Raises BadField."""
    text = dns.text("TTL")
    seconds = dns.duration("TTL")
    if not 0 <= seconds <= MAX_TTL:
        dns.invalid("TTL", text, f"must be 0s to {MAX_TTL}s")
    return seconds if text else None


def _with_template(query: PreparedQuery, template: Fields) -> PreparedQuery:
    if template.text("Type") != PREFIX_MATCH:
        template.invalid("Type", template.text("Type"), f"is not supported, only {PREFIX_MATCH}")
    if template.text("Regexp"):
        template.invalid("Regexp", template.text("Regexp"), "is not supported: use ${name.prefix} and ${name.suffix}")
    for text in (query.service, *query.tags, *query.node_meta.values()):
        for variable in VARIABLE.findall(text):
            if variable.strip() not in VARIABLES:
                raise BadField(f"unknown variable {variable[:40]!r}; known are {', '.join(VARIABLES)}")
    return replace(query, template=PREFIX_MATCH, remove_empty_tags=template.boolean("RemoveEmptyTags"))


def _json(query: PreparedQuery) -> serialize.Json:
    return {
        "ID": query.id,
        "Name": query.name,
        "Session": query.session,
        "Token": "",
        "Template": {"Type": query.template, "Regexp": "", "RemoveEmptyTags": query.remove_empty_tags},
        "Service": {
            "Service": query.service,
            "Failover": dict(query.failover),
            "OnlyPassing": query.only_passing,
            "IgnoreCheckIDs": list(query.ignore_checks),
            "Near": query.near,
            "Tags": list(query.tags),
            "NodeMeta": dict(query.node_meta),
            "ServiceMeta": dict(query.service_meta),
            "Connect": False,
        },
        "DNS": _dns(query),
        "CreateIndex": query.create_index,
        "ModifyIndex": query.modify_index,
    }


def _dns(query: PreparedQuery) -> serialize.Json:
    return {"TTL": format_duration(query.ttl) if query.ttl is not None else ""}
