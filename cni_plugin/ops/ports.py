"""Operations around published ports: that nobody else listens there, and connections that lead elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cni_plugin.ops.operation import Machine, Operation
from weft.errors import Conflict
from weft.kernel.interface import Flow
from weft.types import Address

_HOLDERS = ("conmon", "nerdctl", "sleep")
"""Processes by which podman and nerdctl keep a published port from others: they listen and never answer."""


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the host (of one address of it, or of all) and the container's address and port it leads to."""

    protocol: str
    port: int
    target: Address
    target_port: int
    host: Address | None = None


@dataclass(frozen=True, slots=True)
class PortsFree(Operation):
    """No process of the host listens at the ports: it would be cut off. Nothing is changed."""

    ports: tuple[PublishedPort, ...]

    def apply(self, machine: Machine) -> bool:
        for wanted in self.ports:
            for address, process in machine.host.listeners(wanted.protocol, wanted.port):
                if address.version != wanted.target.version or process.split(" (")[0] in _HOLDERS:
                    continue
                if wanted.host is None or int(address) == 0 or address == wanted.host:
                    raise Conflict(
                        f"host port {wanted.port}/{wanted.protocol} is in use: {process} listens at {address}",
                        hint="publish another port, or stop that process",
                    )
        return False

    def undo(self, machine: Machine) -> None:
        return None

    def mismatch(self, machine: Machine) -> str | None:
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        flags = {"tcp": "t", "udp": "u", "sctp": "S"}
        return tuple(f"ss -Hlnp{flags[port.protocol]} '( sport = :{port.port} )' # nobody" for port in self.ports)


@dataclass(frozen=True, slots=True)
class ConntrackFlush(Operation):
    """Datagrams to a port that has just been published go to the container, even from clients that sent before.

    Comes after the rules: a client that keeps sending would at once be tracked as before.
    """

    ports: tuple[PublishedPort, ...]

    def apply(self, machine: Machine) -> bool:
        stale: list[Flow] = []
        own: set[Address] | None = None
        for port in self.ports:
            found = [flow for flow in machine.host.flows(port.protocol, port.port) if _astray(flow, port)]
            if found and port.host is None and own is None:
                own = _own_addresses(machine)
            stale += [flow for flow in found if flow.destination == port.host or flow.destination in (own or ())]
        if stale:
            machine.host.delete_flows(dict.fromkeys(stale))
        return bool(stale)

    def undo(self, machine: Machine) -> None:
        return None

    def mismatch(self, machine: Machine) -> str | None:
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        return tuple(f"conntrack -D -p {port.protocol} --orig-port-dst {port.port}" for port in self.ports)


@dataclass(frozen=True, slots=True)
class ConntrackFlushOnUndo(Operation):
    """Once the port is no longer published, datagrams of clients that keep sending do not go to the container.

    Only undo does anything; it comes before the rules, and so is undone after them.
    """

    ports: tuple[PublishedPort, ...]

    def apply(self, machine: Machine) -> bool:
        return False

    def undo(self, machine: Machine) -> None:
        ended: list[Flow] = []
        for port in self.ports:
            ended += [
                flow
                for flow in machine.host.flows(port.protocol, port.port)
                if (flow.reply_source, flow.reply_port) == (port.target, port.target_port)
            ]
        if ended:
            machine.host.delete_flows(dict.fromkeys(ended))

    def mismatch(self, machine: Machine) -> str | None:
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        return ()


def _astray(flow: Flow, port: PublishedPort) -> bool:
    """Whether the connection leads elsewhere than the port does now."""
    there = (flow.reply_source, flow.reply_port)
    return flow.destination.version == port.target.version and there != (port.target, port.target_port)


def _own_addresses(machine: Machine) -> set[Address]:
    links: Iterable[str] = (link.name for link in machine.host.links())
    return {cidr.ip for link in links for cidr in machine.host.addresses(link)}
