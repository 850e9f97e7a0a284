"""Routes of a container that has several links: what an address sends leaves by its own link.

Otherwise the answers from all addresses leave by the first default route (or by all in turn, since
IPv6 joins equal routes to one), and a network that checks source addresses drops those of another.
Each link gets a routing table of its own, which packets from its addresses use; the main table is
for packets whose source is not yet chosen, and prefers the link that has been there longest. A
container with a single link has none of this. Source: ip-rule(8), ip-route(8).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_network

from cni_plugin.ops import LinkRoute
from cni_plugin.ops.operation import Operation
from cni_plugin.ops.policy import RoutedBeside, RoutedFrom
from cni_plugin.plan.plan import Context
from weft import identity
from weft.kernel.canonical import IPV6_PRIORITY, MAIN_TABLE
from weft.kernel.values import KernelRoute, RoutingRule
from weft.types import Cidr, Result, Route, Side


def beside(
    context: Context,
    link: str,
    result: Result,
    made: Sequence[LinkRoute],
    others: Sequence[KernelRoute],
    *,
    connected: bool,
) -> tuple[Operation, ...]:
    """The operations instead of ``made``, a link's routes, beside the routes of ``others``.

    ``connected``: the kernel adds a route with each address.
    """
    others = [one for one in others if _is_main(one) and not _is_link_local(one)]
    if not others:
        return tuple(made)
    addresses = [ip.address for ip in result.ips]
    own = [one.route for one in made if _is_main(one.route)]
    if connected:
        own = [*_connected(link, addresses), *own]
    table = identity.routing_table(link)
    return (
        *(replace(one, route=_after(one.route, others)) for one in made),
        *(LinkRoute(Side.CONTAINER, one) for one in _copies(own, table)),
        *(RoutedFrom(RoutingRule(ip_network(one.ip), table, identity.ROUTE_PROTOCOL)) for one in addresses),
        *_of_others(context, link, others),
    )


def _of_others(context: Context, own: str, others: Sequence[KernelRoute]) -> Iterator[Operation]:
    """The same for other links that have no rules of their own."""
    ruled = {
        rule.source
        for rule in context.facts.routing_rules(Side.CONTAINER)
        if rule.protocol != identity.NEIGHBOUR_PROTOCOL
    }
    for link in dict.fromkeys(one.link for one in others):
        table = identity.routing_table(link)
        sources = (ip_network(one.ip) for one in context.facts.addresses(Side.CONTAINER, link) if not one.is_link_local)
        rules = tuple(
            RoutingRule(source, table, identity.NEIGHBOUR_PROTOCOL) for source in sources if source not in ruled
        )
        if rules:
            yield RoutedBeside(link, own, rules, _copies((one for one in others if one.link == link), table))


def _copies(routes: Iterable[KernelRoute], table: int) -> tuple[KernelRoute, ...]:
    """A link's routes in its own table, where they have no rivals; those to the gateways first."""
    copies = (
        replace(one, route=replace(one.route, table=table, priority=None), protocol=identity.ROUTE_PROTOCOL)
        for one in sorted(routes, key=lambda one: one.route.gateway is not None)
    )
    return tuple(dict.fromkeys(copies))


def _connected(link: str, addresses: Iterable[Cidr]) -> Iterator[KernelRoute]:
    for one in addresses:
        if one.network.prefixlen < one.max_prefixlen:
            yield KernelRoute(Route(one.network), link, one.ip if one.version == 4 else None)


def _after(route: KernelRoute, others: Iterable[KernelRoute]) -> KernelRoute:
    """The route with a metric above those of the others to its destination, unless it has one."""
    wanted = route.route
    usual = IPV6_PRIORITY if wanted.destination.version == 6 else 0
    there = [one.route.priority or usual for one in others if one.route.destination == wanted.destination]
    if wanted.priority is not None or not _is_main(route) or not there:
        return route
    return replace(route, route=replace(wanted, priority=max(there) + 1))


def _is_main(route: KernelRoute) -> bool:
    return (route.route.table or MAIN_TABLE) == MAIN_TABLE


def _is_link_local(route: KernelRoute) -> bool:
    return route.route.destination.version == 6 and route.route.destination.is_link_local
