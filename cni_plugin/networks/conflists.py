"""CNI network lists: the files in ``/etc/cni/net.d`` that define the networks.

Runtimes and weft share the folder, so it is read as libcni reads it (``*.conflist``, ``*.conf`` and
``*.json``, by file name), and files are created atomically. Source: CNI specification section 1,
"Network configuration format"; libcni's ``conf.go``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_interface, ip_network

from cni_plugin.plan import modules
from cni_plugin.wire import document, versions
from cni_plugin.wire.plugins import OWN_NAME
from weft import files
from weft.errors import ConfigProblem, Conflict, StateDamaged, WeftError
from weft.identity import identifier_problem, overlay_bridge
from weft.section import Section, quoted
from weft.types import Subnet

Json = dict[str, object]

FOLDER = "/etc/cni/net.d"
OWN_KEY = "weft"
"""The key of a list for weft's own metadata: labels, options, time of creation."""

_LIST = ".conflist"
_SINGLE = (".conf", ".json")
_MOST_BYTES = 1 << 20  # of one file
_SHORTEST_PREFIX = 4  # of an id


class UnknownNetwork(ConfigProblem):
    """No file of the folder defines a network of that name."""


@dataclass(frozen=True, slots=True)
class NetworkList:
    """One network: its file, and the plugins that a runtime calls in order. ``content`` is the whole
    file.
    """

    path: str
    name: str
    version: str
    plugins: tuple[Json, ...]
    content: Json

    @property
    def id(self) -> str:
        """The network's id, computed as podman does, or the cluster's."""
        return self.cluster.text("id") or sha256(self.name.encode()).hexdigest()

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(Section(plugin).text("type") for plugin in self.plugins)

    @property
    def driver(self) -> str:
        """The driver that creates the interface, or the name of the first plugin."""
        return self.main.text("driver") or self.types[0]

    @property
    def main(self) -> Section:
        """The first plugin's keys."""
        return Section(self.plugins[0])

    @property
    def weft(self) -> bool:
        """Whether the list calls the plugin ``weft``, which no other software provides."""
        return OWN_NAME in self.types

    @property
    def notes(self) -> Section:
        """weft's own metadata of the network."""
        return Section(self.content.get(OWN_KEY) if isinstance(self.content.get(OWN_KEY), dict) else None)

    @property
    def cluster(self) -> Section:
        """What the cluster has stored of the network, empty for a network of this host."""
        return self.notes.section("cluster")

    @property
    def bridge(self) -> str:
        """The network's bridge, "" for a network without."""
        driver = modules.declared(self.driver)
        if driver.clustered:
            return overlay_bridge(self.name)
        return self.main.text(driver.parent_key) or driver.default_parent if driver.bridged else ""

    @property
    def internal(self) -> bool:
        """Whether the network was created with ``--internal``, or, where its file does not say so, has
        neither a gateway nor a route to other networks.
        """
        if self.notes.raw("internal") is not None:
            return self.notes.flag("internal")
        ipam = self.main.section("ipam")
        has_route = self.main.flag("isDefaultGateway") or bool(ipam.items("routes"))
        return not has_route and not self.main.flag("isGateway")

    def capabilities(self) -> frozenset[str]:
        """The capabilities that the network's plugins declare (``portMappings``, ``ips`` …)."""
        return frozenset(name for plugin in self.plugins for name in _declared(plugin))

    def plugin_config(self, index: int, runtime: Mapping[str, object], previous: Json | None) -> Json:
        """The configuration on standard input of one plugin of the list.

        ``runtime`` has the values of capabilities; a plugin gets those that it declares.
        """
        plugin = self.plugins[index]
        declared = {name: value for name, value in runtime.items() if name in _declared(plugin)}
        config: Json = {**plugin, "cniVersion": self.version, "name": self.name}
        if declared:
            config["runtimeConfig"] = declared
        if previous is not None:
            config["prevResult"] = previous
        return config


def implemented(plugin: str) -> bool:
    """Whether weft implements the plugin of that name."""
    return plugin == OWN_NAME or plugin in modules.plugins()


def listed(folder: str) -> tuple[list[NetworkList], list[WeftError]]:
    """Every network of the folder, by file name, and the errors of invalid files. A missing folder has
    none.

    Raises StateDamaged where the folder cannot be read.
    """
    found: list[NetworkList] = []
    problems: list[WeftError] = []
    for path in paths(folder):
        try:
            found.append(load(path))
        except WeftError as error:
            problems.append(error)
    return found, problems


def paths(folder: str) -> list[str]:
    """The paths of a folder's files of networks, by name; [] where it is missing. Raises StateDamaged where
    it cannot be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StateDamaged(f"cannot read {folder}: {error.strerror}") from error
    kinds = (_LIST, *_SINGLE)
    return [os.path.join(folder, one) for one in names if os.path.splitext(one)[1] in kinds and one[0] != "."]


def find(folder: str, name: str) -> NetworkList:
    """The network of that name; of two files with the same name the first, as in libcni. Raises
    UnknownNetwork.
    """
    found, problems = listed(folder)
    for network in found:
        if network.name == name:
            return network
    names = ", ".join(network.name for network in found) or "none"
    invalid = "".join(f"; {problem.message}" for problem in problems)
    raise UnknownNetwork(f"network {name} not found in {folder}", hint=f"networks: {names}{invalid}")


def chosen(folder: str, word: str) -> NetworkList:
    """The network of that name or id, or whose id alone begins so. Raises UnknownNetwork."""
    try:
        return find(folder, word)
    except UnknownNetwork:
        # The first of two files with the same name is the network.
        found = {one.id: one for one in reversed(listed(folder)[0]) if one.id.startswith(word)}
        if word in found:
            return found[word]
        if not found or len(word) < _SHORTEST_PREFIX:
            raise
    if len(found) > 1:
        names = ", ".join(sorted(one.name for one in found.values()))
        raise UnknownNetwork(f"network id {word} is ambiguous: {names}", hint="use more characters, or the name")
    return next(iter(found.values()))


def load(path: str) -> NetworkList:
    """Read one file. Raises ConfigProblem, naming the file and the errors in it."""
    try:
        content = files.read(path, _MOST_BYTES + 1, own=False)
    except OSError as error:
        raise StateDamaged(f"cannot read {path}: {error.strerror}") from error
    try:
        value, _ = document.decode(content)
        return parse(path, value or {})
    except WeftError as error:
        reason = error.message.replace("standard input", "it")
        raise ConfigProblem(f"{path}: {reason}", hint="correct or remove the file") from error


def parse(path: str, content: Json) -> NetworkList:
    """A network list from its JSON; a lone plugin's configuration is a list of one. Raises
    ConfigProblem.
    """
    section = Section(content)
    name = section.text("name")
    if problem := identifier_problem(name):
        raise ConfigProblem(f"name {quoted(section.raw('name'))} {problem}")
    plugins = [content]
    if "plugins" in section:
        plugins = [plugin for plugin in section.items("plugins") if isinstance(plugin, dict)]
        if not plugins or len(plugins) != len(section.items("plugins")):
            section.problem("plugins", "must be a list of objects, at least one")
    for plugin in plugins:
        if not Section(plugin, "", section.problems).text("type"):
            section.problems.add(f"a plugin of {name} has no type")
    section.problems.raise_any()
    return NetworkList(path, name, _version(section), tuple(plugins), content)


def _version(section: Section) -> str:
    """The list's version: of several (``cniVersions``, CNI 1.1.0) the newest that weft supports."""
    supported = [one for one in section.items("cniVersions") if isinstance(one, str) and one in versions.ALL]
    return max((section.text("cniVersion"), *supported), key=_rank) or versions.WHEN_ABSENT


def _rank(version: str) -> int:
    return versions.ALL.index(version) if version in versions.ALL else -1


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Lock the folder against other weft processes, so that no two networks get the same name or
    subnet.

    The folder is created if missing. Raises StateDamaged where it cannot be created or opened.
    """
    try:
        files.make_directory(folder, "networks", 0o755)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StateDamaged(f"cannot open {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write(folder: str, name: str, content: Json, *, prefix: str = "") -> str:
    """Create ``NAME.conflist``, with a prefix, atomically, never replacing a file; its path. Raises Conflict and
    StateDamaged.

    The caller holds the folder's lock (``locked``), so a temporary file that exists is of a killed
    process.
    """
    path = os.path.join(folder, f"{prefix}{name}{_LIST}")
    try:
        with _written(folder, content) as temporary:
            os.link(temporary, path)
    except FileExistsError as error:
        raise Conflict(f"{path} already exists", hint="choose another name") from error
    except OSError as error:
        raise StateDamaged(f"cannot write {path}: {error.strerror}") from error
    return path


def rewrite(network: NetworkList, content: Json) -> None:
    """Replace the network's file, atomically. The caller holds the folder's lock. Raises StateDamaged."""
    try:
        with _written(os.path.dirname(network.path), content) as temporary:
            os.rename(temporary, network.path)
    except OSError as error:
        raise StateDamaged(f"cannot write {network.path}: {error.strerror}") from error


@contextlib.contextmanager
def _written(folder: str, content: Json) -> Iterator[str]:
    """A temporary file of the folder with a network list. Raises OSError."""
    temporary = os.path.join(folder, ".weft-new")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # not truncated: it may be a hard link of an existing network
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(descriptor, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o644)  # the agent's umask is narrower
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def remove(network: NetworkList) -> None:
    """Remove the network's file, if it exists. Raises StateDamaged."""
    try:
        os.unlink(network.path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StateDamaged(f"cannot remove {network.path}: {error.strerror}") from error


def subnets(network: NetworkList) -> tuple[Subnet, ...]:
    """Every subnet in the configuration of the list's IPAM plugins, weft's or not."""
    found: dict[Subnet, None] = {}
    for text in network.cluster.texts("subnets"):
        with contextlib.suppress(ValueError):
            found[ip_network(text)] = None
    for plugin in network.plugins:
        ipam = Section(plugin).section("ipam")
        texts = [ipam.text("subnet")]
        for one in ipam.items("ranges"):
            texts += [Section(each).text("subnet") for each in (one if isinstance(one, list) else [one])]
        texts += [Section(each).text("address") for each in ipam.items("addresses")]
        for text in texts:
            with contextlib.suppress(ValueError):
                if "/" in text:
                    found[ip_interface(text).network] = None
    return tuple(found)


def can_conflict(subnet: Subnet) -> bool:
    """Whether an overlap with the subnet is a conflict: not of a default route, loopback, link-local or
    multicast.
    """
    special = subnet.is_loopback or subnet.is_link_local or subnet.is_multicast
    return subnet.prefixlen > 0 and not special


def _declared(plugin: Json) -> tuple[str, ...]:
    value = plugin.get("capabilities")
    return tuple(str(name) for name, wanted in value.items() if wanted is True) if isinstance(value, dict) else ()
