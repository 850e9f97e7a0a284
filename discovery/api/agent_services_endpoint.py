"""``/v1/agent``: reads of the local services and checks."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import TypedDict

from discovery.api import schemas, serialize
from discovery.api.blocking_query import BlockingQueries, encode_json
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.kvs_endpoint import wait_event
from discovery.api.query_options import apply_filter
from discovery.api.router import TEXT, HttpResponse, endpoint
from discovery.api.visibility import visible_checks, visible_instances
from discovery.registry import Registry
from discovery.structs import Check, Instance, worst_status

_STATUS_CODES = {"passing": 200, "warning": 429}


class ServiceHealth(TypedDict):
    """The health of an instance (``schemas.AGENT_HEALTH``)."""

    AggregatedStatus: str
    Service: serialize.Json
    Checks: list[serialize.Json]


class AgentServicesEndpoint:
    """Handlers that read the local registry."""

    def __init__(self, registry: Registry, blocking_queries: BlockingQueries) -> None:
        self._registry = registry
        self._blocking = blocking_queries

    @endpoint(
        "GET",
        "/v1/agent/services",
        "The services of this node, by id",
        parameters=("filter",),
        response=schemas.map_of(schemas.AGENT_SERVICE),
    )
    async def services(self, request: HttpRequest) -> HttpResponse:
        datacenter = self._registry.node.datacenter
        instances = {one.id: one for one in visible_instances(request, self._registry.instances().values())}
        found = {name: serialize.agent_service(instances[name], datacenter) for name in sorted(instances)}
        return HttpResponse(encode_json(apply_filter(found, request, schemas.AGENT_SERVICE), request))

    @endpoint(
        "GET",
        "/v1/agent/service/:id",
        "One service of this node; blocks while ?hash is unchanged",
        parameters=("hash", "wait"),
        response=schemas.AGENT_SERVICE,
    )
    async def service(self, request: HttpRequest) -> HttpResponse:
        node = self._registry.node
        _, wait = request.blocking_options()
        clock = asyncio.get_running_loop().time
        end = clock() + wait
        while True:
            changed = self._registry.changed  # the catalog may tell before the registry has it
            instance = self._registry.instances().get(request.name)
            if instance is None:
                raise HttpError(404, f"unknown service ID: {request.name}")
            request.acl.require("service", instance.name)
            found = serialize.agent_service(instance, node.datacenter)
            digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
            if request.get("hash") != digest or clock() >= end:
                body = encode_json({**found, "ContentHash": digest}, request)
                return HttpResponse(body, headers={"X-Consul-ContentHash": digest})
            await self._blocking.block(wait_event(changed, end - clock()))

    @endpoint(
        "GET",
        "/v1/agent/checks",
        "The checks of this node, by id",
        parameters=("filter",),
        response=schemas.map_of(schemas.CHECK),
    )
    async def checks(self, request: HttpRequest) -> HttpResponse:
        checks = {one.id: one for one in visible_checks(request, self._registry.checks().values())}
        found = {name: serialize.check(checks[name]) for name in sorted(checks)}
        return HttpResponse(encode_json(apply_filter(found, request, schemas.CHECK), request))

    @endpoint(
        "GET",
        "/v1/agent/health/service/name/:name",
        "The health of this node's instances of a service",
        parameters=("format",),
        response=schemas.list_of(schemas.AGENT_HEALTH),
        statuses=(429, 503),
    )
    async def health_by_name(self, request: HttpRequest) -> HttpResponse:
        request.acl.require("service", request.name)
        instances = [one for _, one in sorted(self._registry.instances().items()) if one.name == request.name]
        found = [self._health(one) for one in instances]
        if not found:
            text = f"ServiceName {request.name} Not Found"
            return HttpResponse(text.encode(), 404, TEXT) if _wants_text(request) else HttpResponse(b"[]", 404)
        status = max((one["AggregatedStatus"] for one in found), key=_severity)
        return _health_response(found, status, request)

    @endpoint(
        "GET",
        "/v1/agent/health/service/id/:id",
        "The health of one instance on this node",
        parameters=("format",),
        response=schemas.AGENT_HEALTH,
        statuses=(429, 503),
    )
    async def health_by_id(self, request: HttpRequest) -> HttpResponse:
        instance = self._registry.instances().get(request.name)
        if instance is None:
            raise HttpError(404, f"ServiceId {request.name} not found")
        request.acl.require("service", instance.name)
        found = self._health(instance)
        return _health_response(found, found["AggregatedStatus"], request)

    def _health(self, instance: Instance) -> ServiceHealth:
        checks = self._registry.checks_of(instance.id)
        return {
            "AggregatedStatus": _aggregated(checks),
            "Service": serialize.agent_service(instance, self._registry.node.datacenter),
            "Checks": [serialize.check(check) for check in checks],
        }


def _aggregated(checks: Sequence[Check]) -> str:
    return "maintenance" if any(check.maintenance for check in checks) else worst_status(checks).value


def _severity(status: str) -> int:
    return ("passing", "warning", "critical", "maintenance").index(status)


def _wants_text(request: HttpRequest) -> bool:
    if request.headers.get("Accept", "").startswith("text/plain"):
        return True
    return request.get("format") == "text"


def _health_response(found: object, status: str, request: HttpRequest) -> HttpResponse:
    code = _STATUS_CODES.get(status, 503)
    if _wants_text(request):
        return HttpResponse(status.encode(), code, TEXT)
    return HttpResponse(encode_json(found, request), code)
