"""Operations on the VLANs of a bridge."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from cni_plugin.ops.bridges import no_vlan_filtering
from cni_plugin.ops.links import half_created, has_mark
from cni_plugin.ops.operation import LinkRef, Machine, Operation, reapply
from weft.errors import Conflict, KernelLacks, Missing
from weft.kernel.interface import VethPeer
from weft.kernel.values import BridgeVlan, Link
from weft.types import Side


@dataclass(frozen=True, slots=True)
class Vlans(Operation):
    """The VLANs of a bridge port, in place of the default one unless ``keep_default``. Source:
    bridge(8).
    """

    link: str
    vlans: tuple[BridgeVlan, ...]
    keep_default: bool = False

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    def apply(self, machine: Machine) -> bool:
        try:
            if not self.keep_default:
                wanted = {vlan.vid for vlan in self.vlans}
                machine.host.delete_vlans(
                    self.link, (vlan.vid for vlan in machine.host.vlans(self.link) if vlan.vid not in wanted)
                )
            machine.host.add_vlans(self.link, self.vlans)
        except KernelLacks as error:
            raise no_vlan_filtering(self.link) from error
        return True

    def undo(self, machine: Machine) -> None:
        machine.host.delete_vlans(self.link, (vlan.vid for vlan in self.vlans))

    def mismatch(self, machine: Machine) -> str | None:
        there = {vlan.vid: vlan for vlan in machine.host.vlans(self.link)}
        for vlan in self.vlans:
            if there.get(vlan.vid) != vlan:
                return f"the port {self.link} lacks VLAN {vlan.vid} as configured"
        extra = set(there) - {vlan.vid for vlan in self.vlans}
        if extra and not self.keep_default:
            return f"the port {self.link} has VLANs that are not configured: {sorted(extra)}"
        return None

    def restore(self, machine: Machine) -> bool:
        return reapply(self, machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        first = () if self.keep_default else (f"bridge vlan del dev {self.link} vid 1",)
        return first + tuple(
            f"bridge vlan add dev {self.link} vid {vlan.vid}"
            + (" pvid" if vlan.pvid else "")
            + (" untagged" if vlan.untagged else "")
            for vlan in self.vlans
        )


@dataclass(frozen=True, slots=True)
class VlanGateway(Operation):
    """The host's gateway link in a VLAN of a bridge: a veth pair whose other end is an access port of
    the bridge.

    ``name`` has the gateway address. Shared by the network's attachments, and deleted with the network.
    """

    name: str
    port: str
    bridge: str
    alias: str
    mac: str
    vid: int
    mtu: int

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        return ((Side.HOST, self.name), (Side.HOST, self.port))

    def _is_ours(self, link: Link) -> bool:
        return has_mark(link, self.alias) or half_created(link, self.mac)

    @property
    def marks(self) -> frozenset[str]:
        return frozenset({self.alias})

    def apply(self, machine: Machine) -> bool:
        link = machine.host.link(self.name)
        if link is not None and not self._is_ours(link):
            raise Conflict(f"link {self.name} already exists and was not created by weft", hint="delete or rename it")
        if link is None:
            machine.host.add_link(
                self.name,
                "veth",
                mac=self.mac,
                mtu=self.mtu,
                alias=self.alias,
                up=True,
                peer=VethPeer(self.port, mtu=self.mtu, up=True),
            )
        if self.mismatch(machine) is None:
            return link is None
        machine.host.change_link(self.port, master=self.bridge, up=True)
        machine.host.change_link(self.name, up=True, alias=self.alias)
        Vlans(self.port, (BridgeVlan(self.vid, pvid=True, untagged=True),)).apply(machine)
        return True

    def undo(self, machine: Machine) -> None:
        link = machine.host.link(self.name)
        if link is not None and self._is_ours(link):
            with contextlib.suppress(Missing):
                machine.host.delete_link(self.name)

    def mismatch(self, machine: Machine) -> str | None:
        link, port = machine.host.link(self.name), machine.host.link(self.port)
        if link is None or port is None or not link.up or not port.up:
            return f"the VLAN gateway link {self.name} is missing or down"
        if half_created(link, self.mac):
            return f"the VLAN gateway link {self.name} lacks its alias"
        if port.master != self.bridge:
            return f"{self.port} is not on the bridge {self.bridge}"
        return Vlans(self.port, (BridgeVlan(self.vid, pvid=True, untagged=True),)).mismatch(machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (
            f"ip link add {self.name} address {self.mac} type veth peer name {self.port}",
            f"ip link set {self.name} alias '{self.alias}' up",
            f"ip link set {self.port} master {self.bridge} up",
            *Vlans(self.port, (BridgeVlan(self.vid, pvid=True, untagged=True),)).commands(namespace),
        )
