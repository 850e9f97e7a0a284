"""Operations on bridges and their ports."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from cni_plugin.ops.links import half_created, has_mark
from cni_plugin.ops.operation import LinkRef, Machine, Operation
from weft.errors import Conflict, KernelLacks, Missing
from weft.kernel.values import FdbEntry, Link
from weft.types import Side

ALL_RESERVED = 0xFFFD
"""group_fwd_mask of all reserved addresses but :01 (pause), which the kernel does not take."""


@dataclass(frozen=True, slots=True)
class Bridge(Operation):
    """A bridge on the host, shared by a network's attachments, with a fixed MAC address.

    Without an alias it is not weft's: used as it is, never created or deleted. ``mtu`` in bytes, 0: the
    kernel's default. *Equivalent to:* ``ip link add NAME type bridge``.
    """

    name: str
    alias: str
    mac: str
    mtu: int = 0
    vlan_filtering: bool = False

    @property
    def creates(self) -> tuple[LinkRef, ...]:
        return ((Side.HOST, self.name),) if self.alias else ()

    @property
    def marks(self) -> frozenset[str]:
        return frozenset({self.alias})

    def apply(self, machine: Machine) -> bool:
        link = machine.host.link(self.name)
        if link is None:
            if not self.alias:
                raise Missing(f"bridge {self.name} has been deleted in the meantime")
            options: dict[str, int | str] = {"br_vlan_filtering": 1} if self.vlan_filtering else {}
            try:
                machine.host.add_link(
                    self.name, "bridge", mac=self.mac, mtu=self.mtu, alias=self.alias, up=True, options=options
                )
            except KernelLacks as error:
                if self.vlan_filtering:
                    raise no_vlan_filtering(self.name) from error
                raise
            return True
        if link.kind != "bridge":
            raise Conflict(
                f"{self.name} is a {link.kind or 'physical'} link, not a bridge", hint="use another bridge name"
            )
        aliasless = bool(self.alias) and half_created(link, self.mac)
        unfiltered = self._unfiltered(link)
        mtu = self._wanted_mtu(machine, link)
        if link.up and not aliasless and not unfiltered and mtu == link.mtu:
            return False
        change = {"br_vlan_filtering": 1} if unfiltered else None
        try:
            machine.host.change_link(
                self.name,
                up=True,
                mtu=mtu if mtu != link.mtu else None,
                alias=self.alias if aliasless else None,
                options=change,
            )
        except KernelLacks as error:
            if unfiltered:
                raise no_vlan_filtering(self.name) from error
            raise
        return True

    def _wanted_mtu(self, machine: Machine, link: Link) -> int:
        """The smallest MTU of the ports, which the kernel keeps a bridge at until somebody sets one.

        Source: br_mtu_auto_adjust in ``net/bridge/br_if.c``.
        """
        if not self.mtu or link.mtu == self.mtu or not has_mark(link, self.alias):
            return link.mtu
        return min((port.mtu for port in machine.host.ports(self.name)), default=link.mtu)

    def _unfiltered(self, link: Link) -> bool:
        """Whether weft created it for a network without VLANs; VLAN filtering of other bridges is not
        changed.
        """
        mine = bool(self.alias) and (has_mark(link, self.alias) or half_created(link, self.mac))
        return self.vlan_filtering and mine and not link.options.get("br_vlan_filtering")

    def undo(self, machine: Machine) -> None:
        link = machine.host.link(self.name)
        if link is None or link.kind != "bridge" or not self.alias:
            return
        if not has_mark(link, self.alias) and not half_created(link, self.mac):
            return
        with contextlib.suppress(Missing):
            if not machine.host.ports(self.name):
                machine.host.delete_link(self.name)

    def lost(self, machine: Machine) -> tuple[LinkRef, ...]:
        return () if machine.host.link(self.name) is not None else ((Side.HOST, self.name),)

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.name)
        if link is None:
            return f"the bridge {self.name} is missing"
        if link.kind != "bridge":
            return f"{self.name} is a {link.kind or 'physical'} link, not a bridge"
        if not link.up:
            return f"the bridge {self.name} is down"
        if self.alias and has_mark(link, self.alias) and link.mac != self.mac:
            return f"the bridge {self.name} has the MAC address {link.mac} instead of {self.mac}"
        if self.alias and half_created(link, self.mac):
            return f"the bridge {self.name} lacks its alias"
        if self._unfiltered(link):
            return f"the bridge {self.name} does not filter VLANs"
        mtu = self._wanted_mtu(machine, link)
        if mtu != link.mtu:
            return f"the MTU of the bridge {self.name} is {link.mtu} instead of {mtu}"
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        if not self.alias:
            return (f"ip link set {self.name} up",)
        mtu = f" mtu {self.mtu}" if self.mtu else ""
        filtering = " vlan_filtering 1" if self.vlan_filtering else ""
        return (
            f"ip link add {self.name} address {self.mac}{mtu} type bridge{filtering}",
            f"ip link set {self.name} alias '{self.alias}' up",
        )


@dataclass(frozen=True, slots=True)
class PinnedMac(Operation):
    """Keep a bridge's MAC address: one that nobody has set is the lowest of its ports', so it would
    change with every container, and peers would have an old one in their caches.

    Not reset by undo, which the kernel has no way for, and no mismatch if the bridge's owner sets
    another. *Equivalent to:* ``ip link set BRIDGE address MAC``. Source: ``net/bridge/br_stp_if.c``,
    br_stp_recalculate_bridge_id.
    """

    link: str
    mac: str

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    @property
    def hidden(self) -> bool:
        return True

    def apply(self, machine: Machine) -> bool:
        with contextlib.suppress(Missing):  # then the bridge itself is reported
            machine.host.change_link(self.link, mac=self.mac)
        return True

    def undo(self, machine: Machine) -> None:
        return None

    def mismatch(self, machine: Machine) -> str | None:
        return None

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"ip link set {self.link} address {self.mac}",)


def no_vlan_filtering(bridge: str) -> KernelLacks:
    """The error for a kernel without bridge VLAN filtering."""
    return KernelLacks(
        f"this kernel has no VLAN filtering for bridges, which vlan and vlanTrunk on {bridge} need",
        hint="use a kernel with CONFIG_BRIDGE_VLAN_FILTERING, or remove vlan and vlanTrunk",
    )


@dataclass(frozen=True, slots=True)
class Promiscuous(Operation):
    """Promiscuous mode of a link of the host; not reset by undo, since other software may rely on it."""

    link: str

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    def apply(self, machine: Machine) -> bool:
        if self.mismatch(machine) is None:
            return False
        machine.host.change_link(self.link, promiscuous=True)
        return True

    def undo(self, machine: Machine) -> None:
        return None

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.link)
        return None if link is not None and link.promiscuous else f"{self.link} is not promiscuous"

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"ip link set {self.link} promisc on",)


@dataclass(frozen=True, slots=True)
class Port(Operation):
    """The flags of a bridge port: hairpin mode, isolation from other isolated ports, and whether frames
    to the ``reserved`` addresses 01:80:c2:00:00:0x pass the bridge's rules as all others do.

    Otherwise the kernel learns their source and hands them to the host as if the port were a link of its
    own, before any rule. Those to :01 (pause) it drops. Sources: bridge(8), ``net/bridge/br_input.c``.

    Without ``router`` the port gets no multicast that nobody behind it has joined, whatever queries it
    sends. ``groups`` is how many multicast groups may be joined behind it, 0 for any number (from kernel
    6.3). ``hairpin`` is None where a later plugin of the chain decides. ``mac`` is the only address
    behind it; without one the bridge learns addresses. If it is ``sticky`` no other port takes it over.
    """

    link: str
    hairpin: bool | None = False
    isolated: bool = False
    reserved: bool = False
    router: bool = True
    groups: int = 0
    mac: str = ""
    sticky: bool = False

    @property
    def on_link(self) -> LinkRef | None:
        return (Side.HOST, self.link)

    def _wanted(self) -> dict[str, int]:
        flags = {} if self.hairpin is None else {"brport_mode": int(self.hairpin)}
        flags["brport_isolated"] = int(self.isolated)
        return {**flags, "brport_group_fwd_mask": ALL_RESERVED} if self.reserved else flags

    def _bounds(self) -> dict[str, int]:
        found = {} if self.router else {"brport_multicast_router": 0}
        found |= {"brport_mcast_max_groups": self.groups} if self.groups else {}
        return found | ({"brport_learning": 0} if self.mac else {})

    def apply(self, machine: Machine) -> bool:
        changes = {name: value for name, value in self._wanted().items() if value} | self._bounds()
        if changes:
            machine.host.change_port(self.link, changes)
        if self.mac:
            machine.host.add_fdb(self.link, self._row, replace=True)
        return True

    @property
    def _row(self) -> FdbEntry:
        return FdbEntry(self.mac, master=True, state="static", sticky=self.sticky)

    def undo(self, machine: Machine) -> None:
        with contextlib.suppress(Missing):
            usual = {"brport_multicast_router": 1, "brport_mcast_max_groups": 0, "brport_learning": 1}
            bounds = {name: usual[name] for name in self._bounds()}
            machine.host.change_port(self.link, dict.fromkeys(self._wanted(), 0) | bounds)
            if self.mac:
                machine.host.delete_fdb(self.link, self._row)

    def mismatch(self, machine: Machine) -> str | None:
        link = machine.host.link(self.link)
        if link is None:
            return f"the host's link {self.link} is missing"
        flags = self._wanted()
        for name, word in (("brport_mode", "hairpin"), ("brport_isolated", "isolated")):
            if link.port.get(name, 0) != flags.get(name, link.port.get(name, 0)):
                return f"{word} is {'off' if flags[name] else 'on'} for the port {self.link}"
        mask = link.port.get("brport_group_fwd_mask", 0)
        if self.reserved and mask != ALL_RESERVED:
            return f"group_fwd_mask of the port {self.link} is {mask:#x} instead of {ALL_RESERVED:#x}"
        for name, wanted in self._bounds().items():
            there = link.port.get(name, wanted)  # an older kernel does not have all of them
            if there != wanted:
                return f"{name.removeprefix('brport_')} of the port {self.link} is {there} instead of {wanted}"
        if self.mac and all((one.mac, one.state) != (self.mac, "static") for one in machine.host.fdb(self.link)):
            return f"the forwarding database lacks {self.mac} behind {self.link}"
        return None

    def repair(self, machine: Machine) -> None:
        machine.host.change_port(self.link, self._wanted())  # those that are to be off, too
        self.apply(machine)

    def restore(self, machine: Machine) -> bool:
        # A plugin later in the chain may have set flags that this one has not.
        link = machine.host.link(self.link)
        if link is None or not link.master:
            return False
        flags = all(link.port.get(name, 0) for name, on in self._wanted().items() if on)
        if flags and all(link.port.get(name, wanted) == wanted for name, wanted in self._bounds().items()):
            return False
        return self.apply(machine)

    def commands(self, namespace: str) -> tuple[str, ...]:
        words = (" hairpin on" if self.hairpin else "") + (" isolated on" if self.isolated else "")
        words += (" learning off" if self.mac else "") + ("" if self.router else " mcast_router 0")
        # An option of iproute2 6.3; without it the port has no limit of groups.
        groups = f"bridge link set dev {self.link} mcast_max_groups {self.groups} 2>&- || true"
        mask = f"ip link set {self.link} type bridge_slave group_fwd_mask {ALL_RESERVED:#x}"
        return (
            *((f"bridge link set dev {self.link}{words}",) if words else ()),
            *((groups,) if self.groups else ()),
            *((mask,) if self.reserved else ()),
            *(
                (f"bridge fdb replace {self.mac} dev {self.link} master static{' sticky' if self.sticky else ''}",)
                if self.mac
                else ()
            ),
        )
