"""``/v1/catalog`` writes: external nodes and services, which no agent registers.

What is written for a node with an agent is bound to that node's lease, and is removed when its
agent restarts (anti-entropy); otherwise it remains until it is deregistered.
"""

from __future__ import annotations

from dataclasses import replace

from discovery.api import schemas
from discovery.api.agent_endpoint import deregister_node
from discovery.api.blocking_query import BlockingQueries
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.query_options import check_datacenter
from discovery.api.router import HttpResponse, endpoint
from discovery.catalog import Catalog
from discovery.consul.json_fields import BadField, Fields
from discovery.consul.registration import check_address, check_metadata, parse_instance
from discovery.layout import encode, store_key
from discovery.registry import NotRegistered, Registry
from discovery.structs import CONSUL_SERVICE, SERF_HEALTH, CatalogEntry, Check, Instance, Node, Status
from store import Compare, Delete, Operation, Put, Store, Unavailable
from weft.service_options import MAX_CHECKS

ATTEMPTS = 100


class CatalogEndpoint:
    """Handlers of catalog/register and catalog/deregister."""

    def __init__(self, catalog: Catalog, registry: Registry, store: Store, blocking_queries: BlockingQueries) -> None:
        self._catalog = catalog
        self._registry = registry
        self._store = store
        self._blocking = blocking_queries

    @endpoint(
        "PUT",
        "/v1/catalog/register",
        "Register an external node, service and checks",
        response=schemas.BOOLEAN,
        request_body=schemas.CATALOG_REGISTER_REQUEST,
        writes=True,
    )
    async def register(self, request: HttpRequest) -> HttpResponse:
        fields = Fields(await request.json())
        check_datacenter(fields.name("Datacenter"), self._registry.node.datacenter)
        node = self._spelled(parse_node(fields, self._registry.node.datacenter))
        update = not fields.boolean("SkipNodeUpdate")
        if update and not node.address:
            raise HttpError(400, "Must provide address if SkipNodeUpdate is not set")
        instance = _instance(fields, node.name)
        checks = self._checks(fields, node.name, instance)
        self._require_write(request, node, update, instance, checks)
        await self._write(node, update, instance, checks)
        await self._blocking.wait_for_catalog()
        return HttpResponse(b"true")

    def _require_write(
        self, request: HttpRequest, node: Node, update: bool, instance: Instance | None, checks: list[Check]
    ) -> None:
        """Raise PermissionDenied unless the caller may write what this registers or replaces."""
        acl = request.acl
        known = self._catalog.node(node.name)
        if update and (known is None or encode(known) != encode(node)):
            acl.require_write("node", node.name)
        if instance is not None:
            acl.require_write("service", instance.name)
            replaced = self._catalog.instance(node.name, instance.id)
            if replaced is not None:
                acl.require_write("service", replaced.name)
        for check in checks:
            for one in (check, self._catalog.check(node.name, check.id) or check):
                acl.require_write(*(("service", one.service_name) if one.service_name else ("node", node.name)))

    def _spelled(self, node: Node) -> Node:
        """The node under the name that it is registered with: names of nodes are case-insensitive."""
        known = self._catalog.node(node.name)
        return replace(node, name=known.name) if known is not None else node

    def _checks(self, fields: Fields, node: str, instance: Instance | None) -> list[Check]:
        one = fields.object_("Check")
        found = [*([one] if one is not None and fields.get("Check") else []), *fields.objects("Checks")]
        if len(found) > MAX_CHECKS:
            raise BadField(f"Checks: {len(found)} checks, the limit is {MAX_CHECKS}")
        checks = [parse_external_check(part, node) for part in found]
        return [self._of_service(check, instance) for check in checks]

    def _of_service(self, check: Check, instance: Instance | None) -> Check:
        """The check with name and tags of its service, which must exist."""
        if not check.service_id:
            return check
        if instance is None or instance.id != check.service_id:
            instance = self._catalog.instance(check.node, check.service_id)
        if instance is None:
            raise HttpError(400, f'Missing service registration: "{check.service_id}" is not on node "{check.node}"')
        return replace(check, service_name=instance.name, service_tags=instance.tags)

    async def _write(self, node: Node, update: bool, instance: Instance | None, checks: list[Check]) -> None:
        for _ in range(ATTEMPTS):
            entry = await self._store.get(store_key(node))
            if entry is None and not update:
                raise HttpError(400, f'Missing node registration: there is no node "{node.name}"')
            lease = entry.lease if entry is not None else 0
            values: list[CatalogEntry] = [node] if update and not lease else []
            values += [*([instance] if instance is not None else []), *checks]
            operations = [put for value in values if (put := await self._put(value, lease)) is not None]
            operations += self._renamed(instance)
            guard = Compare(store_key(node), "mod", entry.mod_revision if entry else 0)
            if not operations or (await self._store.transact((guard,), operations)).succeeded:
                return
        raise Unavailable(f"node {node.name} could not be written", hint="too many concurrent writes; try again")

    async def _put(self, value: CatalogEntry, lease: int) -> Operation | None:
        """The operation to write an entry; None if it is unchanged, so as not to wake blocking
        queries.
        """
        found = await self._store.get(store_key(value))
        if found is not None and found.value == encode(value) and found.lease == lease:
            return None
        return Put(store_key(value), encode(value), lease)

    def _renamed(self, instance: Instance | None) -> list[Operation]:
        """The deletion of an instance whose id now belongs to another service."""
        old = self._catalog.instance(instance.node, instance.id) if instance is not None else None
        if old is None or instance is None or old.name == instance.name:
            return []
        return [Delete(store_key(old))]

    @endpoint(
        "PUT",
        "/v1/catalog/deregister",
        "Deregister a service, a check, or a node with everything on it",
        response=schemas.BOOLEAN,
        request_body=schemas.CATALOG_DEREGISTER_REQUEST,
        writes=True,
    )
    async def deregister(self, request: HttpRequest) -> HttpResponse:
        fields = Fields(await request.json())
        check_datacenter(fields.name("Datacenter"), self._registry.node.datacenter)
        name = self._spelled(Node(fields.name("Node"), "")).name
        service_id, check_id = fields.name("ServiceID"), fields.name("CheckID")
        if not name:
            raise HttpError(400, "Must provide node")
        self._require_deregister(request, name, service_id, check_id)
        own = name == self._registry.node.name
        if own:
            await self._deregister_own(service_id, check_id)
        elif service_id:
            await self._remove_service(name, service_id)
        elif check_id:
            await self._store.delete(store_key(Check(name, check_id, "")))
        else:
            await deregister_node(self._store, self._catalog, name)
        await self._blocking.wait_for_catalog()
        return HttpResponse(b"true")

    def _require_deregister(self, request: HttpRequest, node: str, service_id: str, check_id: str) -> None:
        """Raise PermissionDenied unless the caller may write the node, or the service that goes."""
        acl = request.acl
        service = ""
        if service_id:
            instance = self._catalog.instance(node, service_id)
            service = instance.name if instance is not None else ""
        elif check_id:
            check = self._catalog.check(node, check_id)
            service = check.service_name if check is not None else ""
        if not (service and acl.writes("service", service)):
            acl.require_write("node", node)

    async def _deregister_own(self, service_id: str, check_id: str) -> None:
        """Deregister from the local registry; what is only in the catalog is deleted there."""
        name = self._registry.node.name
        if not service_id and not check_id:
            raise HttpError(400, f"{name} is the local node; deregister its services, or use agent/leave")
        if (service_id or check_id) == (CONSUL_SERVICE if service_id else SERF_HEALTH):
            raise HttpError(400, f'"{service_id or check_id}" is the agent\'s own; use agent/leave')
        try:
            if service_id:
                await self._registry.deregister(service_id)
            else:
                await self._registry.deregister_check(check_id)
        except NotRegistered:
            if service_id:
                await self._remove_service(name, service_id)
            else:
                await self._store.delete(store_key(Check(name, check_id, "")))

    async def _remove_service(self, node: str, service_id: str) -> None:
        instance = self._catalog.instance(node, service_id)
        if instance is None:
            return
        checks = [check for check in self._catalog.node_checks(node) if check.service_id == service_id]
        removed: list[CatalogEntry] = [instance, *checks]
        operations = [Delete(store_key(one)) for one in removed]
        for start in range(0, len(operations), 100):
            await self._store.transact((), operations[start : start + 100])


def parse_node(fields: Fields, datacenter: str) -> Node:
    """A node without an agent. Raises BadField."""
    name = fields.name("Node")
    if not name:
        raise BadField("Must provide node")
    meta = fields.string_map("NodeMeta", "Meta")
    check_metadata(meta, "Invalid Node Meta: ")
    return Node(
        name=name,
        address=check_address(fields.name("Address")),
        id=fields.name("ID"),
        datacenter=datacenter,
        meta=meta,
        tagged_addresses=fields.string_map("TaggedAddresses"),
    )


def _instance(fields: Fields, node: str) -> Instance | None:
    service = fields.object_("Service")
    if service is None or not fields.get("Service"):
        return None
    if not service.name("Service", "Name"):
        raise BadField("Must provide service name (Service.Service) when service ID is provided")
    return parse_instance(service, node)


def parse_external_check(fields: Fields, node: str) -> Check:
    """A check with the status that the client reports. Raises BadField."""
    if (other := fields.name("Node")) and other.lower() != node.lower():
        raise BadField(f'check node "{other}" does not match node "{node}"')
    status = fields.text("Status") or Status.CRITICAL
    if status not in tuple(Status):
        raise BadField("Bad check status")
    name, check_id = fields.name("Name"), fields.name("CheckID", "ID")
    if not name and not check_id:
        raise BadField("Missing check name")
    definition = fields.get("Definition")
    if definition is not None and not isinstance(definition, dict):
        fields.invalid("Definition", definition, "is not an object")
    return Check(
        node=node,
        id=check_id or name,
        name=name,
        status=Status(status),
        service_id=fields.name("ServiceID"),
        notes=fields.text("Notes"),
        output=fields.text("Output"),
        type=fields.name("Type"),
        definition=definition or {},
    )
