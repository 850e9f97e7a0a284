"""``loopback``: brings up the container's ``lo``. Keys: none. CNI_IFNAME is ignored."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_interface

from cni_plugin.ops import Up
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver
from cni_plugin.wire.request import Request
from weft.errors import NamespaceProblem
from weft.section import Section
from weft.types import Result, ResultAddress, ResultInterface, Side

DRIVER = Driver(plugin=True)
_ZERO_MAC = "00:00:00:00:00:00"
_MTU = 65536


@dataclass(frozen=True, slots=True)
class Loopback:
    """No settings."""

    def plan(self, context: Context) -> Plan:
        lo = context.facts.link(Side.CONTAINER, "lo")
        other = [
            address
            for address in context.facts.addresses(Side.CONTAINER, "lo")
            if not address.ip.is_loopback and not address.ip.is_link_local
        ]
        if other:
            raise NamespaceProblem(
                f"lo in {context.namespace.path} has the address {other[0]}, which is not a loopback address",
                hint="is this a container's network namespace?",
            )
        return Plan(
            operations=(Up(Side.CONTAINER, "lo", was=lo is not None and lo.up),),
            result=context.config.previous or _result(context),
        )


def _result(context: Context) -> Result:
    families = ["127.0.0.1/8"]
    if context.facts.sysctl(Side.CONTAINER, "net/ipv6/conf/lo/disable_ipv6") == "0":
        families.append("::1/128")
    return Result(
        interfaces=(ResultInterface("lo", _ZERO_MAC, context.namespace.path, _MTU),),
        ips=tuple(ResultAddress(ip_interface(text), interface=0) for text in families),
    )


def read(request: Request, keys: Section) -> PlanPart | None:
    return Loopback()
