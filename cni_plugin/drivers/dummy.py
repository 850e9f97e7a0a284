"""``dummy``: a dummy link, which drops what it is given, to hold addresses. Keys: ``mtu`` (bytes),
``ipam``.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin.plan import interface
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Driver, LinkTrial
from cni_plugin.wire.request import Request
from weft.section import Section

DRIVER = Driver(link_kind="dummy", plugin=True, options=(interface.MTU,), trials=(LinkTrial("dummy", "dummy"),))


@dataclass(frozen=True, slots=True)
class Dummy:
    """A dummy network's settings."""

    mtu: int

    def plan(self, context: Context) -> Plan:
        link = interface.container_link(context, "dummy", mtu=self.mtu or interface.DEFAULT_MTU)
        return interface.attach(context, link, interface.result_interface(context, link), context.result)


def read(request: Request, keys: Section) -> PlanPart | None:
    interface.require_ipam(request, "dummy")
    return Dummy(interface.read_mtu(keys))
