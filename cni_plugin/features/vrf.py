"""``vrf``: makes the container's link a port of a VRF in the container, with its routes in the VRF's
table.

Keys: ``vrfname`` (required), ``table`` (default: the first that no VRF of the container uses). Links of
a container with the same VRF name share it; it is deleted with the last of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni_plugin.ops.policy import InVrf, Vrf
from cni_plugin.plan.interface import permanent_addresses, planned_routes, read_link
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, LinkTrial, Stage
from cni_plugin.wire.request import Request
from weft import identity
from weft.errors import ConfigProblem, Conflict
from weft.section import Section
from weft.types import Side

FEATURE = Feature(Stage.DOMAIN, plugin="vrf", trials=(LinkTrial("vrf", "vrf", (("vrf_table", 10),)),))
_LARGEST_TABLE = 2**32 - 1
_KERNEL = (2, 9)
"""RTPROT_KERNEL, RTPROT_RA: the routes to addresses' subnets, and those of router advertisements."""


@dataclass(frozen=True, slots=True)
class VirtualRouting:
    """``table`` 0: the first free one."""

    name: str
    table: int = 0

    def plan(self, context: Context) -> Plan:
        interface = context.attachment.interface
        if self.name == interface:
            raise ConfigProblem(f"vrfname {self.name} is the interface's own name", hint="use another vrfname")
        table, alias = self._domain(context)
        # The kernel adds these to the VRF's table itself.
        routes = tuple(route for route in planned_routes(context) if route.protocol not in _KERNEL)
        addresses, without_route = permanent_addresses(context, 6)
        return Plan(
            operations=(
                Vrf(self.name, table, alias),
                InVrf(interface, self.name, table, addresses, routes, without_route),
            ),
            result=context.result,
        )

    def _domain(self, context: Context) -> tuple[int, str]:
        """The VRF's table, and the alias to create it with, "" if it exists and is not weft's."""
        mark = identity.alias(identity.attachment_mark(context.attachment), self.name)
        there = context.facts.link(Side.CONTAINER, self.name)
        used = {
            int(link.options.get("vrf_table", 0)) for link in context.facts.links(Side.CONTAINER) if link.kind == "vrf"
        }
        if there is not None and there.kind == "vrf":
            table = int(there.options.get("vrf_table", 0))
            if self.table not in (0, table):
                raise Conflict(
                    f"VRF {self.name} has table {table}, not {self.table}", hint="use that table, or remove table"
                )
            return table, mark if there.alias.startswith("weft:") else ""
        if self.table in used:
            raise Conflict(f"table {self.table} is used by another VRF", hint="remove table, or use another")
        return self.table or next(table for table in range(1, len(used) + 2) if table not in used), mark


def read(request: Request, keys: Section) -> PlanPart | None:
    name = read_link(keys, "vrfname")
    if keys.raw("vrfname") in (None, ""):
        keys.problems.add(f"{keys.at('vrfname')} is missing")
    return VirtualRouting(name, keys.integer("table", least=0, most=_LARGEST_TABLE) or 0)
