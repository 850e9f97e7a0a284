"""The operations: small reversible changes as frozen values, each with the shell commands it is
equivalent to.

Undo checks weft's mark before it changes anything whose name other software could use. Operations that
few configurations need are imported on demand: a module costs each call about a millisecond.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cni_plugin.ops.addresses import Detection, Gateways, LinkAddress, LinkRoute, Setting
from cni_plugin.ops.bridges import Bridge, PinnedMac, Port, Promiscuous
from cni_plugin.ops.firewalls import PassedOn
from cni_plugin.ops.groups import LinkGroup
from cni_plugin.ops.leases import ForeignLease, PoolLease
from cni_plugin.ops.links import Reachable, Up, Veth
from cni_plugin.ops.nftables import BaseRules, Elements

if TYPE_CHECKING:
    from cni_plugin.ops.announcement import Announced
    from cni_plugin.ops.devices import ContainerLink, LentLink
    from cni_plugin.ops.dhcp import DhcpLease
    from cni_plugin.ops.forwarding import Forwarding6
    from cni_plugin.ops.iptables import TableChain, TableRules
    from cni_plugin.ops.overlay import KnownPeers, OverlayRows, VxlanLink
    from cni_plugin.ops.overlay_direct import DirectPeers
    from cni_plugin.ops.overlay_esp import Esp
    from cni_plugin.ops.overlay_gateway import GatewayPort
    from cni_plugin.ops.overlay_l2 import PortPublished, VxlanPort
    from cni_plugin.ops.overlay_tunnels import WireGuardLinks
    from cni_plugin.ops.policy import InVrf, Isolated, RoutedBeside, RoutedFrom, RouteMoved, Vrf
    from cni_plugin.ops.ports import ConntrackFlush, ConntrackFlushOnUndo, Hairpin, PortsFree, PublishedPort
    from cni_plugin.ops.queues import Ifb, Limited, Redirected
    from cni_plugin.ops.tuning import LinkSetting
    from cni_plugin.ops.uplink import UplinkClass, UplinkScheduler
    from cni_plugin.ops.vlans import VlanGateway, Vlans

_RARE = {
    **dict.fromkeys(("ContainerLink", "LentLink"), "devices"),
    "DhcpLease": "dhcp",
    "Forwarding6": "forwarding",
    "Announced": "announcement",
    **dict.fromkeys(("InVrf", "Isolated", "RouteMoved", "RoutedBeside", "RoutedFrom", "Vrf"), "policy"),
    **dict.fromkeys(("ConntrackFlushOnUndo", "ConntrackFlush", "Hairpin", "PortsFree", "PublishedPort"), "ports"),
    **dict.fromkeys(("Ifb", "Limited", "Redirected"), "queues"),
    **dict.fromkeys(("TableChain", "TableRules"), "iptables"),
    **dict.fromkeys(("KnownPeers", "OverlayRows", "VxlanLink"), "overlay"),
    "DirectPeers": "overlay_direct",
    "Esp": "overlay_esp",
    **dict.fromkeys(("PortPublished", "VxlanPort"), "overlay_l2"),
    "GatewayPort": "overlay_gateway",
    "WireGuardLinks": "overlay_tunnels",
    "LinkSetting": "tuning",
    **dict.fromkeys(("UplinkClass", "UplinkScheduler"), "uplink"),
    **dict.fromkeys(("VlanGateway", "Vlans"), "vlans"),
}

RENAMED = {"EndedFlows": "ConntrackFlushOnUndo", "FreshFlows": "ConntrackFlush"}
"""Former names of operations, which records of earlier releases have."""

COMMON: tuple[type, ...] = (
    BaseRules,
    Bridge,
    Detection,
    Elements,
    ForeignLease,
    Gateways,
    LinkAddress,
    LinkGroup,
    LinkRoute,
    PassedOn,
    PinnedMac,
    PoolLease,
    Port,
    Promiscuous,
    Reachable,
    Setting,
    Up,
    Veth,
)
"""The operations that are always imported."""


def rare(name: str) -> type:
    """One of the others by its name or a former one; raises KeyError for a name that is none."""
    name = RENAMED.get(name, name)
    found: type = getattr(import_module(f"cni_plugin.ops.{_RARE[name]}"), name)
    return found


def __getattr__(name: str) -> type:
    if name not in _RARE:
        raise AttributeError(f"there is no operation {name}")
    return rare(name)


__all__ = [
    "COMMON",
    "Announced",
    "BaseRules",
    "Bridge",
    "ConntrackFlush",
    "ConntrackFlushOnUndo",
    "ContainerLink",
    "Detection",
    "DhcpLease",
    "DirectPeers",
    "Elements",
    "Esp",
    "ForeignLease",
    "Forwarding6",
    "GatewayPort",
    "Gateways",
    "Hairpin",
    "Ifb",
    "InVrf",
    "Isolated",
    "KnownPeers",
    "LentLink",
    "Limited",
    "LinkAddress",
    "LinkGroup",
    "LinkRoute",
    "LinkSetting",
    "OverlayRows",
    "PassedOn",
    "PinnedMac",
    "PoolLease",
    "Port",
    "PortPublished",
    "PortsFree",
    "Promiscuous",
    "PublishedPort",
    "Reachable",
    "Redirected",
    "RouteMoved",
    "RoutedBeside",
    "RoutedFrom",
    "Setting",
    "TableChain",
    "TableRules",
    "Up",
    "UplinkClass",
    "UplinkScheduler",
    "Veth",
    "VlanGateway",
    "Vlans",
    "Vrf",
    "VxlanLink",
    "VxlanPort",
    "WireGuardLinks",
    "rare",
]
