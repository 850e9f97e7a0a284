"""Calling the plugins of a network list as a runtime's libcni does, without a runtime.

Each plugin is given the result of the one before (``prevResult``) and, of what the caller wants, the capabilities
that it declares (``runtimeConfig``); DEL goes backwards. Those that weft implements run in this process, the others
are executed. Source: CNI specification sections 3 and 4; libcni's ``api.go``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cni_plugin.networks.conflists import Json, NetworkList, implemented
from cni_plugin.ops.operation import Operation
from cni_plugin.plan import modules
from cni_plugin.service import assemble
from cni_plugin.service.context import raise_all
from cni_plugin.service.verbs import Service
from cni_plugin.wire import config, environment, versions
from cni_plugin.wire.request import Command, Request
from cni_plugin.wire.result import parse, render
from weft.errors import BadOption, PluginFailed, WeftError
from weft.section import Problems
from weft.types import Attachment, Result


@dataclass(frozen=True, slots=True)
class Target:
    """Which interface of which container. ``namespace`` is a path, "" once the namespace is gone."""

    container: str
    namespace: str
    interface: str


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller asks of the plugins: published ports, addresses, a MAC address."""

    ports: tuple[Json, ...] = ()
    addresses: tuple[str, ...] = ()
    mac: str = ""

    def runtime(self) -> Json:
        """The value of each capability."""
        found: Json = {"portMappings": list(self.ports), "ips": list(self.addresses), "mac": self.mac}
        return {name: value for name, value in found.items() if value}


@dataclass(frozen=True, slots=True)
class Step:
    """What one plugin of a list would do: its operations, or (a foreign plugin) only that it is called."""

    plugin: str
    shared: tuple[Operation, ...] = ()
    own: tuple[Operation, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """One network's plugins, called for one target. ``path`` is CNI_PATH."""

    service: Service
    network: NetworkList
    target: Target
    path: tuple[str, ...]
    wishes: Wishes = field(default_factory=Wishes)

    def add(self) -> Json:
        """Attach; the last plugin's result. What was done is undone where a later plugin fails."""
        self._check_wishes()
        previous: Json | None = None
        for place in range(len(self.network.plugins)):
            try:
                previous = self._add(place, previous)
            except BaseException:
                # weft undoes its own failure, and a DEL after a refused ADD could hit an attachment that lives.
                first = place if implemented(self.network.types[place]) else place + 1
                self._delete_quietly(first, previous)
                raise
        return previous or {}

    def delete(self, previous: Json | None) -> None:
        """Detach, last plugin first, all of them whatever fails. Raises the first error."""
        raise_all(list(self._delete(len(self.network.plugins), previous)))

    def check(self, previous: Json | None) -> list[str]:
        """What the foreign plugins find wrong, a sentence each; weft's own are asked by their records."""
        found = []
        if not versions.at_least(self.network.version, "0.4.0"):
            return []
        for place, plugin in enumerate(self.network.types):
            if not implemented(plugin):
                try:
                    self._execute(place, Command.CHECK, previous)
                except WeftError as error:
                    found.append(error.message)
        return found

    def preview(self) -> tuple[list[Step], Result]:
        """What ADD would do now and answer; nothing is changed. Foreign plugins are taken to pass the result on."""
        self._check_wishes()
        previous: Json | None = None
        result = Result()
        steps = []
        for place, plugin in enumerate(self.network.types):
            if not implemented(plugin):
                if previous is None:
                    raise PluginFailed(
                        f"only the plugin {plugin} knows what it would do",
                        hint=f"weft plan works with {', '.join(modules.drivers())}",
                    )
                steps.append(Step(plugin))
                continue
            record = self.service.preview(self.request(place, Command.ADD, previous))
            result = record.result
            previous = self._rendered(result)
            steps.append(Step(plugin, record.shared, record.operations))
        return steps, result

    def validate(self) -> None:
        """Have weft's own readers read every plugin that weft implements; raises ConfigProblem."""
        for place, plugin in enumerate(self.network.types):
            if implemented(plugin):
                request = self.request(place, Command.ADD, None)
                assemble.read(request)
                request.config.keys.problems.raise_any()

    def request(self, place: int, command: Command, previous: Json | None) -> Request:
        """One plugin's call, as it would arrive from a runtime."""
        plugin = self.network.types[place]
        variables = self._variables(command)
        stdin = self._configuration(place, previous)
        call = environment.read(variables, plugin, modules.reads_arguments)
        return call.request(plugin, variables, config.read(stdin, call.command, plugin), stdin)

    def attachment(self, place: int) -> Attachment:
        return Attachment(self.network.name, self.target.container, self.target.interface, self.network.types[place])

    def parsed(self, result: Json) -> Result:
        """A result as a value, whatever in it cannot be read left out."""
        return parse(result, self.network.version, Problems())

    def _check_wishes(self) -> None:
        there = self.network.capabilities()
        for name, what in (("portMappings", "publishes ports"), ("ips", "takes addresses"), ("mac", "sets the MAC")):
            if name in self.wishes.runtime() and name not in there:
                raise BadOption(
                    f"no plugin of network {self.network.name} {what}",
                    hint=f'give one "capabilities": {{"{name}": true}} in {self.network.path}',
                )

    def _add(self, place: int, previous: Json | None) -> Json:
        if implemented(self.network.types[place]):
            result = self.service.handle(self.request(place, Command.ADD, previous))
            return self._rendered(result or Result())
        answer = self._execute(place, Command.ADD, previous)
        try:
            said = json.loads(answer)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise PluginFailed(f"the plugin {self.network.types[place]} answered ADD with no result")
        return said

    def _delete(self, end: int, previous: Json | None) -> Iterator[WeftError]:
        """DEL of the plugins before ``end``, last first; their errors."""
        for place in reversed(range(end)):
            try:
                if implemented(self.network.types[place]):
                    self.service.handle(self.request(place, Command.DEL, previous))
                else:
                    self._execute(place, Command.DEL, previous)
            except WeftError as error:
                yield error

    def _delete_quietly(self, end: int, previous: Json | None) -> None:
        for _ in self._delete(end, previous):
            pass

    def _rendered(self, result: Result) -> Json:
        value = json.loads(render(result, self.network.version))
        return value if isinstance(value, dict) else {}

    def _configuration(self, place: int, previous: Json | None) -> bytes:
        return json.dumps(self.network.plugin_config(place, self.wishes.runtime(), previous)).encode()

    def _variables(self, command: Command) -> Mapping[str, str]:
        return {
            "PATH": os.environ.get("PATH", ""),
            "CNI_COMMAND": str(command),
            "CNI_CONTAINERID": self.target.container,
            "CNI_NETNS": self.target.namespace,
            "CNI_IFNAME": self.target.interface,
            "CNI_PATH": ":".join(self.path),
        }

    def _execute(self, place: int, command: Command, previous: Json | None) -> bytes:
        from cni_plugin.service.delegate import call

        try:
            return call(
                self.network.types[place],
                str(command),
                self._variables(command),
                self._configuration(place, previous),
            )
        except PluginFailed as error:
            error.message = error.message.replace("the IPAM plugin", "the plugin", 1)
            raise
