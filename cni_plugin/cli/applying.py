"""``weft apply``, ``weft diff`` and ``weft export``: networks, switches, routers, interfaces and services
from files.
"""

from __future__ import annotations

import sys

import click

from cni_plugin.cli import agents
from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, say, warn
from cni_plugin.cli.problems import FAILED
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import conflists
from cni_plugin.networks.declared import desired, document, keeping
from cni_plugin.networks.declared.desired import Change, Changes, Ground
from cni_plugin.networks.declared.document import Document
from cni_plugin.networks.declared.operations import Registered, Removed
from discovery.consul.client import AgentAddress, ApiClient, agent_socket
from weft.errors import BadOption

_FILES = click.option(
    "-f",
    "--file",
    "paths",
    multiple=True,
    metavar="FILE",
    help='A TOML, YAML or JSON file; "-" is standard input. Repeatable.',
)
_PRUNE = click.option("--prune", is_flag=True, help="Also remove what was applied and is in no FILE any more.")


def _read(paths: tuple[str, ...]) -> Document:
    """What the files declare; without files what is kept. Raises ConfigProblem and BadOption."""
    if not paths:
        return document.read(document.decoded(keeping.kept(), keeping.PATH))
    texts = []
    for path in paths:
        try:
            with click.open_file(path, encoding="utf-8") as file:
                texts.append((path, file.read()))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise BadOption(f"cannot read {path}: {reason}") from error
    return document.read(document.merged((path, document.decoded(text, path)) for path, text in texts))


def _kept() -> Document:
    return document.read(document.decoded(keeping.kept(), keeping.PATH))


def _ground(tool: Tool) -> Ground:
    client = ApiClient(AgentAddress(path=agent_socket()))
    return Ground(tool.service, tool.config, tool.path, tool.empty_namespace, client)


def _changes(tool: Tool, wanted: Document, kept: Document, prune: bool) -> Changes:
    return desired.changes(_ground(tool), wanted, kept, prune=prune)


def _described(change: Change) -> dict[str, object]:
    return {
        "what": change.operation.about,
        "action": _action(change),
        "why": change.why,
        "commands": list(change.operation.commands("")),
    }


def _action(change: Change) -> str:
    return "remove" if isinstance(change.operation, Removed) else "make"


def _print(changes: Changes) -> None:
    for change in changes.found:
        say(f"# {_action(change)} {change.operation.about}: {change.why}")
        for line in change.operation.commands(""):
            say(line)


@click.command()
@common
@_FILES
@_PRUNE
@click.option("-n", "--dry-run", is_flag=True, help="Only print what would change, as weft diff does.")
@pass_tool
def apply(tool: Tool, paths: tuple[str, ...], prune: bool, dry_run: bool, json_output: bool) -> None:
    """Make what files declare: networks, switches, routers, interfaces, services.

    Makes only what this host lacks; an error undoes everything that was made. What was applied is kept
    in /etc/weft/applied.toml, and made again when the host boots: that is weft apply without FILE.
    Nothing is removed without --prune. docs/apply.md has the keys.

    \b
    Example:
      weft diff -f office.toml
      weft apply -f office.toml
    """
    tool.prepare_to("apply")
    if prune and not paths:
        raise BadOption("--prune needs the files that are to stay", hint="weft apply -f FILE --prune")
    wanted = _read(paths)
    with conflists.locked(tool.config):
        kept = _kept()
        if wanted.services and not dry_run and agents.running() is None:
            agents.start(is_running=False)
        found = _changes(tool, wanted, kept, prune)
        if dry_run:
            _show(found, json_output)
            return
        # What is kept names everything that may have been made, in case this process is killed.
        keeping.keep(document.over(kept.raw, wanted.raw))
        try:
            found.apply(tool.service)
        except BaseException:
            keeping.keep(kept.raw)
            raise
        if prune:
            keeping.keep(wanted.raw)
    if json_output:
        as_json({"changes": [_described(one) for one in found.found]})
        return
    for change in found.found:
        say(f"{'removed' if isinstance(change.operation, Removed) else 'made'} {change.operation.about}")
    if not found.found:
        say("nothing to change")


def _show(found: Changes, json_output: bool) -> None:
    if json_output:
        as_json({"changes": [_described(one) for one in found.found]})
        return
    _print(found)
    if not found.found:
        say("nothing to change")
    elif any(isinstance(one.operation, Registered) for one in found.found) and agents.running() is None:
        warn("the agent does not run: weft apply starts it")


@click.command()
@common
@_FILES
@_PRUNE
@pass_tool
def diff(tool: Tool, paths: tuple[str, ...], prune: bool, json_output: bool) -> None:
    """Print what weft apply would change, as shell commands. Changes nothing.

    Without FILE it compares the host with what was applied. Exits with 1 if something differs.

    \b
    Example:
      weft diff -f office.toml
    """
    tool.need_rights("enter network namespaces")
    tool.need_records()
    found = _changes(tool, _read(paths), _kept(), prune)
    _show(found, json_output)
    raise click.exceptions.Exit(FAILED if found.found else 0)


@click.command()
@common
@click.option(
    "--format", "form", type=click.Choice(["toml", "yaml", "json"]), default="toml", show_default=True, help="Language."
)
@pass_tool
def export(tool: Tool, form: str, json_output: bool) -> None:
    """Print what was applied, and the networks of weft network create, as a file for weft apply.

    Networks of other software are left out, with a warning. Services that were registered by hand are in
    the agent's catalog and not exported.

    \b
    Example:
      weft export >host.toml
      weft export --format yaml >host.yaml
    """
    found, left = keeping.exported(_kept().raw, tool.networks())
    for sentence in left:
        warn(sentence)
    if json_output or form == "json":
        as_json(found)
    elif form == "yaml":
        from cni_plugin.networks.declared import yaml_files

        sys.stdout.write(yaml_files.dumps(found))
    else:
        sys.stdout.write(keeping.toml(found))
