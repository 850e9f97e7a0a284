"""``overlay``: a bridge network that is the same on all hosts of a cluster, over VXLAN.

Keys: ``mtu`` (bytes), ``direct``, ``hairpinMode``, ``portIsolation``, ``limits``, ``ipam`` with ``type: blocks``
(``ipam.blocks``); features ``ipMasq``, ``macspoofchk`` and ``isolation``. It is the bridge driver, with
a VXLAN link beside the bridge: packets to other hosts' blocks are routed there, so containers share no
layer 2 with other hosts. What the cluster decides is in the network's files (``weft.overlay``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cni_plugin.drivers import bridge
from cni_plugin.ops import (
    BaseRules,
    DirectPeers,
    Elements,
    Esp,
    GatewayPort,
    Gateways,
    KnownPeers,
    OverlayRows,
    PortPublished,
    Setting,
    VxlanLink,
    VxlanPort,
    WireGuardLinks,
)
from cni_plugin.ops.operation import Operation
from cni_plugin.ops.overlay import tunnel_elements, vni_elements
from cni_plugin.ops.overlay_asking import asks_often
from cni_plugin.ops.overlay_direct import direct_elements
from cni_plugin.ops.overlay_gateway import gateway_elements, port_name
from cni_plugin.ops.overlay_rows import DIRECT
from cni_plugin.plan import interface
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver, LinkTrial, Option, Parent, Value
from cni_plugin.wire.request import Request
from weft import identity, overlay
from weft.errors import Busy, ConfigProblem
from weft.overlay import OverlayNetwork
from weft.overlay_modes import L2, LAST_VLAN, MODES
from weft.section import Section
from weft.types import Result, ResultInterface, Route, Side

_OF_BRIDGE = ("bridge", "isGateway", "isDefaultGateway", "forceAddress", "promiscMode", "vlan", "vlanTrunk")

DRIVER = Driver(
    link_kind="veth",
    parent=Parent.MADE,
    features=("masquerade", "spoofing", "isolation", "limits"),
    routed=True,
    default_ipam="blocks",
    options=(
        interface.MTU,
        Option("portIsolation", Value.FLAG, ("icc", "com.docker.network.bridge.enable_icc"), inverted=True),
        Option("hairpinMode", Value.FLAG, ("hairpin",)),
        Option("direct", Value.FLAG, ("direct",), podman=False),
        Option("cluster.mode", Value.CHOICE, ("mode",), choices=MODES, podman=False),
        Option("cluster.static", Value.TEXT, ("static",), podman=False),
        Option("cluster.encryption", Value.CHOICE, ("encryption",), choices=overlay.ENCRYPTIONS, podman=False),
        Option("cluster.port", Value.NUMBER, ("port",), least=1, most=65535, podman=False),
        Option("cluster.vlanGateway", Value.TEXT, ("vlan-gateway",), podman=False),
        Option("cluster.vlanParent", Value.LINK, ("vlan-parent", "parent"), podman=False),
        Option("cluster.vlan", Value.NUMBER, ("vlan",), least=1, most=LAST_VLAN, podman=False),
        Option("cluster.vlanRange", Value.TEXT, ("vlan-range",), podman=False),
        Option("cluster.blockLength", Value.NUMBER, ("block-length",), least=8, most=30, podman=False),
    ),
    trials=(LinkTrial("bridge", "bridge"), LinkTrial("VXLAN", "vxlan", (("vxlan_id", 1), ("vxlan_port", 4789)))),
    creatable=True,
    clustered=True,
)
_NO_FILE = (
    "the agent writes it once this host has claimed a block of addresses: weft status says whether it runs, weft "
    "network inspect why this host does not take part; docs/overlay.md has its format"
)


@dataclass(frozen=True, slots=True)
class Overlay:
    """An overlay network: ``base`` are the settings of its bridge, ``path`` is the network's file.

    ``internal``: containers get no default route. ``direct``: peers on a segment of this host are reached
    without VXLAN.
    """

    base: bridge.BridgeNetwork
    path: str
    internal: bool = False
    direct: bool = False
    isolation: str = "closed"

    def plan(self, context: Context) -> Plan:
        name = context.attachment.network
        lines = context.facts.lines(self.path)
        if lines is None:
            raise Busy(f"{self.path} is missing, the file of overlay network {name}", hint=_NO_FILE)
        network = overlay.parse_network("\n".join(lines), self.path, name)
        if self.direct and (network.encryption or network.is_l2):
            what = "encryption" if network.encryption else "mode l2"
            raise ConfigProblem(f"direct cannot be set together with {what}", hint="remove one of both")
        base = replace(
            self.base,
            mtu=self.base.mtu or network.mtu,
            # The same on every host, so that a container that moves keeps the gateway that it knows.
            bridge_mac=identity.mac("overlay", name, str(network.vni)),
        )
        if network.is_l2:
            base = replace(base, prefix_routes=(4, 6), sticky=True, mac=base.mac or _port_mac(context.result, network))
        link = identity.overlay_vxlan(base.bridge)
        plan = base.plan(replace(context, result=self._routed(context.result, network)))
        return replace(
            plan,
            # The other hosts make their rows while the container is made.
            operations=(PortPublished(name), *plan.operations) if network.is_l2 else plan.operations,
            after=(*asks_often(context.attachment.interface, network), *plan.after),
            shared=(*self._guards(network), *plan.shared, *self._shared(network, link, context.result)),
            shared_elements=(
                *plan.shared_elements,
                *tunnel_elements(_mark(network), link, base.bridge),
                *(direct_elements(_mark(network), network, base.bridge, self.isolation) if self.direct else ()),
            ),
            result=replace(
                plan.result,
                interfaces=(*plan.result.interfaces, ResultInterface(link, network.mac, "", network.mtu)),
            ),
        )

    def _routed(self, found: Result, network: OverlayNetwork) -> Result:
        """IPAM's result with the routes: IPv6 containers reach also their own subnet by the gateway."""
        routed = () if network.is_l2 else network.subnets
        six = tuple(Route(one, identity.OVERLAY_GATEWAY6) for one in routed if one.version == 6)
        found = replace(found, routes=(*found.routes, *six))
        return found if self.internal else replace(found, routes=interface.default_routes(found))

    def _guards(self, network: OverlayNetwork) -> tuple[Operation, ...]:
        """The rules for VXLAN packets, in force before the VXLAN link is there and until it is gone."""
        mark = _mark(network)
        elements = (*vni_elements(mark, network), *gateway_elements(mark, network, self.base.bridge))
        guards = (BaseRules(), Elements(elements), KnownPeers(mark, network.name, self.path))
        if not network.encryption:
            return guards
        kind = WireGuardLinks if network.encryption == overlay.WIREGUARD else Esp
        own = identity.mark(network.encryption, network.name)
        return (*guards, kind(own, network.name, self.path, network.vni))

    def _shared(self, network: OverlayNetwork, link: str, found: Result) -> tuple[Operation, ...]:
        """What the network has on this host beside the bridge."""
        versions: set[int] = {one.version for one in network.subnets}
        mark, there = identity.mark("link", link), self.base.bridge
        if network.is_l2:
            return self._shared_l2(network, link, versions)
        settings = {
            # Answers to ARP requests for containers of other hosts, at once.
            f"net/ipv4/conf/{there}/proxy_arp": "1",
            f"net/ipv4/neigh/{there}/proxy_delay": "0",
        }
        return (
            *((interface.enable_ipv6(there),) if 6 in versions else ()),
            *self.base.sysctls(),
            *(Setting(Side.HOST, key, value, there) for key, value in settings.items()),
            Gateways(there, network.gateways, anycast=True),
            VxlanLink(link, identity.alias(mark, f"overlay {network.name}"), network.name, self.path),
            interface.enable_ipv6(link),  # nexthops are IPv6 addresses of the link
            *bridge.ignore_ra(link),
            # An answer of a virtual address's instance comes in by the VXLAN link of the client's network.
            Setting(Side.HOST, f"net/ipv4/conf/{link}/rp_filter", "2", link),
            Setting(Side.HOST, f"net/ipv4/conf/{link}/forwarding", "1", link),
            OverlayRows(there, link, mark, network.name, self.path, network.subnets, DIRECT if self.direct else ""),
            *((DirectPeers(_mark(network), network.name, self.path, there),) if self.direct else ()),
            *interface.forwarding(versions),
        )

    def _shared_l2(self, network: OverlayNetwork, link: str, versions: set[int]) -> tuple[Operation, ...]:
        """The same where the bridge has the containers of all hosts."""
        mark, there = identity.mark("link", link), self.base.bridge
        return (
            *((interface.enable_ipv6(there),) if 6 in versions else ()),
            *self.base.sysctls(),
            # An answer of a virtual address's instance comes in by the network of the client.
            Setting(Side.HOST, f"net/ipv4/conf/{there}/rp_filter", "2", there),
            Gateways(there, network.gateways, anycast=True),
            VxlanLink(link, identity.alias(mark, f"overlay {network.name}"), network.name, self.path),
            VxlanPort(link, there, self.base.isolated),
            *_gateway_port(network, there),
            OverlayRows(there, link, mark, network.name, self.path, network.subnets, L2),
            *interface.forwarding(versions),
        )


def _gateway_port(network: OverlayNetwork, bridge: str) -> tuple[Operation, ...]:
    """The VLAN as a port of the bridge, on the host that is the VLAN gateway."""
    gateway = network.vlan_gateway
    if gateway is None or not gateway.local:
        return ()
    name = port_name(gateway, bridge)
    alias = identity.alias(identity.mark("link", name), f"VLAN of overlay {network.name}")
    return (GatewayPort(name, gateway.parent, gateway.vlan, bridge, alias),)


def _port_mac(found: Result, network: OverlayNetwork) -> str:
    """The same for an address wherever its container runs, so that neighbours need not learn another one."""
    addresses = sorted(found.ips, key=lambda one: one.address.version)
    return identity.mac("overlay port", network.name, str(addresses[0].address.ip)) if addresses else ""


def _mark(network: OverlayNetwork) -> str:
    return identity.mark("overlay", network.name)


def read(request: Request, keys: Section) -> PlanPart | None:
    for key in _OF_BRIDGE:
        if key in keys:
            keys.problem(key, "is not a key of driver overlay")
    if request.config.ipam.text("type") != "blocks":
        request.config.ipam.problem("type", "must be 'blocks' for driver overlay")
    found = bridge.read(request, keys)
    if not isinstance(found, bridge.BridgeNetwork):
        return None
    base = replace(found, bridge=identity.overlay_bridge(request.config.name), prefix_routes=(4,))
    path = overlay.configured_path(request.config.ipam, request.config.name)
    return Overlay(base, path, keys.flag("internal"), keys.flag("direct"), keys.text("isolation", "closed"))
