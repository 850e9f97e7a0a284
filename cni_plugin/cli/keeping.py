"""``weft gc`` and ``weft ipam``: removing leftovers, and the leases of networks."""

from __future__ import annotations

import time
from ipaddress import ip_address

import click

from cni_plugin.cli.options import common
from cni_plugin.cli.output import age, as_json, say, table, warn
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import leases
from cni_plugin.networks.conflists import NetworkList
from cni_plugin.networks.leases import LeaseEntry
from cni_plugin.service.context import raise_all
from cni_plugin.service.gc import collect_stale
from cni_plugin.service.orphans import element_text, orphans, stale_attachments, unused_networks
from weft import events
from weft.errors import BadOption, InUse, Missing, WeftError


@click.command()
@common
@click.option("-n", "--dry-run", is_flag=True, help="Only print what would be removed.")
@pass_tool
def gc(tool: Tool, dry_run: bool, json_output: bool) -> None:
    """Remove what interrupted calls and deleted containers have left behind.

    Removes attachments whose network namespace no longer exists or that are incomplete, links, nftables
    elements and files with weft's mark and no owner, leases without an attachment, and the bridges and
    rules of networks without attachments. Nothing that is in use is removed.

    \b
    Example:
      weft gc --dry-run
    """
    tool.prepare_to("collect garbage")
    networks = tool.networks()
    if dry_run:
        _report(garbage(tool, networks), [], dry_run, json_output)
        return
    freed, errors = collect(tool, networks)
    _report(freed, errors, dry_run, json_output)
    raise_all(errors)


def collect(tool: Tool, networks: list[NetworkList]) -> tuple[list[str], list[WeftError]]:
    """Free it, which is an event; what was freed, as text, and what could not be. Raises WeftError."""
    started = time.monotonic()
    swept = collect_stale(tool.service)
    freed = [f"attachment {name}" for name in swept.attachments] + list(swept.leftovers)
    try:
        freed += leases.free_stale(tool.service, networks)
    except WeftError as error:
        swept.errors.append(error)
    if freed or swept.errors:
        fields = {"freed": ", ".join(freed), **events.outcome(started, 0, swept.errors)}
        events.record(tool.service.host.run, "gc", fields)
    return freed, swept.errors


def _report(freed: list[str], errors: list[WeftError], dry_run: bool, json_output: bool) -> None:
    if json_output:
        as_json({"dryRun": dry_run, "freed": freed, "errors": [error.message for error in errors]})
        return
    for line in freed:
        say(f"{'would free' if dry_run else 'freed'} {line}")
    if not freed and not errors:
        say("nothing to remove")


def garbage(tool: Tool, networks: list[NetworkList]) -> list[str]:
    """What ``weft gc`` would remove."""
    found = [f"attachment {record.attachment}" for record in stale_attachments(tool.service)]
    left = orphans(tool.service)
    found += [f"link {name}" for name in left.links]
    found += [element_text(element) for element in left.elements]
    found += list(left.files)
    found += [f"network {name}" for name in unused_networks(tool.service)]
    stale = leases.stale(tool.service, networks)
    return found + [leases.text(lease.network, lease.address, lease.owner) for lease in stale]


@click.group()
def ipam() -> None:
    """Manage the leases of networks."""


@ipam.command(name="ls")
@common
@click.argument("network", required=False, default="")
@pass_tool
def list_leases(tool: Tool, network: str, json_output: bool) -> None:
    """List leases and the utilization of each range.

    HELD BY shows whether an attachment of weft holds the lease. Other leases may belong to containers
    of the reference plugins: host-local keeps its leases in the same directory.

    \b
    Example:
      weft ipam ls blue
    """
    tool.need_records()
    found: list[LeaseEntry] = []
    usages = []
    attached = leases.attached(tool.service)
    for one in [tool.network(network)] if network else tool.networks():
        try:
            network_leases = leases.listed(one, attached)
        except WeftError as error:
            warn(error.message)
            continue
        found += network_leases
        if (pool := leases.pool(one)) is not None:
            usages += leases.usage(one.name, pool, [each.address for each in network_leases])
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
                "attachment" if lease.attached else "-",
            )
            for lease in found
        ],
    )
    say()
    table(("NETWORK", "RANGE", "IN USE"), [(one.network, one.ranges, f"{one.used} of {one.size}") for one in usages])


def _document(lease: LeaseEntry) -> dict[str, object]:
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
@click.option("-f", "--force", is_flag=True, help="Release it even if an attachment holds it.")
@click.argument("network")
@click.argument("address")
@pass_tool
def release(tool: Tool, network: str, address: str, force: bool, json_output: bool) -> None:
    """Release a lease and print its address.

    Fails if an attachment of weft holds it: the next container would get an address that is in use.

    \b
    Example:
      weft ipam release blue 10.89.0.7
    """
    tool.prepare_to("release a lease")
    one = tool.network(network)
    try:
        wanted = ip_address(address)
    except ValueError:
        raise BadOption(f"invalid IP address: {address!r}") from None
    listed = leases.listed(one, leases.attached(tool.service))
    lease = next((lease for lease in listed if lease.address == wanted), None)
    if lease is None:
        raise Missing(f"no lease for {wanted} on network {network}", hint=f"see weft ipam ls {network}")
    if lease.attached and not force:
        raise InUse(
            f"{wanted} is in use by {lease.owner}, which is attached to {network}",
            hint="detach it first, or use --force",
        )
    if not leases.free(tool.service, one, lease):
        raise Missing(f"{wanted} is no longer leased to {lease.owner}", hint=f"see weft ipam ls {network}")
    if json_output:
        as_json(_document(lease))
    else:
        say(str(wanted))
