"""``sbr``: source-based routing: packets from an address use the routes of that address's link.

Keys: ``table`` (then only routing rules to that table are added), ``gateways`` (at most one of each
family, instead of the result's), ``addSourceHints`` (the routes name the address as their source, and
the one to its subnet stays in the main table, too). Without ``table`` each address gets a table of its
own, the first free one from 100 on, with a default route and the link's routes, which are moved there
from the main table, so that the routes of a container's several links do not conflict. Put it late in a
chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

from cni_plugin.ops import LinkRoute
from cni_plugin.ops.operation import Operation
from cni_plugin.ops.policy import RoutedFrom, RouteMoved
from cni_plugin.plan.interface import own_addresses, planned_routes
from cni_plugin.plan.plan import Context, Plan, PlanPart
from cni_plugin.plan.traits import Feature, Stage
from cni_plugin.wire.request import Request
from weft.identity import ROUTE_PROTOCOL
from weft.kernel.values import KernelRoute, RoutingRule
from weft.section import Section
from weft.types import Address, Cidr, ResultAddress, Route, Side

FEATURE = Feature(Stage.ROUTES, plugin="sbr")
_FIRST_TABLE = 100
_LARGEST_TABLE = 2**32 - 1


@dataclass(frozen=True, slots=True)
class SourceRouting:
    """``table`` 0: one for each address; ``gateways`` replace the result's of the same family."""

    table: int = 0
    gateways: tuple[Address, ...] = ()
    source_hints: bool = False

    def plan(self, context: Context) -> Plan:
        addresses = own_addresses(context)
        if self.table:
            rules = tuple(RoutedFrom(_rule(ip.address, self.table)) for ip in addresses)
            return Plan(operations=rules, result=context.result)
        free = _free_tables(context)
        main = [route for route in planned_routes(context) if (route.route.table or 254) == 254]
        operations: list[Operation] = []
        homes: dict[KernelRoute, KernelRoute] = {}
        for ip in addresses:
            table = next(free)
            operations.append(RoutedFrom(_rule(ip.address, table)))
            for copy, origin in self._routes(ip, main, context.attachment.interface):
                there = replace(copy, route=replace(copy.route, table=table))
                operations.append(LinkRoute(Side.CONTAINER, there))
                if origin is not None:
                    homes.setdefault(origin, there)
        # Last: while routes are added to other tables, their gateways must be reachable by the
        # main table. Routes with a gateway first: undone in reverse, each finds it reachable.
        leaving = sorted(main, key=lambda route: route.route.gateway is None)
        for route in leaving:
            hinted = self._hinted(route, addresses)
            if hinted != route:
                operations.append(RouteMoved(route, hinted or homes.get(route)))
            if hinted is not None and hinted != route:
                operations.append(LinkRoute(Side.CONTAINER, hinted))
        return Plan(operations=tuple(operations), result=context.result)

    def _hinted(self, route: KernelRoute, addresses: tuple[ResultAddress, ...]) -> KernelRoute | None:
        """What stays of a route in the main table: with source hints, that to an address's subnet."""
        destination = route.route.destination
        source = next((ip.address.ip for ip in addresses if ip.address.network == destination), None)
        if not self.source_hints or source is None or route.route.gateway is not None:
            return None
        return route if route.source == source else replace(route, source=source, protocol=ROUTE_PROTOCOL)

    def _routes(
        self, ip: ResultAddress, main: list[KernelRoute], link: str
    ) -> Iterator[tuple[KernelRoute, KernelRoute | None]]:
        """The routes of an address's table, those without a gateway first, each with the route that it
        copies.
        """
        version = ip.address.version
        source = ip.address.ip if self.source_hints else None
        gateway = next((one for one in self.gateways if one.version == version), ip.gateway)
        anywhere = ip_network("0.0.0.0/0" if version == 4 else "::/0")
        mine = [route for route in main if route.route.destination.version == version and _concerns(route, ip.address)]
        default = KernelRoute(Route(anywhere, gateway), link, source, ROUTE_PROTOCOL)
        given = gateway is not None
        for route in sorted(mine, key=lambda route: route.route.gateway is not None):
            if given and route.route.destination == anywhere and not route.route.priority:
                yield replace(default, onlink=route.onlink), route
                given = False
            else:
                yield replace(route, source=source or route.source, protocol=ROUTE_PROTOCOL), route
        if given:
            yield default, None


def _concerns(route: KernelRoute, address: Cidr) -> bool:
    """Whether a route is for the address's subnet, by its source or gateway, or has neither."""
    near = [one for one in (route.source, route.route.gateway) if one is not None]
    return not near or any(one in address.network for one in near)


def _rule(address: Cidr, table: int) -> RoutingRule:
    return RoutingRule(ip_network(address.ip), table, ROUTE_PROTOCOL)


def _free_tables(context: Context) -> Iterator[int]:
    facts = context.facts
    used = {route.route.table or 254 for route in facts.routes(Side.CONTAINER)}
    used |= {rule.table for rule in facts.routing_rules(Side.CONTAINER)} | {253, 254, 255}
    return (table for table in range(_FIRST_TABLE, _LARGEST_TABLE) if table not in used)


def read(request: Request, keys: Section) -> PlanPart | None:
    gateways = tuple(found for text in keys.texts("gateways") if (found := keys.parse_address("gateways", text)))
    if len({one.version for one in gateways}) != len(gateways):
        keys.problem("gateways", "must hold at most one of IPv4 and one of IPv6")
    table = keys.integer("table", least=1, most=_LARGEST_TABLE) or 0
    return SourceRouting(table, gateways, keys.flag("addSourceHints"))
