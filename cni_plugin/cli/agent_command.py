"""``weft agent``, with the options of "consul agent" that weft's configuration has; others are warned of.

Source: https://developer.hashicorp.com/consul/docs/reference/cli/agent (the options and their defaults).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from cni_plugin.cli.goflags import GoCommand, fail
from cni_plugin.cli.output import warn

Command = TypeVar("Command", bound=Callable[..., object])
Keys = dict[str, dict[str, object]]

_CLUSTER = "hosts join a cluster with: weft cluster join"
_MEANINGLESS = {
    "bind": "the agent listens at -client's address only",
    "bootstrap-expect": _CLUSTER,
    "dev": "the catalog is kept on disk, in the folder of -data-dir",
    "encrypt": "agents do not gossip; the cluster's connections have TLS",
    "grpc-port": "",
    "https-port": "the section [tls] of weft.toml",
    "join": _CLUSTER,
    "join-wan": "",
    "log-file": "the log goes to standard error",
    "log-level": "weft monitor -log-level has all levels",
    "node-id": "it is made once, and kept",
    "pid-file": "",
    "protocol": "",
    "raft-protocol": "",
    "retry-interval": "",
    "retry-join": _CLUSTER,
    "retry-join-wan": "",
    "retry-max": "",
    "serf-lan-port": "",
    "serf-wan-port": "",
    "server-port": "",
}
"""Options without a meaning here, and what to do instead; one with a value takes any."""
_MEANINGLESS_FLAGS = {
    "disable-host-node-id": "",
    "disable-keyring-file": "",
    "log-json": "weft monitor -log-json prints it",
    "rejoin": _CLUSTER,
    "syslog": "the log goes to standard error, and from there to the journal",
}
_TRUE_HERE = ("server", "bootstrap", "ui")
"""What every agent of weft's is."""


def _compatible(command: Command) -> Command:
    """Add Consul's options that have no effect, hidden from the help."""
    for name in (*_MEANINGLESS_FLAGS, *_TRUE_HERE, "dev"):
        command = click.option(f"-{name}", is_flag=True, hidden=True)(command)
    for name in sorted(_MEANINGLESS.keys() - {"dev"}):
        command = click.option(f"-{name}", multiple=True, metavar="VALUE", hidden=True)(command)
    return command


@click.command(cls=GoCommand)
@click.option("-config", metavar="FILE", default="", help="Default: $WEFT_CONFIG, else /etc/weft/weft.toml.")
@click.option("-config-file", "files", metavar="FILE", multiple=True, help="The same.")
@click.option("-config-dir", metavar="FOLDER", default="", help="Services and checks. Default: /etc/weft/services.d.")
@click.option("-data-dir", metavar="FOLDER", default="", help="Where the catalog is kept.")
@click.option("-node", metavar="NAME", default="", help="This host's name. Default: the host name.")
@click.option("-node-meta", metavar="KEY:VALUE", multiple=True, help="Metadata of this host. Repeatable.")
@click.option("-datacenter", metavar="NAME", default="", help="The datacenter. Default: dc1.")
@click.option("-advertise", metavar="ADDRESS", default="", help="The address of this host's services.")
@click.option("-client", metavar="ADDRESS", default="", help="Where HTTP and DNS listen. Default: 127.0.0.1.")
@click.option("-http-port", type=click.IntRange(1, 65535), default=None, help="Default: 8500.")
@click.option("-dns-port", type=click.IntRange(-1, 65535), default=None, help="Default: 8600; -1: no DNS for the host.")
@click.option("-domain", metavar="NAME", default="", help="The domain of DNS names, beside weft.")
@click.option("-alt-domain", metavar="NAME", default="", help="A further one.")
@click.option(
    "-recursor", "recursors", metavar="ADDRESS", multiple=True, help="A server for other domains. Repeatable."
)
@click.option("-enable-script-checks", is_flag=True, help="Allow checks that run programs, whoever registers them.")
@click.option("-enable-local-script-checks", is_flag=True, help="The same.")
@_compatible
def agent(
    config: str,
    files: tuple[str, ...],
    config_dir: str,
    data_dir: str,
    node: str,
    node_meta: tuple[str, ...],
    datacenter: str,
    advertise: str,
    client: str,
    http_port: int | None,
    dns_port: int | None,
    domain: str,
    alt_domain: str,
    recursors: tuple[str, ...],
    enable_script_checks: bool,
    enable_local_script_checks: bool,
    **compatible: object,
) -> int:
    """Run the agent in the foreground: DNS, service registry, health checks, balancing.

    It serves Consul's HTTP API on 127.0.0.1:8500 and DNS on 127.0.0.1:8600, unless configured
    otherwise. An attachment to a network with names starts an agent automatically; weft up starts one
    in the background. Options win over weft.toml; further options of "consul agent" are accepted, with
    a warning where they have no effect.

    \b
    Example:
      weft agent -config=./weft.toml
      weft agent -data-dir=/var/lib/weft -node=n1 -config-dir=/etc/weft/services.d
    """
    from cni_plugin.agent.main import serving  # imports the HTTP server, which no other command needs

    paths = [path for path in (config, *files) if path]
    if others := [path for path in paths if not path.endswith(".toml")] if len(paths) > 1 else []:
        fail(f"only one configuration is read: {paths[0]}; {others[0]} belongs in the folder of -config-dir")
    for name, value in compatible.items():
        word = name.replace("_", "-")
        if value and word not in _TRUE_HERE:
            hint = _MEANINGLESS.get(word) or _MEANINGLESS_FLAGS.get(word)
            warn(f"ignoring -{word}{f': {hint}' if hint else ''}")
    keys: Keys = {
        "agent": {
            "node": node,
            "datacenter": datacenter,
            "address": advertise,
            "data": data_dir,
            "definitions": config_dir,
            "meta": dict(_pair(text) for text in node_meta),
        },
        "http": {"listen": [_place(client, http_port or 8500)] if client or http_port else ""},
        "dns": {
            "listen": _dns_places(client, dns_port),
            "domains": [*filter(None, (domain, alt_domain)), "weft"] if domain or alt_domain else "",
            "recursors": list(recursors),
        },
        "checks": {"scripts": enable_script_checks or enable_local_script_checks},
    }
    given = {name: {key: value for key, value in one.items() if value or value == []} for name, one in keys.items()}
    given["dns"] = {key: value for key, value in given["dns"].items() if key != "recursors" or value}
    return serving(paths[0] if paths else "", {name: one for name, one in given.items() if one})


def _dns_places(client: str, port: int | None) -> object:
    """The addresses of DNS, [] for none, "" for those of the configuration."""
    if port == -1:
        return []
    return [_place(client, port or 8600)] if client or port else ""


def _place(client: str, port: int) -> str:
    host = client or "127.0.0.1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _pair(text: str) -> tuple[str, str]:
    key, colon, value = text.partition(":")
    if not colon or not key:
        fail(f"invalid -node-meta {text!r}: must be KEY:VALUE")
    return key, value
