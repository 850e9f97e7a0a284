"""``weft status``: all of weft on this host, on one screen."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence

import click

from cni_plugin.cli import agents
from cni_plugin.cli import engine as engines
from cni_plugin.cli.agents import Running
from cni_plugin.cli.instances import Seen, everywhere, virtual_addresses
from cni_plugin.cli.options import common
from cni_plugin.cli.output import age, as_json, count, fields, say
from cni_plugin.cli.problems import FAILED
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import attachments
from cni_plugin.networks.attachments import State
from discovery.structs import CONSUL_SERVICE
from weft import __version__
from weft.errors import WeftError

_MOST = 10
"""Sick instances that are told one by one."""
_WORDS = ("passing", "warning", "critical", "maintenance")


@click.command()
@common
@pass_tool
def status(tool: Tool, json_output: bool) -> None:
    """Show all of weft on one screen: agent, engine, networks, services, warnings.

    Exits with 1 if something is wrong: no agent runs, a part of it cannot begin, or a service is critical. Without an
    engine all is well, since the next call of a container runtime starts one. weft doctor looks deeper.

    \b
    Example:
      weft status
    """
    tool.need_records()
    warnings: list[str] = []
    agent, engine = agents.running(), engines.running()
    instances, virtual = _services(agent, warnings)
    instances = [one for one in instances if one.service != CONSUL_SERVICE]
    attached = attachments.endpoints(tool.service)
    gone = sum(one.state is not State.ATTACHED for one in attached)
    networks = len(tool.networks())
    if gone:
        warnings.append(f"{count(gone, 'attachment')} left over or half made: weft gc clears up")
    healths = Counter(one.status for one in instances)
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
                "engine": {"pid": engine.process, "ageSeconds": round(engine.since)} if engine else None,
                "networks": networks,
                "attachments": len(attached),
                "services": services,
                "instances": dict(healths),
                "virtualAddresses": virtual,
                "warnings": warnings,
            }
        )
    else:
        held = f"{len(instances)} ({', '.join(f'{healths[word]} {word}' for word in _WORDS if healths[word])})"
        fields(
            [
                *_of_agent(agent),
                ("Engine", f"process {engine.process}, {age(engine.since)} old" if engine
                 else "not running; the next call of a container runtime starts one"),
                ("Networks", str(networks)),
                ("Attachments", str(len(attached))),
                ("Services", str(services)),
                *([("Instances", held)] if instances else []),
                ("Virtual addresses", str(virtual)),
            ]
        )  # fmt: skip
        say()
        say("Nothing is wrong." if not warnings else f"{count(len(warnings), 'warning')}:")
        for warning in warnings:
            say(f"  - {warning}")
    raise click.exceptions.Exit(FAILED if warnings else 0)


def _of_agent(agent: Running | None) -> Sequence[tuple[str, str]]:
    """The lines that are about the agent."""
    if agent is None:
        return [("Agent", "not running")]
    report = agent.report
    if report is None:
        return [("Agent", f"process {agent.process}, beginning")]
    return [
        ("Node", f"{report.node} in {report.datacenter}, {report.address}"),
        ("Agent", f"process {agent.process}, {age(time.time() - report.started)} old, weft {report.version}"),
        ("HTTP", "\n".join(report.http) or "nowhere"),
        ("DNS", "\n".join(report.dns) or "nowhere"),
    ]


def _services(agent: Running | None, warnings: list[str]) -> tuple[list[Seen], int]:
    """What the agent knows: instances, and how many virtual addresses. What is wrong is added to the warnings."""
    if agent is None:
        warnings.append("no agent runs: names are not answered and services not checked; weft up starts one")
        return [], 0
    report = agent.report
    if report is not None:
        warnings += report.problems
        if report.version != __version__:
            warnings.append(f"the agent is weft {report.version}, this is {__version__}: weft down; weft up")
    client = agent.client
    with contextlib.closing(client):
        try:
            found = everywhere(client)
            virtual = sum(map(len, virtual_addresses(client).values()))
        except WeftError as error:
            warnings.append(error.message)
            return [], 0
    sick = [one for one in found if one.status == "critical"]
    for one in sick[:_MOST]:
        why = f": {one.why}" if one.why else ""
        warnings.append(f"{one.service} is critical, {one.id} on {one.node}{why}")
    if len(sick) > _MOST:
        warnings.append(f"{len(sick) - _MOST} more are critical: weft services list -detailed")
    return found, virtual
