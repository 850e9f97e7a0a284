"""``host``: for containers in the host's network namespace; the kernel is not changed.

Keys: none, and no ``ipam``. The attachment is recorded, and its result holds the addresses of the link
of the host's default route. Published ports are ignored, as docker and podman do.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver
from cni_plugin.wire.request import Request
from weft.section import Section
from weft.types import Result, ResultAddress, ResultInterface, Side

DRIVER = Driver(on_host=True, addresses=False, own_features=(), creatable=True)


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """No settings."""

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
    return HostNetwork()
