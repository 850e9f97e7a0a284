"""Calls the plugins of a network list as a runtime's libcni does.

Each plugin gets the result of the one before (``prevResult``) and the values of the capabilities that
it declares (``runtimeConfig``); DEL calls them in reverse. Those that weft implements run in this
process, the others are executed. Source: CNI specification sections 3 and 4; libcni's ``api.go``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cni_plugin.networks import keys
from cni_plugin.networks.conflists import Json, NetworkList, implemented
from cni_plugin.ops import Up
from cni_plugin.ops.operation import Operation
from cni_plugin.plan import modules
from cni_plugin.service import assemble
from cni_plugin.service.context import raise_all
from cni_plugin.service.verbs import Service
from cni_plugin.wire import config, environment, versions
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Command, Request
from cni_plugin.wire.result import parse, render
from weft.errors import BadOption, PluginFailed, WeftError
from weft.kernel.interface import Namespace
from weft.section import Problems
from weft.types import Attachment, Result, Side

_CAPABILITIES = (
    ("portMappings", "publishes ports"),
    ("ips", "takes addresses"),
    ("mac", "sets the MAC"),
    ("aliases", "serves names"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """The interface of a container. ``namespace`` is a path, "" if the namespace no longer exists."""

    container: str
    namespace: str
    interface: str


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """Values of the plugins' capabilities: published ports, addresses, a MAC address, aliases. ``name`` is
    the container's, which runtimes pass as CNI_ARGS; ``servers`` are its name servers.
    """

    ports: tuple[Json, ...] = ()
    addresses: tuple[str, ...] = ()
    mac: str = ""
    aliases: tuple[str, ...] = ()
    name: str = ""
    servers: tuple[str, ...] = ()

    def capabilities(self, network: str) -> Json:
        """The value of each capability that is requested, on a network."""
        values: Json = {
            "portMappings": list(self.ports),
            "ips": list(self.addresses),
            "mac": self.mac,
            "aliases": {network: list(self.aliases)} if self.aliases else {},
        }
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True, slots=True)
class Step:
    """The operations of one plugin of a list; none for a foreign plugin."""

    plugin: str
    shared: tuple[Operation, ...] = ()
    own: tuple[Operation, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """The plugins of one network, for one target. ``path`` is CNI_PATH."""

    service: Service
    network: NetworkList
    target: Target
    path: tuple[str, ...]
    runtime_config: RuntimeConfig = field(default_factory=RuntimeConfig)

    def add(self) -> Json:
        """Attach; the result of the last plugin. If a plugin fails, those before it are undone."""
        self._check_capabilities()
        previous: Json | None = None
        for index in range(len(self.network.plugins)):
            try:
                previous = self._add(index, previous)
            except BaseException:
                # weft undoes its own failure; a DEL after a refused ADD could hit an existing attachment.
                end = index if implemented(self.network.types[index]) else index + 1
                self._delete_quietly(end, previous)
                raise
        try:
            with self._namespace() as container:
                for operation in self._loopback(container):
                    operation.apply(self.service.machine(container))
        except BaseException:
            self._delete_quietly(len(self.network.plugins), previous)
            raise
        return previous or {}

    def delete(self, previous: Json | None) -> None:
        """Detach, last plugin first. Raises the first error after all have been called."""
        raise_all(list(self._delete(len(self.network.plugins), previous)))

    def check(self, previous: Json | None) -> list[str]:
        """The errors of the foreign plugins' CHECK; weft's own attachments are checked by their
        records.
        """
        found = []
        if not versions.at_least(self.network.version, "0.4.0"):
            return []
        for index, plugin in enumerate(self.network.types):
            if not implemented(plugin):
                try:
                    self._execute(index, Command.CHECK, previous)
                except WeftError as error:
                    found.append(error.message)
        return found

    def preview(self) -> tuple[list[Step], Result]:
        """A dry run of ADD: steps and result. Foreign plugins are assumed to pass the result on
        unchanged.
        """
        self._check_capabilities()
        previous: Json | None = None
        result = Result()
        steps = []
        for index, plugin in enumerate(self.network.types):
            if not implemented(plugin):
                if previous is None:
                    raise PluginFailed(
                        f"cannot plan for the plugin {plugin} of another project",
                        hint=f"weft plan supports {', '.join(modules.drivers())}",
                    )
                steps.append(Step(plugin))
                continue
            record = self.service.preview(self.request(index, Command.ADD, previous))
            result = record.result
            previous = self._rendered(result)
            steps.append(Step(plugin, record.shared, record.operations))
        if not any(isinstance(each, Up) and each.link == "lo" for step in steps for each in step.own):
            with self._namespace() as container:
                steps.append(Step("loopback", own=self._loopback(container)))
        return steps, result

    def validate(self) -> None:
        """Validate the configuration of every plugin that weft implements. Raises ConfigProblem."""
        for index, plugin in enumerate(self.network.types):
            if implemented(plugin):
                request = self.request(index, Command.ADD, None)
                assemble.read(request)
                request.config.keys.problems.raise_any()

    def unread_keys(self) -> list[tuple[str, str]]:
        """The plugins that weft implements with what is said of each of their keys that nothing reads.
        Raises WeftError where a plugin cannot be read at all.
        """
        found = []
        for index, plugin in enumerate(self.network.types):
            if implemented(plugin):
                request = self.request(index, Command.ADD, None)
                problems = request.config.keys.problems
                problems.asked = {option.key for option in modules.declared(self.network.driver).options}
                assemble.read(request)
                for path, hint in keys.unread(self.network.plugins[index], problems.asked):
                    found.append((plugin, f"has no key {path}{hint}"))
        return found

    def request(self, index: int, command: Command, previous: Json | None) -> Request:
        """The call of one plugin, as a runtime would make it."""
        plugin = self.network.types[index]
        variables = self._variables(command)
        stdin = self._configuration(index, previous)
        call = environment.read(variables, plugin, modules.reads_arguments)
        return call.request(plugin, variables, config.read(stdin, call.command, plugin), stdin)

    def attachment(self, index: int) -> Attachment:
        return Attachment(self.network.name, self.target.container, self.target.interface, self.network.types[index])

    def parsed(self, result: Json) -> Result:
        """A result as a value, without what cannot be parsed."""
        return parse(result, self.network.version, Problems())

    def _check_capabilities(self) -> None:
        declared = self.network.capabilities()
        for name, what in _CAPABILITIES:
            if name in self.runtime_config.capabilities(self.network.name) and name not in declared:
                advice = f'add "capabilities": {{"{name}": true}} to one in {self.network.path}'
                raise BadOption(
                    f"no plugin of network {self.network.name} {what}", hint=self._unsupported(name) or advice
                )

    def _unsupported(self, capability: str) -> str:
        """Why no plugin of the network could have a capability, "" if one could."""
        driver = modules.declared(self.network.driver)
        if len(self.network.plugins) > 1 or self.network.types[0] != OWN_NAME:
            return ""
        if not driver.addresses and capability in ("ips", "portMappings"):
            return f"driver {self.network.driver} assigns no addresses"
        if driver.link_kind is None:
            return f"driver {self.network.driver} makes no interface"
        if capability == "aliases" and not driver.routed:
            return f"containers of driver {self.network.driver} use the name servers of their physical network"
        if capability == "aliases" and "names" not in self.network.main:
            return "create the network with --names"
        return ""

    def _add(self, index: int, previous: Json | None) -> Json:
        if implemented(self.network.types[index]):
            result = self.service.handle(self.request(index, Command.ADD, previous))
            return self._rendered(result or Result())
        answer = self._execute(index, Command.ADD, previous)
        try:
            decoded = json.loads(answer)
        except ValueError:
            decoded = None
        if not isinstance(decoded, dict):
            raise PluginFailed(f"the plugin {self.network.types[index]} returned no result for ADD")
        return decoded

    def _delete(self, end: int, previous: Json | None) -> Iterator[WeftError]:
        """DEL of the plugins before ``end``, last first; their errors."""
        for index in reversed(range(end)):
            try:
                if implemented(self.network.types[index]):
                    self.service.handle(self.request(index, Command.DEL, previous))
                else:
                    self._execute(index, Command.DEL, previous)
            except WeftError as error:
                yield error

    def _delete_quietly(self, end: int, previous: Json | None) -> None:
        for _ in self._delete(end, previous):
            pass

    @contextlib.contextmanager
    def _namespace(self) -> Iterator[Namespace]:
        """The target's namespace, opened. Raises NamespaceProblem."""
        container = self.service.kernel.open(self.target.namespace)
        try:
            yield container
        finally:
            container.close()

    def _loopback(self, container: Namespace) -> tuple[Operation, ...]:
        """What brings ``lo`` up, as every runtime does; it stays up after a detach, for whatever else is
        attached. Not on the host, whose lo is not weft's.
        """
        lo = container.link("lo")
        if lo is None or lo.up or modules.declared(self.network.driver).on_host:
            return ()
        return (Up(Side.CONTAINER, "lo"),)

    def _rendered(self, result: Result) -> Json:
        value = json.loads(render(result, self.network.version))
        return value if isinstance(value, dict) else {}

    def _configuration(self, index: int, previous: Json | None) -> bytes:
        capabilities = self.runtime_config.capabilities(self.network.name)
        config = self.network.plugin_config(index, capabilities, previous)
        if self.runtime_config.servers and not index:
            # On a network with names the agent asks them; elsewhere they are the container's own.
            key = "names" if isinstance(config.get("names"), dict) else "dns"
            given = config.get(key)
            config[key] = {**(given if isinstance(given, dict) else {}), "nameservers": self.runtime_config.servers}
        return json.dumps(config).encode()

    def _variables(self, command: Command) -> Mapping[str, str]:
        return {
            "PATH": os.environ.get("PATH", ""),
            "CNI_COMMAND": str(command),
            "CNI_CONTAINERID": self.target.container,
            "CNI_NETNS": self.target.namespace,
            "CNI_IFNAME": self.target.interface,
            "CNI_PATH": ":".join(self.path),
            **({"CNI_ARGS": f"IgnoreUnknown=true;K8S_POD_NAME={name}"} if (name := self.runtime_config.name) else {}),
        }

    def _execute(self, index: int, command: Command, previous: Json | None) -> bytes:
        from cni_plugin.service.delegate import call

        try:
            return call(
                self.network.types[index],
                str(command),
                self._variables(command),
                self._configuration(index, previous),
            )
        except PluginFailed as error:
            error.message = error.message.replace("the IPAM plugin", "the plugin", 1)
            raise
