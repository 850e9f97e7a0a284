"""``/v1/acl``: the first token, tokens, and ``/v1/agent/token``."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from pathlib import Path

from discovery.acl.authorizer import NOT_FOUND, PermissionDenied
from discovery.acl.json_records import HIDDEN, parse_token, token_json
from discovery.acl.records import (
    ANONYMOUS_ID,
    BOOTSTRAP,
    MANAGEMENT_ID,
    Token,
    acl_key,
    digest,
    encode_acl,
)
from discovery.acl.tokens import Tokens
from discovery.api import schemas
from discovery.api.acl_writer import AclWriter
from discovery.api.blocking_query import encode_json
from discovery.api.callers import secret_of
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse, endpoint
from discovery.api.settings import AclSettings
from discovery.consul.json_fields import BadField, Fields
from store import Compare, Delete, Operation, Put

RESET_FILE = "acl-bootstrap-reset"
"""In the agent's data folder: the index for which a further bootstrap is allowed, as in Consul."""
MAX_TOKENS = 100_000


class AclTokenEndpoint:
    """Handlers of tokens. ``node`` is the agent's, whose token ``agent/token`` sets."""

    def __init__(self, tokens: Tokens, writer: AclWriter, settings: AclSettings, node: str) -> None:
        self._tokens = tokens
        self._writer = writer
        self._settings = settings
        self._node = node

    @endpoint(
        "PUT",
        "/v1/acl/bootstrap",
        "Create the first token, which may do everything; once",
        response=schemas.ANY_OBJECT,
        writes=True,
    )
    async def bootstrap(self, request: HttpRequest) -> HttpResponse:
        self._writer.require_enabled()
        index = self._tokens.bootstrapped
        reset = Path(self._settings.data, RESET_FILE) if self._settings.data else None
        if index and not (reset is not None and _allowed(reset, index)):
            raise HttpError(403, f"Permission denied: ACL bootstrap no longer allowed (reset index: {index})")
        found = await request.json()
        secret = _secret(Fields(found), "BootstrapSecret") if found is not None else str(uuid.uuid4())
        token = management_token(secret, "Bootstrap Token (Global Management)")
        if not await self._writer.write([Put(BOOTSTRAP, b"{}"), _put(token)], Compare(BOOTSTRAP, "mod", index)):
            raise HttpError(403, "Permission denied: ACL bootstrap no longer allowed")
        if reset is not None:
            reset.unlink(missing_ok=True)
        return self._shown(request, token.id, secret)

    @endpoint(
        "GET",
        "/v1/acl/tokens",
        "All tokens, without their secrets",
        parameters=("policy", "role", "servicename", "dc", "pretty"),
        response=schemas.list_of(schemas.ANY_OBJECT),
    )
    async def list_(self, request: HttpRequest) -> HttpResponse:
        self._writer.require_enabled()
        request.acl.require("acl")
        policy, role, service = (request.get(name) for name in ("policy", "role", "servicename"))
        found = [
            token_json(one, self._tokens)
            for one in self._tokens.tokens()
            if (not policy or policy in one.policies)
            and (not role or role in one.roles)
            and (not service or service in dict(one.services))
        ]
        return HttpResponse(encode_json(found, request))

    @endpoint("GET", "/v1/acl/token/self", "The token of this request", response=schemas.ANY_OBJECT)
    async def self_(self, request: HttpRequest) -> HttpResponse:
        self._writer.require_enabled()
        secret = secret_of(request.headers, request.query)
        token = self._tokens.by_secret(secret) if secret else self._tokens.token(ANONYMOUS_ID)
        if token is None:
            raise PermissionDenied(NOT_FOUND)
        return self._shown(request, token.id, secret)

    @endpoint("GET", "/v1/acl/token/:id", "One token, without its secret", response=schemas.ANY_OBJECT)
    async def get(self, request: HttpRequest) -> HttpResponse:
        self._writer.require_enabled()
        request.acl.require("acl")
        return self._shown(request, self._known(request.name).id)

    @endpoint(
        "PUT",
        "/v1/acl/token",
        "Create a token; its secret is in this answer alone",
        response=schemas.ANY_OBJECT,
        request_body=schemas.ANY_OBJECT,
        writes=True,
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        self._writer.require_enabled()
        request.acl.require_write("acl")
        fields = await self._fields(request)
        accessor = _uuid(fields, "AccessorID") or str(uuid.uuid4())
        secret = _secret(fields, "SecretID")
        token = parse_token(fields, self._tokens, Token(accessor, digest(secret), created=time.time()))
        return await self._create(request, token, secret)

    @endpoint(
        "PUT",
        "/v1/acl/token/:id/clone",
        "Create a token with the permissions of another",
        response=schemas.ANY_OBJECT,
        request_body=schemas.ANY_OBJECT,
        writes=True,
    )
    async def clone(self, request: HttpRequest) -> HttpResponse:
        self._writer.require_enabled()
        request.acl.require_write("acl")
        source, secret = self._known(request.name), str(uuid.uuid4())
        if source.id == ANONYMOUS_ID:
            raise HttpError(400, "Cannot clone the anonymous token")
        description = (await self._fields(request)).text("Description")
        token = replace(
            source,
            id=str(uuid.uuid4()),
            digest=digest(secret),
            description=description or source.description,
            created=time.time(),
        )
        return await self._create(request, token, secret)

    @endpoint(
        "PUT",
        "/v1/acl/token/:id",
        "Replace a token's description and permissions",
        response=schemas.ANY_OBJECT,
        request_body=schemas.ANY_OBJECT,
        writes=True,
    )
    async def update(self, request: HttpRequest) -> HttpResponse:
        self._writer.require_enabled()
        request.acl.require_write("acl")
        old = self._known(request.name)
        fields = await self._fields(request)
        if fields.text("AccessorID") not in ("", request.name, old.id):
            raise BadField("AccessorID: is not the token's that is updated")
        if fields.text("SecretID") not in ("", HIDDEN) and digest(fields.text("SecretID")) != old.digest:
            raise BadField("SecretID: a token's secret cannot be changed; create another token")
        token = parse_token(fields, self._tokens, old)
        await self._writer.write([await self._leased(token)])
        return self._shown(request, token.id)

    @endpoint("DELETE", "/v1/acl/token/:id", "Delete a token", response=schemas.BOOLEAN, writes=True)
    async def delete(self, request: HttpRequest) -> HttpResponse:
        self._writer.require_enabled()
        request.acl.require_write("acl")
        if request.name == ANONYMOUS_ID:
            raise HttpError(400, "Delete operation not permitted on the anonymous token")
        found = self._tokens.token(request.name)
        if found is not None:
            await self._writer.write([Delete(acl_key(found))])
        return HttpResponse(b"true")

    @endpoint(
        "PUT",
        "/v1/agent/token/:type",
        "Set the token of requests without one, until the agent restarts",
        request_body=schemas.ANY_OBJECT,
        writes=True,
    )
    async def set_agent_token(self, request: HttpRequest) -> HttpResponse:
        self._writer.require_enabled()
        request.acl.require_write("agent", self._node)
        if request.name not in ("default", "acl_token"):
            raise HttpError(
                400, f"{request.name[:60]} is not used: weft's agent writes to the store itself; the type is default"
            )
        try:
            self._tokens.set_default(Fields(await request.json()).text("Token"))
        except BadField as error:
            raise HttpError(400, f"Request decode failed: {error}") from None
        return HttpResponse()

    async def _create(self, request: HttpRequest, token: Token, secret: str) -> HttpResponse:
        if sum(1 for _ in self._tokens.tokens()) >= MAX_TOKENS:
            raise HttpError(400, f"there are {MAX_TOKENS} tokens; delete some")
        taken = self._tokens.by_secret(secret) is not None
        if taken or not await self._writer.write([await self._leased(token)], Compare(acl_key(token), "mod", 0)):
            raise HttpError(400, "Invalid Token: its AccessorID or SecretID is already in use")
        return self._shown(request, token.id, secret)

    async def _leased(self, token: Token) -> Operation:
        """The operation that writes a token; the store removes it when it has expired."""
        seconds = token.expires - time.time() if token.expires else 0.0
        return await self._writer.put(acl_key(token), encode_acl(token), seconds)

    def _known(self, accessor: str) -> Token:
        found = self._tokens.token(accessor)
        if found is None:
            raise PermissionDenied(NOT_FOUND)
        return found

    def _shown(self, request: HttpRequest, accessor: str, secret: str = "") -> HttpResponse:
        return HttpResponse(encode_json(token_json(self._known(accessor), self._tokens, secret), request))

    async def _fields(self, request: HttpRequest) -> Fields:
        found = await request.json()
        return Fields({} if found is None else found)


def management_token(secret: str, description: str) -> Token:
    """A token that may do everything. Its AccessorID is the secret's, so that every agent with the same
    configuration makes the same one.
    """
    accessor = str(uuid.UUID(bytes=bytes.fromhex(digest(f"accessor {secret}"))[:16], version=4))
    return Token(accessor, digest(secret), description, policies=(MANAGEMENT_ID,), created=time.time())


def _put(token: Token) -> Put:
    return Put(acl_key(token), encode_acl(token))


def _allowed(reset: Path, index: int) -> bool:
    """Whether the reset file names this index."""
    try:
        return reset.read_text(encoding="ascii").strip() == str(index)
    except (OSError, ValueError):
        return False


def _secret(fields: Fields, name: str) -> str:
    """A secret that the client has chosen, else a random one. Raises BadField."""
    return _uuid(fields, name) or str(uuid.uuid4())


def _uuid(fields: Fields, name: str) -> str:
    """A UUID as it is written; "" without one. Raises BadField."""
    text = fields.text(name)
    try:
        if text and str(uuid.UUID(text)) != text.lower():
            raise ValueError
    except ValueError:
        raise BadField(f"{name}: must be a UUID") from None
    if text.lower().startswith("00000000-0000-0000-0000-0000000000"):
        raise BadField(f"{name}: UUIDs that begin with 00000000-0000-0000-0000-0000000000 are reserved")
    return text
