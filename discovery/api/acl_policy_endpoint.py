"""``/v1/acl``: policies, roles, templated policies."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import TypeVar

from discovery.acl.identities import TEMPLATES, check_template, template_rules
from discovery.acl.json_records import Json, parse_policy, parse_role, policy_json, role_json
from discovery.acl.records import BUILTIN_POLICIES, Policy, Role, acl_key, encode_acl
from discovery.acl.rules import BadRules
from discovery.acl.tokens import Tokens
from discovery.api import schemas
from discovery.api.acl_writer import AclWriter
from discovery.api.blocking_query import encode_json
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse, endpoint
from discovery.consul.json_fields import BadField, Fields
from store import Compare, Delete, Put

Record = TypeVar("Record", Policy, Role)
MAX_RECORDS = 10_000
_BUILTIN = {one.id for one in BUILTIN_POLICIES}


class AclPolicyEndpoint:
    """Handlers of policies and roles."""

    def __init__(self, tokens: Tokens, writer: AclWriter) -> None:
        self._tokens = tokens
        self._writer = writer

    # Policies

    @endpoint("GET", "/v1/acl/policies", "All policies, without rules", response=schemas.list_of(schemas.ANY_OBJECT))
    async def policies(self, request: HttpRequest) -> HttpResponse:
        self._require_read(request)
        return HttpResponse(encode_json([policy_json(one, rules=False) for one in self._tokens.policies()], request))

    @endpoint("GET", "/v1/acl/policy/:id", "One policy", response=schemas.ANY_OBJECT)
    async def policy(self, request: HttpRequest) -> HttpResponse:
        self._require_read(request)
        return _answer(request, self._policy(request), policy_json)

    @endpoint("GET", "/v1/acl/policy/name/:name", "One policy, by its name", response=schemas.ANY_OBJECT)
    async def policy_by_name(self, request: HttpRequest) -> HttpResponse:
        self._require_read(request)
        return _answer(request, _by_name(self._tokens.policies(), request.name), policy_json)

    @endpoint(
        "PUT",
        "/v1/acl/policy",
        "Create a policy",
        response=schemas.ANY_OBJECT,
        request_body=schemas.ANY_OBJECT,
        writes=True,
    )
    async def create_policy(self, request: HttpRequest) -> HttpResponse:
        policy = await self._parsed(request, parse_policy, Policy(str(uuid.uuid4()), ""))
        _limit(sum(1 for _ in self._tokens.policies()))
        await self._write(policy)
        return _answer(request, self._tokens.policy(policy.id), policy_json)

    @endpoint(
        "PUT",
        "/v1/acl/policy/:id",
        "Replace a policy",
        response=schemas.ANY_OBJECT,
        request_body=schemas.ANY_OBJECT,
        writes=True,
    )
    async def update_policy(self, request: HttpRequest) -> HttpResponse:
        old = self._policy(request)
        if old.id in _BUILTIN:
            raise HttpError(400, f"Changing the {old.name} policy is not permitted")
        policy = await self._parsed(request, parse_policy, old)
        await self._write(policy)
        return _answer(request, self._tokens.policy(policy.id), policy_json)

    @endpoint("DELETE", "/v1/acl/policy/:id", "Delete a policy", response=schemas.BOOLEAN, writes=True)
    async def delete_policy(self, request: HttpRequest) -> HttpResponse:
        self._require_write(request)
        if request.name in _BUILTIN:
            raise HttpError(400, "Delete operation not permitted on a builtin policy")
        return await self._delete(self._tokens.policy(request.name))

    # Roles

    @endpoint("GET", "/v1/acl/roles", "All roles", response=schemas.list_of(schemas.ANY_OBJECT))
    async def roles(self, request: HttpRequest) -> HttpResponse:
        self._require_read(request)
        return HttpResponse(encode_json([self._role_json(one) for one in self._tokens.roles()], request))

    @endpoint("GET", "/v1/acl/role/:id", "One role", response=schemas.ANY_OBJECT)
    async def role(self, request: HttpRequest) -> HttpResponse:
        self._require_read(request)
        return _answer(request, self._role(request), self._role_json)

    @endpoint("GET", "/v1/acl/role/name/:name", "One role, by its name", response=schemas.ANY_OBJECT)
    async def role_by_name(self, request: HttpRequest) -> HttpResponse:
        self._require_read(request)
        return _answer(request, _by_name(self._tokens.roles(), request.name), self._role_json)

    @endpoint(
        "PUT",
        "/v1/acl/role",
        "Create a role",
        response=schemas.ANY_OBJECT,
        request_body=schemas.ANY_OBJECT,
        writes=True,
    )
    async def create_role(self, request: HttpRequest) -> HttpResponse:
        role = await self._parsed(request, parse_role, Role(str(uuid.uuid4()), ""))
        _limit(sum(1 for _ in self._tokens.roles()))
        await self._write(role)
        return _answer(request, self._tokens.role(role.id), self._role_json)

    @endpoint(
        "PUT",
        "/v1/acl/role/:id",
        "Replace a role",
        response=schemas.ANY_OBJECT,
        request_body=schemas.ANY_OBJECT,
        writes=True,
    )
    async def update_role(self, request: HttpRequest) -> HttpResponse:
        role = await self._parsed(request, parse_role, self._role(request))
        await self._write(role)
        return _answer(request, self._tokens.role(role.id), self._role_json)

    @endpoint("DELETE", "/v1/acl/role/:id", "Delete a role", response=schemas.BOOLEAN, writes=True)
    async def delete_role(self, request: HttpRequest) -> HttpResponse:
        self._require_write(request)
        return await self._delete(self._tokens.role(request.name))

    # Templates, replication

    @endpoint("GET", "/v1/acl/templated-policies", "The templated policies", response=schemas.ANY_OBJECT)
    async def templates(self, request: HttpRequest) -> HttpResponse:
        self._require_read(request)
        return HttpResponse(encode_json({name: _template_json(name) for name in TEMPLATES}, request))

    @endpoint("GET", "/v1/acl/templated-policy/name/:name", "One templated policy", response=schemas.ANY_OBJECT)
    async def template(self, request: HttpRequest) -> HttpResponse:
        self._require_read(request)
        if request.name not in TEMPLATES:
            raise HttpError(404, f"templated policy not found with name {request.name[:60]!r}")
        return HttpResponse(encode_json(_template_json(request.name), request))

    @endpoint(
        "POST",
        "/v1/acl/templated-policy/preview/:name",
        "The rules of a templated policy for a name",
        response=schemas.ANY_OBJECT,
        request_body=schemas.ANY_OBJECT,
    )
    async def preview(self, request: HttpRequest) -> HttpResponse:
        self._require_read(request)
        found = await request.json()
        try:
            name = Fields({} if found is None else found).name("Name")
            check_template(request.name, name)
        except (BadField, BadRules) as error:
            raise HttpError(400, str(error)) from None
        policy_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{request.name} {name}"))
        policy = Policy(policy_id, f"synthetic-policy-{policy_id[:8]}", rules=template_rules(request.name, name))
        return HttpResponse(encode_json(policy_json(policy), request))

    @endpoint("GET", "/v1/acl/replication", "ACLs are not replicated: nodes share them", response=schemas.ANY_OBJECT)
    async def replication(self, request: HttpRequest) -> HttpResponse:
        self._writer.require_enabled()
        found = {"Enabled": False, "Running": False, "SourceDatacenter": "", "ReplicationType": ""}
        numbers = dict.fromkeys(("ReplicatedIndex", "ReplicatedRoleIndex", "ReplicatedTokenIndex"), 0)
        return HttpResponse(encode_json({**found, **numbers}, request))

    # Common

    def _require_read(self, request: HttpRequest) -> None:
        self._writer.require_enabled()
        request.acl.require("acl")

    def _require_write(self, request: HttpRequest) -> None:
        self._writer.require_enabled()
        request.acl.require_write("acl")

    def _role_json(self, role: Role) -> Json:
        return role_json(role, self._tokens)

    def _policy(self, request: HttpRequest) -> Policy:
        return _found(self._tokens.policy(request.name), "policy", request.name)

    def _role(self, request: HttpRequest) -> Role:
        return _found(self._tokens.role(request.name), "role", request.name)

    async def _parsed(
        self, request: HttpRequest, parse: Callable[[Fields, Tokens, Record], Record], old: Record
    ) -> Record:
        self._require_write(request)
        found = await request.json()
        fields = Fields({} if found is None else found)
        if fields.text("ID") not in ("", old.id):
            raise BadField("ID: cannot be chosen or changed")
        return parse(fields, self._tokens, old)

    async def _write(self, record: Policy | Role) -> None:
        guard = Compare(acl_key(record), "mod", record.modify_index)
        if not await self._writer.write([Put(acl_key(record), encode_acl(record))], guard):
            raise HttpError(409, f"{record.name} was changed meanwhile; try again")

    async def _delete(self, record: Policy | Role | None) -> HttpResponse:
        if record is not None:
            await self._writer.write([Delete(acl_key(record))])
        return HttpResponse(b"true")


def _found(record: Record | None, kind: str, name: str) -> Record:
    if record is None and kind != "record" and len(name) != 36:
        raise HttpError(400, f"failed ACL {kind} lookup: {name[:60]!r} is no UUID")
    if record is None:
        raise HttpError(404, f"Requested {kind} does not exist: ACL not found: {name[:60]!r}")
    return record


def _by_name(records: Iterable[Record], name: str) -> Record | None:
    return next((one for one in records if one.name == name), None)


def _answer(request: HttpRequest, record: Record | None, view: Callable[[Record], Json]) -> HttpResponse:
    return HttpResponse(encode_json(view(_found(record, "record", request.name)), request))


def _limit(count: int) -> None:
    if count >= MAX_RECORDS:
        raise HttpError(400, f"there are {MAX_RECORDS} already; delete some")


def _template_json(name: str) -> Json:
    text, named = TEMPLATES[name]
    schema = '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}' if named else ""
    return {"TemplateName": name, "Schema": schema, "Template": text.replace("NAME", "{{.Name}}")}
