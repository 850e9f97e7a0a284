"""The operations: small reversible changes as frozen values, each also telling the command it equals.

Undo looks for weft's mark before it touches anything that has a name others could use.
"""

from __future__ import annotations

from cni_plugin.ops.addresses import Detection, Gateways, LinkAddress, LinkRoute, Setting
from cni_plugin.ops.devices import ContainerLink, LentLink
from cni_plugin.ops.leases import ForeignLease, PoolLease
from cni_plugin.ops.links import Bridge, Port, Promiscuous, Up, Veth
from cni_plugin.ops.rules import BaseRules, Elements
from cni_plugin.ops.vlans import VlanGateway, Vlans

ALL = (
    BaseRules,
    Bridge,
    ContainerLink,
    Detection,
    Elements,
    ForeignLease,
    Gateways,
    LentLink,
    LinkAddress,
    LinkRoute,
    PoolLease,
    Port,
    Promiscuous,
    Setting,
    Up,
    Veth,
    VlanGateway,
    Vlans,
)

__all__ = [
    "ALL",
    "BaseRules",
    "Bridge",
    "ContainerLink",
    "Detection",
    "Elements",
    "ForeignLease",
    "Gateways",
    "LentLink",
    "LinkAddress",
    "LinkRoute",
    "PoolLease",
    "Port",
    "Promiscuous",
    "Setting",
    "Up",
    "Veth",
    "VlanGateway",
    "Vlans",
]
