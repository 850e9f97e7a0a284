"""Completion of names in the shell: networks, containers, namespaces, services, drivers and keys of -o.

It reads files and asks the agent's socket; what cannot be read has no completions, and no error is
printed into the line that is being typed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

import click
from click.shell_completion import CompletionItem

from cni_plugin.cli import agents
from cni_plugin.cli.options import NETNS_FOLDER
from cni_plugin.cli.tool import Tool
from cni_plugin.networks import attachments, conflists, create, owners
from discovery.consul.client import api_path
from weft.errors import WeftError

Words = Callable[[click.Context], Iterable[str]]


def networks(context: click.Context) -> Iterator[str]:
    """The networks of the folder."""
    found, _ = conflists.listed(context.find_root().ensure_object(Tool).config)
    yield from (one.name for one in found)


def containers(context: click.Context) -> Iterator[str]:
    """The attached containers by their owners' names, else by id."""
    ids = {one.container for one in attachments.endpoints(context.find_root().ensure_object(Tool).service)}
    named = owners.names(ids)
    yield from (named[one].name if one in named else one for one in ids)


def namespaces(context: click.Context) -> list[str]:
    """The namespaces of ``ip netns``."""
    return os.listdir(NETNS_FOLDER)


def containers_and_namespaces(context: click.Context) -> Iterator[str]:
    for words in (containers, namespaces):
        with contextlib.suppress(WeftError, OSError):
            yield from words(context)


def networks_and_containers(context: click.Context) -> Iterator[str]:
    for words in (networks, containers):
        with contextlib.suppress(WeftError, OSError):
            yield from words(context)


def services(context: click.Context) -> Iterator[str]:
    """The services that the agent of this namespace has."""
    agent = agents.running()
    if agent is not None:
        with contextlib.closing(agent.client) as client:
            found = client.get(api_path("catalog", "services")).json
            yield from (found if isinstance(found, dict) else ())


def drivers(context: click.Context) -> tuple[str, ...]:
    return create.drivers()


def driver_options(context: click.Context) -> Iterator[str]:
    """The keys of ``-o``, of the driver that has been typed before."""
    driver = str(context.params.get("driver") or "bridge")
    yield from (f"{name}=" for name in create.known_options(driver) if "." not in name)


class Word(click.types.StringParamType):
    """A text that the shell can complete."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            found = sorted({one for one in self._words(ctx) if one.startswith(incomplete)})
        except (WeftError, OSError, ValueError):
            return []
        return [CompletionItem(one) for one in found]


_PARAMETERS: Mapping[str, Mapping[str, Words]] = {
    "attach": {"network": networks, "netns": namespaces},
    "plan": {"network": networks, "netns": namespaces},
    "detach": {"network": networks_and_containers, "who": containers_and_namespaces},
    "show": {"container": containers, "network": networks},
    "check": {"network": networks_and_containers, "container": containers},
    "ps": {"wanted": networks},
    "trace": {"start": containers, "end": containers},
    "network create": {"driver": drivers, "options": driver_options},
    "network inspect": {"names": networks},
    "network rm": {"names": networks},
    "network exists": {"name": networks},
    "network connect": {"name": networks, "container": containers_and_namespaces},
    "network disconnect": {"name": networks, "container": containers},
    "services watch": {"name": services},
}
"""What the arguments and options of commands name."""


def install(root: click.Group) -> None:
    """Have the shell complete the parameters of all commands."""
    for path, parameters in _PARAMETERS.items():
        command: click.Command = root
        for name in path.split():
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), name)
            assert found is not None
            command = found
        for parameter in command.params:
            if words := parameters.get(parameter.name or ""):
                parameter.type = Word(words)
