"""``weft plan``, ``weft attach`` and ``weft detach``: CNI calls by hand, for any network namespace."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator

import click

from cni_plugin.cli.listing import answer
from cni_plugin.cli.options import (
    attachment_options,
    common,
    named_as_options,
    namespace_path,
    runtime_config,
    target,
)
from cni_plugin.cli.output import as_json, say
from cni_plugin.cli.ports import shown
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import attachments
from cni_plugin.networks.chain import Chain, RuntimeConfig, Step, Target
from cni_plugin.networks.conflists import implemented
from cni_plugin.networks.owners import container_of
from cni_plugin.ops import PoolLease
from cni_plugin.ops.operation import Machine, Operation
from cni_plugin.service import executor
from cni_plugin.service.context import raise_all
from cni_plugin.service.orphans import orphans
from weft.errors import Conflict, NamespaceProblem, UnknownContainer, WeftError
from weft.types import Result

_PLACEHOLDER = "NETNS"


@click.command()
@common
@click.argument("network")
@click.argument("netns", required=False, default="")
@attachment_options
@click.option("--all", "everything", is_flag=True, help="Also show what is already set up, and the full ruleset.")
@pass_tool
def plan(
    tool: Tool,
    network: str,
    netns: str,
    container: str,
    ifname: str,
    addresses: tuple[str, ...],
    mac: str,
    name: str,
    aliases: tuple[str, ...],
    hostname: str,
    servers: tuple[str, ...],
    publish: tuple[str, ...],
    everything: bool,
    json_output: bool,
) -> None:
    """Print the shell commands that an attach is equivalent to. Changes nothing.

    NETNS is a name of "ip netns", a path, or a process id. Without it, the commands are for an empty
    namespace whose path is in $NETNS: NETNS=/run/netns/c1.

    \b
    Example:
      weft plan blue c1 -p 8080:80/tcp
    """
    tool.need_rights("enter network namespaces")
    capabilities = runtime_config(publish, addresses, mac, name, aliases, hostname, servers)
    found = tool.network(network)
    network = found.name
    if netns:
        endpoint = target(tool.service, netns, container, ifname, name)
        with named_as_options():
            steps, result = Chain(tool.service, found, endpoint, tool.path, capabilities).preview()
        path = endpoint.namespace
    else:
        with tool.empty_namespace() as empty, named_as_options():
            endpoint = Target(container or container_of(name or _PLACEHOLDER.lower()), empty, ifname)
            steps, result = Chain(tool.service, found, endpoint, tool.path, capabilities).preview()
            path = f'"${_PLACEHOLDER}"'
    shared = list(dict.fromkeys(one for step in steps for one in step.shared))
    missing = _missing(shared, tool.service.machine(None))
    if json_output:
        as_json(
            {
                "shared": [line for one in shared for line in one.commands(path)],
                "inPlace": [line for one in shared if one not in missing for line in one.commands(path)],
                "commands": [line for step in steps for line in _own(step, path)],
                "result": answer(result, found.version),
            }
        )
        return
    shown = [one for one in shared if everything or one in missing]
    _print_plan(network, steps, shown, len(shared) - len(shown), path, everything)


def _missing(shared: list[Operation], machine: Machine) -> list[Operation]:
    """The operations still to apply, with everything on links that are still to be created."""
    found = [one for one in shared if executor.mismatches((one,), machine)]
    new_links = {link for one in found for link in one.creates}
    return [one for one in shared if one in found or one.on_link in new_links]


def _print_plan(
    network: str, steps: list[Step], shared: list[Operation], there: int, path: str, everything: bool
) -> None:
    own = [command for step in steps for command in _own(step, path)]
    if not (shared or there or own):
        say("# No commands: an attach changes nothing.")
        return
    say(f"# Shared by all containers of network {network}:")
    if there:
        say(f"# ({there} already set up, shown with --all)")
    for operation in shared:
        for command in operation.commands(path):
            first, *rest = command.replace("\t", "    ").split("\n")
            if rest and not everything:
                # weft's ruleset, the same for every network: two hundred lines.
                say(f"# (ruleset of {len(rest)} lines, shown with --all)")
                continue
            for line in (first, *rest):
                say(line)
    say()
    say("# Of this attachment:")
    for command in own:
        say(command)


def _own(step: Step, path: str) -> Iterator[str]:
    """The commands of a step; for a lease also the one that creates its directory."""
    if not implemented(step.plugin):
        yield f"# the plugin {step.plugin} of another project is called here"
    for operation in step.own:
        if isinstance(operation, PoolLease):
            yield f"mkdir -p {shlex.quote(operation.pool.directory)}"
        yield from operation.commands(path)


@click.command()
@common
@click.argument("network")
@click.argument("netns")
@attachment_options
@pass_tool
def attach(
    tool: Tool,
    network: str,
    netns: str,
    container: str,
    ifname: str,
    addresses: tuple[str, ...],
    mac: str,
    name: str,
    aliases: tuple[str, ...],
    hostname: str,
    servers: tuple[str, ...],
    publish: tuple[str, ...],
    json_output: bool,
) -> None:
    """Attach a network namespace to a network, as a container runtime would.

    NETNS is a name of "ip netns", a path, or a process id. Also brings its lo up, as a runtime does; it
    stays up. On an error everything is undone. With --json, prints the CNI result.

    \b
    Example:
      ip netns add c1
      weft attach blue c1 --ip 10.89.0.9 -p 8080:80/tcp
      weft attach blue c2 --name web --alias shop
    """
    tool.prepare_to("attach")
    found = tool.network(network)
    network = found.name
    endpoint = target(tool.service, netns, container, ifname, name)
    existing = [
        one
        for one in attachments.endpoints_of(tool.service, endpoint.container)
        if (one.network, one.interface) == (network, ifname)
    ]
    if any(one.state is attachments.State.ATTACHED for one in existing):
        raise Conflict(
            f"{endpoint.container}/{ifname} is already attached to {network}",
            hint=f"use another --ifname or --container, or run weft detach {network} {netns} first",
        )
    capabilities = runtime_config(publish, addresses, mac, name, aliases, hostname, servers)
    chain = Chain(tool.service, found, endpoint, tool.path, capabilities)
    with named_as_options():
        result = chain.add()
    if json_output:
        as_json(result)
    else:
        for line in _result_lines(chain.parsed(result), endpoint, capabilities):
            say(line)


def _result_lines(result: Result, endpoint: Target, given: RuntimeConfig) -> Iterator[str]:
    """A result as one line, and one each for published ports and name servers."""
    addresses = ", ".join(str(ip.address) for ip in result.ips)
    gateways = ", ".join(dict.fromkeys(str(ip.gateway) for ip in result.ips if ip.gateway))
    mac = next((one.mac for one in result.interfaces if one.name == endpoint.interface and one.sandbox), "")
    words = [addresses, f"gateway {gateways}" if gateways else "", f"mac {mac}" if mac else ""]
    yield f"{endpoint.container}/{endpoint.interface}: {', '.join(word for word in words if word) or 'attached'}"
    if given.ports:
        yield f"published: {', '.join(map(shown, given.ports))}"
    if given.servers:
        yield f"name servers: {', '.join(result.dns.nameservers)}"


@click.command()
@common
@click.argument("network", metavar="[NETWORK]", required=False, default="")
@click.argument("who", metavar="NETNS|CONTAINER", required=False, default="")
@click.option("--container", metavar="ID", default="", help="The container's id, if the argument is a namespace.")
@click.option("--ifname", default="", help="The interface. Default: all of the container on this network.")
@pass_tool
def detach(tool: Tool, network: str, who: str, container: str, ifname: str, json_output: bool) -> None:
    """Detach a container, or a network namespace, from a network, or from all of them.

    CONTAINER is a name or id of weft ps. Also works if the namespace or the network's file no longer
    exists: weft keeps records of its attachments.

    \b
    Example:
      weft detach blue c1
      weft detach c1
    """
    if not network:
        raise click.UsageError("Missing argument 'NETNS|CONTAINER'")
    tool.prepare_to("detach")
    if not who:
        network, who = "", network
    network = tool.network_name(network)
    found = _attached(tool, network, who, container, ifname)
    if not found:
        names = _detach_unrecorded(tool, network, who, container, ifname)
        _say_names(names, json_output)
        return
    errors: list[WeftError] = []
    for one in found:
        path = one.namespace.path if tool.service.is_alive(one.namespace) else ""
        known = tool.network_if_known(one.network)
        if known is not None:
            previous = answer(one.result, one.records[-1].version)
            endpoint = Target(one.container, path, one.interface)
            try:
                Chain(tool.service, known, endpoint, tool.path).delete(previous if isinstance(previous, dict) else None)
            except WeftError as error:
                errors.append(error)
        attachments.detach(tool.service, one)
    raise_all(errors)
    _say_names([f"{one.container}/{one.interface}" for one in found], json_output)


def _say_names(names: list[str], json_output: bool) -> None:
    if json_output:
        as_json(names)
    else:
        for name in names:
            say(name)


def _attached(tool: Tool, network: str, who: str, container: str, ifname: str) -> list[attachments.Endpoint]:
    """The endpoints of a container, given by its id or its namespace."""
    found = attachments.find(tool.service, container or who, ifname, network)
    if found or container:
        return found
    try:
        path = namespace_path(tool.service, who)
    except NamespaceProblem:
        return attachments.find(tool.service, container_of(who), ifname, network)
    namespace = tool.service.kernel.identify(path)
    return [
        one
        for one in attachments.endpoints(tool.service)
        if one.network == (network or one.network)
        and one.namespace.same(namespace)
        and (not ifname or one.interface == ifname)
    ]


def _detach_unrecorded(tool: Tool, network: str, who: str, container: str, ifname: str) -> list[str]:
    """Detach where there is no record, by the plugins' DEL: from a network of foreign plugins only, or running
    containers whose records are lost. The containers with their interfaces.
    """
    known = tool.network(network) if network else None
    if known is not None and not any(implemented(plugin) for plugin in known.types):
        endpoint = target(tool.service, who, container, ifname or "eth0")
        Chain(tool.service, known, endpoint, tool.path).delete(None)
        return [f"{endpoint.container}/{endpoint.interface}"]
    ids = {container} if container else {who, container_of(who)}
    path = ""
    with contextlib.suppress(NamespaceProblem):
        path = namespace_path(tool.service, who)
    names = []
    for name in orphans(tool.service).unrecorded:
        attached, _, of_network = name.rpartition(" on ")
        there, _, interface = attached.rpartition("/")
        if there not in ids or network not in ("", of_network) or ifname not in ("", interface):
            continue
        lost = tool.network_if_known(of_network)
        if lost is None or lost.name != of_network:
            raise UnknownContainer(
                f"{name}: its record is lost, and there is no file of network {of_network}",
                hint="its link ends with its network namespace",
            )
        # Without the path of its namespace, the container's link goes with the host's.
        where = path if there in (container, container_of(who)) else ""
        Chain(tool.service, lost, Target(there, where, interface), tool.path).delete(None)
        names.append(attached)
    if not names:
        on = f" to {network}" if network else ""
        raise UnknownContainer(f"{container or who} is not attached{on}", hint="see weft ps")
    return names
