"""Endpoints of Consul's own UI and operators, as far as the catalog has their answers; and the host
that the agent runs on.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from discovery.api import schemas, serialize
from discovery.api.blocking_query import BlockingQueries, encode_json
from discovery.api.health_endpoint import BLOCKING_PARAMETERS
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse, endpoint
from discovery.api.visibility import visible_checks, visible_health, visible_instances, visible_nodes
from discovery.catalog import CHECKS, INSTANCES, NODES, Catalog
from discovery.structs import Health, Node, Status


class InternalEndpoint:
    """Handlers of ``/v1/internal/ui``, ``/v1/operator/usage``, ``/v1/coordinate/datacenters`` and
    ``/v1/agent/host``.
    """

    def __init__(self, catalog: Catalog, node: Node, blocking_queries: BlockingQueries) -> None:
        self._catalog = catalog
        self._node = node
        self._blocking = blocking_queries

    @endpoint(
        "GET",
        "/v1/internal/ui/services",
        "Every service with the number of its instances in each state",
        parameters=BLOCKING_PARAMETERS,
        response=schemas.list_of(schemas.ANY_OBJECT),
        blocking=True,
    )
    async def services(self, request: HttpRequest) -> HttpResponse:
        def build() -> object:
            if request.get("peer"):
                return []
            found = {name: tuple(visible_health(request, self._catalog.health(name))) for name in self._catalog.names()}
            return [self._summary(name, found[name]) for name in sorted(found) if found[name]]

        key = ("ui services", request.get("peer"), request.has("pretty"))
        return await self._blocking.serve(request, key, (INSTANCES, NODES, CHECKS), build)

    def _summary(self, name: str, found: tuple[Health, ...]) -> serialize.Json:
        """An instance counts once, in its worst state, as Consul's UI shows it."""
        counts = {status: sum(one.status is status for one in found) for status in Status}
        sources = {one.instance.meta.get("external-source", "") for one in found} - {""}
        return {
            "Name": name,
            "Kind": next((one.instance.kind for one in found if one.instance.kind), ""),
            "Datacenter": self._node.datacenter,
            "Tags": sorted({tag for one in found for tag in one.instance.tags}),
            "Nodes": sorted({one.node.name for one in found}),
            "ExternalSources": sorted(sources),
            "InstanceCount": len(found),
            "ChecksPassing": counts[Status.PASSING],
            "ChecksWarning": counts[Status.WARNING],
            "ChecksCritical": counts[Status.CRITICAL],
            "GatewayConfig": {},
            "TransparentProxy": False,
            "ConnectNative": False,
            "ConnectedWithProxy": False,
            "ConnectedWithGateway": False,
        }

    @endpoint(
        "GET",
        "/v1/internal/ui/nodes",
        "Every node with its services and checks",
        parameters=BLOCKING_PARAMETERS,
        response=schemas.list_of(schemas.ANY_OBJECT),
        blocking=True,
    )
    async def nodes(self, request: HttpRequest) -> HttpResponse:
        def build() -> object:
            nodes = visible_nodes(request, self._catalog.nodes())
            return [] if request.get("peer") else [self._node_json(request, one) for one in nodes]

        key = ("ui nodes", request.get("peer"), request.has("pretty"))
        return await self._blocking.serve(request, key, (INSTANCES, NODES, CHECKS), build)

    def _node_json(self, request: HttpRequest, node: Node) -> serialize.Json:
        instances = visible_instances(request, self._catalog.node_instances(node.name))
        return {
            **serialize.node(node),
            "Services": [serialize.service(one) for one in instances],
            "Checks": [serialize.check(one) for one in visible_checks(request, self._catalog.node_checks(node.name))],
        }

    @endpoint("GET", "/v1/operator/usage", "The number of nodes, services and instances", response=schemas.ANY_OBJECT)
    async def usage(self, request: HttpRequest) -> HttpResponse:
        request.acl.require("operator")
        names = list(self._catalog.names())
        instances = sum(len(self._catalog.instances(name)) for name in names)
        own = len(self._catalog.instances("consul"))
        usage = {
            "Nodes": len(self._catalog.nodes()),
            "Services": len(names),
            "ServiceInstances": instances,
            "BillableServiceInstances": instances - own,
            "ConnectServiceInstances": {},
        }
        found = {
            "Usage": {self._node.datacenter: usage},
            "Index": self._catalog.index,
            "LastContact": 0,
            "KnownLeader": True,
            "ConsistencyLevel": "leader",
            "NotModified": False,
            "Backend": 0,
            "ResultsFilteredByACLs": False,
        }
        return HttpResponse(encode_json(found, request))

    @endpoint(
        "GET",
        "/v1/coordinate/datacenters",
        "The agents of this datacenter; round trips are not measured",
        response=schemas.list_of(schemas.ANY_OBJECT),
    )
    async def datacenters(self, request: HttpRequest) -> HttpResponse:
        own = {"Node": f"{self._node.name}.{self._node.datacenter}", "Segment": "", "Coord": dict(serialize.COORDINATE)}
        found = [{"Datacenter": self._node.datacenter, "AreaID": "wan", "Coordinates": [own]}]
        return HttpResponse(encode_json(found, request))

    @endpoint(
        "GET", "/v1/agent/host", "The host that this agent runs on", parameters=("pretty",), response=schemas.ANY_OBJECT
    )
    async def host(self, request: HttpRequest) -> HttpResponse:
        request.acl.require("operator")
        return HttpResponse(encode_json(_host(), request))


def _host() -> serialize.Json:
    """The host as gopsutil's structs, which Consul sends. Source: uname(2), proc_meminfo(5), proc(5)."""
    system = os.uname()
    memory = {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
    }
    uptime = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    disk = os.statvfs("/")
    total, free = disk.f_blocks * disk.f_frsize, disk.f_bfree * disk.f_frsize
    return {
        "Memory": {
            "total": memory["MemTotal"],
            "available": memory["MemAvailable"],
            "used": memory["MemTotal"] - memory["MemAvailable"],
            "free": memory["MemFree"],
        },
        "CPU": [{"cpu": number} for number in range(os.cpu_count() or 1)],
        "Host": {
            "hostname": system.nodename,
            "uptime": uptime,
            "bootTime": int(time.time()) - uptime,
            "os": "linux",
            "kernelVersion": system.release,
            "kernelArch": system.machine,
        },
        "Disk": {"path": "/", "total": total, "free": free, "used": total - free},
        "CollectionTime": time.time_ns(),
        "Errors": None,
    }
