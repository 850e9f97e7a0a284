"""The VLAN gateway of an overlay network of mode l2: a VLAN of the host as one more port of its bridge.

Machines on the VLAN and containers are then neighbours. What the machines send is checked where it comes in,
and makes them known (``bridge weft``, ``check_vlan``); the agent tells the other hosts, which flood nothing.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from cni_plugin.dataplane import frames
from cni_plugin.ops.links import half_created, has_mark
from cni_plugin.ops.operation import LinkRef, Machine, Operation, reapply
from weft import identity
from weft.errors import Conflict, Exists, Missing
from weft.kernel.interface import Namespace
from weft.kernel.values import Element, FdbEntry, Link
from weft.overlay import OverlayNetwork
from weft.overlay_modes import ContainerPort, VlanGateway
from weft.types import Address, Side


def port_name(gateway: VlanGateway, bridge: str) -> str:
    """The link that is the bridge's port: the VLAN link, or without a tag the parent itself."""
    return identity.overlay_vlan(bridge) if gateway.vlan else gateway.parent


@dataclass(frozen=True, slots=True)
class GatewayPort(Operation):
    """A VLAN of the host's link ``parent`` as a port of the bridge; without ``vlan`` that link itself, which must
    have no addresses and stays when the network goes.

    *Equivalent to:* ``ip link add NAME link PARENT type vlan id VLAN``, ``ip link set NAME master BRIDGE up``.
    Raises Missing without the parent, Conflict where it is in use, KernelLacks without VLANs.
    """

    name: str
    parent: str
    vlan: int
    bridge: str
    alias: str

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        return ((Side.HOST, self.name),) if self.vlan else ()

    @property
    def marks(self) -> frozenset[str]:
        return frozenset({":".join(self.alias.split(":", 2)[:2])})

    @property
    def _mac(self) -> str:
        return identity.mac("vlan port", self.name)

    def _is_ours(self, link: Link) -> bool:
        return has_mark(link, self.alias) or half_created(link, self._mac)

    def apply(self, machine: Machine) -> bool:
        host = machine.host
        if self.mismatch(machine) is None:
            return False
        parent, link = host.link(self.parent), host.link(self.name)
        if parent is None:
            raise Missing(f"the link {self.parent} of the VLAN gateway is missing", hint="ip link show lists all")
        if not self.vlan:
            self._refuse_used(host, parent)
            host.change_link(self.name, master=self.bridge, up=True)
            return True
        if link is not None and not self._is_ours(link):
            raise Conflict(f"{self.name} is a link of another program", hint=f"ip link delete {self.name}")
        if link is not None and link.options.get("vlan_id") == self.vlan:
            host.change_link(self.name, master=self.bridge, up=True, alias=self.alias)
            return True
        if link is not None:
            host.delete_link(self.name)
        try:
            host.add_link(
                self.name,
                "vlan",
                mac=self._mac,
                alias=self.alias,
                up=True,
                master=self.bridge,
                parent=self.parent,
                parent_namespace=host,
                options={"vlan_id": self.vlan},
            )
        except Exists as error:
            raise Conflict(
                f"VLAN {self.vlan} of {self.parent} is in use by another link of this host",
                hint="ip -d link show type vlan lists it; without the option vlan it can be the gateway's parent",
            ) from error
        return True

    def _refuse_used(self, host: Namespace, parent: Link) -> None:
        if parent.master not in ("", self.bridge):
            raise Conflict(f"the link {self.parent} of the VLAN gateway is a port of {parent.master}")
        used = [one for one in host.addresses(self.parent) if not one.is_link_local]
        if used:
            raise Conflict(
                f"the link {self.parent} of the VLAN gateway has the address {used[0]}, which a port cannot have",
                hint="name a link without addresses, or a VLAN of it by the option vlan",
            )

    def undo(self, machine: Machine) -> None:
        link = machine.host.link(self.name)
        with contextlib.suppress(Missing):
            if link is not None and self.vlan and self._is_ours(link):
                machine.host.delete_link(self.name)
            elif link is not None and not self.vlan and link.master == self.bridge:
                machine.host.change_link(self.name, master="")

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.name)
        if link is None:
            return f"the link {self.name} of the VLAN gateway is missing"
        if self.vlan and not has_mark(link, self.alias):
            return f"{self.name} lacks its alias, or is a link of another program"
        if self.vlan and link.options.get("vlan_id") != self.vlan:
            return f"{self.name} is of VLAN {link.options.get('vlan_id')} instead of {self.vlan}"
        if link.master != self.bridge:
            return f"{self.name} is no port of {self.bridge}"
        return None if link.up else f"{self.name} is down"

    def restore(self, machine: Machine) -> bool:
        return machine.host.link(self.parent) is not None and reapply(self, machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        made = f"ip link add {self.name} link {self.parent} address {self._mac} type vlan id {self.vlan}"
        named = f"ip link set {self.name} alias '{self.alias}'"
        return (*((made, named) if self.vlan else ()), f"ip link set {self.name} master {self.bridge} up")


def gateway_elements(mark: str, network: OverlayNetwork, bridge: str) -> tuple[Element, ...]:
    """The elements by which frames from the VLAN are checked; none on other hosts."""
    gateway = network.vlan_gateway
    if gateway is None or not gateway.local:
        return ()
    port = port_name(gateway, bridge)
    keys = ((frames.NO_ROUTER_PORTS, (port,)), (frames.VLAN_PORTS, (port,)))
    checked = Element(frames.VLAN_SOURCES4, (port, gateway.range), mark=mark)
    return (*(Element(name, key, mark=mark) for name, key in keys), checked)


def machines(seen: tuple[Element, ...], rows: tuple[tuple[str, FdbEntry], ...], port: str) -> tuple[ContainerPort, ...]:
    """The machines on the VLAN that are known from their frames. ``rows`` are those of all bridges' ports.

    A MAC address that a container or a host has makes no machine known. Of two for one address that counts which
    the bridge has learned lately.
    """
    taken = {row.mac for at, row in rows if at != port and row.state != "dynamic"}
    learned = {row.mac for at, row in rows if at == port and row.state == "dynamic"}
    found: dict[Address, str] = {}
    for one in seen:
        at, mac, address = one.key
        if at == port and str(mac) not in taken and isinstance(address, Address):
            before = found.get(address)
            if before is None or (str(mac) in learned, str(mac)) > (before in learned, before):
                found[address] = str(mac)
    return tuple(ContainerPort(mac, (address,)) for address, mac in sorted(found.items(), key=str))
