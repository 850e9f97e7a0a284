"""What an agent says of itself in a file beside its socket, so that its trouble is known also where nothing answers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from weft import files

NAME = "agent.json"
STAY = "agent.stay"
"""A file: while it is there, an agent that an attachment started stays, also without anything to do."""
_LARGEST = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Report:
    """How an agent is. ``started`` is in seconds since 1970; ``http`` and ``dns`` are where it listens."""

    process: int
    started: float
    version: str
    node: str
    datacenter: str
    address: str
    http: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def write(folder: str, report: Report) -> None:
    """Replace the file. Raises StateDamaged."""
    files.write(os.path.join(folder, NAME), json.dumps(asdict(report)).encode(), "the agent's report")


def read(folder: str) -> Report | None:
    """What the last agent wrote, None where there is nothing that makes sense. It may have ended since."""
    try:
        with open(os.path.join(folder, NAME), encoding="utf-8") as file:
            found = json.loads(file.read(_LARGEST))
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
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
