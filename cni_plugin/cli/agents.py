"""``weft up`` and ``weft down``: the daemons of a host, without a service manager."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from cluster.etcd_server import UNIT, EtcdServer
from cluster.local import Files
from cni_plugin.agent import report as reports
from cni_plugin.agent.report import Report
from cni_plugin.cli import docker as drivers
from cni_plugin.cli import engine as engines
from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, say, warn
from cni_plugin.cli.problems import FAILED
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.engine import code, listener
from cni_plugin.ops.announcement import AGENT
from discovery.consul.client import AgentAddress, ApiClient, ApiError, Unreachable
from weft import __version__, configuration, daemons, files, locks, proc_stat, systemd
from weft.errors import Busy, WeftError

if TYPE_CHECKING:
    from cni_plugin.agent.settings import Settings

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_PAUSE = 0.05
_UNIT = "weft-agent.service"
_FOREGROUND = "run weft agent in the foreground to see why"


@dataclass(frozen=True, slots=True)
class Running:
    """A running agent. ``report`` is None until it has written one."""

    process: int
    report: Report | None

    @property
    def client(self) -> ApiClient:
        """An HTTP client on its Unix socket."""
        return ApiClient(AgentAddress(path=os.path.join(listener.folder(), "api.sock")))


def running() -> Running | None:
    """The agent of this network namespace: the process that holds its lock."""
    process = locks.holder(os.path.join(listener.folder(), "agent.lock"))
    if not process:
        return None
    found = reports.read(listener.folder())
    return Running(process, found if found and found.process == process else None)


def is_of_cluster() -> bool:
    """Whether the agent's configuration names the store of a cluster; False where it is invalid."""
    found = configured()
    return found is not None and not isinstance(found, WeftError) and found.store is not None


def catalog_damages() -> list[tuple[str, str]]:
    """What happened to the catalog's file and is not confirmed yet, each with what to do."""
    from cni_plugin.agent import catalog_file  # imports the configuration's parsers and the store

    return [(one.what, one.remedy) for one in catalog_file.damages()]


def configured() -> Settings | WeftError | None:
    """The agent's configuration, or why it cannot be used; None without a file."""
    if not os.path.exists(configuration.path()):
        return None
    from cni_plugin.agent import settings  # imports much of the agent

    try:
        return settings.read()
    except WeftError as error:
        return error


def certificates(configured: Settings | WeftError | None) -> tuple[str, ...]:
    """The certificates of the agent's configuration, if there is one that can be used."""
    tls = None if configured is None or isinstance(configured, WeftError) else configured.http.tls
    return tuple(filter(None, (tls.certificate, tls.ca))) if tls is not None else ()


def virtual_addresses_in_kernel() -> int:
    """How many virtual addresses the kernel serves, also while no agent runs; 0 where it may not be
    asked.
    """
    from discovery.balancer.balancer import served  # imports all of balancing

    try:
        return served()
    except WeftError:
        return 0


@click.command()
@common
@click.option(
    "--config", metavar="FILE", help="The agent's configuration. Default: $WEFT_CONFIG, else /etc/weft/weft.toml."
)
@click.option("--restart", is_flag=True, help="Only replace daemons of another installation or release.")
@pass_tool
def up(tool: Tool, config: str | None, restart: bool, json_output: bool) -> None:
    """Start the agent and the engine in the background, and wait until they are ready.

    Where dockerd runs, the driver for its networks is started, too.

    Running daemons are not restarted. The agent runs until weft down; the engine stops after 15 minutes
    without a call, and the next call starts it again. Exits with 1 if a part of the agent cannot start,
    or if it runs already with another configuration: what differs is said, and how to use it.

    \b
    Example:
      weft up --config ./weft.toml
    """
    tool.prepare_to("start weft")
    if restart:
        replaced = _replace_others()
        if json_output:
            as_json({"replaced": replaced})
            return
        for line in replaced:
            say(f"replaced {line}")
        if not replaced:
            say("nothing to replace: no daemon is of another installation or release")
        return
    if config:
        os.environ["WEFT_CONFIG"] = os.path.abspath(config)
    already = running()
    found = start(is_running=already is not None)
    changed = _changed(found) if already is not None else ()
    engine, new_engine = engines.start()
    driver, new_driver = drivers.start()
    if json_output:
        as_json(
            {
                "agent": {"pid": found.process, "started": already is None, "http": found.http, "dns": found.dns,
                          "problems": found.problems, "changed": changed},
                "engine": {"pid": engine.process, "started": new_engine},
                **({"docker": {"pid": driver, "started": new_driver}} if driver else {}),
            }
        )  # fmt: skip
    else:
        say(f"agent {'started' if already is None else 'already running'}, process {found.process}")
        say(f"  HTTP on {', '.join(found.http) or 'no address'}")
        say(f"  DNS on {', '.join(found.dns) or 'no address'}")
        say(f"engine {'started' if new_engine else 'already running'}, process {engine.process}")
        if driver:
            say(f"driver for Docker {'started' if new_driver else 'already running'}, process {driver}")
        for problem in found.problems:
            warn(problem)
        if changed:
            what = ", ".join(f"[{name}]" for name in changed)
            file = configuration.path()
            warn(f"the agent runs with another configuration: {what} of {file} changed since it was started")
            say(f"To use it: {_restart_command()}; containers keep their networks meanwhile")
    raise click.exceptions.Exit(FAILED if found.problems or changed else 0)


def _changed(report: Report) -> tuple[str, ...]:
    """The sections of the configuration that are not as a running agent has read them. Raises WeftError."""
    from cni_plugin.agent import settings

    wanted = settings.read().digests
    if report.digests is None:  # of an earlier release
        return ()
    return tuple(sorted({name for name, _ in {*wanted.items()} ^ {*report.digests.items()}}))


def _restart_command() -> str:
    """What lets an agent that runs read its configuration again."""
    if systemd.is_running() and _is_active():
        return f"systemctl restart {_UNIT}, which reads the file of its unit"
    given = configuration.named()
    return f"weft down && weft up{f' --config {given}' if given else ''}"


def start(*, is_running: bool) -> Report:
    """Start the agent, and let it run until ``weft down``; its report. Raises WeftError."""
    if not is_running:
        from cni_plugin.agent import settings  # imports much of the agent

        settings.read()
    files.make_directory(listener.folder(), "the agent's state")
    with open(_keep_running_path(), "w", encoding="ascii"):
        pass
    return _wait_until_ready() if is_running else _start_agent()


def restart() -> Report:
    """Start the agent again, with its configuration as it is now; the unit of systemd where that runs it.

    Raises WeftError.
    """
    if systemd.is_running() and _is_active():
        systemd.control("restart", _UNIT)
        return _wait_until_ready()
    _stop_agent()
    return start(is_running=False)


def _is_active() -> bool:
    with contextlib.suppress(WeftError):
        return bool(systemd.control("is-active", _UNIT))
    return False


def _start_agent() -> Report:
    """Start an agent in the background; its report. Raises WeftError."""
    AGENT.start()
    return _wait_until_ready()


def _replace_others() -> list[str]:
    """Stop the daemons of another installation or an earlier release, and start what must run again: the
    next call of a runtime starts an engine. Those that ran.
    """
    replaced = []
    found = others()
    if "agent" in found:
        replaced.append(f"agent, process {_stop_agent()}")
        _start_agent()
    if "engine" in found:
        replaced.append(f"engine, process {engines.stop()}")
    if "driver for Docker" in found:
        replaced.append(f"driver for Docker, process {drivers.stop()}")
        drivers.start()
    if (etcd := EtcdServer(Files(), "")).is_installed and etcd.install():
        replaced.append(f"{UNIT}, with which etcd starts the next time")
    return replaced


def others() -> dict[str, int]:
    """The daemons that run another installation's code, or an earlier release of this one's, with their processes."""
    agent, engine = running(), engines.running()
    found = {
        "engine": engine.process if engine is not None else 0,
        "agent": agent.process if agent is not None else 0,
        "driver for Docker": drivers.running(),
    }
    told = agent.report.version if agent is not None and agent.report is not None else __version__
    return {
        name: process
        for name, process in found.items()
        if process and (not runs_own_code(process) or (name == "agent" and told != __version__))
    }


def runs_own_code(process: int) -> bool:
    """Whether a process executes the code of this command's folder, as it is now: of a checkout that was
    brought up to date the version is the same.
    """
    try:
        line = files.read(f"/proc/{process}/cmdline", 1 << 16)
        ticks = int(proc_stat.fields(process)[19])  # since boot
    except OSError:
        return True
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return os.fsencode(code.ROOT) in line and code.changed_ns() <= (time.time() - age) * 1e9


def _wait_until_ready() -> Report:
    """The agent's report once its HTTP API responds. Raises WeftError where it does not start."""
    deadline = time.monotonic() + _START_SECONDS
    has_appeared = False
    while True:
        found = running()
        if found is not None and found.report is not None:
            failed = not found.report.http and any(each.startswith("http:") for each in found.report.problems)
            if failed or _responds(found):
                return found.report
        if (found is None and has_appeared) or time.monotonic() > deadline:
            raise WeftError("the agent failed to start", hint=_FOREGROUND)
        has_appeared = has_appeared or found is not None
        time.sleep(_PAUSE)


def _responds(found: Running) -> bool:
    client = found.client
    with contextlib.closing(client):
        try:
            client.get("/v1/status/leader")
        except Unreachable:
            return False
        except ApiError:
            pass  # an HTTP error is a response
        return True


@click.command()
@common
@click.option("--services", is_flag=True, help="Also remove the services' virtual addresses from the kernel.")
@pass_tool
def down(tool: Tool, services: bool, json_output: bool) -> None:
    """Stop the agent, the engine and the driver for Docker's networks.

    Containers keep their networks, and services their virtual addresses (unless --services). DNS and
    health checks stop until weft up, or until the next attachment that needs the agent.

    \b
    Example:
      weft down
    """
    tool.need_rights("stop weft")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_keep_running_path())
    agent = _stop_agent()
    if not json_output:
        say(f"agent stopped, process {agent}" if agent else "agent not running")
    engine = engines.stop()
    if not json_output:
        say(f"engine stopped, process {engine}" if engine else "engine not running")
    driver = drivers.stop()
    if driver and not json_output:
        say(f"driver for Docker stopped, process {driver}")
    if services:
        remove_virtual_addresses()
        if not json_output:
            say("virtual addresses removed")
    if json_output:
        as_json({"agent": agent or None, "engine": engine or None, "virtualAddressesRemoved": services})


def remove_virtual_addresses() -> None:
    """Remove the services' virtual addresses from the kernel."""
    from discovery.balancer.balancer import remove_all  # imports all of balancing

    remove_all()


def stop_all() -> list[str]:
    """Stop the agent, the engine and the driver for Docker; those that ran. Raises Busy."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_keep_running_path())
    ended = {"agent": _stop_agent(), "engine": engines.stop(), "driver for Docker": drivers.stop()}
    return [f"{name}, process {process}" for name, process in ended.items() if process]


def _stop_agent() -> int:
    """Stop the agent and wait for it; its process id, 0 if none was running. Raises Busy."""
    found = running()
    if found is None:
        return 0
    if not daemons.end(found.process, _STOP_SECONDS):
        raise Busy(f"timeout waiting for the agent to stop (process {found.process})", hint="run weft down again")
    return found.process


def _keep_running_path() -> str:
    return os.path.join(listener.folder(), reports.STAY)
