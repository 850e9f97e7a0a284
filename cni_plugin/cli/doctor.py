"""``weft doctor``: missing kernel features, leftovers, and differences from what was set up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import click

from cni_plugin.cli import agents, cluster, clustered, keeping
from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, count, say, table, warn
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.docker import diagnosis
from cni_plugin.networks import conditions, conflists, findings, repairs, requirements
from cni_plugin.networks.chain import Chain, Target
from cni_plugin.networks.conflists import NetworkList
from cni_plugin.networks.findings import Finding, FixedBy
from cni_plugin.networks.requirements import Usable
from cni_plugin.service import shared
from cni_plugin.wire.plugins import OWN_NAME
from weft import __version__
from weft.errors import WeftError
from weft.kernel.linux.probe import Ability
from weft.parallel import begun
from weft.remedies import Command, NoCommand

if TYPE_CHECKING:
    from cni_plugin.agent.settings import Settings


@click.command()
@common
@click.option(
    "--repair",
    is_flag=True,
    help="Remove leftovers, make again what is missing; report what is fixed and what is not.",
)
@pass_tool
def doctor(tool: Tool, repair: bool, json_output: bool) -> None:
    """Check this host and report problems, each with the command that fixes it or why there is none.

    Tests the kernel's features in an empty network namespace, says which drivers can be used, then looks
    for leftovers, incomplete attachments, differences from what was set up, conflicts between networks,
    keys that nothing reads, and what will fail later: full disks, certificates that expire, a clock that
    was set back. Changes nothing without --repair. Exits with 1 if there are problems; a missing
    kernel feature is one only if a network needs it, and advice is none.

    \b
    Example:
      weft doctor --repair
    """
    tool.need_records()
    probed = cache(tool.abilities)  # while other processes compare attachments, and once
    found, advice = _sorted(_findings(tool, probed))
    repaired: list[Finding] | None = None
    if repair:
        tool.prepare_to("repair")
        before = found
        _repair(tool)
        found, advice = _sorted(_findings(tool, probed))
        repaired = [one for one in before if one not in found]
    abilities = probed()
    usable = requirements.drivers(abilities, agents.is_of_cluster())
    if json_output:
        body: dict[str, object] = {
            "abilities": [_ability(one) for one in abilities],
            "findings": [_finding(one) for one in found],
        }
        body["drivers"] = [{"name": one.driver, "usable": not one.problem, "problem": one.problem} for one in usable]
        body["advice"] = [_finding(one) for one in advice]
        as_json(body if repaired is None else {**body, "repaired": [_finding(one) for one in repaired]})
    else:
        _print_host(abilities, usable)
        _print(found, repaired)
        for one in advice:
            say(f"  advice: {one.what}")
            say(f"    {one.remedy}")
    raise click.exceptions.Exit(1 if found else 0)


def _sorted(found: Sequence[Finding]) -> tuple[list[Finding], list[Finding]]:
    """The problems, and the advice."""
    return [one for one in found if not one.advice], [one for one in found if one.advice]


def _findings(tool: Tool, probed: Callable[[], Sequence[Ability]]) -> list[Finding]:
    """All findings. The processes that compare attachments are begun first, and what this one has to do by itself
    is done meanwhile.
    """
    networks, problems = conflists.listed(tool.config)
    of_keys = _begun_of_keys(tool, networks)  # while this process reads the records
    of_networks = findings.begun(tool.service, networks, problems)
    abilities = probed()
    configured = agents.configured()
    catalog = [Finding(what, NoCommand(remedy)) for what, remedy in agents.catalog_damages()]
    nodes = [Finding(what, remedy) for what, remedy in cluster.findings()]
    docker = list(diagnosis.findings(tool.service.host.run))
    around = conditions.every(tool.service.reading_once(), agents.certificates(configured))
    agent = [*_of_agent(configured), *clustered.findings()]
    return [*of_networks(abilities), *of_keys(), *around, *agent, *catalog, *nodes, *docker]


def _begun_of_keys(tool: Tool, networks: Sequence[NetworkList]) -> Callable[[], list[Finding]]:
    """Begin to look for keys of plugins that nothing reads; what is returned waits for the findings."""
    finish = begun(networks, lambda part: [_unread_keys(tool, network) for network in part], tool.service.kernel.forked)

    def found() -> list[Finding]:
        # Runtimes add keys for other plugins, so for those it is advice.
        return [
            Finding(
                f"network {network.name}: the plugin {plugin} {sentence}",
                NoCommand(f"correct or remove the key in {network.path}"),
                advice=plugin != OWN_NAME,
            )
            for network, unread in zip(networks, finish(), strict=True)
            for plugin, sentence in unread
        ]

    return found


def _unread_keys(tool: Tool, network: NetworkList) -> list[tuple[str, str]]:
    chain = Chain(tool.service, network, Target("validation", "/run/netns/validation", "eth0"), tool.path)
    try:
        return chain.unread_keys()
    except WeftError:  # it is reported when the network is used
        return []


def _of_agent(configured: Settings | WeftError | None) -> Iterator[Finding]:
    """An invalid configuration, daemons of another release or installation, what the agent says of the cluster, such
    as clocks that differ, and an agent that nothing starts again after a reboot.
    """
    if isinstance(configured, WeftError):
        yield Finding(
            configured.message, NoCommand(configured.hint or "correct the file: it is read at the agent's start")
        )
    agent = agents.running()
    if agent is not None and agent.report is not None and agent.report.version != __version__:
        yield Finding(
            f"the agent is of release {agent.report.version}, this command of {__version__}",
            Command("weft up --restart", ": containers keep their networks and services their virtual addresses"),
        )
    for problem in agent.report.problems if agent is not None and agent.report is not None else ():
        if problem.startswith("cluster: "):
            is_of_clocks = "the clock of node" in problem
            yield Finding(problem, NoCommand("timedatectl on both hosts" if is_of_clocks else "see weft logs"))
    for name, process in agents.others().items():
        if not agents.runs_own_code(process):
            yield Finding(
                f"the {name}, process {process}, runs other code than this command", Command("weft up --restart")
            )
    yield from conditions.of_units(agent is not None)


def _repair(tool: Tool) -> None:
    """Remove leftovers, restore rules, and make again what containers lack; errors are printed, and the
    checks afterwards report what remains.
    """
    networks, _ = conflists.listed(tool.config)
    try:
        _, errors = keeping.collect(tool, networks)
        for error in errors:
            warn(error.message)
    except WeftError as error:
        warn(error.message)
    try:
        shared.repair(tool.service)
    except WeftError as error:
        warn(error.message)
    for each in repairs.repair(tool.service):
        warn(each.message)


def _print_host(abilities: Sequence[Ability], usable: Sequence[Usable]) -> None:
    say("Kernel features", bold=True)
    table(
        ("  REQUIRED BY", "FEATURE", "AVAILABLE"),
        [(f"  {one.serves}", one.name, f"no: {one.problem}" if one.problem else "yes") for one in abilities],
    )
    say()
    say("Drivers", bold=True)
    table(
        ("  DRIVER", "USABLE"), [(f"  {one.driver}", f"no: {one.problem}" if one.problem else "yes") for one in usable]
    )
    say()


def _print(found: Sequence[Finding], repaired: Sequence[Finding] | None) -> None:
    """``repaired``: what was fixed, None without --repair."""
    if repaired is not None:
        say(f"{count(len(repaired), 'problem')} repaired")
        for one in repaired:
            say(f"  - {one.what}")
        say()
    if not found:
        say("No problems found.", colour="green")
        return
    say(f"{count(len(found), 'problem')} {'found' if repaired is None else 'left'}")
    for one in found:
        say(f"  - {one.what}", colour="red")
        say(f"    {one.remedy}")
    fixable = sum(one.fixed_by is not FixedBy.OPERATOR for one in found)
    if fixable and repaired is None:
        say()
        say(f"weft doctor --repair fixes {fixable} of {len(found)}.")


def _ability(one: Ability) -> dict[str, object]:
    return {"name": one.name, "serves": one.serves, "there": not one.problem, "problem": one.problem}


def _finding(one: Finding) -> dict[str, object]:
    return {
        "what": one.what,
        "remedy": str(one.remedy),
        "command": one.remedy.command,
        "mends": str(one.fixed_by),
    }
