"""``/v1/agent``: registration of local services and checks, check updates, maintenance mode."""

from __future__ import annotations

from dataclasses import replace

from discovery.api import schemas
from discovery.api.blocking_query import BlockingQueries
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest, parse_bool
from discovery.api.router import HttpResponse, endpoint
from discovery.consul.check_definitions import parse_check
from discovery.consul.json_fields import BadField, Fields
from discovery.consul.registration import parse_service
from discovery.registry import NotRegistered, Registry, Taken
from discovery.structs import CONSUL_SERVICE, SERF_HEALTH, Status, cut_output
from weft.service_options import TTL_CHECK


class AgentRegisterEndpoint:
    """Handlers that change the local registry. ``scripts`` allows script checks."""

    def __init__(self, registry: Registry, blocking_queries: BlockingQueries, *, scripts: bool) -> None:
        self._registry = registry
        self._blocking = blocking_queries
        self._scripts = scripts

    # Services

    @endpoint(
        "PUT",
        "/v1/agent/service/register",
        "Register or update a service",
        parameters=("replace-existing-checks",),
        request_body=schemas.SERVICE_REQUEST,
        writes=True,
    )
    async def register(self, request: HttpRequest) -> HttpResponse:
        registration = parse_service(await request.json(), self._registry.node.name, scripts=self._scripts)
        instance = registration.instance
        if CONSUL_SERVICE in (instance.id, instance.name.lower()):
            raise HttpError(400, f'Invalid service name: "{CONSUL_SERVICE}" is reserved for the agent')
        request.acl.require_write("service", instance.name)
        # What it replaces may be another service's.
        self._require_service_write(request, instance.id)
        for definition in registration.checks:
            self._require_known_check_write(request, definition.id)
        asked = request.get("replace-existing-checks") in ("", "true")
        replace_checks = request.has("replace-existing-checks") and asked
        try:
            await self._registry.register(instance, registration.checks, replace_checks=replace_checks)
        except Taken as error:
            raise HttpError(409, str(error)) from None
        await self._blocking.wait_for_catalog()
        return HttpResponse()

    @endpoint("PUT", "/v1/agent/service/deregister/:id", "Deregister a service", writes=True)
    async def deregister(self, request: HttpRequest) -> HttpResponse:
        self._require_service_write(request, request.name)
        try:
            await self._registry.deregister(request.name)
        except NotRegistered:
            raise _unknown_service(request.name) from None
        await self._blocking.wait_for_catalog()
        return HttpResponse()

    @endpoint(
        "PUT",
        "/v1/agent/service/maintenance/:id",
        "Enable or disable maintenance mode of a service",
        parameters=("enable", "reason"),
        writes=True,
    )
    async def maintain_service(self, request: HttpRequest) -> HttpResponse:
        if not request.name:
            raise HttpError(400, "Missing service ID")
        self._require_service_write(request, request.name)
        return await self._maintain(request, request.name)

    @endpoint(
        "PUT",
        "/v1/agent/maintenance",
        "Enable or disable maintenance mode of this node",
        parameters=("enable", "reason"),
        writes=True,
    )
    async def maintain_node(self, request: HttpRequest) -> HttpResponse:
        request.acl.require_write("node", self._registry.node.name)
        return await self._maintain(request, "")

    async def _maintain(self, request: HttpRequest, instance_id: str) -> HttpResponse:
        if not request.has("enable"):
            raise HttpError(400, "Missing value for enable")
        enable = parse_bool(request.get("enable"), "Invalid value for enable")
        try:
            await self._registry.maintenance(enable, request.get("reason"), instance_id)
        except NotRegistered:
            raise _unknown_service(instance_id) from None
        await self._blocking.wait_for_catalog()
        return HttpResponse()

    # Permissions

    def _require_service_write(self, request: HttpRequest, instance_id: str) -> None:
        """Raise PermissionDenied unless the caller may write the service of this instance, if there is
        one.
        """
        known = self._registry.instances().get(instance_id)
        if known is not None:
            request.acl.require_write("service", known.name)

    def _require_check_write(self, request: HttpRequest, service_id: str) -> None:
        """The same for a check of a service, or of the node."""
        if service_id:
            self._require_service_write(request, service_id)
        else:
            request.acl.require_write("node", self._registry.node.name)

    def _require_known_check_write(self, request: HttpRequest, check_id: str) -> None:
        known = self._registry.checks().get(check_id)
        if known is not None:
            self._require_check_write(request, known.service_id)

    # Checks

    @endpoint("PUT", "/v1/agent/check/register", "Register a check", request_body=schemas.CHECK_REQUEST, writes=True)
    async def register_check(self, request: HttpRequest) -> HttpResponse:
        fields = Fields(await request.json())
        if not fields.name("Name"):
            raise HttpError(400, "Missing check name")
        definition = parse_check(fields, scripts=self._scripts)
        definition = replace(definition, id=definition.id or definition.name)
        if definition.id == SERF_HEALTH:
            raise HttpError(400, f'Invalid check: "{SERF_HEALTH}" is reserved for the agent')
        self._require_check_write(request, definition.service_id)
        self._require_known_check_write(request, definition.id)
        try:
            await self._registry.register_check(definition)
        except NotRegistered:
            raise HttpError(404, f'ServiceID "{definition.service_id}" does not exist') from None
        except Taken as error:
            raise HttpError(409, str(error)) from None
        await self._blocking.wait_for_catalog()
        return HttpResponse()

    @endpoint("PUT", "/v1/agent/check/deregister/:id", "Deregister a check", writes=True)
    async def deregister_check(self, request: HttpRequest) -> HttpResponse:
        if request.name == SERF_HEALTH:
            raise _unknown_check(request.name)
        self._require_known_check_write(request, request.name)
        try:
            await self._registry.deregister_check(request.name)
        except NotRegistered:
            raise _unknown_check(request.name) from None
        await self._blocking.wait_for_catalog()
        return HttpResponse()

    @endpoint(
        "PUT", "/v1/agent/check/pass/:id", "Report a TTL check as passing", parameters=("note",), writes=True,
        deprecated_methods=("GET",),
    )  # fmt: skip
    async def pass_check(self, request: HttpRequest) -> HttpResponse:
        return await self._update(request, Status.PASSING, request.get("note"))

    @endpoint(
        "PUT", "/v1/agent/check/warn/:id", "Report a TTL check as warning", parameters=("note",), writes=True,
        deprecated_methods=("GET",),
    )  # fmt: skip
    async def warn_check(self, request: HttpRequest) -> HttpResponse:
        return await self._update(request, Status.WARNING, request.get("note"))

    @endpoint(
        "PUT", "/v1/agent/check/fail/:id", "Report a TTL check as critical", parameters=("note",), writes=True,
        deprecated_methods=("GET",),
    )  # fmt: skip
    async def fail_check(self, request: HttpRequest) -> HttpResponse:
        return await self._update(request, Status.CRITICAL, request.get("note"))

    @endpoint(
        "PUT",
        "/v1/agent/check/update/:id",
        "Report a TTL check",
        request_body=schemas.CHECK_UPDATE_REQUEST,
        writes=True,
    )
    async def update_check(self, request: HttpRequest) -> HttpResponse:
        try:
            fields = Fields(await request.json())
            status, output = fields.text("Status"), fields.text("Output", longest=512 * 1024)
        except BadField as error:
            raise HttpError(400, f"Request decode failed: {error}") from None
        if status not in tuple(Status):
            raise HttpError(400, f"Invalid check status: '{status[:40]}'")
        return await self._update(request, Status(status), output)

    async def _update(self, request: HttpRequest, status: Status, output: str) -> HttpResponse:
        check_id = request.name
        self._require_known_check_write(request, check_id)
        definition = self._registry.definition(check_id)
        if definition is None:
            raise _unknown_check(check_id)
        if definition.type != TTL_CHECK:
            raise HttpError(400, f'CheckID "{check_id}" does not have associated TTL')
        try:
            published = await self._registry.update_check(
                check_id, status, cut_output(output, definition.output_max_size)
            )
        except NotRegistered:
            raise _unknown_check(check_id) from None
        if published:
            await self._blocking.wait_for_catalog()
        return HttpResponse()


def _unknown_service(name: str) -> HttpError:
    return HttpError(404, f'Unknown service ID "{name}". Ensure that the service ID is passed, not the service name.')


def _unknown_check(name: str) -> HttpError:
    return HttpError(404, f'Unknown check ID "{name}". Ensure that the check ID is passed, not the check name.')
