"""Networks of the cluster, by this host's agent: created, removed and described for ``weft network``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from ipaddress import ip_network

from cni_plugin.cli import agents
from cni_plugin.cli.output import warn
from cni_plugin.cli.tool import Tool
from cni_plugin.networks import create as creating
from cni_plugin.networks.conflists import Json, NetworkList
from cni_plugin.networks.create import CreateOptions
from cni_plugin.service.overlaps import Use
from discovery.consul.client import ApiClient, ApiError, Unreachable, api_path, list_of_objects
from weft.errors import BadOption, InUse, Missing, WeftError
from weft.section import Section

_ATTEMPTS = 5
_SUBNET_IN_USE = "of the cluster"


def is_clustered(network: NetworkList | None) -> bool:
    """Whether the cluster has the network."""
    return network is not None and bool(network.cluster.text("id"))


def _client() -> ApiClient:
    running = agents.running()
    if running is None:
        raise Unreachable("no agent is running, which keeps the cluster's networks", hint="start it with: weft up")
    return running.client


def create(tool: Tool, name: str, requested: CreateOptions) -> str:
    """Create a network on all hosts; its name. Raises BadOption, InUse, Unreachable."""
    tool.prepare_to("create a network")
    host = tool.service.kernel.host
    with contextlib.closing(_client()) as client:
        for attempt in range(_ATTEMPTS):
            known = list_of_objects(client.get(api_path("weft", "networks")).json)
            networks = tool.networks()
            chosen = name or creating.free_name(networks, host)
            content = creating.build(chosen, requested, networks, host, [*_uses(known)])
            try:
                found = client.put(api_path("weft", "network", chosen), content).json
            except ApiError as error:
                # Somebody has just taken the subnet that was free.
                if requested.subnets or _SUBNET_IN_USE not in error.message or attempt + 1 == _ATTEMPTS:
                    raise _raised(error) from error
                continue
            if problem := Section(found).text("Problem"):
                warn(f"this host does not take part in network {chosen}: {problem}")
            return chosen
    raise InUse(f"network {name} was not created: others keep taking its subnet")


def remove(tool: Tool, name: str, force: bool) -> None:
    """Remove a network from all hosts. Raises InUse naming the hosts that use it, Unreachable."""
    parameters = [("force", "")] if force else []
    with contextlib.closing(_client()) as client:
        try:
            client.delete(api_path("weft", "network", name), parameters)
        except ApiError as error:
            raise _raised(error) from error


def described(network: NetworkList) -> Json:
    """What the agent knows of the network: blocks, hosts, and why this one does not take part."""
    if not is_clustered(network):
        return {}
    with contextlib.suppress(WeftError), contextlib.closing(_client()) as client:
        for one in list_of_objects(client.get(api_path("weft", "networks")).json):
            if one.get("Name") == network.name:
                return {"Cluster": {key: value for key, value in one.items() if key != "Name"}}
    return {}


def _uses(known: list[Mapping[str, object]]) -> list[Use]:
    found = []
    for one in known:
        for text in Section(dict(one)).texts("Subnets"):
            with contextlib.suppress(ValueError):
                found.append(Use(ip_network(text), f"network {one.get('Name')} of the cluster"))
    return found


def _raised(error: ApiError) -> WeftError:
    kind = {400: BadOption, 404: Missing, 409: InUse}.get(error.status, WeftError)
    return kind(error.message)
