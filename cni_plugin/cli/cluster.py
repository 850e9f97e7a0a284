"""``weft cluster``: make a cluster of hosts, join it, and leave it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

import click

from cluster.local import FOLDER, Files
from cni_plugin.cli import agents
from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, say, warn
from cni_plugin.cli.tool import Tool, pass_tool
from weft.errors import WeftError
from weft.remedies import Remedy

_EXTRA = (
    "pip install grpcio protobuf cryptography beside weft, or install weft with its extra: pip install '.[cluster]'"
)


@click.group()
def cluster() -> None:
    """Make a cluster of hosts, join it, and leave it.

    The hosts of a cluster have one catalogue of services and keys, in etcd, which weft sets up: 1 or 3
    of them (5 with --voters 5) are its members. Needs etcd (Debian: etcd-server) on these, and the
    Python packages of the extra [cluster] on all.
    """


@cluster.command()
@common
@click.option("--address", default="", metavar="IP", help="Where other hosts reach this one. Default: the uplink's.")
@click.option("--voters", type=click.Choice(["1", "3", "5"]), default="3", show_default=True, help="Members that vote.")
@click.option("--ttl", default="1h", show_default=True, metavar="TIME", help="How long the join token is valid.")
@pass_tool
def init(tool: Tool, address: str, voters: str, ttl: str, json_output: bool) -> None:
    """Make a cluster of this host, and print a token by which another one joins.

    Makes the cluster's certificate authorities and this node's certificates, configures and starts etcd,
    adds [store] to weft.toml, and restarts the agent. What the agent has stored so far stays in its file.

    \b
    Example:
      weft cluster init
    """
    tool.prepare_to("make a cluster")
    with libraries():
        from cni_plugin.cli import cluster_work as work
    seconds = work.seconds(ttl)
    local, token = work.init(address, int(voters), seconds, _progress(json_output))
    _restart_agent(json_output)
    if json_output:
        as_json({"node": local.node, "address": local.address, "token": str(token), "seconds": seconds})
        return
    say(f"This host is node {local.node} of a new cluster. To let another one join, within {ttl}:")
    say()
    say(f"  weft cluster join {token}")


@cluster.command()
@common
@click.argument("token")
@click.option(
    "--address", default="", metavar="IP", help="Where other hosts reach this one. Default: as it reaches them."
)
@pass_tool
def join(tool: Tool, token: str, address: str, json_output: bool) -> None:
    """Let this host join the cluster that TOKEN is of.

    Makes a key, has it signed by a member whose authority TOKEN names, runs etcd where the host becomes a
    member, adds [store] to weft.toml, and restarts the agent. After an interruption it goes on where it
    was. What the agent has stored so far stays in its file, and is not copied.

    \b
    Example:
      weft cluster join weft1/10.0.0.1:2378/…
    """
    tool.prepare_to("join a cluster")
    with libraries():
        from cni_plugin.cli import cluster_work as work
    local, is_new = work.join(token, address, _progress(json_output))
    if is_new or agents.running() is None:
        _restart_agent(json_output)
    if json_output:
        as_json({"node": local.node, "address": local.address, "role": local.role, "joined": is_new})
    else:
        say(f"This host is node {local.node} of the cluster." if is_new else f"It is node {local.node} already.")


@cluster.command(name="token")
@common
@click.option("--ttl", default="1h", show_default=True, metavar="TIME", help="How long it is valid.")
@pass_tool
def new_token(tool: Tool, ttl: str, json_output: bool) -> None:
    """Print a token by which one more host joins. On a member of etcd.

    \b
    Example:
      weft cluster token --ttl 10m
    """
    tool.prepare_to("make a join token")
    with libraries():
        from cni_plugin.cli import cluster_work as work
    seconds = work.seconds(ttl)
    token = work.token(seconds)
    if json_output:
        as_json({"token": str(token), "seconds": seconds})
    else:
        say(str(token))


@cluster.command()
@common
@click.option("--last", is_flag=True, help="Even if this is the only node, with which the cluster ends.")
@click.option("--powered-off", is_flag=True, help="No container of this host will use the cluster's networks any more.")
@click.option("--force", is_flag=True, help="Also where the others cannot be told.")
@pass_tool
def leave(tool: Tool, last: bool, powered_off: bool, force: bool, json_output: bool) -> None:
    """Let this host leave its cluster.

    Another node takes its place in etcd. Removes certificates, etcd's data and [store] in weft.toml, and
    restarts the agent, whose own file then has the catalogue again. The host's blocks of addresses stay
    reserved for the grace period, unless --powered-off.

    \b
    Example:
      weft cluster leave
    """
    tool.prepare_to("leave the cluster")
    with libraries():
        from cni_plugin.cli import cluster_work as work
    is_gone = work.leave(_progress(json_output), last=last, powered_off=powered_off, force=force)
    if is_gone:
        _restart_agent(json_output)
    if json_output:
        as_json({"left": is_gone})
    else:
        say("This host is of no cluster any more." if is_gone else "This host is of no cluster.")


@cluster.command()
@common
@pass_tool
def renew(tool: Tool, json_output: bool) -> None:
    """Renew this node's certificates now; the agent does so 60 days before they end.

    \b
    Example:
      weft cluster renew
    """
    tool.prepare_to("renew certificates")
    with libraries():
        from cni_plugin.cli import cluster_work as work
    expires = work.renew()
    _restart_agent(json_output)
    if json_output:
        as_json({"expires": expires})
    else:
        say(f"valid until {time.strftime('%Y-%m-%d', time.gmtime(expires))}")


def findings() -> list[tuple[str, Remedy]]:
    """What is wrong with this host's part in a cluster, each with its remedy. Raises WeftError."""
    if Files(FOLDER).load() is None:
        return []
    with libraries():
        from cni_plugin.cli import cluster_work as work
    return work.findings()


@contextlib.contextmanager
def libraries() -> Iterator[None]:
    """Name the Python package that is missing. Raises WeftError."""
    # Errors have the cause, and gRPC's C core, which reads this as it is imported, writes each failed handshake.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        yield
    except ImportError as error:
        raise WeftError(f"clusters need grpcio, protobuf and cryptography: {error}", hint=_EXTRA) from error


def _progress(json_output: bool) -> Callable[[str], None]:
    return (lambda _: None) if json_output else (lambda line: say(f"  {line}"))


def _restart_agent(json_output: bool) -> None:
    found = agents.restart()
    _progress(json_output)(f"agent restarted, process {found.process}")
    for problem in found.problems:
        warn(problem)
