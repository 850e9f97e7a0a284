"""``weft ps``, ``weft show`` and ``weft check``: list and inspect attachments, and verify them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import click

from cni_plugin.cli.formatting import print_rows
from cni_plugin.cli.options import common
from cni_plugin.cli.output import age, as_json, count, fields, say, table
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import attachments, conflists, findings, owners
from cni_plugin.networks.attachments import Endpoint, State
from cni_plugin.networks.chain import Chain, Target
from cni_plugin.networks.conflists import Json, NetworkList, implemented
from cni_plugin.networks.firewalls import dropped
from cni_plugin.networks.limits import LimitUse, limits_of
from cni_plugin.networks.owners import OwnerName
from cni_plugin.networks.uplink import UplinkUse, uplink_of
from cni_plugin.service.context import ServiceContext
from cni_plugin.wire import versions
from cni_plugin.wire.result import render
from weft import identity
from weft.errors import BadOption, UnknownContainer
from weft.remedies import Command, Remedy
from weft.types import Result

_OF_STATE = ("state", "status")
_FILTERS = ("name", "id", "network", *_OF_STATE)
_FIELDS = ("Name", "Container", "Network", "Interface", "Addresses", "MAC", "Ports", "Age", "State")
_HEADER = ("NAME", "CONTAINER", "NETWORK", "INTERFACE", "ADDRESSES", "MAC", "PORTS", "AGE", "STATE")


@click.command()
@common
@click.option("--network", "wanted", metavar="NAME", default="", help="Only show attachments to this network.")
@click.option("--no-trunc", is_flag=True, help="Do not truncate container ids.")
@click.option("-q", "--quiet", is_flag=True, help="Only print container ids.")
@click.option("-a", "--all", "everything", is_flag=True, help="Compatibility with docker: all are always listed.")
@click.option("-n", "--noheading", is_flag=True, help="Print no header.")
@click.option(
    "-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Filter by name, id, network, state."
)
@click.option(
    "--format", "form", default="", metavar="FORMAT", help="json, table, or fields: '{{.Name}} {{.Addresses}}'."
)
@pass_tool
def ps(
    tool: Tool,
    wanted: str,
    no_trunc: bool,
    quiet: bool,
    everything: bool,
    noheading: bool,
    filters: tuple[str, ...],
    form: str,
    json_output: bool,
) -> None:
    """List the attachments on this host.

    NAME is what the container's owner calls it: podman, nerdctl, ctr, Kubernetes, ip netns. Every command
    takes it, the id, or a unique prefix of the id.

    STATE is "attached", "half attached" (a call was interrupted) or "namespace gone" (the container has
    exited without a detach); weft gc removes the last two.

    \b
    Example:
      weft ps --network blue
    """
    tool.need_records()
    wanted = tool.network_name(wanted)
    found = [one for one in attachments.endpoints(tool.service) if not wanted or one.network == wanted]
    if wanted and not found:
        tool.network(wanted)  # one that has no file may have attachments
    named = owners.names(one.container for one in found)
    found = _filtered(found, named, filters)
    if json_output:
        as_json([summary(one, named.get(one.container)) for one in found])
    elif quiet:
        for container in dict.fromkeys(one.container for one in found):
            say(container if no_trunc else owners.short(container, named.get(container)))
    else:
        rows = [_row(one, named.get(one.container), no_trunc) for one in found]
        if form:
            print_rows([dict(zip(_FIELDS, row, strict=True)) for row in rows], _FIELDS, form)
        else:
            table(() if noheading else _HEADER, rows)


def _filtered(found: list[Endpoint], named: Mapping[str, OwnerName], filters: tuple[str, ...]) -> list[Endpoint]:
    """The endpoints that match one value of each filtered key, as in docker. Raises BadOption."""
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if key not in _FILTERS or not equals:
            raise BadOption(f"invalid --filter {text!r}: must be KEY=VALUE with one of {', '.join(_FILTERS)}")
        if key in _OF_STATE and value not in tuple(State):
            raise BadOption(f"invalid --filter {text!r}: a state is one of {', '.join(State)}")
        wanted.setdefault(key, []).append(value)
    tests: dict[str, Callable[[Endpoint, str], bool]] = {
        "name": lambda one, value: one.container in named and value in named[one.container].name,
        "id": lambda one, value: value in one.container,
        "network": lambda one, value: one.network == value,
        "state": lambda one, value: str(one.state) == value,
        "status": lambda one, value: str(one.state) == value,
    }
    return [
        one for one in found if all(any(tests[key](one, each) for each in values) for key, values in wanted.items())
    ]


def _row(one: Endpoint, name: OwnerName | None, no_trunc: bool) -> tuple[str, ...]:
    return (
        name.name if name else "-",
        one.container if no_trunc else owners.short(one.container, name),
        one.network,
        one.interface,
        ", ".join(one.addresses) or "-",
        one.mac or "-",
        ", ".join(one.ports) or "-",
        age(one.age),
        str(one.state),
    )


def summary(one: Endpoint, name: OwnerName | None) -> Json:
    """An attachment in ``--json`` output."""
    return {
        "container": one.container,
        "name": name.name if name else None,
        "network": one.network,
        "interface": one.interface,
        "addresses": list(one.addresses),
        "mac": one.mac,
        "ports": list(one.ports),
        "ageSeconds": round(one.age),
        "state": str(one.state),
        "driver": one.driver,
        "namespace": one.namespace.path,
    }


@click.command()
@common
@click.argument("container", metavar="{CONTAINER[/IFNAME]|MARK}")
@click.argument("network", required=False, default="")
@pass_tool
def show(tool: Tool, container: str, network: str, json_output: bool) -> None:
    """Show details of a container's attachments.

    Shows the network namespace, the CNI result, the equivalent shell commands, and differences from
    what was set up. CONTAINER is a name or id of weft ps, or a unique prefix of the id. MARK is the
    comment of an nftables element or the alias of a link, with or without "weft:"; the mark of an
    object that attachments share, such as a bridge, shows the networks that it belongs to.

    \b
    Example:
      weft show c1
      weft show c1/eth0 blue
      weft show weft:458f29fc0a29d2e2
    """
    tool.need_records()
    network = tool.network_name(network)
    digest = _mark_digest(container)
    networks = attachments.marked_networks(tool.service, digest) if digest else []
    if networks:
        _show_networks(tool, digest, networks, json_output)
        return
    found = (attachments.marked(tool.service, digest) if digest else []) or _find(tool, container, network)
    documents = [_details(tool, one) for one in found]
    if json_output:
        as_json(documents)
        return
    for index, (one, document) in enumerate(zip(found, documents, strict=True)):
        if index:
            say()
        _show(one, document, limits_of(tool.service, one), uplink_of(tool.service, one))


def _mark_digest(text: str) -> str:
    """The digest of a mark that may lack its prefix, "" if the text is no mark."""
    return identity.mark_digest(text) or identity.mark_digest(f"weft:{text}")


def _show_networks(tool: Tool, digest: str, networks: list[str], json_output: bool) -> None:
    """Networks that share what has the mark, with the attachments to each."""
    found = attachments.endpoints(tool.service)
    attached = {name: [f"{one.container}/{one.interface}" for one in found if one.network == name] for name in networks}
    mark = f"weft:{digest}"
    if json_output:
        as_json([{"mark": mark, "network": name, "attachments": list(attached[name])} for name in networks])
        return
    for index, name in enumerate(networks):
        if index:
            say()
        fields([("Mark", f"{mark} (shared)"), ("Network", name), ("Attachments", ", ".join(attached[name]) or "-")])


def _find(tool: Tool, text: str, network: str) -> list[Endpoint]:
    """The endpoints for CONTAINER[/IFNAME]. Raises UnknownContainer."""
    if identity.mark_digest(text):
        raise UnknownContainer(f"no attachment or network has the mark {text}", hint="see weft ps and weft gc")
    container, _, interface = text.partition("/")
    found = attachments.find(tool.service, container, interface, network)
    if not found:
        where = f" on {network}" if network else ""
        raise UnknownContainer(f"{text} is not attached{where}", hint="see weft ps")
    return found


def _name(one: Endpoint) -> OwnerName | None:
    return owners.names((one.container,)).get(one.container)


def _details(tool: Tool, one: Endpoint) -> Json:
    path = one.namespace.path
    return {
        **summary(one, _name(one)),
        "plugins": [record.attachment.plugin for record in one.records],
        "result": answer(one.result, one.records[-1].version),
        "limits": [
            {"key": each.key, "address": each.address, "limit": list(each.limit), "exceeded": each.exceeded}
            for each in limits_of(tool.service, one)
        ],
        "uplink": [
            {
                "direction": each.direction,
                "class": each.classid,
                "owner": each.owner,
                "weight": each.weight,
                "floor": each.floor,
                "ceil": each.ceil,
                "priority": each.priority,
                "sent": each.traffic.sent if each.traffic is not None else None,
                "dropped": each.traffic.drops if each.traffic is not None else None,
            }
            for each in uplink_of(tool.service, one)
        ],
        "shared": [command for each in one.shared for command in each.commands(path)],
        "commands": [command for each in one.operations for command in each.commands(path)],
        "lacks": attachments.mismatches(tool.service, one),
        "remarks": attachments.remarks(tool.service, one),
    }


def answer(result: Result, version: str) -> object:
    """A result as the runtime received it; in the newest version instead of one before 0.3.0."""
    return json.loads(render(result, version if versions.at_least(version, "0.3.0") else versions.NEWEST))


def _show(one: Endpoint, document: Json, limits: tuple[LimitUse, ...], uplink: tuple[UplinkUse, ...]) -> None:
    gateways = dict.fromkeys(str(ip.gateway) for ip in one.result.ips if ip.gateway)
    routes = [f"{each.destination}" + (f" via {each.gateway}" if each.gateway else "") for each in one.result.routes]
    pairs = [
        ("Name", str(document["name"] or "")),
        ("Container", one.container),
        ("Network", f"{one.network} ({one.driver})" if one.driver else one.network),
        ("Interface", one.interface),
        ("State", f"{one.state}, {age(one.age)} old"),
        ("Namespace", f"{one.namespace.path} (inode {one.namespace.inode})"),
        ("Addresses", ", ".join(one.addresses)),
        ("Gateway", ", ".join(gateways)),
        ("Routes", "\n".join(routes)),
        ("MAC", one.mac),
        ("Ports", "\n".join(one.ports)),
        ("Limits", "\n".join(map(str, limits))),
        ("Uplink", "\n".join(map(str, uplink))),
        ("Plugins", ", ".join(record.attachment.plugin for record in one.records)),
    ]
    fields([(name, value) for name, value in pairs if value])
    say()
    if commands := [command for each in one.operations for command in each.commands(one.namespace.path)]:
        say("Equivalent commands (without those shared by the network, see --json):")
        for command in commands:
            say(f"  {command}")
    else:
        say("No commands: nothing was changed for this container alone.")
    say()
    remarks = document["remarks"]
    if isinstance(remarks, list) and remarks:
        say("Names and services:")
        for sentence in remarks:
            say(f"  {sentence}")
        say()
    lacks = document["lacks"]
    if isinstance(lacks, list) and lacks:
        say("Differences:")
        for sentence in lacks:
            say(f"  {sentence}")
    else:
        say("No differences from what was set up.")


@click.command()
@common
@click.argument("network", metavar="[NETWORK]", required=False, default="")
@click.argument("container", metavar="[CONTAINER[/IFNAME]]", required=False, default="")
@pass_tool
def check(tool: Tool, network: str, container: str, json_output: bool) -> None:
    """Check attachments for differences from what was set up.

    Compares links, addresses, routes, sysctls, rules and leases. Changes nothing. Exits with 1 if
    anything differs.

    \b
    Example:
      weft check c1
      weft check blue c1
    """
    tool.need_records()
    if network and not container and tool.network_if_known(network) is None:
        container = network if attachments.find(tool.service, network.partition("/")[0]) else ""
        network = "" if container else network
    network = tool.network_name(network)
    if container:
        context, found = tool.service.reading_once(), _find(tool, container, network)
    else:
        context = tool.service.comparing_all()
        found = [one for one in attachments.endpoints(context) if not network or one.network == network]
        if network and not found:
            tool.network(network)
    losses: dict[str, list[tuple[str, Remedy]]] = {}
    for each in dropped(context, network):
        losses.setdefault(each.network, []).append((each.sentence, Command(each.command)))
    networks = _first_of_each_name(tool)
    results = [
        (one, [*((sentence, findings.remedy(one, mended)) for sentence, mended in each), *losses.get(one.network, ())])
        for one, each in zip(found, _problems_of(tool, context, found, networks), strict=True)
    ]
    broken = sum(bool(differences) for _, differences in results)
    named = owners.names(one.container for one, _ in results)
    if json_output:
        as_json([{**summary(one, named.get(one.container)), **_differing(differences)} for one, differences in results])
    else:
        for one, differences in results:
            known = named.get(one.container)
            name, own = owners.further(one.container, known), owners.short(one.container, known)
            state = "broken" if differences else "ok".ljust(6)
            what = f"{own}/{one.interface} on {one.network}{f' ({name})' if name else ''}"
            say(f"{state}  {what}", colour="red" if differences else "")
            for sentence, _ in differences:
                say(f"        {sentence}")
            for remedy in dict.fromkeys(remedy for _, remedy in differences):
                say(f"        {remedy}")
        if not results:
            say("no attachments" + (f" on network {network}" if network else ""))
        elif broken:
            say(f"{broken} of {count(len(results), 'attachment')} broken")
    raise click.exceptions.Exit(1 if broken else 0)


def _differing(differences: Sequence[tuple[str, Remedy]]) -> dict[str, object]:
    return {
        "lacks": [sentence for sentence, _ in differences],
        "remedies": [{"remedy": str(remedy), "command": remedy.command} for _, remedy in differences],
    }


def _first_of_each_name(tool: Tool) -> dict[str, NetworkList]:
    """The networks by their names; of two with the same name the first, as in libcni."""
    networks, _ = conflists.listed(tool.config)
    return {network.name: network for network in reversed(networks)}


def _problems_of(
    tool: Tool, context: ServiceContext, found: Sequence[Endpoint], networks: Mapping[str, NetworkList]
) -> list[list[tuple[str, bool]]]:
    return attachments.of_each(
        context, found, lambda part: [problems(tool, context, one, networks.get(one.network)) for one in part]
    )


def problems(tool: Tool, context: ServiceContext, one: Endpoint, network: NetworkList | None) -> list[tuple[str, bool]]:
    """Differences from what was set up, then the errors of the foreign plugins' CHECK; whether ``weft doctor
    --repair`` mends each.
    """
    found = dict(attachments.differences(context, one))
    if one.state is State.ATTACHED and network is not None and not all(map(implemented, network.types)):
        previous = answer(one.result, one.records[-1].version)
        chain = Chain(tool.service, network, Target(one.container, one.namespace.path, one.interface), tool.path)
        for sentence in chain.check(previous if isinstance(previous, dict) else None):
            found.setdefault(sentence, False)
    return list(found.items())
