"""``weft engine``: run, start, stop and inspect the engine, which the first call starts automatically."""

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
from weft import daemons, locks, proc_stat
from weft.errors import Busy, WeftError

_START_SECONDS = 10.0
_STOP_SECONDS = 200.0  # longer than a request's deadline: accepted requests are finished first


@dataclass(frozen=True, slots=True)
class Running:
    """A running engine. ``age`` in seconds, ``memory`` (resident) in KiB."""

    process: int
    socket: str
    age: float
    memory: int


def running() -> Running | None:
    """The engine of this network namespace: the holder of its lock, as systemd may own the socket."""
    folder = listener.folder()
    process = locks.holder(os.path.join(folder, listener.LOCK))
    with contextlib.suppress(OSError, IndexError, ValueError):
        if process:
            words = proc_stat.fields(process)
            seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - int(words[19]) / os.sysconf("SC_CLK_TCK")
            memory = int(words[21]) * os.sysconf("SC_PAGE_SIZE") // 1024
            return Running(process, os.path.join(folder, listener.SOCKET), seconds, memory)
    return None


@click.group(invoke_without_command=True)
@click.option(
    "--idle", metavar="SECONDS", type=float, help="Stop after so long without a call; 0: never. Default: 900."
)
@click.option("--quiet", is_flag=True, help="Do not log calls to standard error.")
@click.option("--debug", is_flag=True, help="Also log every operation, as with WEFT_LOG=debug.")
def engine(idle: float | None, quiet: bool, debug: bool) -> None:
    """Run the engine in the foreground, or manage it.

    The engine serves the calls of container runtimes without starting Python for each. The first call
    starts it in the background, and it stops after 15 minutes without a call. It has no state of its
    own: stopping or killing it loses nothing.

    \b
    Example:
      weft engine status
    """


@engine.command()
@common
def status(json_output: bool) -> None:
    """Show whether the engine is running. Exits with 1 if not.

    \b
    Example:
      weft engine status
    """
    found = running()
    if json_output:
        details = {"pid": found.process, "socket": found.socket, "ageSeconds": round(found.age, 1)} if found else {}
        refused = listener.refusal() if found is None else ""
        memory = {"residentKiB": found.memory} if found else {}
        as_json({"running": found is not None, **details, **memory, **({"refusal": refused} if refused else {})})
    elif found is None:
        say("engine not running; the next call of a container runtime starts it")
        if refused := listener.refusal():
            say(f"the last one did not start, because it would have inherited from its caller {refused}")
    else:
        pairs = [("Process", str(found.process)), ("Socket", found.socket), ("Age", age(found.age))]
        fields([*pairs, ("Memory", f"{found.memory / 1024:.1f} MiB")])
    raise click.exceptions.Exit(0 if found else FAILED)


@engine.command("start")
@common
@pass_tool
def start_(tool: Tool, json_output: bool) -> None:
    """Start the engine in the background.

    It stops after 15 minutes without a call.

    \b
    Example:
      weft engine start
    """
    tool.prepare_to("start an engine")
    found, is_new = start()
    _report(found.process, "started" if is_new else "already running", json_output)


@engine.command("stop")
@common
@pass_tool
def stop_(tool: Tool, json_output: bool) -> None:
    """Stop the engine after it has finished accepted requests.

    The next call of a container runtime starts it again, directly or by systemd (weft-engine.socket).

    \b
    Example:
      weft engine stop
    """
    tool.need_rights("stop the engine")
    process = stop()
    _report(process, "stopped" if process else "not running", json_output)


def start() -> tuple[Running, bool]:
    """The running engine, or a new one; whether it is new. Raises WeftError where it does not start."""
    already = running()
    if already is None:
        daemons.start("cni_plugin.engine.main", "serves container runtimes")
    found = _wait(_START_SECONDS)
    if found is None:
        raise WeftError("the engine failed to start", hint="run weft engine in the foreground to see why")
    return found, already is None


def stop() -> int:
    """Stop the engine and wait for it; its process id, 0 if none was running. Raises Busy."""
    found = running()
    if found is None:
        return 0
    if not daemons.end(found.process, _STOP_SECONDS):
        raise Busy(f"timeout waiting for the engine to stop (process {found.process})", hint="a call is still running")
    return found.process


def _wait(seconds: float) -> Running | None:
    """Wait for an engine with a socket; None after the timeout."""
    deadline = time.monotonic() + seconds
    while True:
        found = running()
        if found is not None and os.path.exists(found.socket):
            return found
        if time.monotonic() > deadline:
            return None
        time.sleep(0.02)


def _report(process: int, state: str, json_output: bool) -> None:
    if json_output:
        as_json({"pid": process or None, "state": state})
    else:
        say(f"engine {state}{f', process {process}' if process else ''}")
