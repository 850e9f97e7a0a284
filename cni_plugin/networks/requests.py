"""Asks this host's agent for networks of the cluster: created, removed, described."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network

from cni_plugin.networks import create as creating
from cni_plugin.networks.conflists import Json, NetworkList
from cni_plugin.networks.create import CreateOptions
from cni_plugin.service.overlaps import Use
from discovery.consul.client import AgentAddress, ApiClient, ApiError, agent_socket, api_path, list_of_objects
from weft.errors import BadOption, InUse, Missing, WeftError
from weft.kernel.interface import Namespace
from weft.section import Section

_ATTEMPTS = 5
_SUBNET_IN_USE = "of the cluster"


def is_clustered(network: NetworkList | None) -> bool:
    """Whether the cluster has the network."""
    return network is not None and bool(network.cluster.text("id"))


def client() -> ApiClient:
    """A client of the agent of this network namespace."""
    return ApiClient(AgentAddress(path=agent_socket()))


def create(
    connection: ApiClient,
    name: str,
    requested: CreateOptions,
    networks: Callable[[], Sequence[NetworkList]],
    host: Namespace,
    others: Sequence[Use] = (),
    identifier: str = "",
) -> tuple[Json, str]:
    """Create a network on all hosts; its network list, and why this host does not take part, "" if it does.

    Raises BadOption, InUse, Unreachable.
    """
    for attempt in range(_ATTEMPTS):
        known = list_of_objects(connection.get(api_path("weft", "networks")).json)
        there = networks()
        chosen = name or creating.free_name(there, host)
        content = creating.build(chosen, requested, there, host, [*others, *_uses(known)])
        parameters = [("id", identifier)] if identifier else []
        try:
            found = connection.put(api_path("weft", "network", chosen), content, parameters).json
        except ApiError as error:
            # Somebody has just taken the subnet that was free.
            if requested.subnets or _SUBNET_IN_USE not in error.message or attempt + 1 == _ATTEMPTS:
                raise _raised(error) from error
            continue
        return content, Section(found).text("Problem")
    raise InUse(f"network {name} was not created: others keep taking its subnet")


def remove(connection: ApiClient, name: str, force: bool) -> None:
    """Remove a network from all hosts. Raises InUse naming the hosts that use it, Unreachable."""
    try:
        connection.delete(api_path("weft", "network", name), [("force", "")] if force else [])
    except ApiError as error:
        raise _raised(error) from error


def replace_keys(connection: ApiClient, name: str) -> Json:
    """Replace the keys of an encrypted network on all hosts; what the agent knows of the network then.

    Raises BadOption, InUse naming the hosts that have not replaced the last ones, Missing, Unreachable.
    """
    try:
        found = connection.put(api_path("weft", "network", name, "keys")).json
    except ApiError as error:
        raise _raised(error) from error
    return found if isinstance(found, dict) else {}


def described(connection: ApiClient, name: str) -> Json:
    """What the agent knows of a network: blocks, hosts, and why this one does not take part; {} without it."""
    with contextlib.suppress(WeftError):
        for one in list_of_objects(connection.get(api_path("weft", "networks")).json):
            if one.get("Name") == name:
                return {key: value for key, value in one.items() if key != "Name"}
    return {}


def _uses(known: Sequence[Mapping[str, object]]) -> list[Use]:
    found = []
    for one in known:
        for text in Section(dict(one)).texts("Subnets"):
            with contextlib.suppress(ValueError):
                found.append(Use(ip_network(text), f"network {one.get('Name')} of the cluster"))
    return found


def _raised(error: ApiError) -> WeftError:
    kind = {400: BadOption, 404: Missing, 409: InUse}.get(error.status, WeftError)
    return kind(error.message)
