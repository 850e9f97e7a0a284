"""Networks of the cluster for ``weft network``, by this host's agent."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cni_plugin.cli import agents
from cni_plugin.cli.output import warn
from cni_plugin.cli.tool import Tool
from cni_plugin.networks import requests
from cni_plugin.networks.conflists import Json, NetworkList
from cni_plugin.networks.create import CreateOptions
from cni_plugin.networks.findings import Finding
from discovery.consul.client import ApiClient, Unreachable, api_path, list_of_objects
from weft.errors import WeftError
from weft.remedies import NoCommand
from weft.section import Section


def client() -> ApiClient:
    """A client of this host's agent. Raises Unreachable."""
    running = agents.running()
    if running is None:
        raise Unreachable("no agent is running, which keeps the cluster's networks", hint="start it with: weft up")
    return running.client


def create(tool: Tool, name: str, requested: CreateOptions) -> str:
    """Create a network on all hosts; its name. Raises BadOption, InUse, Unreachable."""
    tool.prepare_to("create a network")
    with contextlib.closing(client()) as connection:
        made, problem = requests.create(connection, name, requested, tool.networks, tool.service.kernel.host)
    if problem:
        warn(f"this host does not take part in network {made['name']}: {problem}")
    return str(made["name"])


def has(name: str) -> bool:
    """Whether the cluster has a network of that name, also one that this host does not take part in."""
    if agents.running() is None:
        return False
    with contextlib.closing(client()) as connection:
        return bool(requests.described(connection, name))


def remove(name: str, force: bool) -> None:
    """Remove a network from all hosts. Raises InUse naming the hosts that use it, Unreachable."""
    with contextlib.closing(client()) as connection:
        requests.remove(connection, name, force)


def replace_keys(name: str) -> Json:
    """Replace the keys of an encrypted network on all hosts. Raises BadOption, InUse, Missing, Unreachable."""
    with contextlib.closing(client()) as connection:
        return requests.replace_keys(connection, name)


def described(network: NetworkList) -> Json:
    """``{"Cluster": …}``: what the agent knows of the network; nothing where none runs."""
    if not requests.is_clustered(network) or agents.running() is None:
        return {}
    with contextlib.closing(client()) as connection:
        return {"Cluster": found} if (found := requests.described(connection, network.name)) else {}


def findings() -> Iterator[Finding]:
    """Networks of the cluster that this host does not take part in, and peers that it does not reach."""
    if agents.running() is None:
        return
    with contextlib.suppress(WeftError), contextlib.closing(client()) as connection:
        for one in list_of_objects(connection.get(api_path("weft", "networks")).json):
            if why := one.get("Invalid"):
                what = f"the cluster's record of network {one.get('Name')} is invalid, and changes nothing: {why}"
                either = f"update weft here, if it is older; or weft network rm {one.get('Name')}"
                yield Finding(what, NoCommand(either))
            if problem := one.get("Problem"):
                what = f"this host does not take part in network {one.get('Name')} of the cluster: {problem}"
                yield Finding(what, NoCommand("remove the cause; the agent then joins it"))
            gateway, hosts = Section(one).section("VlanGateway").text("Host"), Section(one).sections("Hosts")
            if gateway and all(host.text("Node") != gateway for host in hosts):
                what = f"host {gateway}, the VLAN gateway of network {one.get('Name')}, has no part in it"
                yield Finding(what, NoCommand("start weft there; a network with another gateway is created anew"))
            left_out = one.get("LeftOut")
            for host, why in left_out.items() if isinstance(left_out, dict) else ():
                what = f"host {host} is left out of network {one.get('Name')} of the cluster: {why}"
                yield Finding(what, NoCommand(f"update weft there; if nobody knows that host: weft node rm {host}"))
        for one in list_of_objects(connection.get(api_path("weft", "peers")).json):
            host, most, full = one.get("Node"), one.get("MTU"), one.get("FullMTU")
            where = f"on network {one.get('Network')}"
            if not one.get("Reachable"):
                remedy = NoCommand("check that host, and that the underlay passes the UDP port of VXLAN")
                yield Finding(f"host {host} does not answer {where} at {one.get('Address')}", remedy)
            elif most != full:
                sizes = f"packets of {full} bytes do not reach host {host} {where}, those of {most} do"
                yield Finding(sizes, NoCommand("raise the MTU of the underlay; the routes have the smaller one"))
