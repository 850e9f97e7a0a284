"""The endpoints of what weft does not have: auth methods, Connect, config entries, peerings …

They answer as Consul's do where these are turned off, which clients understand: ``ACL support
disabled``, empty lists, a refusal that says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from discovery.api import schemas
from discovery.api.blocking_query import consul_headers
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import Handler, HttpResponse, Route

_READ = ("GET",)
_WRITE = ("PUT", "DELETE")
_NO_ACL = (401, "ACL support disabled")
_NO_LOGIN = (400, "auth methods are not supported: create a token with PUT /v1/acl/token")
_NO_CONNECT = (500, "Connect must be enabled in order to use this endpoint")
_NO_CONFIG = (400, "config entries are not supported: weft has no service mesh that would use them")
_NO_INTENTIONS = (400, "intentions are not supported: weft has no Connect; limit access with its isolation of networks")
_NO_PEERING = (400, "peering is disabled")
_NO_KEYRING = (500, "keyring is not in use: nodes do not gossip, they find each other through the store")
_NO_COORDINATES = (400, "coordinates are not supported: round trips between nodes are not measured")
_NO_RAFT = (500, "there is no Raft: weft's data are in its store; use etcdctl member for an etcd cluster")


@dataclass(frozen=True, slots=True)
class _Disabled:
    """Paths that are refused, with status and text."""

    paths: tuple[str, ...]
    methods: tuple[str, ...]
    why: tuple[int, str]


_REFUSED = (
    _Disabled(("acl/login", "acl/logout"), ("PUT", "POST"), _NO_LOGIN),
    _Disabled(
        ("acl/auth-method", "acl/binding-rule", "acl/auth-method/:name", "acl/binding-rule/:id"), _WRITE, _NO_LOGIN
    ),
    _Disabled(
        ("acl/auth-methods", "acl/binding-rules", "acl/auth-method/:name", "acl/binding-rule/:id"), _READ, _NO_LOGIN
    ),
    _Disabled(
        (
            *(
                "connect/ca/roots",
                "connect/ca/configuration",
                "agent/connect/ca/roots",
                "agent/connect/ca/leaf/:service",
            ),
            "discovery-chain/:service",
        ),
        _READ,
        _NO_CONNECT,
    ),
    _Disabled(("connect/ca/configuration",), ("PUT",), _NO_CONNECT),
    _Disabled(("agent/connect/authorize", "discovery-chain/:service"), ("POST",), _NO_CONNECT),
    _Disabled(("connect/intentions/exact", "connect/intentions/:id"), _WRITE, _NO_INTENTIONS),
    _Disabled(("connect/intentions",), ("POST",), _NO_INTENTIONS),
    _Disabled(("config",), ("PUT",), _NO_CONFIG),
    _Disabled(("peering/token", "peering/establish"), ("POST",), _NO_PEERING),
    _Disabled(("coordinate/update",), ("PUT",), _NO_COORDINATES),
    _Disabled(("operator/keyring",), ("GET", "POST", "PUT", "DELETE"), _NO_KEYRING),
    _Disabled(("operator/raft/peer",), ("DELETE",), _NO_RAFT),
    _Disabled(
        (
            "operator/raft/configuration",
            "operator/autopilot/configuration",
            "operator/autopilot/health",
            "operator/autopilot/state",
        ),
        _READ,
        _NO_RAFT,
    ),
    _Disabled(("operator/raft/transfer-leader",), ("POST",), _NO_RAFT),
)
_NOT_FOUND = (
    _Disabled(("connect/intentions/exact", "connect/intentions/:id"), _READ, (404, "Intention not found")),
    _Disabled(("peering/:name",), _READ, (404, "")),
    _Disabled(("coordinate/node/:node",), _READ, (404, "")),
)
_EMPTY_LISTS = (
    *("catalog/connect/:service", "health/connect/:service", "health/ingress/:service"),
    *("catalog/gateway-services/:gateway", "connect/intentions", "coordinate/nodes", "peerings"),
    "internal/ui/exported-services",
)


def routes(*, acls: bool = False) -> Iterator[Route]:
    """All of these; ``acls`` whether there are tokens."""
    for one in (*_REFUSED, *_NOT_FOUND):
        why = _NO_ACL if one.why is _NO_LOGIN and not acls else one.why
        for path in one.paths:
            for method in one.methods:
                yield Route(method, f"/v1/{path}", "Not supported", _refusal(*why), writes=method != "GET")
    for path in _EMPTY_LISTS:
        yield Route("GET", f"/v1/{path}", "Nothing: not supported", _empty_list, response=_NOTHING, blocking=True)
    yield Route(
        "GET", "/v1/config/:kind", "No config entries: not supported", _config, response=_NOTHING, blocking=True
    )


_NOTHING = schemas.list_of(schemas.ANY_OBJECT)


def _refusal(status: int, text: str) -> Handler:
    async def refuse(request: HttpRequest) -> HttpResponse:
        raise HttpError(status, text, headers=consul_headers(1, request) if status == 404 else None)

    return refuse


async def _empty_list(request: HttpRequest) -> HttpResponse:
    index, wait = request.blocking_options()
    if index >= 1:
        await asyncio.sleep(wait)  # a client that watches the list must not poll it
    return HttpResponse(b"[]", headers=consul_headers(1, request))


async def _config(request: HttpRequest) -> HttpResponse:
    kind, slash, name = request.name.partition("/")
    if slash:
        text = f'Config entry not found for "{kind[:100]}" / "{name[:100]}"'
        raise HttpError(404, text, headers=consul_headers(1, request))
    return await _empty_list(request)
