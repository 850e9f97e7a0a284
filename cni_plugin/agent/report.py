"""The agent's status file beside its socket, which is readable even if its HTTP API does not respond."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from weft import files

NAME = "agent.json"
STAY = "agent.stay"
"""While this file exists, an agent that an attachment has started does not stop when idle."""
_MOST_BYTES = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Report:
    """The status of an agent. ``started`` in seconds since 1970; ``http`` and ``dns`` are listening
    addresses, ``digests`` those of its configuration's sections; None from an earlier release.
    """

    process: int
    started: float
    version: str
    node: str
    datacenter: str
    address: str
    http: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    digests: Mapping[str, str] | None = None


def write(folder: str, report: Report) -> None:
    """Replace the file. Raises StateDamaged."""
    files.write(os.path.join(folder, NAME), json.dumps(asdict(report)).encode(), "the agent's report")


def read(folder: str) -> Report | None:
    """The report of the last agent, which may have stopped since; None if missing or invalid."""
    try:
        found = json.loads(files.read(os.path.join(folder, NAME), _MOST_BYTES))
        return Report(
            process=int(found["process"]),
            started=float(found["started"]),
            version=str(found["version"]),
            node=str(found["node"]),
            datacenter=str(found["datacenter"]),
            address=str(found["address"]),
            http=tuple(map(str, found["http"])),
            dns=tuple(map(str, found["dns"])),
            problems=tuple(map(str, found["problems"])),
            digests=found.get("digests"),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
