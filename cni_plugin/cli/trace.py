"""``weft trace``: what becomes of a packet, and what decides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import click

from cni_plugin.cli.options import common
from cni_plugin.cli.output import as_json, say
from cni_plugin.cli.problems import FAILED
from cni_plugin.cli.tool import Tool, pass_tool
from cni_plugin.networks import owners
from cni_plugin.networks.conflists import Json
from cni_plugin.networks.trace import Question, Traced
from cni_plugin.networks.trace import trace as follow
from weft.kernel.trace.hops import Hop

_PORTS = click.IntRange(1, 65535)


@click.command()
@common
@click.argument("start", metavar="FROM")
@click.argument("end", metavar="TO")
@click.option("--port", type=_PORTS, default=None, help="The destination port. Default: ICMP echo, without a port.")
@click.option(
    "--proto", type=click.Choice(["tcp", "udp", "sctp", "icmp"]), default=None, help="Default: tcp with --port."
)
@click.option("-6", "six", is_flag=True, help="Follow IPv6 where both ends have addresses of both versions.")
@click.option("--live", is_flag=True, help="Send this packet, and compare what becomes of it with what was said.")
@pass_tool
def trace(
    tool: Tool, start: str, end: str, port: int | None, proto: str | None, six: bool, live: bool, json_output: bool
) -> None:
    """Follow a packet through this host, and say what decides on its way.

    FROM and TO are containers (an id of weft ps, a unique prefix, or ID/IFNAME), "host", or addresses. An
    address that no container has is another machine's, or a service's virtual address. The first packet
    of a connection is followed through routes, bridges and all nftables rules as the kernel has them now,
    and through namespaces that forward. Nothing is sent. Exits with 1 if it is not delivered.

    With --live the packet is sent, from FROM's network namespace: the kernel tells which rules it matches,
    and each that was not foreseen is named. A service that listens sees a connection that is closed at
    once, or an empty UDP datagram. No rule stays behind. Exits with 1 also if anything differs.

    \b
    Example:
      weft trace web db --port 5432
      weft trace 192.0.2.7 web --port 80
      weft trace web db --port 5432 --live
    """
    tool.need_records()
    protocol = proto or ("tcp" if port else "icmp")
    if protocol != "icmp" and port is None:
        raise click.UsageError(f"--proto {protocol} needs --port")
    if protocol == "icmp" and port is not None:
        raise click.UsageError("ICMP has no ports: leave out --port")
    if live:
        tool.need_rights("send a packet that is traced")
    found = follow(tool.service, Question(start, end, protocol, port or 0, 6 if six else 0), live=live)
    if json_output:
        as_json(_document(found))
    else:
        _print(found)
    real = found.live
    if not found.way.delivered or (real is not None and (real.differences or not real.delivered)):
        raise click.exceptions.Exit(FAILED)


def _print(found: Traced) -> None:
    say(str(found.packet))
    places = {hop.place for hop in found.way.hops if hop.place}
    named = owners.names(places)
    shown = {place: owners.called(place, named.get(place)) for place in places}
    names = [shown.get(hop.place, "host") for hop in found.way.hops]
    width = max(map(len, names), default=0)
    before = ""
    for name, hop in zip(names, found.way.hops, strict=True):
        say(f"  {'' if name == before else name:<{width}}  {_sentence(hop, shown)}")
        before = name
        for line in (*hop.rules, *_shown(hop)):
            say(f"  {'':<{width}}      {line}")
    say(_end(found, shown))
    if found.live is not None:
        say(f"a real packet: {found.live.verdict}; {found.live.matched} rules matched")
        for one in found.live.differences or ("as was said, rule by rule",):
            say(f"  {one}")


def _shown(hop: Hop) -> list[str]:
    """The command that shows what decided."""
    return [f"$ {hop.command}"] if hop.command else []


def _sentence(hop: Hop, shown: Mapping[str, str]) -> str:
    """With the container as it is called."""
    return hop.sentence.replace(hop.place, shown[hop.place]) if hop.place else hop.sentence


def _end(found: Traced, shown: Mapping[str, str]) -> str:
    way = found.way
    if not way.delivered:
        return f"not delivered: {_sentence(way.hops[-1], shown)}" if way.hops else "not delivered"
    unsure = " (as far as the rules tell)" if any(not hop.certain for hop in way.hops) else ""
    return f"{'refused: nothing listens there' if way.listening is False else 'delivered'}{unsure}"


def _document(found: Traced) -> Json:
    return {
        "packet": str(found.packet),
        "delivered": found.way.delivered,
        "listening": found.way.listening,
        "hops": [
            {
                "place": hop.place or "host",
                "what": hop.sentence,
                "command": hop.command,
                "certain": hop.certain,
                "rules": list(hop.rules),
            }
            for hop in found.way.hops
        ],
        **({} if found.live is None else {"live": asdict(found.live)}),
    }
