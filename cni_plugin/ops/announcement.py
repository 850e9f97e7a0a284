"""The operation that publishes a container's names and services to the agent of its host."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cni_plugin.ops.operation import Machine, Operation
from weft import daemons, files, remarks
from weft.daemons import Daemon
from weft.errors import Conflict
from weft.identity import mark_digest
from weft.remarks import Remarks

FOLDER = "names"
_WHAT = "the container's names"
SOCKET = "agent.sock"
_END_TIMEOUT = 1.0  # seconds to wait for an agent at the end of an attachment
AGENT = Daemon("cni_plugin.agent.main", "answers names and registers services", "weft agent", "aiohttp")


@dataclass(frozen=True, slots=True)
class Announced(Operation):
    """A container's names, addresses and services as JSON, in a file that the agent reads.

    The agent is notified, or started if none runs; the ADD goes on once it answers those names. Undo
    deletes the file and goes on once the agent, if one runs, has dropped the names and the checks, which
    open the container's namespace. *Equivalent to:* ``curl -X PUT
    localhost:8500/v1/agent/service/register``, and lines in a hosts file.
    """

    mark: str
    document: str

    def apply(self, machine: Machine) -> bool:
        path = self._path(machine)
        if _content(path) != self.document:
            files.make_directory(os.path.dirname(path), "containers' names")
            files.write(path, self.document.encode(), _WHAT)
        AGENT.ensure(_socket(machine))
        if refused := self.remarks(machine).refused:
            self.undo(machine)
            raise Conflict("; ".join(refused), hint="give the service another name, or see docs/services.md")
        return True

    def undo(self, machine: Machine) -> None:
        files.remove(self._path(machine), _WHAT)
        remarks.remove(run_folder(machine), mark_digest(self.mark))
        daemons.refresh(_socket(machine), _END_TIMEOUT)

    def mismatch(self, machine: Machine) -> str | None:
        if _content(self._path(machine)) != self.document:
            return f"the container's names are not in {self._path(machine)}"
        AGENT.ensure(_socket(machine))
        return None

    def remarks(self, machine: Machine) -> Remarks:
        """What the agent does not do as asked."""
        return remarks.read(run_folder(machine), mark_digest(self.mark))

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"weft agent  # reads {self.document}",)

    def _path(self, machine: Machine) -> str:
        return os.path.join(run_folder(machine), FOLDER, f"{mark_digest(self.mark)}.json")


def run_folder(machine: Machine) -> str:
    """The host's folder in /run."""
    return os.path.dirname(machine.leases.index)


def _socket(machine: Machine) -> str:
    return os.path.join(run_folder(machine), SOCKET)


def _content(path: str) -> str | None:
    try:
        return files.read(path).decode()
    except (OSError, UnicodeDecodeError):
        return None
