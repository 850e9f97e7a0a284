"""``weft gc`` and ``weft ipam``: clearing up what nobody needs any more, and who holds which address."""

from __future__ import annotations

from ipaddress import ip_address

import click

from cni_plugin.cli.options import common
from cni_plugin.cli.output import age, as_json, say, table, warn
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import leases
from cni_plugin.networks.conflists import NetworkList
from cni_plugin.networks.leases import Lease
from cni_plugin.service.context import raise_all
from cni_plugin.service.gc import collect_stale
from cni_plugin.service.orphans import element_text, orphans, stale_attachments, unused_networks
from weft.errors import BadOption, InUse, Missing, WeftError


@click.command()
@common
@click.option("-n", "--dry-run", is_flag=True, help="Only say what would go.")
@pass_tool
def gc(tool: Tool, dry_run: bool, json_output: bool) -> None:
    """Clear up what nobody needs any more.

    That is: attachments whose namespace is gone or that a killed call left half made, links, rules and files with
    weft's mark and no owner, addresses that no attachment holds, and the bridges and rules of networks that nothing
    is attached to. What is in use is never touched.

    \b
    Example:
      weft gc --dry-run
    """
    tool.prepare_to("clear up")
    networks = tool.networks()
    if dry_run:
        _report(rubbish(tool, networks), [], dry_run, json_output)
        return
    swept = collect_stale(tool.service)
    freed = [f"attachment {name}" for name in swept.attachments] + list(swept.leftovers)
    freed += free_lost(tool, networks)
    _report(freed, swept.errors, dry_run, json_output)
    raise_all(swept.errors)


def _report(freed: list[str], errors: list[WeftError], dry_run: bool, json_output: bool) -> None:
    if json_output:
        as_json({"dryRun": dry_run, "freed": freed, "errors": [error.message for error in errors]})
        return
    for line in freed:
        say(f"{'would free' if dry_run else 'freed'} {line}")
    if not freed and not errors:
        say("nothing to clear up")


def rubbish(tool: Tool, networks: list[NetworkList]) -> list[str]:
    """What gc would free now."""
    found = [f"attachment {record.attachment}" for record in stale_attachments(tool.service)]
    left = orphans(tool.service)
    found += [f"link {name}" for name in left.links]
    found += [element_text(element) for element in left.elements]
    found += list(left.files)
    found += [f"network {name}" for name in unused_networks(tool.service)]
    return found + [_lease_text(lease) for lease in leases.lost(tool.service, networks)]


def free_lost(tool: Tool, networks: list[NetworkList]) -> list[str]:
    """Free the addresses that no attachment holds; says which."""
    by_name = {network.name: network for network in networks}
    return [
        _lease_text(lease)
        for lease in leases.lost(tool.service, networks)
        if leases.free(tool.service, by_name[lease.network], lease)
    ]


def _lease_text(lease: Lease) -> str:
    return f"address {lease.address} of {lease.owner} on {lease.network}"


@click.group()
def ipam() -> None:
    """See and free the addresses that networks have given out."""


@ipam.command(name="ls")
@common
@click.argument("network", required=False, default="")
@pass_tool
def list_leases(tool: Tool, network: str, json_output: bool) -> None:
    """List the addresses that are given out, to whom, and how full each range is.

    HELD BY says whether an attachment of weft's holds the address. If none does, another plugin's container may:
    host-local keeps its addresses in the same place.

    \b
    Example:
      weft ipam ls blue
    """
    tool.need_records()
    found: list[Lease] = []
    usages = []
    for one in [tool.network(network)] if network else tool.networks():
        try:
            given = leases.listed(tool.service, one)
        except WeftError as error:
            warn(error.message)
            continue
        found += given
        usages += leases.usage(one, given)
    if json_output:
        as_json({"leases": [_document(lease) for lease in found], "ranges": [_usage(one) for one in usages]})
        return
    table(
        ("NETWORK", "ADDRESS", "OWNER", "AGE", "HELD BY"),
        [
            (
                lease.network,
                str(lease.address),
                str(lease.owner),
                age(lease.age),
                "attachment" if lease.attached else "no attachment of weft's",
            )
            for lease in found
        ],
    )
    say()
    table(("NETWORK", "RANGE", "IN USE"), [(one.network, one.ranges, f"{one.used} of {one.size}") for one in usages])


def _document(lease: Lease) -> dict[str, object]:
    return {
        "network": lease.network,
        "address": str(lease.address),
        "container": lease.owner.container,
        "interface": lease.owner.interface,
        "ageSeconds": round(lease.age),
        "attached": lease.attached,
    }


def _usage(one: leases.Usage) -> dict[str, object]:
    return {"network": one.network, "range": one.ranges, "used": one.used, "size": one.size}


@ipam.command()
@common
@click.option("-f", "--force", is_flag=True, help="Free it although an attachment holds it.")
@click.argument("network")
@click.argument("address")
@pass_tool
def release(tool: Tool, network: str, address: str, force: bool, json_output: bool) -> None:
    """Free one address, and print it.

    Refuses while an attachment of weft's holds it: the next container would get an address that is in use.

    \b
    Example:
      weft ipam release blue 10.89.0.7
    """
    tool.prepare_to("free an address")
    one = tool.network(network)
    try:
        wanted = ip_address(address)
    except ValueError:
        raise BadOption(f"{address!r} is not an IP address") from None
    lease = next((lease for lease in leases.listed(tool.service, one) if lease.address == wanted), None)
    if lease is None:
        raise Missing(f"{wanted} is not given out on {network}", hint=f"weft ipam ls {network} lists what is")
    if lease.attached and not force:
        raise InUse(
            f"{wanted} is held by {lease.owner}, which is attached to {network}",
            hint="detach that first; --force frees the address all the same",
        )
    if not leases.free(tool.service, one, lease):
        raise Missing(f"{wanted} is not {lease.owner}'s any more", hint=f"look again: weft ipam ls {network}")
    if json_output:
        as_json(_document(lease))
    else:
        say(str(wanted))
