"""``weft doctor``: what this host lacks, what is left over, and what has changed behind weft's back."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cni_plugin.cli.keeping import free_lost
from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, count, say, table, warn
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import conflists, findings
from cni_plugin.networks.findings import Finding, Mends
from cni_plugin.service import gc, shared
from weft.errors import WeftError
from weft.kernel.linux.probe import Ability


@click.command()
@common
@click.option("--repair", is_flag=True, help="Clear up and put rules back first, then say what is left.")
@pass_tool
def doctor(tool: Tool, repair: bool, json_output: bool) -> None:
    """Look for everything that could be wrong, and say what to do about it.

    First what this host can do, found by trying it in an empty namespace; then what is left over, half made, changed
    or in each other's way. Changes nothing without --repair. Exits with 1 if anything is found; what the host
    lacks counts only where something here needs it.

    \b
    Example:
      weft doctor --repair
    """
    tool.need_records()
    if repair:
        tool.prepare_to("repair")
        _repair(tool)
    networks, problems = conflists.listed(tool.config)
    abilities = tool.abilities()
    found = findings.every(tool.service, abilities, networks, problems)
    if json_output:
        as_json({"abilities": [_ability(one) for one in abilities], "findings": [_finding(one) for one in found]})
    else:
        _print(abilities, found)
    raise click.exceptions.Exit(1 if found else 0)


def _repair(tool: Tool) -> None:
    """Do what weft can do by itself; what fails is said, and what is left is found again afterwards."""
    networks, _ = conflists.listed(tool.config)
    try:
        swept = gc.collect_stale(tool.service)
        free_lost(tool, networks)
        for error in swept.errors:
            warn(error.message)
        shared.repair(tool.service)
    except WeftError as error:
        warn(error.message)


def _print(abilities: Sequence[Ability], found: Sequence[Finding]) -> None:
    say("What this host can do")
    table(
        ("  FOR", "WANTED", "HERE"),
        [(f"  {one.serves}", one.name, f"no: {one.problem}" if one.problem else "yes") for one in abilities],
    )
    say()
    if not found:
        say("Nothing is wrong.")
        return
    say(f"{count(len(found), 'thing')} found")
    for one in found:
        say(f"  - {one.what}")
        say(f"    {one.remedy}")
    mendable = sum(one.mends is not Mends.PERSON for one in found)
    if mendable:
        say()
        say(f"weft doctor --repair mends {mendable} of {len(found)}.")


def _ability(one: Ability) -> dict[str, object]:
    return {"name": one.name, "serves": one.serves, "there": not one.problem, "problem": one.problem}


def _finding(one: Finding) -> dict[str, object]:
    return {"what": one.what, "remedy": one.remedy, "mends": str(one.mends)}
