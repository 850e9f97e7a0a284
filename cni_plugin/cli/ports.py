"""``--publish`` as docker has it: ``[ADDRESS:][HOST-PORT[-LAST]:]PORT[-LAST][/PROTOCOL]``.

Source: docker run's documentation of ``--publish``; ``nat.ParsePortSpec`` of go-connections.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterable

from cni_plugin.networks.conflists import Json
from weft.errors import BadOption

_SPECIFICATION = re.compile(
    r"(?:(?:\[(?P<six>[^]]+)]|(?P<four>[^:\[\]]+)):(?=[^:]*:|:))?"
    r"(?:(?P<first>\d+)(?:-(?P<last>\d+))?(?:/(?P<outer>\w+))?:|:)?"
    r"(?P<inner>\d+)(?:-(?P<end>\d+))?(?:/(?P<protocol>\w+))?"
)
_PROTOCOLS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "sctp": socket.SOCK_STREAM}
_MOST = 1024
"""Ports of one range."""


def mappings(texts: Iterable[str]) -> tuple[Json, ...]:
    """The published ports as CNI's portMappings has them, each range written out. Raises BadOption."""
    return tuple(one for text in texts for one in _mappings(text))


def _mappings(text: str) -> list[Json]:
    found = _SPECIFICATION.fullmatch(text)
    if found is None:
        raise BadOption(f"invalid --publish {text!r}: must be [ADDRESS:][HOST-PORT:]PORT[/tcp|udp|sctp], as in docker")
    protocol = (found["protocol"] or found["outer"] or "tcp").lower()
    if protocol not in _PROTOCOLS:
        raise BadOption(f"invalid --publish {text!r}: the protocol must be tcp, udp or sctp")
    if found["outer"] and found["outer"].lower() != (found["protocol"] or found["outer"]).lower():
        raise BadOption(f"invalid --publish {text!r}: the protocols of both sides differ")
    inner = _span(text, found["inner"], found["end"])
    address = found["six"] or found["four"] or ""
    if found["first"]:
        outer = list(_span(text, found["first"], found["last"]))
        if len(inner) == 1 and len(outer) > 1:
            outer = [_free(outer, protocol, address, text)]  # docker takes the first one that is free
        if len(inner) != len(outer):
            raise BadOption(f"invalid --publish {text!r}: {len(outer)} host ports for {len(inner)} of the container")
    else:
        outer = [_free([0], protocol, address, text) for _ in inner]
    where = {"hostIP": address} if address else {}
    return [
        {"hostPort": host, "containerPort": port, "protocol": protocol, **where}
        for host, port in zip(outer, inner, strict=True)
    ]


def _span(text: str, first: str, last: str | None) -> range:
    low, high = int(first[:6]), int((last or first)[:6])
    if not 0 < low <= high <= 65535:
        raise BadOption(f"invalid --publish {text!r}: ports are from 1 to 65535, and a range begins with the lower one")
    if high - low >= _MOST:
        raise BadOption(f"invalid --publish {text!r}: a range has at most {_MOST} ports")
    return range(low, high + 1)


def _free(ports: Iterable[int], protocol: str, address: str, text: str) -> int:
    """The first port that no program of this host has bound; of 0 one that the kernel chooses."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in ports:
        with contextlib.suppress(OSError), socket.socket(family, _PROTOCOLS[protocol]) as probe:
            probe.bind((address, port))
            return int(probe.getsockname()[1])
    raise BadOption(f"invalid --publish {text!r}: none of the host ports is free")


def shown(mapping: Json) -> str:
    """A published port as ``weft ps`` has it."""
    address = str(mapping.get("hostIP", ""))
    where = f"[{address}]:" if ":" in address else f"{address}:" if address else ""
    return f"{where}{mapping['hostPort']}->{mapping['containerPort']}/{mapping['protocol']}"
