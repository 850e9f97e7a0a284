"""``weft node``: the nodes of a cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from cni_plugin.cli.cluster import libraries
from cni_plugin.cli.options import common
from cni_plugin.cli.output import age, as_json, say, table, warn
from cni_plugin.cli.tool import Tool, pass_tool

if TYPE_CHECKING:
    from cluster.nodes import Node


@click.group()
def node() -> None:
    """List the nodes of the cluster, drain and remove them."""


@node.command()
@common
@pass_tool
def ls(tool: Tool, json_output: bool) -> None:
    """List the nodes of the cluster: state, role in etcd, addresses.

    A node is down while its agent gives no sign of life. Removed nodes are listed with --json only.

    \b
    Example:
      weft node ls
    """
    tool.need_rights("read the cluster")

    with libraries():
        from cni_plugin.cli import cluster_work as work
    found, alive, problems = work.list_nodes()
    now = time.time()
    if json_output:
        as_json([_described(one, alive) for one in found.values()])
        return
    table(
        ("NAME", "STATE", "AGENT", "ETCD", "ADDRESS", "VERSION", "JOINED", "CERTIFICATE"),
        [
            (
                one.name,
                one.state,
                "running" if one.name in alive else "down",
                one.role,
                ", ".join(map(str, one.addresses)),
                one.version,
                f"{age(now - one.joined)} ago",
                f"{age(one.expires - now)} left" if one.expires else "-",
            )
            for one in found.values()
            if not one.removed
        ],
    )
    for problem in problems:
        warn(problem)


@node.command()
@common
@click.argument("name")
@click.option("--undo", is_flag=True, help="Let it get work again.")
@pass_tool
def drain(tool: Tool, name: str, undo: bool, json_output: bool) -> None:
    """Put all services of a node into maintenance: it gets no new connections.

    On that node, or on a member of etcd. It takes effect within seconds, and lasts until --undo.

    \b
    Example:
      weft node drain n2
    """
    tool.prepare_to("drain a node")
    with libraries():
        from cni_plugin.cli import cluster_work as work
    state = work.drain(name, undo=undo)
    if json_output:
        as_json({"name": name, "state": state})
    else:
        say(f"node {name} is {state}")


@node.command()
@common
@click.argument("name")
@click.option(
    "--powered-off", is_flag=True, help="It certainly does not run: nothing of it is kept for the grace period."
)
@click.option("--force", is_flag=True, help="Even though its agent runs.")
@pass_tool
def rm(tool: Tool, name: str, powered_off: bool, force: bool, json_output: bool) -> None:
    """Remove a node that is lost from the cluster. On a member of etcd.

    Takes its access away, and its vote; another node becomes a member in its place. A node that cannot
    be reached may still run its containers, so its blocks of addresses stay reserved for the grace period,
    unless --powered-off. A node that runs should leave by itself: weft cluster leave.

    \b
    Example:
      weft node rm n2 --powered-off
    """
    tool.prepare_to("remove a node")
    with libraries():
        from cni_plugin.cli import cluster_work as work
    awaited = work.remove(name, powered_off=powered_off, force=force)
    if json_output:
        as_json({"name": name, "state": "removed", "powered_off": powered_off, "waiting": awaited})
        return
    say(f"node {name} is removed")
    if awaited:
        say(f"waiting: {awaited}")


@node.command()
@common
@click.argument("name")
@pass_tool
def promote(tool: Tool, name: str, json_output: bool) -> None:
    """Choose the node that becomes the next member of etcd. On a member of etcd.

    Members are chosen by age; this lets a node change places with a voter whose agent is down, a learner,
    or the only voter, which may leave then. etcd must be installed on it.

    \b
    Example:
      weft node promote n5
    """
    tool.prepare_to("promote a node")
    with libraries():
        from cni_plugin.cli import cluster_work as work
    role, awaited = work.promote(name)
    if json_output:
        as_json({"name": name, "role": role, "waiting": awaited})
        return
    say(f"node {name} is to be a {role}")
    if awaited:
        say(f"waiting: {awaited}")


def _described(one: Node, alive: frozenset[str]) -> dict[str, object]:
    return {
        "name": one.name,
        "id": one.id,
        "state": one.state,
        "alive": one.name in alive,
        "role": one.role,
        "addresses": [str(address) for address in one.addresses],
        "version": one.version,
        "joined": one.joined,
        "expires": one.expires,
        **({"removed": one.removed, "powered_off": one.powered_off} if one.removed else {}),
    }
