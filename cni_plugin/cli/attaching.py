"""``weft plan``, ``weft attach`` and ``weft detach``: a runtime's calls by hand, with any network namespace."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click

from cni_plugin.cli.chain import Chain, Step, Target
from cni_plugin.cli.listing import answer
from cni_plugin.cli.options import attaching, common, container_of, namespace_path, target, wishes
from cni_plugin.cli.output import as_json, say
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import attachments
from cni_plugin.networks.conflists import implemented
from cni_plugin.ops import PoolLease
from cni_plugin.ops.operation import Machine, Operation
from cni_plugin.service import executor
from cni_plugin.service.context import raise_all
from weft.errors import Conflict, NamespaceProblem, UnknownContainer, WeftError
from weft.types import Result

_PLACEHOLDER = "NETNS"


@click.command()
@common
@click.argument("network")
@click.argument("netns", required=False, default="")
@attaching
@click.option("--all", "everything", is_flag=True, help="Show what is in place already too, and the table of rules.")
@pass_tool
def plan(
    tool: Tool,
    network: str,
    netns: str,
    container: str,
    ifname: str,
    addresses: tuple[str, ...],
    mac: str,
    publish: tuple[str, ...],
    everything: bool,
    json_output: bool,
) -> None:
    """Print the shell commands that attaching equals, and change nothing.

    NETNS is a name of "ip netns", a path, or a process id. Without it the commands are for an empty namespace
    whose path you set first: NETNS=/run/netns/c1.

    \b
    Example:
      weft plan blue c1 -p 8080:80/tcp
    """
    tool.need_rights("look into network namespaces")
    asked = wishes(publish, addresses, mac)
    found = tool.network(network)
    if netns:
        whom = target(tool.service, netns, container, ifname)
        steps, result = Chain(tool.service, found, whom, tool.path, asked).preview()
        path = whom.namespace
    else:
        with tool.empty_namespace() as empty:
            whom = Target(container or container_of(_PLACEHOLDER.lower()), empty, ifname)
            steps, result = Chain(tool.service, found, whom, tool.path, asked).preview()
            path = f'"${_PLACEHOLDER}"'
    shared = list(dict.fromkeys(one for step in steps for one in step.shared))
    lacking = _lacking(shared, tool.service.machine(None))
    if json_output:
        as_json(
            {
                "shared": [line for one in shared for line in one.commands(path)],
                "inPlace": [line for one in shared if one not in lacking for line in one.commands(path)],
                "commands": [line for step in steps for line in _own(step, path)],
                "result": answer(result, found.version),
            }
        )
        return
    shown = [one for one in shared if everything or one in lacking]
    _print_plan(network, steps, shown, len(shared) - len(shown), path, everything)


def _lacking(shared: list[Operation], machine: Machine) -> list[Operation]:
    """Those that are still to be done; what lies on a link that is still to be made is among them."""
    found = [one for one in shared if executor.mismatches((one,), machine)]
    fresh = {place for one in found for place in one.creates}
    return [one for one in shared if one in found or one.on_link in fresh]


def _print_plan(
    network: str, steps: list[Step], shared: list[Operation], there: int, path: str, everything: bool
) -> None:
    say(f"# What network {network} shares:")
    if there:
        say(f"# ({there} of its steps are in place already; --all shows them too)")
    for operation in shared:
        for command in operation.commands(path):
            first, *rest = command.replace("\t", "    ").split("\n")
            if rest and not everything:
                # Weft's own table, the same for every network: two hundred lines that nobody asked about.
                say(f"# (here the table of rules, {len(rest)} lines: --all prints it)")
                continue
            for line in (first, *rest):
                say(line)
    say()
    say("# This attachment's own:")
    for step in steps:
        for command in _own(step, path):
            say(command)


def _own(step: Step, path: str) -> Iterator[str]:
    """A step's commands; a lease's with the directory that they need."""
    if not implemented(step.plugin):
        yield f"# then the plugin {step.plugin} is called, which is not weft's"
    for operation in step.own:
        if isinstance(operation, PoolLease):
            yield f"mkdir -p {shlex.quote(operation.pool.directory)}"
        yield from operation.commands(path)


@click.command()
@common
@click.argument("network")
@click.argument("netns")
@attaching
@pass_tool
def attach(
    tool: Tool,
    network: str,
    netns: str,
    container: str,
    ifname: str,
    addresses: tuple[str, ...],
    mac: str,
    publish: tuple[str, ...],
    json_output: bool,
) -> None:
    """Attach a network namespace to a network, as a container runtime would.

    NETNS is a name of "ip netns", a path, or a process id. All of it happens or nothing. With --json the CNI
    result is printed.

    \b
    Example:
      ip netns add c1
      weft attach blue c1 --ip 10.89.0.9 -p 8080:80/tcp
    """
    tool.prepare_to("attach")
    found = tool.network(network)
    whom = target(tool.service, netns, container, ifname)
    there = attachments.find(tool.service, whom.container, ifname, network)
    if any(one.container == whom.container and one.state is attachments.State.ATTACHED for one in there):
        raise Conflict(
            f"{whom.container}/{ifname} is attached to {network} already",
            hint=f"use another --ifname or --container, or first: weft detach {network} {netns}",
        )
    chain = Chain(tool.service, found, whom, tool.path, wishes(publish, addresses, mac))
    result = chain.add()
    if json_output:
        as_json(result)
    else:
        for line in _told(chain.parsed(result), whom, publish):
            say(line)


def _told(result: Result, whom: Target, publish: tuple[str, ...]) -> Iterator[str]:
    """A result in a line or two."""
    addresses = ", ".join(str(ip.address) for ip in result.ips)
    gateways = ", ".join(dict.fromkeys(str(ip.gateway) for ip in result.ips if ip.gateway))
    mac = next((one.mac for one in result.interfaces if one.name == whom.interface and one.sandbox), "")
    words = [addresses, f"gateway {gateways}" if gateways else "", f"mac {mac}" if mac else ""]
    yield f"{whom.container}/{whom.interface}: {', '.join(word for word in words if word) or 'attached'}"
    if publish:
        yield f"published: {', '.join(publish)}"


@click.command()
@common
@click.argument("network")
@click.argument("who", metavar="NETNS|CONTAINER")
@click.option("--container", metavar="ID", default="", help="The container's id, where WHO is a namespace.")
@click.option("--ifname", default="", help="The interface. Default: every one of the container on this network.")
@pass_tool
def detach(tool: Tool, network: str, who: str, container: str, ifname: str, json_output: bool) -> None:
    """Detach a container, or a network namespace, from a network.

    Works as well when the namespace is gone or the network's file is: what was done is written down.

    \b
    Example:
      weft detach blue c1
    """
    tool.prepare_to("detach")
    found = _attached(tool, network, who, container, ifname)
    known = tool.network_if_known(network)
    if not found:
        _detach_foreign(tool, network, who, container, ifname)
        return
    errors: list[WeftError] = []
    for one in found:
        path = one.namespace.path if tool.service.is_alive(one.namespace) else ""
        if known is not None:
            previous = answer(one.result, one.records[-1].version)
            whom = Target(one.container, path, one.interface)
            try:
                Chain(tool.service, known, whom, tool.path).delete(previous if isinstance(previous, dict) else None)
            except WeftError as error:
                errors.append(error)
        attachments.detach(tool.service, one)
    raise_all(errors)
    names = [f"{one.container}/{one.interface}" for one in found]
    if json_output:
        as_json(names)
    else:
        for name in names:
            say(name)


def _attached(tool: Tool, network: str, who: str, container: str, ifname: str) -> list[attachments.Endpoint]:
    """What is attached of a container id, or in a namespace."""
    found = attachments.find(tool.service, container or who, ifname, network)
    if found or container:
        return found
    try:
        path = namespace_path(tool.service, who)
    except NamespaceProblem:
        return attachments.find(tool.service, container_of(who), ifname, network)
    there = tool.service.kernel.identify(path)
    return [
        one
        for one in attachments.endpoints(tool.service)
        if one.network == network and one.namespace.same(there) and (not ifname or one.interface == ifname)
    ]


def _detach_foreign(tool: Tool, network: str, who: str, container: str, ifname: str) -> None:
    """A network that only foreign plugins serve: weft has no record of it, so their DEL is all there is."""
    known = tool.network(network)
    if any(implemented(plugin) for plugin in known.types):
        raise UnknownContainer(f"{container or who} is not attached to {network}", hint="weft ps lists what is")
    whom = target(tool.service, who, container, ifname or "eth0")
    Chain(tool.service, known, whom, tool.path).delete(None)
    say(f"{whom.container}/{whom.interface}")
