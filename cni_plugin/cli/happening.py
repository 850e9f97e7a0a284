"""``weft events`` and ``weft logs``: what has happened on this host."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import chain

import click

from cni_plugin.cli.options import common
from cni_plugin.cli.output import say
from cni_plugin.cli.tool import Tool, pass_tool
from weft import events as log
from weft.errors import BadOption

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_LOGS = ("log", "agent", "engine")


def _since(text: str) -> float:
    """Seconds since 1970 of an age (``10m``) or a local time in ISO 8601. Raises BadOption."""
    if not text:
        return 0.0
    if found := _AGE.fullmatch(text):
        return time.time() - float(found.group(1)) * _UNITS[found.group(2)]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise BadOption(f"invalid --since {text!r}: must be like 10m, 2h, or 2026-01-31T12:00:00") from None


def _filters(texts: tuple[str, ...]) -> dict[str, set[str]]:
    """The wanted values of each key. Raises BadOption."""
    found: dict[str, set[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise BadOption(f"invalid --filter {text!r}: must be KEY=VALUE, like event=add")
        found.setdefault(key, set()).add(value)
    return found


def _matches(event: dict[str, object], wanted: dict[str, set[str]]) -> bool:
    """A value matches whole, or as the beginning of a container's id or of who asked (podman of podman[47])."""
    for key, values in wanted.items():
        there = str(event.get(key, ""))
        starts = there.partition("[")[0] if key == "by" else ""
        if there in values or (starts and starts in values):
            continue
        if key != "container" or not there.startswith(tuple(filter(None, values))):
            return False
    return True


def _found(since: str, follow: bool, everywhere: bool) -> Iterator[dict[str, object]]:
    netns = 0 if everywhere else os.stat("/proc/self/ns/net").st_ino
    start = _since(since)
    before = log.read(start, netns)
    if not follow:
        return before
    return chain(before if since else (), log.follow(netns))


def _print(one: dict[str, object], json_output: bool) -> None:
    if json_output:
        click.echo(json.dumps(one))
        return
    at = one.get("time")
    moment = datetime.fromtimestamp(at if isinstance(at, int | float) else 0).isoformat(" ", "milliseconds")
    say(f"{moment} {log.sentence(one)}")


_OPTIONS = (
    click.option("--since", default="", metavar="AGE|TIME", help="From then on, like 10m, 2h or 2026-01-31T12:00:00."),
    click.option("-F", "--follow", is_flag=True, help="Go on with what happens, until interrupted."),
    click.option("--all-hosts", "everywhere", is_flag=True, help="Also of other network namespaces with weft."),
)


@click.command()
@common
@_OPTIONS[0]
@_OPTIONS[1]
@_OPTIONS[2]
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only those, like network=blue.")
@pass_tool
def events(tool: Tool, since: str, follow: bool, everywhere: bool, filters: tuple[str, ...], json_output: bool) -> None:
    """Print events: attachments, repairs, changes of health, failures.

    Each ADD, DEL and GC, with who asked, how long it took and why it failed; each restoration of what
    another program has changed; each change of a check's status. The keys of --filter are those of
    --json. The file is /var/log/weft/events.log; the journal has the events as well.

    \b
    Example:
      weft events --since 1h --filter event=add
      weft events --follow --filter network=blue
    """
    tool.need_rights("read weft's events")
    wanted = _filters(filters)
    for one in _found(since, follow, everywhere):
        if one.get("event") != "log" and _matches(one, wanted):
            _print(one, json_output)


@click.command()
@common
@_OPTIONS[0]
@_OPTIONS[1]
@_OPTIONS[2]
@pass_tool
def logs(tool: Tool, since: str, follow: bool, everywhere: bool, json_output: bool) -> None:
    """Print what the agent has logged, also one that an attachment has started.

    \b
    Example:
      weft logs --since 10m
    """
    tool.need_rights("read weft's log")
    for one in _found(since, follow, everywhere):
        if one.get("event") in _LOGS:
            _print(one, json_output)
