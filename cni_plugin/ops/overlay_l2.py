"""An overlay network as one broadcast domain: the VXLAN link is a port of the bridge, which floods nothing to it.

The bridge knows each container of other hosts by a sticky row, and answers ARP and neighbour solicitations
for it (``neigh_suppress``), so that no frame leaves the host but to the host that its receiver is at.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_interface

from cni_plugin.ops.operation import Machine, Operation, reapply
from cni_plugin.ops.overlay_rows import Rows, put
from weft import daemons
from weft.errors import Missing
from weft.identity import ROUTE_PROTOCOL
from weft.kernel.interface import Namespace
from weft.kernel.values import FdbEntry, KernelRoute, Neighbour
from weft.overlay import OverlayNetwork, Peer, first_addresses
from weft.overlay_modes import ContainerPort
from weft.types import Address, Route

_FLAGS = {
    "brport_learning": 0,
    "brport_unicast_flood": 0,
    "brport_mcast_flood": 0,
    "brport_bcast_flood": 0,
    "brport_neigh_suppress": 1,
}

_SECONDS = 1.0


def taken(host: Namespace, network: OverlayNetwork, link: str) -> frozenset[str]:
    """The MAC addresses on this host that no machine on the VLAN of another host is believed to have."""
    if network.vlan_gateway is None:
        return frozenset()
    return frozenset(row.mac for at, row in host.all_ports_fdb() if at != link and row.state != "dynamic")


def desired(network: OverlayNetwork, peers: Iterable[Peer], bridge: str, there: frozenset[str] = frozenset()) -> Rows:
    """What should be there: this host's own addresses and the subnets on the bridge, and for each peer and
    each container of a peer its rows and neighbours. A machine on a VLAN gets no MAC address that is ``there``
    already, or a container's.
    """
    found: Rows = {}
    own = network.own
    for address in own.values():
        put(found, ip_interface(address))
    for subnet in network.subnets:
        if subnet.version in own:
            put(found, KernelRoute(Route(subnet), bridge, own[subnet.version], ROUTE_PROTOCOL))
    known = tuple(peers)
    ports = [(network.vtep_of(peer), port) for peer in known for port in peer.ports]
    # Containers' rows replace machines'.
    for to, port in sorted(ports, key=lambda one: not _is_machine(network, one[1])):
        if port.mac not in there or not _is_machine(network, port):
            _put_port(found, port.mac, port.addresses, to, bridge)
    at_vlan = network.vlan_gateway.range if network.vlan_gateway is not None else None
    for peer in known:
        # The range of a VLAN's machines is listed with the blocks, and has no address of a host.
        own_addresses = first_addresses((one for one in peer.blocks if one != at_vlan), network.gateway).values()
        _put_port(found, peer.mac, own_addresses, network.vtep_of(peer), bridge)
    return found


def _is_machine(network: OverlayNetwork, port: ContainerPort) -> bool:
    gateway = network.vlan_gateway
    return gateway is not None and any(one in gateway.range for one in port.addresses)


def _put_port(found: Rows, mac: str, addresses: Iterable[Address], to: Address, bridge: str) -> None:
    put(found, FdbEntry(mac, to))
    put(found, FdbEntry(mac, master=True, state="static", sticky=True))
    for address in addresses:
        put(found, Neighbour(address, mac, bridge))


def actual(host: Namespace, network: OverlayNetwork, bridge: str, link: str) -> Rows:
    """What is there of it."""
    found: Rows = {}
    gateway = next((one.ip for one in network.gateways if one.version == 4), None)  # that of IPv6 is fe80::1
    with contextlib.suppress(Missing):
        for address in host.addresses(bridge):
            single = address.network.num_addresses == 1
            if single and address.ip != gateway and any(address.ip in one for one in network.subnets):
                put(found, address)
        for neighbour in host.neighbours(bridge):
            if neighbour.permanent:
                put(found, neighbour)
        for route in host.routes(link=bridge):
            if route.protocol == ROUTE_PROTOCOL:
                put(found, route)
    with contextlib.suppress(Missing):
        for entry in host.fdb(link):
            if not entry.master or entry.state == "static":
                put(found, entry)
    return found


@dataclass(frozen=True, slots=True)
class VxlanPort(Operation):
    """The VXLAN link as a port of the network's bridge, without flooding or learning; ``isolated`` as the
    containers' ports.

    *Equivalent to:* ``ip link set LINK master BRIDGE``, ``bridge link set dev LINK learning off flood off
    mcast_flood off bcast_flood off neigh_suppress on``. Source: ``net/bridge/br_arp_nd_proxy.c``.
    """

    link: str
    bridge: str
    isolated: bool = False

    def _wanted(self) -> dict[str, int]:
        return {**_FLAGS, "brport_isolated": int(self.isolated)}

    def apply(self, machine: Machine) -> bool:
        if self.mismatch(machine) is None:
            return False
        machine.host.change_link(self.link, master=self.bridge)
        machine.host.change_port(self.link, self._wanted())
        return True

    def undo(self, machine: Machine) -> None:
        """The link goes with the network."""

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.link)
        if link is None:
            return f"the VXLAN link {self.link} is missing"
        if link.master != self.bridge:
            return f"{self.link} is no port of {self.bridge}"
        for name, wanted in self._wanted().items():
            if link.port.get(name, wanted) != wanted:
                return f"{name.removeprefix('brport_')} of the port {self.link} is {link.port[name]}, not {wanted}"
        return None

    def restore(self, machine: Machine) -> bool:
        return reapply(self, machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        flags = "learning off flood off mcast_flood off bcast_flood off neigh_suppress on"
        isolated = " isolated on" if self.isolated else ""
        return (f"ip link set {self.link} master {self.bridge}", f"bridge link set dev {self.link} {flags}{isolated}")


@dataclass(frozen=True, slots=True)
class PortPublished(Operation):
    """The agent is told that a container has come, or is going, so that the other hosts know it soon.

    It finds out by itself, too, seconds later.
    """

    network: str

    @property
    def hidden(self) -> bool:
        return True

    def _tell(self, machine: Machine) -> None:
        daemons.refresh(os.path.join(os.path.dirname(machine.leases.index), "agent.sock"), _SECONDS)

    def apply(self, machine: Machine) -> bool:
        self._tell(machine)
        return True

    def undo(self, machine: Machine) -> None:
        self._tell(machine)

    def mismatch(self, machine: Machine) -> str | None:
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        return ()
