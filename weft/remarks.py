"""What the agent has to say of an attachment's names and services, for ADD, ``weft show`` and ``weft
doctor``: a file for each attachment of which there is anything.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass

from weft import files
from weft.errors import StateDamaged

FOLDER = "remarks"
_WHAT = "the agent's remarks on an attachment"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Remarks:
    """Sentences: why services are not registered, which fails the ADD; and why names are not served."""

    refused: tuple[str, ...] = ()
    unserved: tuple[str, ...] = ()


def owners(run: str) -> set[str]:
    """The mark digests of the attachments that have remarks; ``run`` is the host's folder in /run."""
    with contextlib.suppress(OSError):
        return {name.removesuffix(".json") for name in os.listdir(os.path.join(run, FOLDER)) if name.endswith(".json")}
    return set()


def read(run: str, owner: str) -> Remarks:
    """The remarks on an attachment; none where the file is missing or invalid."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(files.read(_path(run, owner), _MOST_BYTES))
        return Remarks(tuple(map(str, found["refused"])), tuple(map(str, found["unserved"])))
    return Remarks()


def write(run: str, owner: str, remarks: Remarks) -> None:
    """Replace the remarks on an attachment; none removes the file. Raises StateDamaged."""
    path = _path(run, owner)
    if remarks == Remarks():
        files.remove(path, _WHAT)
        return
    files.make_directory(os.path.dirname(path), "the agent's remarks")
    files.write(path, json.dumps(asdict(remarks)).encode(), _WHAT)


def remove(run: str, owner: str) -> None:
    """Remove the remarks, if there are any."""
    with contextlib.suppress(StateDamaged):
        files.remove(_path(run, owner), _WHAT)


def _path(run: str, owner: str) -> str:
    return os.path.join(run, FOLDER, f"{owner}.json")
