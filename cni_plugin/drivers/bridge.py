"""``bridge``: a veth pair with its host end on a bridge.

Keys: ``bridge``, ``isGateway``, ``isDefaultGateway``, ``forceAddress``, ``mtu`` (bytes; under weft's
own name that of the host's uplink by default),
``hairpinMode``, ``promiscMode``, ``vlan``, ``vlanTrunk``, ``preserveDefaultVlan``, ``enabledad``,
``disableContainerInterface``, ``portIsolation``, ``limits.macLearning``,
``limits.multicastGroups``, ``ipam``; features ``ipMasq``, ``macspoofchk`` and
``isolation``. The bridge is created if missing, with a fixed MAC address.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_interface

from cni_plugin.ops import Bridge, Gateways, PinnedMac, Port, Promiscuous, Reachable, Setting, VlanGateway, Vlans
from cni_plugin.ops.links import half_created
from cni_plugin.ops.operation import Operation
from cni_plugin.plan import interface
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver, LinkTrial, Option, Parent, Value
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from weft import identity
from weft.errors import ConfigProblem
from weft.kernel.values import BridgeVlan
from weft.section import Section
from weft.types import Cidr, Result, ResultInterface, Side

_LAST_VLAN = 4094
_GROUPS, _MOST_GROUPS = 256, 2**31 - 1
_NO_MAC = "00:00:00:00:00:00"

DRIVER = Driver(
    link_kind="veth",
    parent=Parent.MADE,
    parent_key="bridge",
    default_parent="cni0",
    features=("masquerade", "spoofing", "isolation", "limits"),
    plugin=True,
    reads_arguments=True,
    routed=True,
    gateway_key="isGateway",
    creatable=True,
    created_with=(("hairpinMode", True),),
    options=(
        interface.MTU,
        Option("bridge", Value.LINK, ("bridge", "com.docker.network.bridge.name"), podman=False),
        Option("vlan", Value.NUMBER, ("vlan",), least=1, most=_LAST_VLAN),
        Option("portIsolation", Value.FLAG, ("icc", "com.docker.network.bridge.enable_icc"), inverted=True),
        Option("hairpinMode", Value.FLAG, ("hairpin",)),
        Option("promiscMode", Value.FLAG),
        interface.OVERLAP,
    ),
    trials=(
        LinkTrial("bridge", "bridge"),
        LinkTrial("bridge VLAN filtering", "bridge", (("br_vlan_filtering", 1),), keys=("vlan", "vlanTrunk")),
    ),
)


@dataclass(frozen=True, slots=True)
class BridgeNetwork:
    """A bridge network's settings.

    ``detect`` is duplicate address detection, ``down`` leaves the interface down. ``routers``: the
    gateways that IPAM tells of are other machines (DHCP), never addresses of this host. ``follows``:
    the default MTU is the uplink's. ``learning``, ``router``, ``groups`` and ``sticky`` are of the container's port
    (``ops.bridges.Port``). ``bridge_mac`` is the MAC address of a bridge that this network creates, ""
    for one of this host's. In the IP versions ``prefix_routes`` the subnet is on the container's link.
    """

    bridge: str
    gateway: bool = False
    default_gateway: bool = False
    force_address: bool = False
    mtu: int = 0
    follows: bool = False
    hairpin: bool = False
    promiscuous: bool = False
    vlan: int = 0
    trunk: tuple[int, ...] = ()
    filtering: bool = False
    keep_default_vlan: bool = False
    detect: bool = False
    down: bool = False
    isolated: bool = False
    mac: str = ""
    addressed: bool = False
    routers: bool = False
    own: bool = False
    learning: bool = True
    router: bool = True
    groups: int = 0
    bridge_mac: str = ""
    prefix_routes: tuple[int, ...] = (4, 6)
    sticky: bool = False

    def plan(self, context: Context) -> Plan:
        there = context.facts.link(Side.HOST, self.bridge)
        if there is not None and there.name != self.bridge:  # an alternative name
            return replace(self, bridge=there.name).plan(context)
        found = context.result
        if self.addressed and not found.ips and not context.pending:
            raise ConfigProblem("IPAM plugin returned missing IP config", hint="set a subnet or addresses in ipam")
        if self.gateway and not self.routers:
            found = interface.with_gateways(found)
        if self.default_gateway:
            found = replace(found, routes=interface.default_routes(found))
        pair = interface.veth_pair(context, mtu=self.mtu, follows=self.follows, mac=self.mac, bridge=self.bridge)
        bridge, bridge_interface = self._bridge(context, pair.mtu)
        vlan_gateway = self._vlan_gateway(context, pair.mtu)
        return Plan(
            shared=self._shared(bridge, bridge_interface.mac, vlan_gateway, context, found),
            operations=(
                pair,
                *self._port(pair.host, pair.mac),
                *(
                    ()
                    if self.down
                    else interface.configure(
                        pair.container, found, detect=self.detect, prefix_routes=self.prefix_routes
                    )
                ),
                *(() if self.down else interface.routes(context, pair.container, found)),
            ),
            after=() if self.down else (Reachable(pair.container, pair.host, self.bridge),),
            result=replace(
                found,
                interfaces=(
                    bridge_interface,
                    ResultInterface(pair.host, pair.host_mac, "", pair.mtu),
                    ResultInterface(pair.container, pair.mac, context.namespace.path, pair.mtu),
                    *(
                        (ResultInterface(vlan_gateway.name, vlan_gateway.mac, "", vlan_gateway.mtu),)
                        if vlan_gateway
                        else ()
                    ),
                ),
                ips=interface.on_interface(found, 2),
            ),
        )

    def _bridge(self, context: Context, mtu: int) -> tuple[Bridge, ResultInterface]:
        """The bridge as it is, or as it will be created, and its interface in the result."""
        there = context.facts.link(Side.HOST, self.bridge)
        alias = identity.alias(identity.mark("bridge", self.bridge), f"bridge {self.bridge}")
        mac = self.bridge_mac or identity.mac(context.host, "bridge", self.bridge)
        # A bridge takes the smallest MTU of its ports (br_mtu_auto_adjust).
        shown = ResultInterface(self.bridge, mac, "", mtu if there is None else min(mtu, there.mtu))
        if there is not None and there.alias != alias and not half_created(there, mac):
            # A bridge whose last port has left, and whose MAC address nobody has set, has none. It must
            # not get that of a bridge of weft's, which would be taken for a half-created one.
            kept = there.mac if there.mac != _NO_MAC else identity.mac(context.host, "adopted bridge", self.bridge)
            return Bridge(self.bridge, "", "", 0, self.filtering), replace(shown, mac=kept)
        return Bridge(self.bridge, alias, mac, mtu, self.filtering), shown

    def _vlan_gateway(self, context: Context, mtu: int) -> VlanGateway | None:
        """The link with the gateway address where the network is one VLAN of the bridge."""
        if not (self.vlan and self.gateway) or self.routers:
            return None
        name = f"{self.bridge}.{self.vlan}"
        return VlanGateway(
            name=name,
            port=identity.vlan_gateway_port(name),
            bridge=self.bridge,
            alias=identity.alias(identity.mark("bridge", name), f"gateway of {name}"),
            mac=identity.mac(context.host, "vlan", name),
            vid=self.vlan,
            mtu=mtu,
        )

    def _shared(
        self, bridge: Bridge, mac: str, vlan_gateway: VlanGateway | None, context: Context, found: Result
    ) -> tuple[Operation, ...]:
        # A bridge that weft did not create may be the link by which the host learns its own routes.
        shared: list[Operation] = [bridge, *(ignore_ra(self.bridge) if bridge.alias else ())]
        if not bridge.alias:
            shared.append(PinnedMac(self.bridge, mac))
        if self.promiscuous:
            shared.append(Promiscuous(self.bridge))
        if not self.gateway or self.routers:
            return tuple(shared)
        if vlan_gateway:
            shared += [vlan_gateway, *ignore_ra(vlan_gateway.name)]
        gateways = tuple(
            dict.fromkeys(ip_interface((ip.gateway, ip.address.network.prefixlen)) for ip in found.ips if ip.gateway)
        )
        if gateways:
            link = vlan_gateway.name if vlan_gateway else self.bridge
            # On a bridge that weft did not create, addresses from before the network must outlive it.
            there = () if vlan_gateway or bridge.alias else context.facts.addresses(Side.HOST, link)
            before = tuple(address for address in gateways if address in there)
            if any(gateway.version == 6 for gateway in gateways):
                shared.append(interface.enable_ipv6(link))
            if not (vlan_gateway or bridge.alias):
                _refuse_routers(context, link, gateways)
            shared.append(Gateways(link, gateways, context.gateways, self.force_address, before))
        # Last: it cannot always be taken back, and what comes before may fail.
        versions = interface.versions(found)
        return (*shared, *interface.forwarding(versions), *(self.sysctls() if bridge.alias and 4 in versions else ()))

    def sysctls(self) -> tuple[Operation, ...]:
        """What a new bridge has and another program may change: that it forwards, and, unless a reference
        plugin after this one may want it, that 127.0.0.0/8 is this host's own.
        """
        values = {"forwarding": "1", **({"route_localnet": "0"} if self.own else {})}
        return tuple(
            Setting(Side.HOST, f"net/ipv4/conf/{self.bridge}/{key}", value, self.bridge, optional=True)
            for key, value in values.items()
        )

    def _port(self, host: str, mac: str) -> tuple[Operation, ...]:
        operations: list[Operation] = []
        if self.filtering:
            operations.append(Vlans(host, self._vlans(), self.keep_default_vlan))
        # After the VLANs: the row in the forwarding database is of each VLAN of the port.
        known = "" if self.learning else mac
        port = Port(
            host,
            self.hairpin,
            self.isolated,
            reserved=True,
            router=self.router,
            groups=self.groups,
            mac=known,
            sticky=self.sticky,
        )
        return (*operations, port)

    def _vlans(self) -> tuple[BridgeVlan, ...]:
        # A trunk without an access VLAN keeps VLAN 1 for untagged frames, as the reference does.
        access = BridgeVlan(self.vlan or 1, pvid=True, untagged=True)
        return (access, *(BridgeVlan(vid) for vid in self.trunk if vid != access.vid))


def _refuse_routers(context: Context, bridge: str, gateways: tuple[Cidr, ...]) -> None:
    """Raises ConfigProblem for a gateway that is this host's own router: with its address the host
    would cut itself, and everybody else on that bridge, off from it.
    """
    for route in context.facts.routes(Side.HOST, bridge):
        if any(route.route.gateway == gateway.ip for gateway in gateways):
            raise ConfigProblem(
                f"gateway {route.route.gateway} is another machine: this host's own route to "
                f"{route.route.destination} leads over it",
                hint=f"set isGateway and isDefaultGateway to false and give ipam a route with this gateway, or "
                f"set ipam.gateway to a free address for {bridge}",
            )


def ignore_ra(link: str) -> tuple[Operation, ...]:
    """The host ignores router advertisements (CVE-2020-10749), and its own address skips duplicate
    detection.
    """
    return tuple(
        Setting(Side.HOST, f"net/ipv6/conf/{link}/{key}", "0", link, optional=True)
        for key in ("accept_ra", "accept_dad")
    )


def read(request: Request, keys: Section) -> PlanPart | None:
    addressed = bool(request.config.ipam.text("type"))
    default_gateway = keys.flag("isDefaultGateway")
    trunk, trunked = _trunk(keys)
    vlan = keys.integer("vlan", least=0, most=_LAST_VLAN) or 0
    own, limits = request.plugin == OWN_NAME, keys.section("limits")
    checked = own and keys.flag("macspoofchk", True)
    groups = limits.integer("multicastGroups", least=0, most=_MOST_GROUPS)
    found = BridgeNetwork(
        bridge=interface.read_link(keys, "bridge", DRIVER.default_parent),
        gateway=keys.flag("isGateway") or default_gateway,
        default_gateway=default_gateway,
        force_address=keys.flag("forceAddress"),
        mtu=interface.read_mtu(keys),
        follows=own and not keys.flag("internal"),
        hairpin=keys.flag("hairpinMode"),
        promiscuous=keys.flag("promiscMode"),
        vlan=vlan,
        trunk=trunk,
        filtering=trunked or vlan != 0,
        keep_default_vlan=keys.flag("preserveDefaultVlan"),
        detect=keys.flag("enabledad"),
        down=keys.flag("disableContainerInterface"),
        isolated=keys.flag("portIsolation"),
        mac=interface.read_mac(request),
        addressed=addressed,
        routers=request.config.ipam.text("type") == "dhcp",
        own=own,
        learning=limits.flag("macLearning", not checked or bool(trunk)),
        router=not own or keys.flag("routerAdvertisements"),
        groups=groups if groups is not None else _GROUPS if own else 0,
    )
    if found.hairpin and found.promiscuous:
        keys.problem("hairpinMode", "cannot be set together with promiscMode")
    if found.down and addressed:
        keys.problem("disableContainerInterface", "cannot be set together with ipam: the interface stays down")
    if found.vlan and found.gateway and len(f"{found.bridge}.{found.vlan}") > 15:
        keys.problem("bridge", f"is too long for the VLAN gateway link {found.bridge}.{found.vlan} (15 characters)")
    return found


def _trunk(keys: Section) -> tuple[tuple[int, ...], bool]:
    """The tagged VLANs, and whether the key is present: even an empty list enables VLAN filtering."""
    vids: set[int] = set()
    for entry in keys.sections("vlanTrunk"):
        single = entry.integer("id", least=1, most=_LAST_VLAN)
        low, high = (entry.integer(key, least=1, most=_LAST_VLAN) for key in ("minID", "maxID"))
        if ("minID" in entry) != ("maxID" in entry):
            entry.problems.add(f"{entry.path}: minID and maxID must be given together")
        elif low is not None and high is not None:
            if low > high:
                entry.problem("minID", f"is greater than maxID {high}")
            vids.update(range(low, high + 1))
        if single is not None:
            vids.add(single)
    return tuple(sorted(vids)), "vlanTrunk" in keys
