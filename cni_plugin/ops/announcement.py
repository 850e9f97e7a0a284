"""The operation that publishes a container's names and services to the agent of its host."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from cni_plugin.ops.operation import Machine, Operation
from weft import files
from weft.daemons import Daemon
from weft.identity import mark_digest

FOLDER = "names"
_WHAT = "the container's names"
SOCKET = "agent.sock"
_AGENT = Daemon("cni_plugin.agent.main", "answers names and registers services", "weft agent")


@dataclass(frozen=True, slots=True)
class Announced(Operation):
    """A container's names, addresses and services as JSON, in a file that the agent reads.

    The agent is notified, or started if none runs; the ADD goes on once it answers those names. Undo
    deletes the file and notifies the agent. *Equivalent to:* ``curl -X PUT
    localhost:8500/v1/agent/service/register``, and lines in a hosts file.
    """

    mark: str
    document: str

    def apply(self, machine: Machine) -> bool:
        path = self._path(machine)
        if _content(path) != self.document:
            files.make_directory(os.path.dirname(path), "containers' names")
            files.write(path, self.document.encode(), _WHAT)
        _AGENT.ensure(_socket(machine))
        return True

    def undo(self, machine: Machine) -> None:
        files.remove(self._path(machine), _WHAT)
        tell(_socket(machine))

    def mismatch(self, machine: Machine) -> str | None:
        if _content(self._path(machine)) != self.document:
            return f"the container's names are not in {self._path(machine)}"
        _AGENT.ensure(_socket(machine))
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"weft agent  # reads {self.document}",)

    def _path(self, machine: Machine) -> str:
        return os.path.join(_run(machine), FOLDER, f"{mark_digest(self.mark)}.json")


def _run(machine: Machine) -> str:
    return os.path.dirname(machine.leases.index)


def _socket(machine: Machine) -> str:
    return os.path.join(_run(machine), SOCKET)


def tell(path: str) -> None:
    """Have the agent, if one runs, read the files again; does not wait for it."""
    import socket

    with (
        contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)) as connection,
        contextlib.suppress(OSError),
    ):
        connection.setblocking(False)
        connection.connect(path)


def _content(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None
