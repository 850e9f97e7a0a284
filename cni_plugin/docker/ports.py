"""Published ports, from Docker's bindings to CNI's portMappings."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from cni_plugin.docker.state import Json
from weft.errors import BadOption, Conflict, PoolExhausted
from weft.section import Section

PORTMAP = "com.docker.network.portmap"
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}
_LAST_PORT = 65535
EPHEMERAL = range(49153, 65536)
"""The ports that are given where none is asked for: those of RFC 6335, as in Docker, which are beyond the
kernel's own (``net.ipv4.ip_local_port_range``).
"""
_ATTEMPTS = 16


@dataclass(frozen=True, slots=True)
class Binding:
    """A port of the container, and the ports of the host that it may be published at, one of which is
    free. ``host`` is "" for every address.
    """

    protocol: str
    port: int
    candidates: range
    host: str = ""


Listening = Callable[[str, range], set[int]]


def read(options: Section, default_host: str) -> list[Binding]:
    """The bindings in the options of an endpoint. Source: moby's ``libnetwork/types``, PortBinding."""
    found = []
    for one in options.sections(PORTMAP):
        number = one.integer("Proto") or 0
        if number not in _PROTOCOLS:
            one.problem("Proto", f"is not one of {', '.join(_PROTOCOLS.values())}")
            continue
        port, first, last = (
            one.integer(key, least=0, most=_LAST_PORT) or 0 for key in ("Port", "HostPort", "HostPortEnd")
        )
        candidates = range(first, max(first, last) + 1) if first else EPHEMERAL
        found.append(Binding(_PROTOCOLS[number], port, candidates, one.text("HostIP") or default_host))
    options.problems.raise_any()
    return found


def publish(
    bindings: Iterable[Binding],
    add: Callable[[list[Json]], None],
    published: Callable[[], set[tuple[str, int]]],
    listening: Listening,
) -> None:
    """Publish each binding at a port that is free, by ``add``; where another call was faster, at another.

    Raises Conflict for a port of its own that is in use, PoolExhausted for a range that is.
    """
    wanted = list(bindings)
    several = [one for one in wanted if len(one.candidates) > 1]
    refused: set[tuple[str, int]] = set()
    for attempt in range(_ATTEMPTS):
        # The ports of all containers are read from their records: only where one is to be chosen.
        taken = published() | refused if several else refused
        chosen = list(_chosen(wanted, taken, listening))
        try:
            add(chosen)
            return
        except Conflict:
            if not several or attempt == _ATTEMPTS - 1:
                raise
            ports = {(str(one["protocol"]), int(str(one["hostPort"]))) for one in chosen}
            refused |= {each for each in ports if any(each[1] in one.candidates for one in several)}


def _chosen(wanted: list[Binding], taken: set[tuple[str, int]], listening: Listening) -> Iterator[Json]:
    used = {(one.protocol, one.candidates[0]) for one in wanted if len(one.candidates) == 1} | taken
    for one in wanted:
        if len(one.candidates) == 1:
            port = one.candidates[0]
        else:
            port = _free(one, {number for protocol, number in used if protocol == one.protocol}, listening)
            used.add((one.protocol, port))
        mapping: Json = {"hostPort": port, "containerPort": one.port, "protocol": one.protocol}
        yield mapping | ({"hostIP": one.host} if one.host else {})


def _free(one: Binding, used: set[int], listening: Listening) -> int:
    """A free port of the binding's: the first of a range that was asked for, any of the ephemeral ones."""
    used = used | listening(one.protocol, one.candidates)
    start = secrets.randbelow(len(EPHEMERAL)) if one.candidates == EPHEMERAL else 0
    for port in chain(one.candidates[start:], one.candidates[:start]):
        if port not in used:
            return port
    span = f"{one.candidates[0]}-{one.candidates[-1]}"
    raise PoolExhausted(f"no free host port in {span} for {one.port}/{one.protocol}")


def refuse(driver: str, bindings: list[Binding]) -> None:
    """Raises BadOption where a network cannot publish ports."""
    if bindings:
        raise BadOption(
            f"ports cannot be published on a network of driver {driver}: its containers have addresses of the LAN",
            hint="remove --publish, or create this network with -o default-route=false, "
            "so that another of the container's networks publishes them",
        )
