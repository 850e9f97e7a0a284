"""``weft agent``, ``weft up`` and ``weft down``: the long-lived processes of a host, without a service manager."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

import click

from cni_plugin.agent import report as reports
from cni_plugin.agent.report import Report
from cni_plugin.cli import engine as engines
from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, say, warn
from cni_plugin.cli.problems import FAILED
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.engine import listener
from discovery.consul.client import AgentAddress, ApiClient, ApiError, Unreachable
from weft import daemons, locks
from weft.errors import Busy, WeftError

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_PAUSE = 0.05
_FOREGROUND = "weft agent, in the foreground, says why"


@dataclass(frozen=True, slots=True)
class Running:
    """An agent. ``report`` is what it says of itself, None if it has not yet."""

    process: int
    report: Report | None

    @property
    def client(self) -> ApiClient:
        """Asks it, over its socket."""
        return ApiClient(AgentAddress(path=os.path.join(listener.folder(), "api.sock")))


def running() -> Running | None:
    """The agent of this network namespace: who holds its lock."""
    process = locks.holder(os.path.join(listener.folder(), "agent.lock"))
    if not process:
        return None
    found = reports.read(listener.folder())
    return Running(process, found if found and found.process == process else None)


@click.command()
@click.option("--config", metavar="FILE", help="Its settings. Default: $WEFT_CONFIG, else /etc/weft/weft.toml.")
def agent(config: str | None) -> int:
    """Be the agent, in the foreground: names, services, checks, balancing.

    It serves Consul's HTTP API at 127.0.0.1:8500 and DNS at 127.0.0.1:8600 unless its settings say otherwise. An
    attachment whose network has names starts one by itself; weft up starts one in the background.

    \b
    Example:
      weft agent --config ./weft.toml
    """
    from cni_plugin.agent.main import serving  # brings the HTTP server, which no other command needs

    return serving(["--config", config] if config else [])


@click.command()
@common
@click.option("--config", metavar="FILE", help="The agent's settings. Default: $WEFT_CONFIG, else /etc/weft/weft.toml.")
@pass_tool
def up(tool: Tool, config: str | None, json_output: bool) -> None:
    """Start the agent and the engine in the background, and wait until they serve.

    What runs already is left as it is. The agent stays until weft down; the engine ends when no container runtime has
    called for 15 minutes, and the next call starts another. Exits with 1 if a part of the agent cannot begin.

    \b
    Example:
      weft up --config ./weft.toml
    """
    tool.prepare_to("start weft")
    if config:
        os.environ["WEFT_CONFIG"] = os.path.abspath(config)
    there = running()
    if there is None:
        from cni_plugin.agent import settings  # stands on much of what the agent is made of

        settings.read()
    os.makedirs(listener.folder(), mode=0o700, exist_ok=True)
    with open(_stay(), "w", encoding="ascii"):
        pass
    if there is None:
        daemons.start("cni_plugin.agent.main", "answers names and registers services")
    found = _serving()
    engine, new_engine = engines.begin()
    if json_output:
        as_json(
            {
                "agent": {"pid": found.process, "started": there is None, "http": found.http, "dns": found.dns,
                          "problems": found.problems},
                "engine": {"pid": engine.process, "started": new_engine},
            }
        )  # fmt: skip
    else:
        say(f"the agent, process {found.process}, {'runs now' if there is None else 'runs already'}")
        say(f"  HTTP at {', '.join(found.http) or 'nowhere'}")
        say(f"  DNS at {', '.join(found.dns) or 'nowhere'}")
        say(f"the engine, process {engine.process}, {'runs now' if new_engine else 'runs already'}")
        for problem in found.problems:
            warn(problem)
    raise click.exceptions.Exit(FAILED if found.problems else 0)


def _serving() -> Report:
    """What the agent says of itself once it answers. Raises WeftError where it does not."""
    deadline = time.monotonic() + _START_SECONDS
    appeared = False
    while True:
        found = running()
        if found is not None and found.report is not None:
            broken = [problem for problem in found.report.problems if problem.startswith("http:")]
            if broken or _answers(found):
                return found.report
        if (found is None and appeared) or time.monotonic() > deadline:
            raise WeftError("the agent does not start", hint=_FOREGROUND)
        appeared = appeared or found is not None
        time.sleep(_PAUSE)


def _answers(found: Running) -> bool:
    client = found.client
    with contextlib.closing(client):
        try:
            client.get("/v1/status/leader")
        except Unreachable:
            return False
        except ApiError:
            pass  # it answers
        return True


@click.command()
@common
@click.option("--services", is_flag=True, help="Also take the services' virtual addresses from the kernel.")
@pass_tool
def down(tool: Tool, services: bool, json_output: bool) -> None:
    """End the agent and the engine, and say what was ended.

    Containers keep their networks, and services their virtual addresses as they last were (but for --services); names
    are not answered, and checks not made, until weft up or the next attachment that needs it.

    \b
    Example:
      weft down
    """
    tool.need_rights("stop weft")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_stay())
    agent = _end_agent()
    if not json_output:
        say(f"the agent, process {agent}, has ended" if agent else "the agent did not run")
    engine = engines.end()
    if not json_output:
        say(f"the engine, process {engine}, has ended" if engine else "the engine did not run")
    if services:
        from discovery.balancer.balancer import remove_all  # only now: it brings the whole of balancing

        remove_all()
        if not json_output:
            say("virtual addresses are gone from the kernel")
    if json_output:
        as_json({"agent": agent or None, "engine": engine or None, "virtualAddressesRemoved": services})


def _end_agent() -> int:
    """End the agent and wait until it has; the process that it was, 0 if there was none. Raises Busy."""
    found = running()
    if found is None:
        return 0
    if not daemons.end(found.process, _STOP_SECONDS):
        raise Busy(f"the agent, process {found.process}, has not ended yet", hint="try weft down again")
    return found.process


def _stay() -> str:
    return os.path.join(listener.folder(), reports.STAY)
