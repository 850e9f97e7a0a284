"""``/v1/health``, ``/v1/status`` and the reads of ``/v1/catalog``.

Lists of instances are sorted by node and id in both, since clients match them by position.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from discovery import catalog as topics
from discovery.api import schemas, serialize
from discovery.api.blocking_query import BlockingQueries, encode_json
from discovery.api.fragments import JsonFragments
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.query_options import (
    apply_filter,
    matches_meta,
    nodes_matching_meta,
    parse_filter,
    requested_meta,
    select_instances,
    sort_near,
)
from discovery.api.router import HttpResponse, endpoint
from discovery.api.visibility import visible_checks, visible_health, visible_instances, visible_names, visible_nodes
from discovery.catalog import CHECKS, INSTANCES, NODES, SERVICES, Catalog, Topic
from discovery.structs import CONSUL_SERVICE, Check, Instance, Node, Status

CACHE_KEY_PARAMETERS = ("passing", "tag", "near", "node-meta", "filter", "peer", "pretty")
"""The parameters that a response depends on."""
BLOCKING_PARAMETERS = ("index", "wait", "stale", "consistent", "cached", "pretty", "dc", "peer")
_EMPTY: dict[str, object] = {"services": {}, "node": None, "node services": None}
"""What a query finds in an empty catalog; of the others it is a list."""
OF_INSTANCES = ("tag", "near", "node-meta", "filter", *BLOCKING_PARAMETERS)


class HealthEndpoint:
    """Handlers that read the catalog."""

    def __init__(self, catalog: Catalog, node: Node, blocking_queries: BlockingQueries) -> None:
        self._catalog = catalog
        self._node = node
        self._blocking = blocking_queries
        self._catalog_lists = JsonFragments(serialize.catalog_service, lambda one: (one.node, one.instance))
        self._health_lists = JsonFragments(serialize.health, lambda one: (one.node, one.instance, *one.checks))

    async def _serve(
        self, kind: str, request: HttpRequest, topics_: tuple[Topic, ...], build: Callable[[], object]
    ) -> HttpResponse:
        key: Hashable = (kind, request.name, tuple((name, tuple(request.all(name))) for name in CACHE_KEY_PARAMETERS))
        if request.get("peer"):
            # No cluster is peered, so nothing was imported from one.
            return await self._blocking.serve(request, key, topics_, lambda: _EMPTY.get(kind, []))
        return await self._blocking.serve(request, key, topics_, build)

    # Services

    @endpoint(
        "GET",
        "/v1/catalog/services",
        "The names of all services, with all their tags",
        parameters=("node-meta", "filter", *BLOCKING_PARAMETERS),
        response=schemas.map_of(schemas.STRINGS),
        blocking=True,
    )
    async def services(self, request: HttpRequest) -> HttpResponse:
        def build() -> object:
            if request.has("node-meta") or request.get("filter"):
                found = self._filtered_services(request)
            else:
                found = {CONSUL_SERVICE: [], **{name: list(tags) for name, tags in self._catalog.services().items()}}
            return visible_names(request, "service", found)

        topics_ = (INSTANCES, NODES) if request.has("node-meta") or request.get("filter") else (SERVICES,)
        return await self._serve("services", request, topics_, build)

    def _filtered_services(self, request: HttpRequest) -> dict[str, list[str]]:
        """The services on matching nodes and instances, with the tags of those."""
        nodes = nodes_matching_meta(self._catalog.nodes(), request)
        test = parse_filter(request, schemas.CATALOG_SERVICE)
        found: dict[str, set[str]] = {}
        for name in sorted(self._catalog.names()):
            for one in visible_health(request, self._catalog.health(name)):
                if one.node.name in nodes and test(serialize.catalog_service(one)):
                    found.setdefault(name, set()).update(one.instance.tags)
        return {name: sorted(tags) for name, tags in found.items()}

    @endpoint(
        "GET",
        "/v1/catalog/service/:service",
        "The instances of a service, whatever their health",
        parameters=("tag", "near", "node-meta", "filter", *BLOCKING_PARAMETERS),
        response=schemas.list_of(schemas.CATALOG_SERVICE),
        blocking=True,
    )
    async def instances(self, request: HttpRequest) -> HttpResponse:
        name = _required(request, "Missing service name")

        def build() -> object:
            instances = self._catalog.health_of_any_case(name)
            found = select_instances(visible_health(request, instances), request, self._node.name, passing=False)
            if _use_fragments(request):
                return self._catalog_lists.write(name.lower(), found, len(instances))
            return apply_filter([serialize.catalog_service(one) for one in found], request, schemas.CATALOG_SERVICE)

        return await self._serve("instances", request, (topics.service(name.lower()),), build)

    @endpoint(
        "GET",
        "/v1/health/service/:service",
        "The instances of a service with their nodes and checks",
        parameters=("passing", "tag", "near", "node-meta", "filter", *BLOCKING_PARAMETERS),
        response=schemas.list_of(schemas.HEALTH),
        blocking=True,
    )
    async def health(self, request: HttpRequest) -> HttpResponse:
        name = _required(request, "Missing service name")
        passing = request.boolean("passing")

        def build() -> object:
            instances = self._catalog.health_of_any_case(name)
            found = select_instances(visible_health(request, instances), request, self._node.name, passing=passing)
            if _use_fragments(request):
                return self._health_lists.write(name.lower(), found, len(instances))
            return apply_filter([serialize.health(one) for one in found], request, schemas.HEALTH)

        return await self._serve("health", request, (topics.health(name.lower()),), build)

    # Nodes

    @endpoint(
        "GET",
        "/v1/catalog/nodes",
        "All nodes",
        parameters=("near", "node-meta", "filter", *BLOCKING_PARAMETERS),
        response=schemas.list_of(schemas.NODE),
        blocking=True,
    )
    async def nodes(self, request: HttpRequest) -> HttpResponse:
        def build() -> object:
            wanted = requested_meta(request)
            found = [node for node in visible_nodes(request, self._catalog.nodes()) if matches_meta(node.meta, wanted)]
            found = sort_near(found, request, self._node.name, lambda node: node.name)
            return apply_filter([serialize.node(node) for node in found], request, schemas.NODE)

        return await self._serve("nodes", request, (NODES,), build)

    @endpoint(
        "GET",
        "/v1/catalog/node/:node",
        "A node and its services by id; null if it does not exist",
        parameters=("filter", *BLOCKING_PARAMETERS),
        response=schemas.nullable(schemas.CATALOG_NODE),
        blocking=True,
    )
    async def node(self, request: HttpRequest) -> HttpResponse:
        name = _required(request, "Missing node name")

        def build() -> object:
            found = self._visible_node(request, name)
            if found is None:
                return None
            node, instances = found
            services = {one.id: serialize.service(one) for one in instances}
            return {"Node": serialize.node(node), "Services": apply_filter(services, request, schemas.SERVICE)}

        return await self._serve("node", request, self._topics_of(name), build)

    @endpoint(
        "GET",
        "/v1/catalog/node-services/:node",
        "A node and its services as a list; null if it does not exist",
        parameters=("filter", *BLOCKING_PARAMETERS),
        response=schemas.nullable(schemas.CATALOG_NODE_SERVICES),
        blocking=True,
    )
    async def node_services(self, request: HttpRequest) -> HttpResponse:
        name = _required(request, "Missing node name")

        def build() -> object:
            found = self._visible_node(request, name)
            if found is None:
                return None
            node, instances = found
            services = [serialize.service(one) for one in instances]
            return {"Node": serialize.node(node), "Services": apply_filter(services, request, schemas.SERVICE)}

        return await self._serve("node services", request, self._topics_of(name), build)

    def _visible_node(self, request: HttpRequest, name: str) -> tuple[Node, list[Instance]] | None:
        node = self._catalog.node(name)
        if node is None or not visible_nodes(request, [node]):
            return None
        return node, visible_instances(request, self._catalog.node_instances(node.name))

    def _topics_of(self, name: str) -> tuple[Topic, ...]:
        """The topics of a node, whose name is case-insensitive and may not exist yet."""
        node = self._catalog.node(name)
        return (topics.node(node.name),) if node is not None else (NODES,)

    # Checks

    @endpoint(
        "GET",
        "/v1/health/node/:node",
        "The checks of a node",
        parameters=("filter", *BLOCKING_PARAMETERS),
        response=schemas.list_of(schemas.CHECK),
        blocking=True,
    )
    async def node_checks(self, request: HttpRequest) -> HttpResponse:
        name = _required(request, "Missing node name")
        node = self._catalog.node(name)

        def build() -> object:
            found = self._catalog.node(name)
            checks = visible_checks(request, self._catalog.node_checks(found.name if found is not None else name))
            return apply_filter([serialize.check(one) for one in checks], request, schemas.CHECK)

        # A node that does not exist yet may come under another spelling.
        topics_ = (topics.node_checks(node.name),) if node is not None else (CHECKS,)
        return await self._serve("node checks", request, topics_, build)

    @endpoint(
        "GET",
        "/v1/health/checks/:service",
        "The checks of a service's instances",
        parameters=("near", "node-meta", "filter", *BLOCKING_PARAMETERS),
        response=schemas.list_of(schemas.CHECK),
        blocking=True,
    )
    async def service_checks(self, request: HttpRequest) -> HttpResponse:
        name = _required(request, "Missing service name")

        def build() -> object:
            found = [
                check
                for one in select_instances(
                    self._catalog.health_of_any_case(name), request, self._node.name, passing=False
                )
                for check in one.checks
                if check.service_id
            ]
            found = visible_checks(request, found)
            return apply_filter([serialize.check(check) for check in found], request, schemas.CHECK)

        return await self._serve("service checks", request, (topics.health(name.lower()),), build)

    @endpoint(
        "GET",
        "/v1/health/state/:state",
        "All checks in a state: any, passing, warning, critical",
        parameters=("near", "node-meta", "filter", *BLOCKING_PARAMETERS),
        response=schemas.list_of(schemas.CHECK),
        blocking=True,
    )
    async def checks(self, request: HttpRequest) -> HttpResponse:
        state = _required(request, "Missing check state")
        if state not in ("any", *Status):
            raise HttpError(400, f"Invalid check state: '{state[:40]}'; must be any, passing, warning or critical")

        def build() -> object:
            found: list[Check] = [one for one in self._catalog.checks() if state in ("any", one.status.value)]
            if request.has("node-meta"):
                nodes = nodes_matching_meta(self._catalog.nodes(), request)
                found = [one for one in found if one.node in nodes]
            found = sort_near(visible_checks(request, found), request, self._node.name, lambda one: one.node)
            return apply_filter([serialize.check(one) for one in found], request, schemas.CHECK)

        topics_ = (CHECKS, NODES) if request.has("node-meta") else (CHECKS,)
        return await self._serve("checks", request, topics_, build)

    # Datacenter and leader

    @endpoint("GET", "/v1/catalog/datacenters", "The datacenters", response=schemas.STRINGS)
    async def datacenters(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(encode_json([self._node.datacenter], request))

    @endpoint(
        "GET",
        "/v1/weft/virtual-addresses",
        "The virtual addresses of each service (not in Consul)",
        response=schemas.map_of(schemas.STRINGS),
    )
    async def virtual_addresses(self, request: HttpRequest) -> HttpResponse:
        names = sorted({one.service for one in self._catalog.all_virtual_addresses().values()})
        found = {name: [one.address for one in self._catalog.virtual_addresses(name)] for name in names}
        return HttpResponse(encode_json(visible_names(request, "service", found), request))

    @endpoint("GET", "/v1/status/leader", "The address of the leader", response=schemas.STRING)
    async def leader(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(encode_json(serialize.server_address(self._node), request))

    @endpoint("GET", "/v1/status/peers", "The addresses of all agents", response=schemas.STRINGS)
    async def peers(self, request: HttpRequest) -> HttpResponse:
        agents = [node for node in self._catalog.nodes() if self._runs_agent(node)]
        return HttpResponse(encode_json([serialize.server_address(node) for node in agents or [self._node]], request))

    def _runs_agent(self, node: Node) -> bool:
        return self._catalog.instance(node.name, CONSUL_SERVICE) is not None


def _required(request: HttpRequest, said: str) -> str:
    if not request.name:
        raise HttpError(400, said)
    return request.name


def _use_fragments(request: HttpRequest) -> bool:
    """Whether cached fragments can be used: no filter, no indentation."""
    return not request.get("filter") and not request.has("pretty")
