"""``/v1/agent``: this agent and the cluster's members."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from discovery.api import schemas, serialize
from discovery.api.blocking_query import BlockingQueries, encode_json
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse, endpoint
from discovery.api.visibility import visible_names
from discovery.catalog import Catalog
from discovery.consul import API_LEVEL
from discovery.layout import session_key, store_key
from discovery.metrics import Metrics
from discovery.registry import Registry
from discovery.structs import SERF_HEALTH, CatalogEntry, Node
from store import Delete, Store
from weft import __version__
from weft.errors import ConfigProblem

Hook = Callable[[], Awaitable[None]]


class AgentEndpoint:
    """Handlers of the agent. ``reload`` and ``leave`` implement agent/reload and agent/leave."""

    def __init__(
        self,
        catalog: Catalog,
        registry: Registry,
        store: Store,
        metrics: Metrics,
        blocking_queries: BlockingQueries,
        *,
        reload: Hook | None = None,
        leave: Hook | None = None,
    ) -> None:
        self._catalog = catalog
        self._registry = registry
        self._store = store
        self._metrics = metrics
        self._blocking = blocking_queries
        self._reload = reload
        self._leave = leave

    @endpoint("GET", "/v1/agent/self", "This agent's configuration and member", response=schemas.SELF)
    async def self_(self, request: HttpRequest) -> HttpResponse:
        node = self._registry.node
        request.acl.require("agent", node.name)
        config = {
            "Datacenter": node.datacenter,
            "PrimaryDatacenter": node.datacenter,
            "NodeName": node.name,
            "NodeID": node.id,
            "Server": True,
            "Revision": "",
            "Version": API_LEVEL,
            "WeftVersion": __version__,
        }
        leader = serialize.server_address(node)
        found = {
            "Config": config,
            "DebugConfig": {"ConnectEnabled": False, "GRPCPort": -1, "GRPCTLSPort": -1},
            "Coord": dict(serialize.COORDINATE),
            "Member": serialize.member(node, (), API_LEVEL),
            "Stats": {"agent": {"version": __version__}, "consul": {"leader": "true", "leader_addr": leader}},
            "Meta": dict(node.meta),
            "xDS": {"SupportedProxies": {}, "Port": -1, "Ports": {"Plaintext": -1, "TLS": -1}},
        }
        return HttpResponse(encode_json(found, request))

    @endpoint(
        "GET",
        "/v1/agent/members",
        "The nodes that run an agent",
        parameters=("wan",),
        response=schemas.list_of(schemas.MEMBER),
    )
    async def members(self, request: HttpRequest) -> HttpResponse:
        own = self._registry.node
        nodes = {node.name: node for node in self._catalog.nodes() if self._runs_agent(node)} | {own.name: own}
        wan = request.boolean("wan")
        found = [
            serialize.member(nodes[name], self._catalog.node_checks(name), API_LEVEL, wan=wan)
            for name in sorted(visible_names(request, "node", nodes))
        ]
        return HttpResponse(encode_json(found, request))

    def _runs_agent(self, node: Node) -> bool:
        return any(check.id == SERF_HEALTH for check in self._catalog.node_checks(node.name))

    @endpoint("GET", "/metrics", "This agent's metrics as Prometheus reads them")
    async def prometheus(self, request: HttpRequest) -> HttpResponse:
        request.acl.require("agent", self._registry.node.name)
        await self._metrics.refresh()
        return HttpResponse(self._metrics.text().encode(), type="text/plain; version=0.0.4; charset=utf-8")

    @endpoint("GET", "/v1/agent/metrics", "This agent's metrics", parameters=("format",), response=schemas.METRICS)
    async def metrics(self, request: HttpRequest) -> HttpResponse:
        if request.get("format") == "prometheus":
            return await self.prometheus(request)
        request.acl.require("agent", self._registry.node.name)
        await self._metrics.refresh()
        gauges: list[serialize.Json] = []
        counters: list[serialize.Json] = []
        for kind, name, labels, number in self._metrics.samples():
            if kind == "gauge":
                gauges.append({"Name": name, "Value": number, "Labels": labels})
            elif kind == "counter":
                counters.append({"Name": name, **_sampled(round(number), number), "Labels": labels})
        samples = [
            {"Name": name, **_sampled(count, total), "Labels": labels}
            for name, labels, count, total in self._metrics.totals()
        ]
        found = {
            "Timestamp": time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime()),
            "Gauges": gauges,
            "Points": [],
            "Counters": counters,
            "Samples": samples,
        }
        return HttpResponse(encode_json(found, request))

    @endpoint("GET", "/v1/agent/version", "This agent's version", response=schemas.VERSION)
    async def version(self, request: HttpRequest) -> HttpResponse:
        found = {"SHA": "", "BuildDate": "1970-01-01T00:00:00Z", "HumanVersion": API_LEVEL, "FIPS": ""}
        found["WeftVersion"] = __version__
        return HttpResponse(encode_json(found, request))

    @endpoint("PUT", "/v1/agent/reload", "Reload the configuration", writes=True)
    async def reload(self, request: HttpRequest) -> HttpResponse:
        request.acl.require_write("agent", self._registry.node.name)
        if self._reload is not None:
            try:
                await self._reload()
            except ConfigProblem as error:
                raise HttpError(400, error.message) from None
        return HttpResponse()

    @endpoint("PUT", "/v1/agent/leave", "Stop this agent and deregister its services", writes=True)
    async def leave(self, request: HttpRequest) -> HttpResponse:
        request.acl.require_write("agent", self._registry.node.name)
        await (self._leave or self._registry.leave)()
        return HttpResponse()

    @endpoint("PUT", "/v1/agent/join/:address", "Not supported: nodes are joined by their store", writes=True)
    async def join(self, request: HttpRequest) -> HttpResponse:
        raise HttpError(400, "join is not supported: configure this agent with the store of the other agents")

    @endpoint(
        "PUT",
        "/v1/agent/force-leave/:node",
        "Remove a node and everything registered on it",
        parameters=("prune", "wan"),
        writes=True,
    )
    async def force_leave(self, request: HttpRequest) -> HttpResponse:
        request.acl.require_write("operator")
        node = self._catalog.node(request.name)
        if node is None:
            raise HttpError(400, f"agent: No node found with name '{request.name[:100]}'")
        if node.name == self._registry.node.name:
            raise HttpError(400, f"{node.name} is the local node; use agent/leave")
        await deregister_node(self._store, self._catalog, node.name)
        await self._blocking.wait_for_catalog()
        return HttpResponse()


def _sampled(count: int, total: float) -> serialize.Json:
    """A metric's sum and mean; Consul's clients decode ``Count`` as an integer."""
    return {"Count": count, "Sum": total, "Mean": total / count if count else 0.0}


async def deregister_node(store: Store, catalog: Catalog, name: str) -> None:
    """Delete a node and all on it from the catalog, its sessions and the node last. Raises StoreError."""
    removed: list[CatalogEntry] = [*catalog.node_instances(name), *catalog.node_checks(name)]
    operations = [Delete(store_key(one)) for one in removed]
    operations += [Delete(session_key(name), prefix=True), Delete(store_key(Node(name, "")))]
    for start in range(0, len(operations), 100):
        await store.transact((), operations[start : start + 100])
