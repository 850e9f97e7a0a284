"""``weft catalog`` and ``weft members``: nodes and services, with Consul's options, output and exit
statuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import click

from cni_plugin.cli.goflags import GoCommand, api_command, fail, fail_with, pairs
from cni_plugin.cli.instances import parse_instances, virtual_addresses
from cni_plugin.cli.output import as_json, printable, say, table
from discovery.consul.client import ApiClient, api_path, list_of_objects
from weft.errors import WeftError

Command = TypeVar("Command", bound=Callable[..., object])

_JSON = click.option("--json", "json_output", is_flag=True, help="Print JSON.")
_STATUSES = ("none", "alive", "leaving", "left", "failed")
_GAP = "  "
_TAGS_GAP = 6
_SHORT_ID = 8
_NOTHING = "No {} match the given query - try expanding your search."


def list_options(command: Command) -> Command:
    """The options that select services."""
    for option in (
        click.option("-tags", is_flag=True, help="Show the tags of each service."),
        click.option(
            "-node-meta", metavar="KEY=VALUE", multiple=True, help="Only on nodes with this metadata. Repeatable."
        ),
        click.option("-node", metavar="NAME", default="", help="Only on this node."),
    ):
        command = option(command)
    return command


@click.group()
def catalog() -> None:
    """List the nodes, services and datacenters."""


@catalog.command("services", cls=GoCommand)
@list_options
@_JSON
@api_command
def services_(client: ApiClient, node: str, node_meta: tuple[str, ...], tags: bool, json_output: bool) -> None:
    """List the services of all nodes, one name per line.

    \b
    Example:
      weft catalog services -tags
    """
    print_services(client, node, node_meta, tags=tags, detailed=False, json_output=json_output)


def print_services(
    client: ApiClient, node: str, node_meta: Sequence[str], *, tags: bool, detailed: bool, json_output: bool
) -> None:
    """Print the list of ``catalog services`` and ``services list``."""
    wanted = _wanted(node_meta)
    try:
        found = _on_node(client, node, wanted) if node else _services(client, wanted)
        if detailed:
            _print_instances(client, found, node, wanted, json_output)
            return
    except WeftError as error:
        fail_with(f"Error listing services{' for node' if node else ''}", error)
    if json_output:
        as_json({name: sorted(found[name]) for name in sorted(found)})
    elif not found:
        click.echo(_NOTHING.format("services"), err=True)
    elif tags:
        width = max(map(len, found)) + _TAGS_GAP
        for name in sorted(found):
            say(f"{name.ljust(width)}{','.join(sorted(found[name]))}".rstrip())
    else:
        for name in sorted(found):
            say(name)


def _wanted(node_meta: Sequence[str]) -> list[tuple[str, str]]:
    return [("node-meta", f"{key}:{value}") for key, value in pairs(node_meta).items()]


def _services(client: ApiClient, wanted: list[tuple[str, str]]) -> dict[str, list[str]]:
    """Names and tags. Raises Unreachable and Refused."""
    found = client.get(api_path("catalog", "services"), wanted).json
    return {name: _texts(tags) for name, tags in found.items()} if isinstance(found, dict) else {}


def _on_node(client: ApiClient, node: str, wanted: list[tuple[str, str]]) -> dict[str, list[str]]:
    """The same, of one node. Raises Unreachable and Refused."""
    answer = client.get(api_path("catalog", "node", node), wanted).json
    here = answer.get("Services") if isinstance(answer, dict) else None
    found: dict[str, list[str]] = {}
    for one in list_of_objects(list(here.values())) if isinstance(here, dict) else []:
        found.setdefault(str(one.get("Service", "")), []).extend(_texts(one.get("Tags")))
    return found


def _texts(found: object) -> list[str]:
    return [str(one) for one in found] if isinstance(found, list) else []


def _print_instances(
    client: ApiClient, names: Mapping[str, object], node: str, wanted: list[tuple[str, str]], json_output: bool
) -> None:
    """Every instance of these services. Raises Unreachable and Refused."""
    virtual = virtual_addresses(client)
    found = [
        one
        for name in sorted(names)
        for one in parse_instances(client.get(api_path("health", "service", name), wanted).json)
        if not node or one.node == node
    ]
    if json_output:
        as_json(
            [
                {
                    "ID": one.id,
                    "Service": one.service,
                    "Node": one.node,
                    "Address": one.address,
                    "Port": one.port,
                    "Status": one.status,
                    "Checked": one.checked,
                    "Output": one.why,
                    "Tags": list(one.tags),
                    "Reach": one.reach,
                    "VirtualAddresses": list(virtual.get(one.service, ())),
                }
                for one in found
            ]
        )
    elif not found:
        click.echo(_NOTHING.format("services"), err=True)
    else:
        table(
            ("INSTANCE", "SERVICE", "NODE", "ADDRESS", "FROM OTHER HOSTS", "STATUS", "TAGS", "VIRTUAL ADDRESS"),
            [
                (one.id, one.service, one.node, one.place, one.reach, one.health, ",".join(one.tags) or "-",
                 ", ".join(virtual.get(one.service, ())) or "-")
                for one in found
            ],
        )  # fmt: skip


@catalog.command(cls=GoCommand)
@click.option("-detailed", is_flag=True, help="Show full ids, tagged addresses and metadata.")
@click.option("-service", metavar="NAME", default="", help="Only nodes with this service.")
@click.option("-near", metavar="NODE", default="", help="Sort by distance to this node; _agent is the queried agent.")
@click.option("-node-meta", metavar="KEY=VALUE", multiple=True, help="Only nodes with this metadata. Repeatable.")
@click.option("-filter", "expression", metavar="EXPRESSION", default="", help='Like Meta.rack == "r1".')
@_JSON
@api_command
def nodes(
    client: ApiClient,
    detailed: bool,
    service: str,
    near: str,
    node_meta: tuple[str, ...],
    expression: str,
    json_output: bool,
) -> None:
    """List the nodes.

    \b
    Example:
      weft catalog nodes -service=web
    """
    asked = [*_wanted(node_meta), *[(key, value) for key, value in (("near", near), ("filter", expression)) if value]]
    path = api_path("catalog", "service", service) if service else api_path("catalog", "nodes")
    try:
        found = list_of_objects(client.get(path, asked).json)
    except WeftError as error:
        fail_with("Error listing nodes" + (" for service" if service else ""), error)
    if json_output:
        as_json(found)
    elif not found:
        click.echo(_NOTHING.format("nodes"), err=True)
    else:
        header = ("Node", "ID", "Address", "DC", *(("TaggedAddresses", "Meta") if detailed else ()))
        _columns(header, [_node(one, "NodeMeta" if service else "Meta", detailed) for one in found])


def _node(one: Mapping[str, object], meta: str, detailed: bool) -> tuple[str, ...]:
    """A line of ``catalog nodes``."""
    identity = str(one.get("ID", ""))
    first = (str(one.get("Node", "")), identity if detailed else identity[:_SHORT_ID] or "<none>")
    rest = (str(one.get("Address", "")), str(one.get("Datacenter", "")))
    more = (_joined(one.get("TaggedAddresses"), ", "), _joined(one.get(meta), ", ")) if detailed else ()
    return (*first, *rest, *more)


@catalog.command(cls=GoCommand)
@_JSON
@api_command
def datacenters(client: ApiClient, json_output: bool) -> None:
    """List the datacenters.

    \b
    Example:
      weft catalog datacenters
    """
    try:
        found = _texts(client.get(api_path("catalog", "datacenters")).json)
    except WeftError as error:
        fail_with("Error listing datacenters", error)
    if json_output:
        as_json(found)
        return
    for name in found:
        say(name)


@click.command(cls=GoCommand)
@click.option("-detailed", is_flag=True, help="Show the tags of each node.")
@click.option("-status", metavar="EXPRESSION", default=".*", help="Only nodes with this status: alive, failed, left.")
@click.option("-wan", is_flag=True, help="Nodes of all datacenters.")
@click.option("-segment", metavar="NAME", default="", help="Ignored, for compatibility.")
@click.option("-filter", "expression", metavar="EXPRESSION", default="", help="Filter expression.")
@_JSON
@api_command
def members(
    client: ApiClient, detailed: bool, status: str, wan: bool, segment: str, expression: str, json_output: bool
) -> None:
    """List the nodes with an agent and their status. Exits with 2 if none matches.

    \b
    Example:
      weft members -status=failed
    """
    try:
        matching = re.compile(status)
    except re.error as error:
        fail(f"Failed to compile status regexp: {error}")
    asked = [*([("wan", "1")] if wan else []), *([("filter", expression)] if expression else [])]
    try:
        answer = list_of_objects(client.get(api_path("agent", "members"), asked).json)
    except WeftError as error:
        fail_with("Error retrieving members", error)
    found = [one for one in answer if matching.search(_status(one))]
    if json_output:
        as_json(found)
    elif found:
        found.sort(key=lambda one: (_tags(one).get("role") != "consul", str(one.get("Name", ""))))
        header = ("Node", "Address", "Status", *(("Tags",) if detailed else _MEMBER))
        _columns(header, [_member(one, detailed) for one in found])
    raise click.exceptions.Exit(0 if found else 2)


_MEMBER = ("Type", "Build", "Protocol", "DC", "Partition", "Segment")


def _member(one: Mapping[str, object], detailed: bool) -> tuple[str, ...]:
    """A line of ``members``."""
    tags, address = _tags(one), str(one.get("Addr", ""))
    place = f"[{address}]:{one.get('Port')}" if ":" in address else f"{address}:{one.get('Port')}"
    first = (str(one.get("Name", "")), place, _status(one))
    if detailed:
        return (*first, _joined(tags, ","))
    server = tags.get("role") == "consul"
    kind = "server" if server else "client" if tags.get("role") == "node" else "unknown"
    build = str(tags.get("build", "")).partition(":")[0]
    segment = "<all>" if server else "<default>"
    return (*first, kind, build, str(tags.get("vsn", "")), str(tags.get("dc", "")), "default", segment)


def _status(one: Mapping[str, object]) -> str:
    number = one.get("Status")
    return _STATUSES[number] if isinstance(number, int) and 0 <= number < len(_STATUSES) else "unknown"


def _tags(one: Mapping[str, object]) -> Mapping[str, object]:
    found = one.get("Tags")
    return found if isinstance(found, dict) else {}


def _joined(found: object, mark: str) -> str:
    return mark.join(f"{key}={found[key]}" for key in sorted(found)) if isinstance(found, dict) else ""


def _columns(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print columns separated by two spaces, as Consul does."""
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(header))]
    for row in cells:
        click.echo(_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
