"""``weft status``: an overview of weft on this host."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence

import click

from cni_plugin.agent import report as reports
from cni_plugin.cli import agents, clustered
from cni_plugin.cli import engine as engines
from cni_plugin.cli.agents import Running
from cni_plugin.cli.instances import ServiceInstance, all_instances, virtual_addresses
from cni_plugin.cli.options import common
from cni_plugin.cli.output import age, as_json, count, fields, say, table
from cni_plugin.cli.problems import FAILED
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import attachments
from cni_plugin.networks.attachments import State
from cni_plugin.ops.announcement import FOLDER
from cni_plugin.service import restorations
from cni_plugin.service.restorations import Restorations
from discovery.consul.client import api_path, list_of_objects
from discovery.structs import CONSUL_SERVICE
from weft import __version__
from weft.errors import WeftError

_MOST_LISTED = 10
"""Critical instances that are listed one by one."""
_WORDS = ("passing", "no check", "warning", "critical", "maintenance")


@click.group(invoke_without_command=True)
@common
@click.pass_context
@pass_tool
def status(tool: Tool, context: click.Context, json_output: bool) -> None:
    """Show an overview: agent, engine, networks, services, warnings.

    Exits with 1 if there are warnings: an agent is needed and none is running, a part of it cannot start,
    or a service is critical. An agent is needed for names and services of containers, for virtual
    addresses, and after weft up. The engine need not run, since the next call of a container runtime
    starts it. See weft doctor for detailed checks.

    \b
    Example:
      weft status
    """
    if context.invoked_subcommand is not None:
        return
    tool.need_records()
    warnings: list[str] = []
    agent, engine = agents.running(), engines.running()
    instances, virtual = _services(agent, warnings) if agent is not None else ([], agents.virtual_addresses_in_kernel())
    if agent is None and (why := _needs_agent(tool.service.host.run, virtual)):
        warnings.append(f"agent not running, {why}: no DNS and no health checks; run weft up")
    instances = [one for one in instances if one.service != CONSUL_SERVICE]
    attached = attachments.endpoints(tool.service)
    gone = sum(one.state is not State.ATTACHED for one in attached)
    networks = len({one.name for one in tool.networks()} | {one.network for one in attached})
    restored = restorations.read(tool.service.host.run)
    warnings += [f"{what}: {remedy}" for what, remedy in agents.catalog_damages()]
    if gone:
        warnings.append(f"{count(gone, 'attachment')} incomplete or without a namespace: run weft gc")
    healths = Counter(one.status for one in instances)
    unchecked = sum(one.health != one.status for one in instances)
    services = len({one.service for one in instances})
    report = agent.report if agent else None
    if json_output:
        as_json(
            {
                "node": report.node if report else None,
                "datacenter": report.datacenter if report else None,
                "address": report.address if report else None,
                "agent": {
                    "pid": agent.process,
                    "version": report.version if report else None,
                    "ageSeconds": round(time.time() - report.started) if report else None,
                    "http": list(report.http) if report else [],
                    "dns": list(report.dns) if report else [],
                }
                if agent
                else None,
                "engine": {"pid": engine.process, "ageSeconds": round(engine.age)} if engine else None,
                "networks": networks,
                "attachments": len(attached),
                "services": services,
                "instances": dict(healths),
                "unchecked": unchecked,
                "virtualAddresses": virtual,
                "restorations": restored.count,
                "warnings": warnings,
            }
        )
    else:
        shown = Counter(one.health for one in instances)
        held = f"{len(instances)} ({', '.join(f'{shown[word]} {word}' for word in _WORDS if shown[word])})"
        fields(
            [
                *_of_agent(agent),
                ("Engine", f"process {engine.process}, up {age(engine.age)}" if engine
                 else "not running; the next call of a container runtime starts it"),
                ("Networks", str(networks)),
                ("Attachments", str(len(attached))),
                ("Services", str(services)),
                *([("Instances", held)] if instances else []),
                ("Virtual addresses", str(virtual)),
                *_of_restorations(restored),
            ]
        )  # fmt: skip
        say()
        say("No warnings." if not warnings else f"{count(len(warnings), 'warning')}:")
        for warning in warnings:
            say(f"  - {warning}", colour="yellow")
    raise click.exceptions.Exit(FAILED if warnings else 0)


@status.command()
@common
@pass_tool
def peers(tool: Tool, json_output: bool) -> None:
    """Probe the other hosts of overlay networks with packets of full size.

    Exits with 1 if one does not answer, or is reached by smaller packets only: its routes then have that
    MTU. The agent probes twice a minute, too.

    \b
    Example:
      weft status peers
    """
    with contextlib.closing(clustered.client()) as client:
        found = list_of_objects(client.get(api_path("weft", "peers"), [("probe", "")]).json)
    if json_output:
        as_json(found)
    elif not found:
        say("no peers")
    else:
        table(
            ("HOST", "NETWORK", "ADDRESS", "REACHABLE", "MTU", "ROUND TRIP"),
            [
                (
                    str(one.get("Node")),
                    str(one.get("Network")),
                    str(one.get("Address")),
                    "yes" if one.get("Reachable") else "no",
                    f"{one.get('MTU')} of {one.get('FullMTU')}" if one.get("Reachable") else "-",
                    f"{one.get('RoundTripMicroseconds')} us" if one.get("Reachable") else "-",
                )
                for one in found
            ],
        )
    if not all(one.get("Reachable") and one.get("MTU") == one.get("FullMTU") for one in found):
        raise click.exceptions.Exit(FAILED)


def _of_agent(agent: Running | None) -> Sequence[tuple[str, str]]:
    """The lines about the agent."""
    if agent is None:
        return [("Agent", "not running")]
    report = agent.report
    if report is None:
        return [("Agent", f"process {agent.process}, starting")]
    return [
        ("Node", f"{report.node} in {report.datacenter}, {report.address}"),
        ("Agent", f"process {agent.process}, up {age(time.time() - report.started)}, weft {report.version}"),
        ("HTTP", "\n".join(report.http) or "no address"),
        ("DNS", "\n".join(report.dns) or "no address"),
    ]


def _needs_agent(run: str, virtual: int) -> str:
    """What an agent should run for, "" if nothing needs one."""
    try:
        announced = sum(name.endswith(".json") for name in os.listdir(os.path.join(run, FOLDER)))
    except OSError:
        announced = 0
    if announced:
        return f"{count(announced, 'attachment')} with names or services"
    if virtual:
        return f"the kernel serves {count(virtual, 'virtual address')} as it was last told"
    return "weft up has started one" if os.path.exists(os.path.join(run, reports.STAY)) else ""


def _services(agent: Running, warnings: list[str]) -> tuple[list[ServiceInstance], int]:
    """The agent's instances and the number of virtual addresses; adds to ``warnings``."""
    report = agent.report
    if report is not None:
        warnings += report.problems
        if report.version != __version__:
            warnings.append(f"agent is version {report.version}, weft is {__version__}: run weft up --restart")
    client = agent.client
    with contextlib.closing(client):
        try:
            found = all_instances(client)
            virtual = sum(map(len, virtual_addresses(client).values()))
        except WeftError as error:
            warnings.append(error.message)
            return [], 0
    critical = [one for one in found if one.status == "critical"]
    for one in critical[:_MOST_LISTED]:
        why = f": {one.why}" if one.why else ""
        warnings.append(f"{one.service} is critical, {one.id} on {one.node}{why}")
    if len(critical) > _MOST_LISTED:
        warnings.append(f"{len(critical) - _MOST_LISTED} more are critical: weft services list -detailed")
    return found, virtual


def _of_restorations(found: Restorations) -> list[tuple[str, str]]:
    if not found.count:
        return []
    return [("Restored", f"{count(found.count, 'change')} of other programs, last {age(time.time() - found.last)} ago")]
