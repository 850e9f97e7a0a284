"""The agent's endpoints for overlay networks, which ``weft network`` and netavark's plugin use."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cluster import networks, tunnels
from cluster.records import Member, Network
from cni_plugin.agent.overlays import Overlays
from cni_plugin.agent.prober import Probe, Prober
from cni_plugin.networks import clustered
from discovery.api import schemas
from discovery.api.http_error import HttpError
from discovery.api.http_request import HttpRequest
from discovery.api.router import HttpResponse, Route, endpoint, routes_of
from discovery.json_schema import Schema
from store import Store, StoreError
from weft.errors import BadOption, ConfigProblem, InUse, Missing, WeftError

_WAIT = 10.0
"""Seconds that a request waits until this host has done its part."""
_BLOCK = schemas.struct("OverlayBlock", Subnet=schemas.STRING, Node=schemas.STRING)
_HOST = schemas.struct(
    "OverlayHost",
    **dict.fromkeys(("Node", "Underlay", "MAC", "Problem"), schemas.STRING),
    MTU=schemas.INTEGER,
    ProbedMTU=schemas.INTEGER,
    Attached=schemas.BOOLEAN,
    Blocks=schemas.STRINGS,
)
PEER: Schema = schemas.struct(
    "OverlayPeer",
    **dict.fromkeys(("Node", "Network", "Address"), schemas.STRING),
    **dict.fromkeys(("MTU", "FullMTU", "RoundTripMicroseconds", "Probed"), schemas.INTEGER),
    Reachable=schemas.BOOLEAN,
)
NETWORK: Schema = schemas.struct(
    "OverlayNetwork",
    **dict.fromkeys(("Name", "ID", "Gateway", "Problem", "Invalid", "Encryption"), schemas.STRING),
    VNI=schemas.INTEGER,
    KeyGeneration=schemas.INTEGER,
    Rotating=schemas.STRINGS,
    LeftOut=schemas.STRING_MAP,
    VlanGateway=schemas.STRING_MAP,
    Port=schemas.INTEGER,
    Subnets=schemas.STRINGS,
    Static=schemas.STRINGS,
    Blocks=schemas.list_of(_BLOCK),
    Hosts=schemas.list_of(_HOST),
)


class OverlayEndpoint:
    """Handlers of ``/v1/weft/networks``, ``/v1/weft/network/NAME``, its ``/keys``, and ``/v1/weft/peers``."""

    def __init__(self, overlays: Overlays, store: Store, prober: Prober) -> None:
        self._prober = prober
        self._overlays = overlays
        self._store = store

    @endpoint(
        "GET",
        "/v1/weft/networks",
        "The overlay networks of the cluster, with blocks and hosts (not in Consul)",
        response=schemas.list_of(NETWORK),
    )
    async def networks(self, request: HttpRequest) -> HttpResponse:
        """With those whose record is invalid (``Invalid`` says why), as far as they are known."""
        request.acl.require("operator")
        found, unread = self._overlays.view.networks(), self._overlays.view.unread()
        unknown = {name: {"Name": name} for name in unread.keys() - found.keys()}
        listed = unknown | {name: self._described(one) for name, one in found.items()}
        return _answer([{**listed[name], "Invalid": unread.get(name, "")} for name in sorted(listed)])

    @endpoint(
        "PUT",
        "/v1/weft/network/:name",
        "Create an overlay network: a network list with what the cluster stores of it (not in Consul)",
        request_body=schemas.ANY_OBJECT,
        response=NETWORK,
        statuses=(409,),
        writes=True,
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        request.acl.require_write("operator")
        body = await request.json()
        if not isinstance(body, Mapping) or body.get("name") != request.name:
            raise HttpError(400, f"the body must be a network list with the name {request.name[:80]!r}")
        try:
            wanted = clustered.network_of(body, request.get("id"))
            networks.check(wanted)
            await self._overlays.validate(wanted)
            made = await networks.create(self._store, wanted)
        except WeftError as error:
            raise _http(error) from error
        name = made.name
        await self._overlays.passed(
            lambda: name in self._overlays.problems or name in self._overlays.look.joined, _WAIT
        )
        return _answer(self._described(made))

    @endpoint(
        "DELETE",
        "/v1/weft/network/:name",
        "Remove an overlay network from all hosts (not in Consul)",
        parameters=("force",),
        response=schemas.BOOLEAN,
        statuses=(404, 409),
        writes=True,
    )
    async def remove(self, request: HttpRequest) -> HttpResponse:
        request.acl.require_write("operator")
        name = request.name
        try:
            await networks.remove(self._store, name, force=request.boolean("force"))
        except WeftError as error:
            raise _http(error) from error
        gone = lambda: name not in self._overlays.look.joined or bool(self._overlays.problems.get(name))  # noqa: E731
        await self._overlays.passed(gone, _WAIT)
        return _answer(True)

    @endpoint(
        "PUT",
        "/v1/weft/network/:name/keys",
        "Replace the keys of an encrypted overlay network on all hosts (not in Consul)",
        response=NETWORK,
        statuses=(404, 409),
        writes=True,
    )
    async def replace_keys(self, request: HttpRequest) -> HttpResponse:
        """Answers once no host has an older key, or after ten seconds; ``Rotating`` are the hosts that have."""
        request.acl.require_write("operator")
        try:
            wanted = tunnels.wanted(await networks.replace_keys(self._store, request.name))
        except WeftError as error:
            raise _http(error) from error
        view = self._overlays.view

        def done() -> bool:
            found = view.network(request.name)
            if found is None:
                return True
            return tunnels.wanted(found) >= wanted and not tunnels.lagging(found, view.sharing(found))

        await self._overlays.passed(done, _WAIT)
        found = view.network(request.name)
        if found is None:
            raise HttpError(404, f"network {request.name} was removed meanwhile")
        return _answer(self._described(found))

    @endpoint(
        "GET",
        "/v1/weft/peers",
        "The other hosts of overlay networks, as a packet of full size reaches them (not in Consul)",
        parameters=("probe",),
        response=schemas.list_of(PEER),
    )
    async def peers(self, request: HttpRequest) -> HttpResponse:
        """With ``probe`` they are probed now, which takes seconds where one does not answer."""
        request.acl.require("operator")
        if request.boolean("probe"):
            await self._prober.probe()
        found = self._prober.found
        return _answer([_probed(found[node]) for node in sorted(found)])

    def _described(self, network: Network) -> dict[str, object]:
        overlays = self._overlays
        blocks = overlays.view.blocks(network)
        name, owners, members = network.name, blocks.owners(), overlays.view.members(network.name)
        return {
            "Name": network.name,
            "ID": network.id,
            "VNI": network.vni,
            "Port": network.port,
            "Subnets": [str(one) for one in network.subnets],
            "Gateway": str(network.gateway or ""),
            "Static": [str(one) for one in network.static],
            "Problem": overlays.problems.get(network.name, ""),
            "Blocks": [
                {"Subnet": str(part), "Node": node} for node in sorted(owners) for part in sorted(owners[node], key=str)
            ],
            "Hosts": [
                _host(one, [str(part) for part in owners.get(one.node, ())], overlays.mtu_of(one.node))
                for one in sorted(members.values(), key=lambda one: one.node)
            ],
            "LeftOut": {node: f"its record {why}" for node, why in sorted(overlays.left_out.get(name, {}).items())},
            "VlanGateway": _vlan_gateway(network),
            "Encryption": str(network.keys.get(tunnels.ENCRYPTION) or ""),
            "KeyGeneration": tunnels.wanted(network),
            "Rotating": tunnels.lagging(network, overlays.view.sharing(network)),
        }


def _vlan_gateway(network: Network) -> dict[str, str]:
    found = network.vlan_gateway
    if found is None:
        return {}
    return {"Host": found.host, "Parent": found.parent, "Vlan": str(found.vlan or ""), "Range": str(found.range)}


def _host(member: Member, blocks: list[str], probed: int) -> dict[str, object]:
    return {
        "Node": member.node,
        "Underlay": member.underlay,
        "MAC": member.mac,
        "MTU": member.mtu,
        "ProbedMTU": probed,
        "Attached": member.attached,
        "Problem": member.problem,
        "Blocks": blocks,
    }


def _probed(one: Probe) -> dict[str, object]:
    return {
        "Node": one.node,
        "Network": one.network,
        "Address": str(one.address),
        "Reachable": one.reachable,
        "MTU": one.mtu,
        "FullMTU": one.full,
        "RoundTripMicroseconds": round(one.round_trip * 1e6),
        "Probed": round(one.at),
    }


def _answer(value: object) -> HttpResponse:
    return HttpResponse(json.dumps(value).encode())


def _http(error: WeftError) -> HttpError:
    if isinstance(error, Missing):
        return HttpError(404, str(error))
    if isinstance(error, InUse):
        return HttpError(409, str(error))
    if isinstance(error, BadOption | ConfigProblem):
        return HttpError(400, str(error))
    return HttpError(503 if isinstance(error, StoreError) else 500, str(error))


def routes(overlays: Overlays, store: Store, prober: Prober) -> tuple[Route, ...]:
    """The routes that the agent's HTTP server serves in addition."""
    return routes_of(OverlayEndpoint(overlays, store, prober))
