"""``ptp``: a veth pair for each container, routed by the host without a bridge.

Keys: ``mtu`` (bytes; under weft's own name that of the host's uplink by default), ``ipam``
(required, and it must give gateways); features ``ipMasq``,
``ipspoofchk`` and ``isolation``; under weft's own name ``runtimeConfig.mac`` as with bridge, which the
reference ignores. The container reaches even its own subnet through the gateway, whose
address is on the host end of every pair, as /32 or /128.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_network

from cni_plugin.ops import LinkAddress, LinkRoute, Reachable, Setting
from cni_plugin.ops.operation import Operation
from cni_plugin.plan import interface
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from weft import identity
from weft.errors import ConfigProblem
from weft.kernel.values import KernelRoute
from weft.section import Section
from weft.types import ResultAddress, ResultInterface, Route, Side

DRIVER = Driver(
    link_kind="veth",
    features=("masquerade", "spoofing", "isolation", "limits"),
    plugin=True,
    routed=True,
    creatable=True,
    options=(interface.MTU, interface.OVERLAP),
)
_LINK_SCOPE = 253


@dataclass(frozen=True, slots=True)
class PointToPoint:
    """A ptp network's settings."""

    mtu: int
    follows: bool = False
    mac: str = ""

    def plan(self, context: Context) -> Plan:
        found = context.result
        if not found.ips:
            raise ConfigProblem("IPAM returned no address, which ptp requires", hint="set ipam.type and a subnet")
        for ip in found.ips:
            if ip.gateway is None:
                raise ConfigProblem(
                    f"IPAM returned {ip.address} without a gateway, which ptp requires", hint="set ipam.gateway"
                )
        pair = interface.veth_pair(context, mtu=self.mtu, follows=self.follows, mac=self.mac)
        host, link = pair.host, pair.container
        result = replace(
            found,
            interfaces=(
                ResultInterface(host, pair.host_mac, "", pair.mtu),
                ResultInterface(link, pair.mac, context.namespace.path, pair.mtu),
            ),
            ips=interface.on_interface(found, 1),
        )
        return Plan(
            shared=interface.forwarding(interface.versions(found)),
            operations=(
                pair,
                # The host ignores router advertisements from the container (CVE-2020-10749).
                Setting(Side.HOST, f"net/ipv6/conf/{host}/accept_ra", "0", host, optional=True),
                *(one for ip in found.ips for one in _host_end(host, ip)),
                *interface.configure(link, found, prefix_routes=()),
                *interface.routes(
                    context, link, found, tuple(one for ip in found.ips for one in _container_routes(link, ip))
                ),
            ),
            after=(Reachable(link, host),),
            result=result,
        )


def _host_end(host: str, ip: ResultAddress) -> tuple[Operation, ...]:
    """The gateway's address on the host end, and the route to the container."""
    assert ip.gateway is not None
    route = Route(ip_network(ip.address.ip), scope=_LINK_SCOPE if ip.address.version == 4 else None)
    ipv6: tuple[Operation, ...] = ()
    if ip.address.version == 6:
        ipv6 = (
            interface.enable_ipv6(host),
            Setting(Side.HOST, f"net/ipv6/conf/{host}/accept_dad", "0", host, optional=True),
        )
    return (
        *ipv6,
        LinkAddress(Side.HOST, host, interface.host_prefix(ip.gateway)),
        LinkRoute(Side.HOST, KernelRoute(route, host, protocol=identity.ROUTE_PROTOCOL)),
    )


def _container_routes(link: str, ip: ResultAddress) -> tuple[LinkRoute, ...]:
    """The gateway is on-link; the rest of the subnet is routed through it."""
    assert ip.gateway is not None
    near = Route(ip_network(ip.gateway), scope=_LINK_SCOPE if ip.address.version == 4 else None)
    subnet = Route(ip.address.network, ip.gateway)
    wanted = (near,) if subnet.destination == near.destination else (near, subnet)
    return tuple(
        LinkRoute(Side.CONTAINER, KernelRoute(route, link, source=ip.address.ip, protocol=identity.ROUTE_PROTOCOL))
        for route in wanted
    )


def read(request: Request, keys: Section) -> PlanPart | None:
    if not request.config.ipam.text("type"):
        keys.problems.add("ipam.type is missing: ptp requires addresses")
    own = request.plugin == OWN_NAME
    return PointToPoint(
        interface.read_mtu(keys),
        follows=own and not keys.flag("internal"),
        mac=interface.read_mac(request) if own else "",
    )
