"""``weft services``: register and deregister, list and watch; its options, output and exit statuses are Consul's."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

import click

from cni_plugin.cli.catalog import choosing, print_services
from cni_plugin.cli.goflags import GoCommand, asking, fail, fail_with, pairs
from cni_plugin.cli.output import as_json, say, warn
from discovery.consul import definition_files
from discovery.consul.client import ApiClient, api_path
from discovery.consul.definition_files import BadDefinitionFile, JsonObject, ServiceDefinitions
from weft.errors import WeftError

_JSON = click.option("--json", "json_output", is_flag=True, help="Print JSON, for programs to read.")


@click.group()
def services() -> None:
    """Register services by hand, list and watch them.

    What has a container and asks for it in its network's configuration is registered by itself.
    """


@services.command(cls=GoCommand)
@click.argument("files", metavar="[FILE...]", nargs=-1)
@click.option("-id", "identity", metavar="ID", default="", help="The instance's id. Default: the name.")
@click.option("-name", metavar="NAME", default="", help="The service's name.")
@click.option("-address", metavar="ADDRESS", default="", help="Where it is reached. Default: the node's address.")
@click.option("-port", type=int, default=0, help="The port it is reached at.")
@click.option("-socket", metavar="PATH", default="", help="Instead of address and port (weft refuses it).")
@click.option("-tag", "tags", metavar="TAG", multiple=True, help="A tag. Repeatable.")
@click.option("-meta", metavar="KEY=VALUE", multiple=True, help="Metadata. Repeatable.")
@click.option(
    "-tagged-address", "places", metavar="NAME=ADDRESS[:PORT]", multiple=True, help="Another address. Repeatable."
)
@click.option("-kind", metavar="KIND", default="", help="The service's kind.")
@_JSON
@asking
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
    """Register services with this host's agent, from files or by options.

    FILE holds definitions in JSON or HCL; "-" is standard input. Other options than -name fill in what the files leave
    open. A service that is registered already is changed in place.

    \b
    Example:
      weft services register -name=web -port=80 -tag=v1
      weft services register web.hcl db.json
    """
    given: JsonObject = {
        "ID": identity,
        "Name": name,
        "Address": address,
        "Port": port,
        "Kind": kind,
        "SocketPath": socket,
    }
    given = {key: value for key, value in given.items() if value}
    more: dict[str, JsonObject] = {"Meta": dict(pairs(meta)), "TaggedAddresses": dict(_places(places))}
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
@asking
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
    found = _read(files) if files else ServiceDefinitions()
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
            continue  # it went with its service
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
@choosing
@click.option("-detailed", is_flag=True, help="Every instance: where it runs, how it is, its virtual address.")
@click.option("-format", "form", type=click.Choice(["pretty", "json"]), default="pretty", help="How to print it.")
@_JSON
@asking
def list_(
    client: ApiClient,
    node: str,
    node_meta: tuple[str, ...],
    tags: bool,
    detailed: bool,
    form: str,
    json_output: bool,
) -> None:
    """List the services that are registered, on all nodes: one name a line.

    \b
    Example:
      weft services list -detailed
    """
    print_services(client, node, node_meta, tags=tags, detailed=detailed, json_output=json_output or form == "json")


@services.command(cls=GoCommand)
@click.argument("name", required=False, default="")
@click.option("-once", is_flag=True, help="End after the first change.")
@_JSON
@asking
def watch(client: ApiClient, name: str, once: bool, json_output: bool) -> None:
    """Print a line for each change of a service, or of all of them, as it happens.

    First comes a line for each instance as it is now. Ends when it is interrupted, with 130; when the agent ends, waits
    for it to come back.

    \b
    Example:
      weft services watch web
    """
    from cni_plugin.cli.watching import Watching  # brings selectors and more that no other command needs

    try:
        Watching(client, name, json_output=json_output).run(once=once)
    except WeftError as error:
        fail_with("Error watching services", error)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None


def _read(files: tuple[str, ...]) -> ServiceDefinitions:
    """What the files define; ends the command where they cannot be read."""
    try:
        found = definition_files.read(files)
    except BadDefinitionFile as error:
        late = [file for file in files if file.startswith("-") and file != "-"]
        fail(f"Error: {error}", hint=f"options go before files: {late[0]}" if late else "")
    for key in found.ignored:
        warn(f"{key} is no definition of a service or a check, and is left out")
    return found


def _places(texts: Sequence[str]) -> dict[str, JsonObject]:
    """``lan=10.0.0.5:80`` as a tagged address; ends the command where it is none."""
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
    """A service with what the options say of it: the file's own word counts, tags are added, pairs replaced."""
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
    """A text of a definition, whichever way its key is written."""
    wanted = name.replace("_", "")
    return next((str(value) for key, value in found.items() if key.replace("_", "").lower() == wanted), "")
