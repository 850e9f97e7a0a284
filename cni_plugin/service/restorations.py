"""The count of restorations on this host, in a file of its state directory: for ``weft status`` and metrics."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass

from weft import files
from weft.errors import StateDamaged

_FILE = "restored.json"
_MOST_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Restorations:
    """How often something was restored since this host booted, and when last, in seconds since 1970."""

    count: int = 0
    last: float = 0.0


def read(folder: str) -> Restorations:
    """The count in the state directory of this network namespace."""
    try:
        found = json.loads(files.read(os.path.join(folder, _FILE), _MOST_BYTES))
        return Restorations(int(found["count"]), float(found["last"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Restorations()


def note(folder: str) -> None:
    """Count one more."""
    body = json.dumps({"count": read(folder).count + 1, "last": round(time.time(), 1)}).encode()
    with contextlib.suppress(StateDamaged):
        files.write(os.path.join(folder, _FILE), body, "the count of restorations")


def forget(folder: str) -> None:
    """Remove the file, with the last network."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(folder, _FILE))
