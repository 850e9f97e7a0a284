"""Options that several commands share, and how their values are parsed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address, ip_interface
from typing import TypeVar

import click

from cni_plugin.cli.ports import mappings
from cni_plugin.cli.tool import Tool
from cni_plugin.networks.chain import RuntimeConfig, Target
from cni_plugin.networks.owners import container_of
from cni_plugin.service.verbs import Service
from weft import identity
from weft.errors import BadOption, ConfigProblem, NamespaceProblem

Command = TypeVar("Command", bound=Callable[..., object])

NETNS_FOLDER = "/run/netns"


def _choose_folder(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        context.ensure_object(Tool).config = value


def common(command: Command) -> Command:
    """``--json`` and ``--config-dir``, of every command."""
    folder = click.option(
        "--config-dir",
        metavar="FOLDER",
        expose_value=False,
        callback=_choose_folder,
        help="Folder of network lists. Default: $WEFT_CNI_CONFIG, else /etc/cni/net.d.",
    )
    plain = click.option("--json", "json_output", is_flag=True, help="Print JSON.")
    return folder(plain(command))


def attachment_options(command: Command) -> Command:
    """The options that identify an interface of a container, and what it gets."""
    for option in (
        click.option(
            "-p",
            "--publish",
            multiple=True,
            metavar="PORTS",
            help="Publish ports as in docker: 8080:80, 80, 53:53/udp, 8000-9:80-89.",
        ),
        click.option("--dns", "servers", multiple=True, metavar="IP", help="A name server. Repeatable."),
        click.option("--hostname", default="", metavar="NAME", help="A further DNS name, on networks with names."),
        click.option("--alias", "aliases", multiple=True, metavar="NAME", help="The same. Repeatable."),
        click.option("--name", default="", metavar="NAME", help="The container's name, instead of the namespace's."),
        click.option("--mac", "--mac-address", metavar="MAC", default="", help="The interface's MAC address."),
        click.option("--ip", "addresses", multiple=True, metavar="IP", help="A fixed IP address. Repeatable."),
        click.option("--ifname", default="eth0", show_default=True, help="The interface's name in the container."),
        click.option("--container", metavar="ID", default="", help="The container's id. Default: weft-NAME."),
    ):
        command = option(command)
    return command


def target(service: Service, netns: str, container: str, interface: str, name: str = "") -> Target:
    """The target for a namespace's name, path or process id. Raises BadOption and NamespaceProblem."""
    path = namespace_path(service, netns)
    if name and not container:
        container = container_of(name)
    for option, value, problem in (
        ("--container", container, identity.identifier_problem),
        ("--ifname", interface, identity.link_name_problem),
    ):
        if value and (sentence := problem(value)):
            raise BadOption(f"invalid {option} {value!r}: {sentence}")
    return Target(container or container_of(netns), path, interface)


def namespace_path(service: Service, netns: str) -> str:
    """The path of a namespace, given as a path, a name of ``ip netns``, or a process id."""
    identify = service.kernel.identify
    paths = [netns] if "/" in netns else [f"{NETNS_FOLDER}/{netns}"]
    if netns.isascii() and netns.isdigit():
        paths.append(f"/proc/{netns}/ns/net")
    for path in paths:
        if identify(path).known:
            return path
    raise NamespaceProblem(
        f"no network namespace at {' or '.join(paths)}",
        hint="specify a name of ip netns list, a path, or the id of a process in the namespace",
    )


def runtime_config(
    publish: Iterable[str],
    addresses: Iterable[str],
    mac: str,
    name: str = "",
    aliases: Iterable[str] = (),
    hostname: str = "",
    servers: Iterable[str] = (),
) -> RuntimeConfig:
    """The values of the plugins' capabilities. Raises BadOption."""
    further = dict.fromkeys(aliases, "--alias") | ({hostname: "--hostname"} if hostname else {})
    for word, option in {**further, **({name: "--name"} if name else {})}.items():
        if problem := identity.dns_name_problem(word):
            raise BadOption(f"invalid {option} {word!r}: {problem}")
    try:
        normal = identity.normal_mac(mac) if mac else ""
    except ValueError as error:
        raise BadOption(f"invalid --mac {mac!r}: {error}") from None
    fixed, asked = (tuple(_addresses(*each)) for each in (("--ip", addresses), ("--dns", servers)))
    return RuntimeConfig(mappings(publish), fixed, normal, tuple(further), name, asked)


_PASSED = {"ips": "--ip", "mac": "--mac-address", "portMappings": "--publish", "aliases": "--alias"}
_IN_PASSED = re.compile(rf"runtimeConfig\.({'|'.join(_PASSED)})[\w.\[\]]*")


@contextlib.contextmanager
def named_as_options() -> Iterator[None]:
    """Name the values of ``runtime_config`` that are refused as the options that they come from. Raises BadOption."""
    try:
        yield
    except ConfigProblem as error:
        if not _IN_PASSED.match(error.message) or "network configuration" in error.hint:
            raise
        raise BadOption(_IN_PASSED.sub(lambda found: _PASSED[found[1]], error.message)) from error


def _addresses(option: str, texts: Iterable[str]) -> Iterator[str]:
    """Raises BadOption for a text that is no address; ``--ip`` may have a prefix length."""
    for text in texts:
        try:
            ip_interface(text) if option == "--ip" else ip_address(text)
        except ValueError:
            raise BadOption(f"invalid {option} {text!r}: not an IP address") from None
        yield text


def pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Options of the form KEY=VALUE. Raises BadOption."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or (not equals and option != "--label"):
            raise BadOption(f"invalid {option} {text!r}: must be KEY=VALUE")
        found[key] = value
    return found
