"""``weft info``, ``reload``, ``leave``, ``maint``, ``validate``, ``event``, ``monitor`` and ``snapshot``, with Consul's
options, output and exit statuses.

Source: https://developer.hashicorp.com/consul/commands.
"""

from __future__ import annotations

import os

import click

from cni_plugin.cli.goflags import GoCommand, api_command, fail, fail_with
from cni_plugin.cli.output import as_json, say, warn
from discovery.consul.client import ApiClient, api_path, list_of_objects, read_stream
from discovery.structs import NODE_MAINT, SERVICE_MAINT_PREFIX
from weft import files
from weft.errors import WeftError

_JSON = click.option("--json", "json_output", is_flag=True, help="Print JSON.")
_DEFINITIONS = (".hcl", ".json")
_SETTINGS = ".toml"
_LEVELS = click.Choice(("trace", "debug", "info", "warn", "err", "error"), case_sensitive=False)


@click.command(cls=GoCommand)
@_JSON
@api_command
def info(client: ApiClient, json_output: bool) -> None:
    """Print statistics of the agent, as "consul info".

    \b
    Example:
      weft info
    """
    try:
        answer = client.get("/v1/agent/self").json
    except WeftError as error:
        fail_with("Error querying agent", error)
    found = answer.get("Stats") if isinstance(answer, dict) else None
    stats = {name: one for name, one in found.items() if isinstance(one, dict)} if isinstance(found, dict) else {}
    if json_output:
        as_json(stats)
        return
    for name in sorted(stats):
        say(f"{name}:")
        for key in sorted(stats[name]):
            click.echo(f"\t{key} = {stats[name][key]}")


@click.command(cls=GoCommand)
@_JSON
@api_command
def reload(client: ApiClient, json_output: bool) -> None:
    """Let the agent read its definition files again, as on SIGHUP.

    weft.toml is read when the agent starts: weft down; weft up.

    \b
    Example:
      weft reload
    """
    try:
        client.put("/v1/agent/reload")
    except WeftError as error:
        fail_with("Error reloading", error)
    if json_output:
        as_json(True)
    else:
        say("Configuration reload triggered")


@click.command(cls=GoCommand)
@_JSON
@api_command
def leave(client: ApiClient, json_output: bool) -> None:
    """Deregister this host's services, and stop its agent.

    Containers keep their networks; weft down stops the agent without deregistering anything. weft
    cluster leave lets the host leave its cluster.

    \b
    Example:
      weft leave
    """
    try:
        client.put("/v1/agent/leave")
    except WeftError as error:
        fail_with("Error leaving", error)
    if json_output:
        as_json(True)
    else:
        say("Graceful leave complete")


@click.command(cls=GoCommand)
@click.option("-enable", is_flag=True, help="Put the node, or a service, into maintenance.")
@click.option("-disable", is_flag=True, help="Take it out again.")
@click.option("-reason", metavar="TEXT", default="", help="Why, for those who look.")
@click.option("-service", metavar="ID", default="", help="Only this service of the host, by its id.")
@_JSON
@api_command
def maint(client: ApiClient, enable: bool, disable: bool, reason: str, service: str, json_output: bool) -> None:
    """Put this host or a service into maintenance: it gets no new connections.

    Without an option, print what is in maintenance.

    \b
    Example:
      weft maint -enable -reason="new disk" -service=web
      weft maint
    """
    if enable and disable:
        fail("Only one of -enable or -disable may be provided")
    if not (enable or disable):
        if reason or service:
            fail("Flags can only be used with -enable or -disable" if reason else "-service needs -enable or -disable")
        _print_maintenance(client, json_output)
        return
    if reason and disable:
        fail("Reason may only be provided with -enable")
    path = api_path("agent", "service", "maintenance", service) if service else "/v1/agent/maintenance"
    asked = [("enable", "true" if enable else "false"), *([("reason", reason)] if reason else [])]
    try:
        client.put(path, parameters=asked)
    except WeftError as error:
        fail_with(
            f"Error {'enabling' if enable else 'disabling'} {'service' if service else 'node'} maintenance", error
        )
    if json_output:
        as_json(True)
    else:
        state = "enabled" if enable else "disabled"
        of_service = f' for "{service}"' if service else ""
        say(f"{'Service' if service else 'Node'} maintenance is now {state}{of_service}")


def _print_maintenance(client: ApiClient, json_output: bool) -> None:
    try:
        answer = client.get("/v1/agent/checks").json
    except WeftError as error:
        fail_with("Error getting checks", error)
    checks = list_of_objects(list(answer.values())) if isinstance(answer, dict) else []
    found = [one for one in checks if _in_maintenance(str(one.get("CheckID", "")))]
    if json_output:
        as_json(found)
        return
    for one in sorted(found, key=lambda one: str(one.get("CheckID"))):
        is_node = one.get("CheckID") == NODE_MAINT
        say("Node:" if is_node else "Service:")
        say(f"  Name:   {one.get('Node')}" if is_node else f"  ID:     {one.get('ServiceID')}")
        say(f"  Reason: {one.get('Notes') or one.get('Output')}")
        say()


def _in_maintenance(check: str) -> bool:
    return check == NODE_MAINT or check.startswith(SERVICE_MAINT_PREFIX)


@click.command(cls=GoCommand)
@click.argument("paths", metavar="FILE_OR_FOLDER...", nargs=-1)
@click.option("-config-format", "form", default="", metavar="FORMAT", help="Compatibility: told by the name's end.")
@click.option("-quiet", is_flag=True, help="Print only errors.")
@_JSON
def validate(paths: tuple[str, ...], form: str, quiet: bool, json_output: bool) -> None:
    """Check files without using them: weft.toml (*.toml) and definitions (*.hcl, *.json).

    \b
    Example:
      weft validate /etc/weft
    """
    from cni_plugin.agent import settings  # imports much of the agent
    from discovery.consul import definition_files

    if not paths:
        fail("Must specify at least one config file or directory")
    for path in paths:
        for each in _files(path):
            try:
                if each.endswith(_SETTINGS):
                    settings.read(each)
                    continue
                found = definition_files.read((each,))
            except (WeftError, definition_files.BadDefinitionFile) as error:
                fail(f"Config validation failed: {error}")
            for key in () if quiet else found.ignored:
                warn(f"ignoring {key}: not a definition of a service or check")
    if json_output:
        as_json(True)
    elif not quiet:
        say("Configuration is valid!")


def _files(path: str) -> list[str]:
    """The files to check at a path; exits where it cannot be read."""
    if not os.path.isdir(path):
        return [path]
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        fail(f"Config validation failed: {path}: {error.strerror}")
    return [os.path.join(path, name) for name in names if name.endswith((*_DEFINITIONS, _SETTINGS))]


@click.command(cls=GoCommand)
@click.argument("payload", required=False, default="")
@click.option("-name", metavar="NAME", default="", help="The event's name.")
@click.option("-node", metavar="REGEX", default="", help="Only for these nodes.")
@click.option("-service", metavar="REGEX", default="", help="Only for nodes with these services.")
@click.option("-tag", metavar="REGEX", default="", help="Only for these tags; with -service.")
@_JSON
@api_command
def event(client: ApiClient, payload: str, name: str, node: str, service: str, tag: str, json_output: bool) -> None:
    """Fire a user event, which weft watch -type=event sees.

    \b
    Example:
      weft event -name=deploy v2
    """
    if not name:
        fail("Event name (-name) must be specified")
    if tag and not service:
        fail("Cannot provide tag filter without service filter.")
    asked = [(key, value) for key, value in (("node", node), ("service", service), ("tag", tag)) if value]
    try:
        found = client.put_bytes(
            api_path("event", "fire", name), payload.encode("utf-8", "surrogateescape"), asked
        ).json
    except WeftError as error:
        fail_with("Error firing event", error)
    if json_output:
        as_json(found)
    else:
        say(f"Event ID: {found.get('ID') if isinstance(found, dict) else ''}")


@click.command(cls=GoCommand)
@click.option("-log-level", "level", type=_LEVELS, default="info", show_default=True, help="The lowest to print.")
@click.option("-log-json", is_flag=True, help="Print each line as JSON.")
@_JSON
@api_command
def monitor(client: ApiClient, level: str, log_json: bool, json_output: bool) -> None:
    """Print the agent's log from now on, until it is interrupted.

    \b
    Example:
      weft monitor -log-level=debug
    """
    asked = [("loglevel", level.lower()), *([("logjson", "true")] if log_json or json_output else [])]
    try:
        for line in read_stream(client, "/v1/agent/monitor", asked):
            say(line.decode("utf-8", "replace").rstrip("\n"))
    except WeftError as error:
        fail_with("Error starting monitor", error)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(0) from None
    say("Remote side ended the monitor! This usually means that the remote side has exited or crashed.")


@click.group()
def snapshot() -> None:
    """Save and restore what clients have stored: keys, queries, tokens, external services."""


@snapshot.command(cls=GoCommand)
@click.argument("file")
@_JSON
@api_command
def save(client: ApiClient, file: str, json_output: bool) -> None:
    """Save a snapshot to a file.

    \b
    Example:
      weft snapshot save backup.snap
    """
    from discovery.consul import snapshot as archives

    try:
        archive, index = client.get_bytes("/v1/snapshot")
        archives.unpack(archive)
        files.write(file, archive, "the snapshot", durable=True)
    except (WeftError, archives.BadArchive) as error:
        fail(f"Error saving snapshot: {error.message if isinstance(error, WeftError) else error}")
    if json_output:
        as_json({"Index": index, "Bytes": len(archive)})
    else:
        say(f"Saved and verified snapshot to index {index}")


@snapshot.command(cls=GoCommand)
@click.argument("file")
@_JSON
@api_command
def restore(client: ApiClient, file: str, json_output: bool) -> None:
    """Restore a snapshot: what it has not is deleted, and all sessions end.

    \b
    Example:
      weft snapshot restore backup.snap
    """
    try:
        client.put_bytes("/v1/snapshot", _read(file))
    except WeftError as error:
        fail_with("Error restoring snapshot", error)
    if json_output:
        as_json(True)
    else:
        say("Restored snapshot")


@snapshot.command(cls=GoCommand)
@click.argument("file")
@_JSON
def inspect(file: str, json_output: bool) -> None:
    """Verify a snapshot, and print what it has.

    \b
    Example:
      weft snapshot inspect backup.snap
    """
    from discovery.consul import snapshot as archives

    archive = _read(file)
    try:
        state = archives.unpack(archive)
    except archives.BadArchive as error:
        fail(f"Error reading snapshot: {error}")
    kinds: dict[str, int] = {}
    for key in state:
        kinds[archives.kind(key)] = kinds.get(archives.kind(key), 0) + 1
    if json_output:
        as_json({"Bytes": len(archive), "Entries": kinds})
        return
    say(f"{len(archive)} bytes, {len(state)} entries")
    for name in sorted(kinds):
        say(f"  {name.ljust(12)}{kinds[name]}")


def _read(path: str) -> bytes:
    """A file's bytes; exits where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        fail(f"Error opening snapshot file: {path}: {error.strerror}")
