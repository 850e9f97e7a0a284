"""``weft services``: register, deregister, list and watch, with Consul's options, output and exit
statuses.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence

import click

from cni_plugin.cli.catalog import list_options, print_services
from cni_plugin.cli.goflags import GoCommand, api_command, fail, fail_with, pairs
from cni_plugin.cli.output import as_json, say, warn
from discovery.consul import definition_files
from discovery.consul.client import ApiClient, api_path
from discovery.consul.definition_files import BadDefinitionFile, JsonObject, ServiceDefinitions
from weft.errors import WeftError

_JSON = click.option("--json", "json_output", is_flag=True, help="Print JSON.")


@click.group()
def services() -> None:
    """Register, list and watch services.

    Services of containers that are declared in the network's configuration are registered
    automatically.
    """


@services.command(cls=GoCommand)
@click.argument("files", metavar="[FILE...|NAME [ADDRESS[:PORT]]]", nargs=-1)
@click.option("-id", "identity", metavar="ID", default="", help="The instance's id. Default: the name.")
@click.option("-name", metavar="NAME", default="", help="The service's name.")
@click.option("-address", metavar="ADDRESS", default="", help="The instance's address. Default: the node's address.")
@click.option("-port", type=int, default=0, help="The instance's port.")
@click.option("-socket", metavar="PATH", default="", help="Not supported by weft.")
@click.option("-tag", "tags", metavar="TAG", multiple=True, help="A tag. Repeatable.")
@click.option("-meta", metavar="KEY=VALUE", multiple=True, help="Metadata. Repeatable.")
@click.option(
    "-tagged-address", "places", metavar="NAME=ADDRESS[:PORT]", multiple=True, help="Another address. Repeatable."
)
@click.option("-kind", metavar="KIND", default="", help="The service's kind.")
@_JSON
@api_command
def register(
    client: ApiClient,
    files: tuple[str, ...],
    identity: str,
    name: str,
    address: str,
    port: int,
    socket: str,
    tags: tuple[str, ...],
    meta: tuple[str, ...],
    places: tuple[str, ...],
    kind: str,
    json_output: bool,
) -> None:
    """Register services with this host's agent, from files or options.

    FILE has definitions in JSON or HCL; "-" is standard input. Options except -name set what the files
    leave out. A service that is already registered is updated. What is neither a file nor looks like
    one is the service's name.

    \b
    Example:
      weft services register -name=web -port=80 -tag=v1
      weft services register web.hcl db.json
      weft services register web 10.0.0.5:80
    """
    if not name and _is_name(files):
        name, *rest = files
        if rest:
            place = _tagged_addresses([f"address={rest[0]}"])["address"]
            address, port = address or str(place["Address"]), port or int(str(place.get("Port", 0)))
        files = ()
    given: JsonObject = {
        "ID": identity,
        "Name": name,
        "Address": address,
        "Port": port,
        "Kind": kind,
        "SocketPath": socket,
    }
    given = {key: value for key, value in given.items() if value}
    more: dict[str, JsonObject] = {"Meta": dict(pairs(meta)), "TaggedAddresses": dict(_tagged_addresses(places))}
    if not files and not name:
        fail("Service registration requires at least one argument or flags.")
    if files and name:
        fail("Service registration requires arguments or -id, not both.")
    found = _read(files) if files else ServiceDefinitions(({},))
    wanted = [_filled(service, given, more, tags) for service in found.services]
    for service in wanted:
        try:
            client.put("/v1/agent/service/register", service)
        except WeftError as error:
            fail_with(f'Error registering service "{_text(service, "name")}"', error)
        if not json_output:
            say(f"Registered service: {_text(service, 'name')}")
    for check in found.checks:
        try:
            client.put("/v1/agent/check/register", check)
        except WeftError as error:
            fail_with(f'Error registering check "{_text(check, "name")}"', error)
        if not json_output:
            say(f"Registered check: {_text(check, 'name')}")
    if json_output:
        as_json([{"ID": _text(one, "id") or _text(one, "name"), "Name": _text(one, "name")} for one in wanted])


@services.command(cls=GoCommand)
@click.argument("files", metavar="[FILE...]", nargs=-1)
@click.option("-id", "identity", metavar="ID", default="", help="The instance to deregister.")
@_JSON
@api_command
def deregister(client: ApiClient, files: tuple[str, ...], identity: str, json_output: bool) -> None:
    """Deregister services from this host's agent: one by its id, or those that files define.

    \b
    Example:
      weft services deregister -id=web
      weft services deregister web.hcl
    """
    if not files and not identity:
        fail("Service deregistration requires at least one argument or -id.")
    if files and identity:
        fail("Service deregistration requires arguments or -id, not both.")
    found = _read(files, f"weft services deregister -id={files[0]}") if files else ServiceDefinitions()
    ids = [identity] if identity else [_text(one, "id") or _text(one, "name") for one in found.services]
    for one in filter(None, ids):
        try:
            client.put(api_path("agent", "service", "deregister", one))
        except WeftError as error:
            fail_with(f'Error deregistering service "{one}"', error)
        if not json_output:
            say(f"Deregistered service: {one}")
    for check in found.checks:
        if _text(check, "service_id") in ids:
            continue  # deregistered with its service
        name = _text(check, "id") or _text(check, "check_id") or _text(check, "name")
        try:
            client.put(api_path("agent", "check", "deregister", name))
        except WeftError as error:
            fail_with(f'Error deregistering check "{name}"', error)
        if not json_output:
            say(f"Deregistered check: {name}")
    if json_output:
        as_json([{"ID": one} for one in ids])


@services.command("list", cls=GoCommand)
@list_options
@click.option("-detailed", is_flag=True, help="Show every instance with its node, status and virtual address.")
@click.option("-format", "form", type=click.Choice(["pretty", "json"]), default="pretty", help="Output format.")
@_JSON
@api_command
def list_(
    client: ApiClient,
    node: str,
    node_meta: tuple[str, ...],
    tags: bool,
    detailed: bool,
    form: str,
    json_output: bool,
) -> None:
    """List the registered services of all nodes, one name per line.

    \b
    Example:
      weft services list -detailed
    """
    print_services(client, node, node_meta, tags=tags, detailed=detailed, json_output=json_output or form == "json")


@services.command(cls=GoCommand)
@click.argument("name", required=False, default="")
@click.option("-once", is_flag=True, help="Exit after the first change.")
@_JSON
@api_command
def watch(client: ApiClient, name: str, once: bool, json_output: bool) -> None:
    """Print a line for each change of a service, or of all services.

    Prints the current instances first. Exits with 130 when interrupted. If the agent stops, waits until
    it is back.

    \b
    Example:
      weft services watch web
    """
    from cni_plugin.cli.watching import ServiceWatcher  # imports selectors, which no other command needs

    try:
        ServiceWatcher(client, name, json_output=json_output).run(once=once)
    except WeftError as error:
        fail_with("Error watching services", error)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None


def _is_name(words: tuple[str, ...]) -> bool:
    """Whether arguments are NAME [ADDRESS], not files: an existing file wins."""
    if not 0 < len(words) <= 2 or os.path.exists(words[0]):
        return False
    return words[0] != "-" and "/" not in words[0] and not words[0].endswith((".hcl", ".json"))


def _read(files: tuple[str, ...], of_name: str = "") -> ServiceDefinitions:
    """The definitions in files; exits on an error. ``of_name`` is the command for what is a service's id."""
    try:
        found = definition_files.read(files)
    except BadDefinitionFile as error:
        late = [file for file in files if file.startswith("-") and file != "-"]
        late_hint = f"options go before files: {late[0]}" if late else ""
        fail(f"Error: {error}", hint=late_hint or (of_name if _is_name(files) else ""))
    for key in found.ignored:
        warn(f"ignoring {key}: not a definition of a service or check")
    return found


def _tagged_addresses(texts: Sequence[str]) -> dict[str, JsonObject]:
    """``lan=10.0.0.5:80`` as a tagged address; exits on an invalid one."""
    found: dict[str, JsonObject] = {}
    for name, text in pairs(texts).items():
        bare = text.strip("[]")
        host, _, port = ("", "", "") if _is_address(bare) else text.rpartition(":")
        if host or not bare or text.endswith(":"):
            if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535 and host):
                fail(f"Invalid Tagged Address: {text!r} is not ADDRESS or ADDRESS:PORT")
            found[name] = {"Address": host.strip("[]"), "Port": int(port)}
        else:
            found[name] = {"Address": bare}
    return found


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _filled(
    service: JsonObject, given: JsonObject, more: Mapping[str, JsonObject], tags: tuple[str, ...]
) -> JsonObject:
    """A definition with the options: the file's values take precedence, tags are added, pairs replaced."""
    names = {key.replace("_", "").lower(): key for key in service}
    found = dict(service)
    for key, value in given.items():
        if not service.get(names.get(key.lower(), "")):
            found[names.get(key.lower(), key)] = value
    for key, added in more.items():
        own = names.get(key.lower(), key)
        before = service.get(own)
        if added and isinstance(before, dict | None):
            found[own] = {**(before or {}), **added}
    own = names.get("tags", "Tags")
    before = service.get(own)
    if tags and isinstance(before, list | None):
        found[own] = [*(before or []), *tags]
    return found


def _text(found: Mapping[str, object], name: str) -> str:
    """A string of a definition, its key in any spelling (``service_id``, ``ServiceID``)."""
    wanted = name.replace("_", "")
    return next((str(value) for key, value in found.items() if key.replace("_", "").lower() == wanted), "")
