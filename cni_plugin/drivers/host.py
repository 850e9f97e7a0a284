"""``host``: for containers that share the host's network namespace; nothing is done to the kernel.

Keys: none, and no ``ipam``. The attachment is on record, and its result tells the host's addresses: those of the
link of the default route. Published ports mean nothing here and are ignored, as in other engines.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver
from cni_plugin.wire.request import Request
from weft.section import Section
from weft.types import Result, ResultAddress, ResultInterface, Side

DRIVER = Driver(on_host=True, own_features=())


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """Nothing to set."""

    def plan(self, context: Context) -> Plan:
        facts, dns = context.facts, context.result.dns
        link = facts.link(Side.HOST, facts.default_link(Side.HOST))
        if link is None:
            return Plan(result=Result(dns=dns))
        addresses = [address for address in facts.addresses(Side.HOST, link.name) if not address.is_link_local]
        return Plan(
            result=Result(
                interfaces=(ResultInterface(link.name, link.mac, context.namespace.path, link.mtu),),
                ips=tuple(ResultAddress(address, interface=0) for address in addresses),
                dns=dns,
            )
        )


def read(request: Request, keys: Section) -> PlanPart | None:
    if request.config.ipam:
        keys.problems.add("ipam has no place in a network of driver host: its containers have the host's addresses")
    return HostNetwork()
