"""``weft network prune``, ``exists``, ``connect``, ``disconnect``, ``update`` and ``reload``, as docker and podman
have them; and ``replace-keys``.
"""

from __future__ import annotations

import click

from cni_plugin.cli import clustered
from cni_plugin.cli.attaching import attach, detach
from cni_plugin.cli.network import inspected, matches, network, remove
from cni_plugin.cli.network_create import create
from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, say, warn
from cni_plugin.cli.problems import FAILED
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import attachments, conflists, requests
from cni_plugin.networks import create as creating
from cni_plugin.networks.attachments import Endpoint
from cni_plugin.plan import modules
from cni_plugin.service import shared
from weft.errors import BadOption, UnknownContainer


@click.command()
@common
@click.argument("name")
@pass_tool
def exists(tool: Tool, name: str, json_output: bool) -> None:
    """Exit with 0 if the network exists, else with 1.

    \b
    Example:
      weft network exists blue || weft network create blue
    """
    found = tool.network_if_known(name) is not None
    if json_output:
        as_json(found)
    raise click.exceptions.Exit(0 if found else FAILED)


@click.command()
@common
@click.option("-f", "--force", is_flag=True, help="Do not ask for confirmation.")
@click.option("--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only those, as of weft network ls.")
@click.pass_context
def prune(context: click.Context, force: bool, filters: tuple[str, ...], json_output: bool) -> None:
    """Remove all networks that weft has created and nothing is attached to. Prints their names.

    \b
    Example:
      weft network prune -f
    """
    tool = context.ensure_object(Tool)
    tool.prepare_to("remove networks")
    used = {one.network for one in attachments.endpoints(tool.service)}
    unused = [one.name for one in tool.networks() if one.weft and one.name not in used and matches(one, filters, used)]
    unused = [name for name in unused if not modules.declared(tool.network(name).driver).clustered]
    if unused and not force:
        click.echo(f"This removes the networks {', '.join(unused)}.", err=True)
        if not click.confirm("Continue?", err=True):
            raise click.ClickException("nothing is removed")
    if unused:
        context.invoke(remove, names=tuple(unused), force=False, json_output=json_output)
    elif json_output:
        as_json([])


@click.command()
@common
@click.argument("name", metavar="NETWORK")
@click.argument("container", metavar="CONTAINER|NETNS")
@click.option("--ip", "addresses", multiple=True, metavar="IP", help="A fixed IP address. Repeatable.")
@click.option("--ifname", default="", help="The interface. Default: the first of eth0, eth1 … that is free.")
@click.option("-p", "--publish", multiple=True, metavar="PORTS", help="Publish a port, as in docker.")
@click.option("--mac", "--mac-address", default="", metavar="MAC", help="The interface's MAC address.")
@click.option("--ip6", "further", default="", metavar="IP", help="A fixed IPv6 address; --ip takes both families.")
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="A further DNS name. Repeatable.")
@click.pass_context
def connect(
    context: click.Context,
    name: str,
    container: str,
    addresses: tuple[str, ...],
    ifname: str,
    publish: tuple[str, ...],
    mac: str,
    further: str,
    aliases: tuple[str, ...],
    json_output: bool,
) -> None:
    """Attach an attached container, or a namespace, to a further network.

    A container of podman or nerdctl does not learn of it: use the same command of theirs.

    \b
    Example:
      weft network connect front c1
    """
    tool = context.ensure_object(Tool)
    tool.need_rights("attach")
    found = attachments.find(tool.service, container)
    taken = {one.interface for one in found}
    free = next(f"eth{number}" for number in range(len(taken) + 1) if f"eth{number}" not in taken)
    context.invoke(
        attach,
        network=name,
        netns=found[0].namespace.path if found else container,
        container=found[0].container if found else "",
        ifname=ifname or free,
        addresses=(*addresses, *filter(None, (further,))),
        aliases=aliases,
        mac=mac,
        publish=publish,
        json_output=json_output,
    )


@click.command()
@common
@click.argument("name", metavar="NETWORK")
@click.argument("container", metavar="CONTAINER|NETNS")
@click.option("-f", "--force", is_flag=True, help="Succeed if the container is not attached.")
@click.pass_context
def disconnect(context: click.Context, name: str, container: str, force: bool, json_output: bool) -> None:
    """Detach a container from a network.

    \b
    Example:
      weft network disconnect front c1
    """
    try:
        context.invoke(detach, network=name, who=container, container="", ifname="", json_output=json_output)
    except UnknownContainer:
        if not force:
            raise


@click.command(name="replace-keys")
@common
@click.argument("name")
@pass_tool
def replace_keys(tool: Tool, name: str, json_output: bool) -> None:
    """Replace the keys of an encrypted overlay network on all hosts.

    Each host makes a new key, and no packet is lost meanwhile. Fails where some host has not replaced the last
    ones yet; waits ten seconds for all, and names those that are not done then.

    \b
    Example:
      weft network replace-keys blue
    """
    tool.prepare_to("replace keys")
    found = clustered.replace_keys(name)
    if json_output:
        as_json(found)
        return
    say(f"keys of generation {found.get('KeyGeneration')}")
    waiting = found.get("Rotating")
    if isinstance(waiting, list) and waiting:
        warn(f"hosts that still have older ones: {', '.join(map(str, waiting))}")


@click.command()
@common
@click.option("--dns-add", "added", multiple=True, metavar="IP", help="A further name server. Repeatable.")
@click.option("--dns-drop", "dropped", multiple=True, metavar="IP", help="A name server to remove. Repeatable.")
@click.argument("name")
@pass_tool
def update(tool: Tool, added: tuple[str, ...], dropped: tuple[str, ...], name: str, json_output: bool) -> None:
    """Change the name servers of a network, and print its name.

    Containers that are attached keep those that they have.

    \b
    Example:
      weft network update blue --dns-add 192.0.2.53
    """
    if not (added or dropped):
        raise BadOption("nothing to update: specify --dns-add or --dns-drop")
    tool.prepare_to("change a network")
    with conflists.locked(tool.config):
        found = tool.network(name)
        if requests.is_clustered(found):
            raise BadOption(f"network {found.name} is the cluster's, whose networks are not changed", hint=_AGAIN)
        conflists.rewrite(found, creating.with_servers(found, added, dropped))
    if json_output:
        as_json(inspected(tool, tool.network(found.name), []))
    else:
        say(found.name)


_AGAIN = "create it again with --dns"


@click.command()
@common
@click.option("-a", "--all", "everything", is_flag=True, help="Reload all containers.")
@click.argument("containers", metavar="[CONTAINER...]", nargs=-1)
@pass_tool
def reload(tool: Tool, everything: bool, containers: tuple[str, ...], json_output: bool) -> None:
    """Restore the rules, routes and addresses of containers, and print their ids.

    They are all restored, as after a flush of the ruleset; containers that are named are checked
    afterwards. Exits with 1 if something of theirs cannot be restored.

    \b
    Example:
      weft network reload --all
    """
    if bool(containers) == everything:
        raise BadOption("specify either containers or --all")
    tool.prepare_to("reload containers")
    wanted: list[Endpoint] = [] if containers else attachments.endpoints(tool.service)
    for word in containers:
        found = attachments.find(tool.service, word)
        if not found:
            raise UnknownContainer(f"{word} is not attached", hint="see weft ps")
        wanted += found
    shared.repair(tool.service)
    context = tool.service.comparing_all()
    broken = [(one, sentence) for one in wanted for sentence in attachments.mismatches(context, one)]
    for one, sentence in broken:
        warn(f"{one}: {sentence}")
    ids = list(dict.fromkeys(one.container for one in wanted))
    if json_output:
        as_json(ids)
    else:
        for container in ids:
            say(container)
    raise click.exceptions.Exit(FAILED if broken else 0)


for command in (create, exists, prune, connect, disconnect, update, reload, replace_keys):
    network.add_command(command)
