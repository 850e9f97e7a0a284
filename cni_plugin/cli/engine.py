"""``weft engine``: the long-lived process that makes calls quick. It comes by itself; this is for looking at it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

import click

from cni_plugin.cli.options import common
from cni_plugin.cli.output import age, as_json, fields, say
from cni_plugin.cli.problems import FAILED
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.engine import listener
from weft import daemons, locks
from weft.errors import Busy, WeftError

_START_SECONDS = 10.0
_STOP_SECONDS = 200.0  # more than a request may take, all of which are finished first


@dataclass(frozen=True, slots=True)
class Running:
    """An engine. ``since`` is its age in seconds, ``memory`` what it occupies in KiB."""

    process: int
    socket: str
    since: float
    memory: int


def running() -> Running | None:
    """The engine of this network namespace: who holds its lock, for a socket of systemd's tells nothing of it."""
    folder = listener.folder()
    process = locks.holder(os.path.join(folder, listener.LOCK))
    with contextlib.suppress(OSError, IndexError, ValueError):
        if process:
            with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as file:
                words = file.read().rpartition(")")[2].split()
            since = time.clock_gettime(time.CLOCK_BOOTTIME) - int(words[19]) / os.sysconf("SC_CLK_TCK")
            memory = int(words[21]) * os.sysconf("SC_PAGE_SIZE") // 1024
            return Running(process, os.path.join(folder, listener.SOCKET), since, memory)
    return None


@click.group(invoke_without_command=True)
@click.option("--idle", metavar="SECONDS", type=float, help="End after so long without a call; 0: never. Default: 900.")
@click.option("--quiet", is_flag=True, help="Do not tell of each call on standard error.")
def engine(idle: float | None, quiet: bool) -> None:
    """The process that serves container runtimes' calls quickly; alone: be it, in the foreground.

    The first call of a runtime starts one by itself, in the background, which ends when nobody has called for 15
    minutes. It keeps nothing but what is in files too: stopping it, or killing it, loses nothing.

    \b
    Example:
      weft engine status
    """


@engine.command()
@common
def status(json_output: bool) -> None:
    """Whether an engine serves this host. Exits with 1 if none does.

    \b
    Example:
      weft engine status
    """
    found = running()
    if json_output:
        shown = {"pid": found.process, "socket": found.socket, "ageSeconds": round(found.since, 1)} if found else {}
        as_json({"running": found is not None, **shown, **({"residentKiB": found.memory} if found else {})})
    elif found is None:
        say("No engine runs. The next call of a container runtime starts one.")
    else:
        pairs = [("Process", str(found.process)), ("Socket", found.socket), ("Age", age(found.since))]
        fields([*pairs, ("Memory", f"{found.memory / 1024:.1f} MiB")])
    raise click.exceptions.Exit(0 if found else FAILED)


@engine.command("start")
@common
@pass_tool
def start_(tool: Tool, json_output: bool) -> None:
    """Have an engine run in the background.

    It ends like one that came by itself, when nobody calls for 15 minutes.

    \b
    Example:
      weft engine start
    """
    tool.prepare_to("start an engine")
    found, new = begin()
    _told(found.process, "runs now" if new else "runs already", json_output)


@engine.command()
@common
@pass_tool
def stop(tool: Tool, json_output: bool) -> None:
    """End the engine, when it has finished what it is at.

    The next call of a container runtime starts another. Where systemd listens (weft-engine.socket), so does it.

    \b
    Example:
      weft engine stop
    """
    tool.need_rights("stop the engine")
    process = end()
    _told(process, "has ended" if process else "does not run", json_output)


def begin() -> tuple[Running, bool]:
    """The engine that runs, or a new one; whether it is new. Raises WeftError where none starts."""
    there = running()
    if there is None:
        daemons.start("cni_plugin.engine.main", "serves container runtimes")
    found = _wait(_START_SECONDS)
    if found is None:
        raise WeftError("the engine does not start", hint="weft engine, in the foreground, says why")
    return found, there is None


def end() -> int:
    """End the engine and wait until it has; the process that it was, 0 if there was none. Raises Busy."""
    found = running()
    if found is None:
        return 0
    if not daemons.end(found.process, _STOP_SECONDS):
        raise Busy(f"the engine, process {found.process}, has not ended yet", hint="it finishes a call that takes long")
    return found.process


def _wait(seconds: float) -> Running | None:
    """The engine once there is one and it can be found, None if none comes."""
    deadline = time.monotonic() + seconds
    while True:
        found = running()
        if found is not None and os.path.exists(found.socket):
            return found
        if time.monotonic() > deadline:
            return None
        time.sleep(0.02)


def _told(process: int, what: str, json_output: bool) -> None:
    if json_output:
        as_json({"pid": process or None, "state": what})
    else:
        say(f"the engine{f', process {process},' if process else ''} {what}")
