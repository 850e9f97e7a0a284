"""``/v1/txn``: several operations on keys, nodes, services and checks, all or none."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace

from discovery.acl.authorizer import Authorizer, PermissionDenied
from discovery.acl.rules import Access
from discovery.api import schemas, serialize
from discovery.api.blocking_query import BlockingQueries, encode_json
from discovery.api.catalog_endpoint import parse_external_check, parse_node
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.kvs_endpoint import check_size, kv_pair_json
from discovery.api.router import HttpResponse, endpoint
from discovery.catalog import Catalog
from discovery.consul.catalog_txn import CatalogOperation
from discovery.consul.json_fields import BadField, Fields
from discovery.consul.kv_txn import KVOperation, apply
from discovery.consul.registration import parse_instance
from discovery.consul.session_txn import SessionOperation
from discovery.consul.sessions import SessionManager, decode_session
from discovery.kv import KVPair
from discovery.structs import CatalogEntry, Check, Instance, Node
from store import Store

MAX_OPERATIONS = 64
"""Operations in one transaction, as in Consul."""
_READS = ("get", "delete", "delete-cas")
READ_VERBS = ("get", "get-tree", "check-index", "check-session", "check-not-exists", "get-or-empty")
"""Verbs that only read."""
_MAX_INDEX = 2**64 - 1
_Operation = KVOperation | CatalogOperation | SessionOperation


class TxnEndpoint:
    """The handler of transactions."""

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        sessions: SessionManager,
        node: Node,
        blocking_queries: BlockingQueries,
    ) -> None:
        self._sessions = sessions
        self._catalog = catalog
        self._store = store
        self._node = node
        self._blocking = blocking_queries

    @endpoint(
        "PUT",
        "/v1/txn",
        "Apply several operations on keys, nodes, services and checks atomically",
        parameters=("dc",),
        response=schemas.TXN_RESPONSE,
        statuses=(409,),
        request_body=schemas.TXN_REQUEST,
        writes=True,
    )
    async def transact(self, request: HttpRequest) -> HttpResponse:
        asked = await request.json()
        if not isinstance(asked, list):
            raise HttpError(400, "Failed to parse body: not a list of operations")
        if len(asked) > MAX_OPERATIONS:
            raise HttpError(413, f"Transaction contains too many operations ({len(asked)} > {MAX_OPERATIONS})")
        try:
            names = {one.name.lower(): one.name for one in self._catalog.nodes()}
            operations = [self._parsed(Fields(part, f"[{number}]."), names) for number, part in enumerate(asked)]
            for one in operations:
                if isinstance(one, SessionOperation) and (entry := await self._sessions.find(one.id)) is not None:
                    request.acl.require_write("session", decode_session(entry).node)
        except BadField as error:
            raise HttpError(400, f"Failed to parse body: {error}") from None
        if denied := self._denied(request.acl, operations):
            body = encode_json({"Results": None, "Errors": denied}, request)
            return HttpResponse(body, 409)
        done = await apply(self._store, operations, self._sessions.find)
        if any(isinstance(one, CatalogOperation) for one in operations):
            await self._blocking.wait_for_catalog()
        acl = request.acl
        visible = request.visible(done.results, lambda one: acl.allows(*_permission(one)))
        # Null as in Consul, whose clients take a list for the other outcome.
        errors = [{"OpIndex": failure.operation, "What": failure.reason} for failure in done.errors] or None
        results = None if errors else [_result(one) for one in visible]
        body = encode_json({"Results": results, "Errors": errors}, request)
        return HttpResponse(body, 409 if errors else 200)

    def _denied(self, acl: Authorizer, operations: Sequence[_Operation]) -> list[serialize.Json]:
        """The operations that the caller may not do. Raises PermissionDenied for a user of this host."""
        denied: list[serialize.Json] = []
        for number, one in enumerate(operations):
            try:
                _require(acl, one)
            except PermissionDenied as error:
                if acl.local_user:
                    raise
                denied.append({"OpIndex": number, "What": str(error)})
        return denied

    def _parsed(self, fields: Fields, names: dict[str, str]) -> _Operation:
        """An operation. ``names`` are those of the nodes, by their lower case; a new one is added."""
        if (found := fields.object_("KV")) is not None:
            return _kv_operation(found)
        for name, parse in (("Node", self._node_value), ("Service", _service_value), ("Check", _check_value)):
            if (found := fields.object_(name)) is not None:
                inner = found.object_(name)
                if inner is None:
                    found.invalid(name, None, "is missing")
                verb = found.text("Verb", longest=40)
                index = inner.number("ModifyIndex", high=_MAX_INDEX)
                value = parse(found, inner, verb)
                return CatalogOperation(verb, _spelled(value, names), self._catalog, index)
        if (found := fields.object_("Session")) is not None:
            inner = found.object_("Session") or Fields({})
            if not inner.text("ID"):
                raise BadField("Must provide the session's ID (Session.ID)")
            return SessionOperation(found.text("Verb", longest=40), inner.text("ID"))
        raise BadField("unknown operation: only KV, Node, Service, Check and Session are supported")

    def _node_value(self, fields: Fields, inner: Fields, verb: str) -> Node:
        node = parse_node(inner, self._node.datacenter)
        if verb.startswith("delete") and node.name.lower() == self._node.name.lower():
            raise BadField(f"{node.name} is the local node; deregister its services, or use agent/leave")
        if verb not in _READS and not node.address:
            raise BadField("Must provide address if SkipNodeUpdate is not set")
        return node


def _spelled(value: Node | Instance | Check, names: dict[str, str]) -> Node | Instance | Check:
    """The value with the node's name as it is registered: names of nodes are case-insensitive."""
    if isinstance(value, Node):
        return replace(value, name=names.setdefault(value.name.lower(), value.name))
    return replace(value, node=names.get(value.node.lower(), value.node))


def _require(acl: Authorizer, operation: _Operation) -> None:
    """Raise PermissionDenied unless the caller may do this. Keys below a prefix are filtered; of
    sessions, ``transact`` knows the node.
    """
    if isinstance(operation, SessionOperation):
        return
    access = Access.READ if operation.verb in READ_VERBS else Access.WRITE
    if isinstance(operation, CatalogOperation):
        for value in operation.subjects():
            acl.require(*_permission(value), access)
    elif operation.verb == "delete-tree":
        if not acl.writes_tree(operation.key):
            raise acl.denied("key", operation.key, access)
    elif operation.verb != "get-tree" or acl.local_user:
        acl.require("key", operation.key, access)


def _permission(value: KVPair | CatalogEntry) -> tuple[str, str]:
    """The resource and the name that a permission for this is about."""
    match value:
        case KVPair():
            return "key", value.key
        case Node():
            return "node", value.name
        case Instance():
            return "service", value.name
        case Check() if value.service_name:
            return "service", value.service_name
        case Check():
            return "node", value.node
    raise AssertionError(value)


def _kv_operation(found: Fields) -> KVOperation:
    verb = found.text("Verb", longest=40)
    key = found.text("Key")
    if not key and verb not in ("get-tree", "delete-tree"):
        found.invalid("Key", key, "must not be empty")
    text = found.text("Value", longest=2**20)
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        found.invalid("Value", text, "is not valid base64")
    return KVOperation(
        verb,
        key,
        check_size(value),
        found.number("Flags", high=_MAX_INDEX),
        found.number("Index", high=_MAX_INDEX),
        found.text("Session"),
    )


def _service_value(fields: Fields, inner: Fields, verb: str) -> Instance:
    node = fields.name("Node")
    if not node:
        raise BadField("Must provide node")
    if verb in _READS:
        return Instance(node, inner.name("ID") or inner.name("Service", "Name"), inner.name("Service", "Name"))
    if not inner.name("Service", "Name"):
        raise BadField("Must provide service name (Service.Service)")
    return parse_instance(inner, node)


def _check_value(fields: Fields, inner: Fields, verb: str) -> Check:
    node = inner.name("Node")
    if not node:
        raise BadField("Must provide node")
    return parse_external_check(inner, node)


def _result(found: KVPair | CatalogEntry) -> serialize.Json:
    match found:
        case KVPair():
            return {"KV": kv_pair_json(found)}
        case Node():
            return {"Node": serialize.node(found)}
        case Instance():
            return {"Service": serialize.service(found)}
        case Check():
            return {"Check": serialize.check(found)}
    raise AssertionError(found)
