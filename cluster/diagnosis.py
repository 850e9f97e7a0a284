"""What is wrong with a cluster, for ``weft doctor``: pure; each finding is a sentence and its remedy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from cluster import nodes
from cluster.local import Local
from cluster.nodes import Node, Role, State
from cluster.voters import places
from weft.remedies import Command, NoCommand, Remedy

WARN_DAYS = 30
CLOCK_SECONDS = 5.0
"""By so much the clocks of two hosts may differ."""
_DAY = 86400.0


def of_files(local: Local, expires: float, now: float) -> Iterator[tuple[str, Remedy]]:
    """What this host's files say; ``expires`` is when its certificate ends, 0 without one."""
    if not local.done:
        which = "init" if local.made else "join"
        yield f"weft cluster {which} was interrupted", NoCommand(f"repeat weft cluster {which}, or weft cluster leave")
    elif expires and expires - now < WARN_DAYS * _DAY:
        when = f"ends in {(expires - now) / _DAY:.0f} days" if expires > now else "has ended"
        yield f"the certificate of node {local.node} {when}", Command("weft cluster renew")


def of_nodes(
    known: Mapping[str, Node], alive: Collection[str], members: Collection[str] | None, now: float, wanted: int
) -> Iterator[tuple[str, Remedy]]:
    """What the records say; ``members`` are the names of etcd's members that have started, None where this host may
    not ask.
    """
    present = [one for one in known.values() if one.state is not State.REMOVED]
    for one in present:
        if one.name not in alive:
            yield (
                f"the agent of node {one.name} gives no sign of life",
                NoCommand(f"start it; or, if the host is gone for good: weft node rm {one.name} --powered-off"),
            )
        if one.expires and one.expires - now < WARN_DAYS * _DAY:
            what = f"the certificate of node {one.name} ends in less than {WARN_DAYS} days"
            yield what, Command("weft cluster renew", "on that node")
        if members is not None and one.role is not Role.CLIENT and one.name not in members:
            yield (
                f"node {one.name} is to be a {one.role} of etcd, and is no member",
                NoCommand("on it: is etcd-server installed? see weft status there"),
            )
    voting = [one for one in present if one.role is Role.VOTER]
    most, _ = places(len(present), wanted)
    lost = [one.name for one in voting if one.name not in alive]
    if most >= 3 and len(lost) == (most - 1) // 2:
        yield (
            f"etcd has no voter to spare: {', '.join(lost)} does not run",
            NoCommand(f"start it, or remove it: weft node rm {lost[0]}"),
        )


def clock_offset(value: bytes, now: float) -> float | None:
    """By how many seconds a node's clock is ahead, from what it has just written; None for what is no time."""
    try:
        found = float(value) - now
    except ValueError:
        return None
    return found if abs(found) < 1e9 else None


def clock_key(name: str) -> str:
    """Where a node writes its time now and then, bound to its lease."""
    return f"{nodes.own_prefix(name)}clock"
