"""Operations around published ports: checking that they are free, and flushing stale conntrack entries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cni_plugin.ops.operation import Machine, Operation
from weft.errors import Conflict
from weft.kernel.interface import Flow
from weft.types import Address

_HOLDERS = ("conmon", "nerdctl", "sleep")
"""Processes that podman and nerdctl have bind published ports to reserve them; they never accept."""


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the host, on one address or all, and the container's address and port that it forwards
    to.
    """

    protocol: str
    port: int
    target: Address
    target_port: int
    host: Address | None = None


@dataclass(frozen=True, slots=True)
class PortsFree(Operation):
    """No process of the host may listen on the ports: DNAT would cut it off. Nothing is changed."""

    ports: tuple[PublishedPort, ...]

    def apply(self, machine: Machine) -> bool:
        for wanted in self.ports:
            for address, process in machine.host.listeners(wanted.protocol, wanted.port):
                if address.version != wanted.target.version or process.split(" (")[0] in _HOLDERS:
                    continue
                if wanted.host is None or int(address) == 0 or address == wanted.host:
                    raise Conflict(
                        f"host port {wanted.port}/{wanted.protocol} is in use: {process} listens on {address}",
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
    """Flush stale UDP conntrack entries after publishing a port.

    Clients that sent before the port was published have entries without DNAT. Applied after the rules,
    since a client that keeps sending would get the same entry again at once.
    """

    ports: tuple[PublishedPort, ...]

    def apply(self, machine: Machine) -> bool:
        stale: list[Flow] = []
        own: set[Address] | None = None
        for port in self.ports:
            found = [flow for flow in machine.host.flows(port.protocol, port.port) if _has_stale_nat(flow, port)]
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
    """Flush UDP conntrack entries to the container once a port is no longer published.

    Only undo does anything; it is listed before the rules, so that it is undone after them.
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


def _has_stale_nat(flow: Flow, port: PublishedPort) -> bool:
    """Whether the entry's reply source is not the container's address and port."""
    there = (flow.reply_source, flow.reply_port)
    return flow.destination.version == port.target.version and there != (port.target, port.target_port)


def _own_addresses(machine: Machine) -> set[Address]:
    links: Iterable[str] = (link.name for link in machine.host.links())
    return {cidr.ip for link in links for cidr in machine.host.addresses(link)}
