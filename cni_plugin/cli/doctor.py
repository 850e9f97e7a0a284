"""``weft doctor``: missing kernel features, leftovers, and differences from what was set up."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cni_plugin.cli import agents
from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, count, say, table, warn
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.docker import diagnosis
from cni_plugin.networks import conflists, findings, leases
from cni_plugin.networks.findings import Finding, FixedBy
from cni_plugin.service import gc, shared
from weft.errors import WeftError
from weft.kernel.linux.probe import Ability


@click.command()
@common
@click.option(
    "--repair", is_flag=True, help="Remove leftovers and restore rules; report what is fixed and what is not."
)
@pass_tool
def doctor(tool: Tool, repair: bool, json_output: bool) -> None:
    """Check this host and report problems with their remedies.

    Tests the kernel's features in an empty network namespace, then looks for leftovers, incomplete
    attachments, differences from what was set up, and conflicts between networks. Changes nothing
    without --repair. Exits with 1 if there are problems; a missing kernel feature is one only if a
    network needs it.

    \b
    Example:
      weft doctor --repair
    """
    tool.need_records()
    abilities = tool.abilities()
    found = _findings(tool, abilities)
    repaired: list[Finding] | None = None
    if repair:
        tool.prepare_to("repair")
        before = found
        _repair(tool)
        found = _findings(tool, abilities)
        repaired = [one for one in before if one not in found]
    if json_output:
        body = {"abilities": [_ability(one) for one in abilities], "findings": [_finding(one) for one in found]}
        as_json(body if repaired is None else {**body, "repaired": [_finding(one) for one in repaired]})
    else:
        _print(abilities, found, repaired)
    raise click.exceptions.Exit(1 if found else 0)


def _findings(tool: Tool, abilities: Sequence[Ability]) -> list[Finding]:
    networks, problems = conflists.listed(tool.config)
    catalog = [Finding(what, remedy) for what, remedy in agents.catalog_damages()]
    docker = list(diagnosis.findings(tool.service.host.run))
    return findings.every(tool.service, abilities, networks, problems) + catalog + docker


def _repair(tool: Tool) -> None:
    """Remove leftovers and restore rules; errors are printed, and the checks afterwards report what
    remains.
    """
    networks, _ = conflists.listed(tool.config)
    try:
        swept = gc.collect_stale(tool.service)
        leases.free_stale(tool.service, networks)
        for error in swept.errors:
            warn(error.message)
        shared.repair(tool.service)
    except WeftError as error:
        warn(error.message)


def _print(abilities: Sequence[Ability], found: Sequence[Finding], repaired: Sequence[Finding] | None) -> None:
    """``repaired``: what was fixed, None without --repair."""
    say("Kernel features")
    table(
        ("  REQUIRED BY", "FEATURE", "AVAILABLE"),
        [(f"  {one.serves}", one.name, f"no: {one.problem}" if one.problem else "yes") for one in abilities],
    )
    say()
    if repaired is not None:
        say(f"{count(len(repaired), 'problem')} repaired")
        for one in repaired:
            say(f"  - {one.what}")
        say()
    if not found:
        say("No problems found.")
        return
    say(f"{count(len(found), 'problem')} {'found' if repaired is None else 'left'}")
    for one in found:
        say(f"  - {one.what}")
        say(f"    {one.remedy}")
    fixable = sum(one.fixed_by is not FixedBy.OPERATOR for one in found)
    if fixable and repaired is None:
        say()
        say(f"weft doctor --repair fixes {fixable} of {len(found)}.")


def _ability(one: Ability) -> dict[str, object]:
    return {"name": one.name, "serves": one.serves, "there": not one.problem, "problem": one.problem}


def _finding(one: Finding) -> dict[str, object]:
    return {"what": one.what, "remedy": one.remedy, "mends": str(one.fixed_by)}
