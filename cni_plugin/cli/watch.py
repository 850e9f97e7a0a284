"""``weft watch``: run a program whenever something of the agent's changes, as "consul watch".

Source: https://developer.hashicorp.com/consul/commands/watch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import click

from cni_plugin.cli.goflags import GoCommand, api_command, fail, fail_with
from cni_plugin.cli.output import warn
from discovery.consul.client import ApiClient, ApiError, ApiReply, Unreachable, api_path, list_of_objects, read_reply
from weft import processes
from weft.errors import WeftError

_WAIT = 60  # seconds that a query may block
_LATE = _WAIT + _WAIT / 16 + 15
_RETRY = 1.0
_NOT_FOUND = 404
_TYPES = ("key", "keyprefix", "services", "nodes", "service", "checks", "event")


@dataclass(slots=True)
class Watched:
    """What is watched. ``seen`` are the ids of events that have been passed on."""

    kind: str
    path: str
    parameters: list[tuple[str, str]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def value(self, answer: object) -> object:
        """What the program gets: of events only the new ones, of a key the one."""
        if self.kind == "key":
            return answer[0] if isinstance(answer, list) and answer else None
        if self.kind != "event":
            return answer
        new = [one for one in list_of_objects(answer) if str(one.get("ID")) not in self.seen]
        self.seen.update(str(one.get("ID")) for one in new)
        return new


@click.command(cls=GoCommand)
@click.argument("child", metavar="[PROGRAM...]", nargs=-1)
@click.option("-type", "kind", type=click.Choice(_TYPES), default=None, help="What to watch.")
@click.option("-key", metavar="KEY", default="", help="The key; with -type=key.")
@click.option("-prefix", metavar="PREFIX", default="", help="The prefix; with -type=keyprefix.")
@click.option("-service", metavar="NAME", default="", help="The service; with -type=service or checks.")
@click.option("-tag", metavar="TAG", multiple=True, help="Only instances with it; with -type=service. Repeatable.")
@click.option("-passingonly", is_flag=True, help="Only instances that pass; with -type=service.")
@click.option("-state", metavar="STATE", default="", help="Only checks in this state; with -type=checks.")
@click.option("-name", metavar="NAME", default="", help="The event's name; with -type=event.")
@click.option("-filter", "expression", metavar="EXPRESSION", default="", help="Filter expression.")
@click.option("-shell/-no-shell", default=True, show_default=True, help="Run PROGRAM in a shell.")
@api_command
def watch(
    client: ApiClient,
    child: tuple[str, ...],
    kind: str | None,
    key: str,
    prefix: str,
    service: str,
    tag: tuple[str, ...],
    passingonly: bool,
    state: str,
    name: str,
    expression: str,
    shell: bool,
) -> None:
    """Run a program at each change, with the new value as JSON on its standard input.

    Without PROGRAM, print the value and exit. CONSUL_INDEX has the index of the change. If the agent
    stops, waits until it is back; if PROGRAM fails, exits with 1.

    \b
    Example:
      weft watch -type=service -service=web ./reconfigure
      weft watch -type=keyprefix -prefix=app/
    """
    if kind is None:
        fail("Watch type (-type) must be specified")
    watched = _watched(kind, key, prefix, service, state, name)
    if kind == "service":
        watched.parameters += [*(("tag", one) for one in tag), *([("passing", "1")] if passingonly else [])]
    watched.parameters += [("filter", expression)] if expression else []
    try:
        _follow(client, watched, lambda value, index: _passed(child, shell, value, index))
    except WeftError as error:
        fail_with("Error querying Consul agent", error)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None


def _watched(kind: str, key: str, prefix: str, service: str, state: str, name: str) -> Watched:
    """What the options name; exits where one is missing."""
    for needs, option, value in (("key", "key", key), ("keyprefix", "prefix", prefix), ("service", "service", service)):
        if kind == needs and not value:
            fail(f"Must specify a single {option} to watch: -{option}")
    if kind == "checks" and service and state:
        fail("Cannot specify service and state")
    paths: Mapping[str, tuple[str, ...]] = {
        "key": ("kv", key.removeprefix("/")),
        "keyprefix": ("kv", prefix.removeprefix("/")),
        "services": ("catalog", "services"),
        "nodes": ("catalog", "nodes"),
        "service": ("health", "service", service),
        "checks": ("health", "checks", service) if service else ("health", "state", state or "any"),
        "event": ("event", "list"),
    }
    parameters = [("recurse", "")] if kind == "keyprefix" else [("name", name)] if kind == "event" and name else []
    return Watched(kind, api_path(*paths[kind]), parameters)


def _follow(client: ApiClient, watched: Watched, handle: Callable[[object, int], bool]) -> None:
    """Pass each value on, until the handler returns False. Raises Unreachable (at the start only), ApiError."""
    index, started, lost, before = 0, False, False, ""
    while True:
        try:
            reply = _asked(client, watched, index)
        except Unreachable as error:
            if not started:
                raise
            if not lost:
                warn(f"{error.message}; retrying")
            lost, index = True, 0
            time.sleep(_RETRY)
            continue
        lost = False
        value = watched.value(reply.json)
        shown = json.dumps(value, sort_keys=True)
        # The index of a wait that has passed is the same; another one may be of something else.
        if not started or (shown != before and (value or watched.kind != "event")):
            before = shown
            if not handle(value, reply.index):
                return
        started = True
        index = reply.index if reply.index >= index else 0


def _asked(client: ApiClient, watched: Watched, index: int) -> ApiReply:
    """The answer of a blocking query. Raises Unreachable, ApiError."""
    asked = [*watched.parameters, *([("index", str(index)), ("wait", f"{_WAIT}s")] if index else [])]
    connection = client.send(watched.path, asked, seconds=_LATE)
    try:
        return read_reply(connection, client.address)
    except ApiError as error:
        if error.status != _NOT_FOUND:
            raise
        return ApiReply(None, error.index)
    finally:
        connection.close()


def _passed(child: tuple[str, ...], shell: bool, value: object, index: int) -> bool:
    """Run the program, or print the value; whether to go on. Exits if the program fails."""
    text = json.dumps(value, indent=4)
    if not child:
        click.echo(text)
        return False
    argv = ["/bin/sh", "-c", " ".join(child)] if shell else list(child)
    try:
        status = processes.feed(argv, text.encode() + b"\n", {**os.environ, "CONSUL_INDEX": str(index)})
    except OSError as error:
        fail(f"Error executing handler: {child[0]}: {error.strerror}")
    if status:
        fail(f"Error executing handler: exit status {status}")
    return True
