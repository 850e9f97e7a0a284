"""Operations around published ports: checking that they are free, flushing stale conntrack entries,
hairpin mode of a bridge port.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cni_plugin.dataplane import nat
from cni_plugin.ops.bridges import Port
from cni_plugin.ops.operation import LinkRef, Machine, Operation
from weft.errors import Conflict, Missing
from weft.kernel.values import Flow, Listener
from weft.types import Address, Side

_AT = {4: nat.PORTS4_AT, 6: nat.PORTS6_AT}


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
        asked: dict[str, set[int]] = {}
        for wanted in self.ports:
            asked.setdefault(wanted.protocol, set()).add(wanted.port)
        there: dict[tuple[str, int], list[Listener]] = {}
        for protocol, ports in asked.items():
            for found in machine.host.listeners(protocol, ports, machine.caller):
                there.setdefault((protocol, found.port), []).append(found)
        for wanted in self.ports:
            for found in there.get((wanted.protocol, wanted.port), ()):
                if found.address.version != wanted.target.version or found.reserved:
                    continue
                if wanted.host is None and _answered_here(machine, found.address, wanted):
                    continue
                if wanted.host is None or int(found.address) == 0 or found.address == wanted.host:
                    raise Conflict(
                        f"host port {wanted.port}/{wanted.protocol} is in use: "
                        f"{found.process} listens on {found.address}",
                        hint=_way_out(wanted, found.address),
                    )
        return False

    def undo(self, machine: Machine) -> None:
        return None

    def mismatch(self, machine: Machine) -> str | None:
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        flags = {"tcp": "t", "udp": "u", "sctp": "S"}
        return tuple(f"ss -Hlnp{flags[port.protocol]} '( sport = :{port.port} )' # nobody" for port in self.ports)


def _way_out(wanted: PublishedPort, address: Address) -> str:
    """Beside a process on one address only, such as systemd-resolved on 127.0.0.53, there is room."""
    at = "publish it at one address of the host (hostIP), " if wanted.host is None and int(address) != 0 else ""
    return f"{at or 'publish another port, '}or stop that process"


def _answered_here(machine: Machine, address: Address, port: PublishedPort) -> bool:
    """Whether weft's agent listens there, which "every host address" does not include."""
    key, data = (address, port.protocol, port.port), (address, port.port)
    there = machine.rules().elements(_AT[address.version])
    return any((one.key, one.data) == (key, data) for one in there)


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
        for version in sorted({port.target.version for port in self.ports}):
            ports = [port for port in self.ports if port.target.version == version]
            there = machine.host.flows({(port.protocol, port.port) for port in ports}, version)
            for port in ports:
                found = [flow for flow in there if _is_of(flow, port) and _has_stale_nat(flow, port)]
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
    """Flush conntrack entries to the container once a port is no longer published.

    Else its clients' next packets would still be sent to the container's address: to another container
    that has got it, or out of the host. Only undo does anything; it is listed between the link and the
    rules, so that it is undone after these and before the container is gone.
    """

    ports: tuple[PublishedPort, ...]

    def apply(self, machine: Machine) -> bool:
        return False

    def undo(self, machine: Machine) -> None:
        if machine.host.sysctl("net/netfilter/nf_conntrack_count") == "0":
            return
        ended: list[Flow] = []
        for target in dict.fromkeys(port.target for port in self.ports):
            ports = {(port.protocol, port.port, port.target_port) for port in self.ports if port.target == target}
            there = machine.host.translated_flows(target, {(protocol, number) for protocol, number, _ in ports})
            ended += [flow for flow in there if (flow.protocol, flow.port, flow.reply_port) in ports]
        if ended:
            machine.host.delete_flows(dict.fromkeys(ended))

    def mismatch(self, machine: Machine) -> str | None:
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Hairpin(Operation):
    """A bridge port that may send a frame back to where it came from. *Equivalent to:* ``bridge link
    set dev LINK hairpin on``.

    Not where the bridge is promiscuous, since frames would come back twice.
    """

    link: str

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    def _wanted(self, machine: Machine) -> bool:
        link = machine.host.link(self.link)
        bridge = machine.host.link(link.master) if link is not None and link.port else None
        return bridge is not None and not bridge.promiscuous

    def apply(self, machine: Machine) -> bool:
        if not self._wanted(machine):
            return False
        machine.host.change_port(self.link, {"brport_mode": 1})
        return True

    def undo(self, machine: Machine) -> None:
        if self._wanted(machine):
            with contextlib.suppress(Missing):
                machine.host.change_port(self.link, {"brport_mode": 0})

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.link)
        if link is None or not self._wanted(machine) or link.port.get("brport_mode", 1) == 1:
            return None
        return f"hairpin is off for the port {self.link}"

    def adapt(self, earlier: Operation) -> Operation:
        return replace(earlier, hairpin=None) if isinstance(earlier, Port) and earlier.link == self.link else earlier

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"bridge link set dev {self.link} hairpin on",)


def _is_of(flow: Flow, port: PublishedPort) -> bool:
    return (flow.protocol, flow.port) == (port.protocol, port.port)


def _has_stale_nat(flow: Flow, port: PublishedPort) -> bool:
    """Whether the entry's reply source is not the container's address and port."""
    there = (flow.reply_source, flow.reply_port)
    return flow.destination.version == port.target.version and there != (port.target, port.target_port)


def _own_addresses(machine: Machine) -> set[Address]:
    links: Iterable[str] = (link.name for link in machine.host.links())
    return {cidr.ip for link in links for cidr in machine.host.addresses(link)}
