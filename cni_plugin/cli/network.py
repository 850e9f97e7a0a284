"""``weft network``: create, list, inspect and remove network lists, as docker and podman do."""

from __future__ import annotations

from collections.abc import Callable, Collection

import click

from cni_plugin.cli import clustered
from cni_plugin.cli.formatting import print_rows
from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, say, table
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import attachments, conflists, leases, owners, requests
from cni_plugin.networks import create as creating
from cni_plugin.networks.attachments import Endpoint
from cni_plugin.networks.conflists import Json, NetworkList
from cni_plugin.service import overlay
from cni_plugin.service.context import raise_all
from cni_plugin.service.removal import remove_network
from weft.errors import BadOption, InUse, WeftError

_ALIASES = {"list": "ls", "remove": "rm"}
_FIELDS = ("ID", "Name", "Driver", "Subnets", "File")
_FILTERS = ("name", "id", "driver", "scope", "type", "label", "dangling")


class _Aliased(click.Group):
    """A group with aliases: ``list`` and ``remove``, as in docker."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, _ALIASES.get(cmd_name, cmd_name))


@click.group(cls=_Aliased)
def network() -> None:
    """Manage networks.

    A network is a file in the CNI configuration folder, which podman, containerd, nerdctl and Nomad
    also read.
    """


@network.command(name="ls")
@common
@click.option("-q", "--quiet", is_flag=True, help="Only print names.")
@click.option("--no-trunc", is_flag=True, help="Do not truncate ids.")
@click.option("-n", "--noheading", is_flag=True, help="Print no header.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help=f"By {', '.join(_FILTERS)}.")
@click.option("--format", "form", default="", metavar="FORMAT", help=f"json, table, or fields: {' '.join(_FIELDS)}.")
@pass_tool
def list_networks(
    tool: Tool,
    quiet: bool,
    no_trunc: bool,
    noheading: bool,
    filters: tuple[str, ...],
    form: str,
    json_output: bool,
) -> None:
    """List networks, including those of other software.

    DRIVER is weft's driver, or the plugin that creates the interface. FORMAT has the fields of Go
    templates, as docker's, but no functions.

    \b
    Example:
      weft network ls --filter driver=bridge --format '{{.Name}} {{.Subnets}}'
    """
    used = {one.network for one in attachments.endpoints(tool.service)} if any(filters) else set()
    found = [one for one in tool.networks() if matches(one, filters, used)]
    if json_output:
        as_json([_listed(one) for one in found])
    elif quiet:
        for one in found:
            say(one.name)
    else:
        cells = [
            (
                one.id if no_trunc else one.id[:12],
                one.name,
                one.driver,
                ", ".join(map(str, conflists.subnets(one))) or "-",
                one.path,
            )
            for one in found
        ]
        if form:
            print_rows([dict(zip(_FIELDS, row, strict=True)) for row in cells], _FIELDS, form)
        else:
            table(() if noheading else ("NETWORK ID", "NAME", "DRIVER", "SUBNETS", "FILE"), cells)


def matches(one: NetworkList, filters: tuple[str, ...], used: Collection[str]) -> bool:
    """Whether a network matches one value of each filtered key, as in docker. ``used``: the networks with
    attachments. Raises BadOption.
    """
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key, _, value = text.partition("=")
        if key not in _FILTERS:
            raise BadOption(f"invalid --filter {text!r}: must be KEY=VALUE with one of {', '.join(_FILTERS)}")
        wanted.setdefault(key, []).append(value)
    labels = _labels(one)
    present = {*labels, *(f"{key}={text}" for key, text in labels.items())}
    tests: dict[str, Callable[[str], bool]] = {
        "name": lambda value: value in one.name,
        "id": lambda value: one.id.startswith(value),
        "driver": lambda value: value == one.driver,
        "scope": lambda value: value == _scope(one),
        "type": lambda value: value == "custom",
        "dangling": lambda value: creating.flag("--filter dangling", value) != (one.name in used),
        "label": lambda value: value in present,
    }
    return all(any(map(tests[key], values)) for key, values in wanted.items())


def _scope(one: NetworkList) -> str:
    return "swarm" if requests.is_clustered(one) else "local"


def _labels(one: NetworkList) -> dict[str, str]:
    return _texts(one.notes.raw("labels"))


def _texts(value: object) -> dict[str, str]:
    return {str(key): str(text) for key, text in value.items()} if isinstance(value, dict) else {}


def _listed(one: NetworkList) -> Json:
    return {
        "id": one.id,
        "name": one.name,
        "driver": one.driver,
        "subnets": [str(subnet) for subnet in conflists.subnets(one)],
        "labels": _labels(one),
        "file": one.path,
    }


@network.command()
@common
@click.option("-f", "--format", "form", default="", metavar="FORMAT", help="json, or fields: '{{.IPAM.Driver}}'.")
@click.option("-v", "--verbose", is_flag=True, help="Compatibility with docker: everything is always shown.")
@click.argument("names", metavar="NAME|ID...", nargs=-1, required=True)
@pass_tool
def inspect(tool: Tool, names: tuple[str, ...], form: str, verbose: bool, json_output: bool) -> None:
    """Print details of networks as JSON, in the format of "docker network inspect".

    "Weft" has what docker's format lacks: the file, the plugins, the bridge. ID is the NETWORK ID of
    weft network ls, or a unique prefix of at least four characters; all commands take it.

    \b
    Example:
      weft network inspect blue
      weft network inspect -f '{{range .IPAM.Config}}{{.Subnet}} {{end}}' blue
    """
    found = [tool.network(name) for name in names]
    tool.need_records()
    attached = attachments.endpoints(tool.service)
    shown = [inspected(tool, one, [each for each in attached if each.network == one.name]) for one in found]
    if form and form != "json":
        print_rows(shown, (), form)
    else:
        as_json(shown)


def inspected(tool: Tool, one: NetworkList, attached: list[Endpoint]) -> Json:
    """A network in the format of docker."""
    return {
        "Name": one.name,
        "Id": one.id,
        "Created": one.notes.text("created"),
        "Scope": _scope(one),
        "Driver": one.driver,
        "EnableIPv4": any(subnet.version == 4 for subnet in conflists.subnets(one)),
        "EnableIPv6": any(subnet.version == 6 for subnet in conflists.subnets(one)),
        "IPAM": {
            "Driver": one.main.section("ipam").text("type") or "none",
            "Options": {},
            "Config": _pools(one),
        },
        "Internal": one.internal,
        "Containers": {each.container: _container(each) for each in attached},
        "Options": _texts(one.notes.raw("options")),
        "Labels": _labels(one),
        "Weft": {
            "File": one.path,
            "CniVersion": one.version,
            "Plugins": list(one.types),
            "Bridge": one.bridge,
            "Interfaces": [f"{each.container}/{each.interface}" for each in attached],
            **clustered.described(one),
        },
    }


def _pools(one: NetworkList) -> list[Json]:
    pool = leases.pool(one)
    if pool is None:
        return [{"Subnet": str(subnet)} for subnet in conflists.subnets(one)]
    limited = {
        str(each.get("subnet")): "rangeStart" in each or "rangeEnd" in each
        for ranges in one.main.section("ipam").items("ranges")
        for each in (ranges if isinstance(ranges, list) else [])
        if isinstance(each, dict)
    }
    return [
        {
            "Subnet": str(each.subnet),
            "Gateway": str(each.gateway),
            **({"IPRange": str(each.span)} if limited.get(str(each.subnet)) else {}),
        }
        for ranges in pool.sets
        for each in ranges
    ]


def _container(each: Endpoint) -> Json:
    four = next((address for address in each.addresses if ":" not in address), "")
    six = next((address for address in each.addresses if ":" in address), "")
    return {
        "Name": each.container,
        "EndpointID": each.interface,
        "MacAddress": each.mac,
        "IPv4Address": four,
        "IPv6Address": six,
    }


@network.command(name="rm")
@common
@click.option("-f", "--force", is_flag=True, help="Detach containers first; also remove networks of other software.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@pass_tool
def remove(tool: Tool, force: bool, names: tuple[str, ...], json_output: bool) -> None:
    """Remove networks with their bridges, rules, leases and files. Prints their names.

    Fails if containers are attached, unless --force; the other networks are removed all the same.

    \b
    Example:
      weft network rm blue
    """
    tool.prepare_to("remove a network")
    removed, errors = [], []
    for name in names:
        try:
            _remove_named(tool, name, force)
        except WeftError as error:
            errors.append(error)
            continue
        removed.append(name)
        if not json_output:
            say(name)
    if json_output:
        as_json(removed)
    raise_all(errors)


def _remove_named(tool: Tool, name: str, force: bool) -> None:
    known = tool.network_if_known(name)
    if requests.is_clustered(known) or (known is None and clustered.has(name)):
        clustered.remove(known.name if known is not None else name, force)
    else:
        with conflists.locked(tool.config):
            _remove(tool, tool.network(name), force)


def _remove(tool: Tool, one: NetworkList, force: bool) -> None:
    """Remove one network, its file last, so that a failed removal can be repeated. Raises InUse."""
    if not one.weft and not force:
        raise InUse(f"network {one.name} was not created by weft ({one.path})", hint="use --force to remove it")
    attached = [each for each in attachments.endpoints(tool.service) if each.network == one.name]
    if attached and not force:
        named = owners.names(each.container for each in attached)
        listed = ", ".join(
            f"{owners.called(each.container, named.get(each.container))}/{each.interface}" for each in attached
        )
        raise InUse(f"network {one.name} has active endpoints: {listed}", hint="detach them first, or use --force")
    for each in attached:
        attachments.detach(tool.service, each)
    unattached = [lease for lease in leases.listed(one, leases.attached(tool.service)) if not lease.attached]
    stale = {lease.address for lease in leases.stale(tool.service, [one])}
    held = [f"{lease.address} of {lease.owner}" for lease in unattached if lease.address not in stale]
    if held and not force:
        raise InUse(f"network {one.name} has active leases: {', '.join(held[:3])}", hint="use --force to release them")
    for lease in unattached:
        leases.free(tool.service, one, lease)
    remove_network(tool.service, one.name)
    leases.remove_directory(one)
    conflists.remove(one)


@network.command()
@common
@click.option("-n", "--dry-run", is_flag=True, help="Only print what differs.")
@click.argument("name")
@pass_tool
def reconcile(tool: Tool, dry_run: bool, name: str, json_output: bool) -> None:
    """Make the kernel as the files of an overlay network say. Prints what differed.

    The cluster's agent does the same whenever it has replaced the files.

    \b
    Example:
      weft network reconcile blue
    """
    tool.prepare_to("reconcile a network")
    found = (overlay.differences if dry_run else overlay.reconcile)(tool.service, tool.network_name(name))
    if json_output:
        as_json(found)
    for sentence in () if json_output else found:
        say(sentence)
