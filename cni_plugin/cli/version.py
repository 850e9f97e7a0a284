"""``weft version``: the release of this command, and of all parts that run."""

from __future__ import annotations

import platform
import sys

import click

from cni_plugin.cli import agents, docker, engine
from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, table
from cni_plugin.engine import code
from cni_plugin.wire import versions
from weft import __version__


@click.command()
@common
def version(json_output: bool) -> None:
    """Print the versions of this command and of weft's processes that run.

    OTHER CODE is of another folder, or of before the files of this one were replaced: weft up --restart
    replaces what runs it.

    \b
    Example:
      weft version
    """
    agent, running, driver = agents.running(), engine.running(), docker.running()
    release = agent.report.version if agent is not None and agent.report is not None else ""
    parts = [
        ("agent", agent.process if agent is not None else 0, release),
        ("engine", running.process if running is not None else 0, ""),
        ("driver for Docker", driver, ""),
    ]
    found: list[dict[str, object]] = [{"part": "weft", "version": __version__, "pid": None, "folder": code.ROOT}]
    for name, process, told in parts:
        own = not process or agents.runs_own_code(process)
        shown = told or (__version__ if process and own else "")
        found.append({"part": name, "version": shown or None, "pid": process or None, "own": own})
    around = {"cni": list(versions.ALL), "python": platform.python_version(), "kernel": platform.release()}
    if json_output:
        as_json({"parts": found, **around})
        return
    rows = [("weft", __version__, f"{code.ROOT}, Python {around['python']}")]
    for one in found[1:]:
        state = f"process {one['pid']}" if one["pid"] else "not running"
        where = "" if one["own"] else ", OTHER CODE"
        rows.append((str(one["part"]), str(one["version"] or "-"), f"{state}{where}"))
    rows += [
        ("CNI", versions.NEWEST, f"also {', '.join(versions.ALL[:-1])}"),
        ("kernel", platform.release(), sys.platform),
    ]
    table(("PART", "VERSION", "RUNNING"), rows)
