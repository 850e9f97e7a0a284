"""The fake kernel's routes, including those that it adds and deletes with addresses."""

from __future__ import annotations

from dataclasses import replace

from weft.errors import Exists, KernelRefused, Missing
from weft.kernel.canonical import LOCAL_TABLE, MAIN_TABLE, PROTOCOL_KERNEL, canonical, describe
from weft.kernel.fake.links import FakeLink, FakeState
from weft.kernel.route_lookup import FoundRoute, RouteQuestion, RouteType
from weft.kernel.values import KernelRoute, Nexthop
from weft.types import Address, Cidr, Route


def prefix_route(link: FakeLink, address: Cidr) -> KernelRoute | None:
    """The prefix route that the kernel adds with an address, None without one."""
    if address in link.without_route or (link.kind == "loopback" and address.version == 4):
        return None
    table = int(link.master.options["vrf_table"]) if link.master is not None and link.master.kind == "vrf" else None
    if address.version == 4:
        if address.network.prefixlen == 32:
            return None
        route = Route(address.network, table=table)
        return KernelRoute(route, link.name, source=address.ip, protocol=PROTOCOL_KERNEL)
    return KernelRoute(Route(address.network, priority=256, table=table), link.name, protocol=PROTOCOL_KERNEL)


def connect(link: FakeLink, address: Cidr) -> None:
    """Add an address's prefix route, unless it exists."""
    route = prefix_route(link, address)
    if link.up and route is not None and not any(_same_but_source(route, existing) for existing in link.routes):
        link.routes.append(route)


def disconnect(link: FakeLink, address: Cidr) -> None:
    """Delete the routes that depend on an address after it was deleted."""
    family = [other for other in link.addresses if other.version == address.version]
    if address.version == 4 and not family:
        link.routes = [route for route in link.routes if route.route.destination.version != 4]
        return
    mine = prefix_route(link, address)
    if mine is not None and not any(other.network == address.network for other in family):
        link.routes = [route for route in link.routes if not _same_but_source(mine, route)]
    for other in link.namespace.links_by_name.values():
        other.routes = [route for route in other.routes if address.version == 6 or route.source != address.ip]


def flush(link: FakeLink) -> None:
    """Delete the routes of a link that is set down; an IPv6 multipath route stays while it has a next hop
    on another link, and is whole again once the link is up.
    """
    others = [one for other in link.namespace.links_by_name.values() if other is not link for one in other.routes]
    shared = {_key(one) for one in others if one.route.destination.version == 6 and one.route.gateway is not None}
    link.routes = [one for one in link.routes if one.route.gateway is not None and _key(one) in shared]


def _same_but_source(one: KernelRoute, two: KernelRoute) -> bool:
    return replace(one, source=None) == replace(two, source=None)


def add(namespace: FakeState, asked: KernelRoute, *, replacing: bool) -> None:
    """Add a route. Raises ``Exists`` for a duplicate."""
    doing = f"{'replace' if replacing else 'add'} the route {describe(asked)}"
    if asked.nexthop:
        _add_by_nexthop(namespace, asked, doing, replacing=replacing)
        return
    if asked.unreachable:
        _reject(namespace, canonical(asked), doing, replacing=replacing)
        return
    link = _outgoing(namespace, asked, doing)
    if not link.up:
        raise KernelRefused(f"cannot {doing}: the kernel says Device for nexthop is not up", hint="the link is down")
    gateway = asked.route.gateway
    if gateway is not None and not asked.onlink and not reachable(link, gateway):
        raise KernelRefused(f"cannot {doing}: the kernel says Nexthop has invalid gateway")
    if asked.source is not None and not any(cidr.ip == asked.source for cidr in namespace.every_address()):
        raise KernelRefused(f"cannot {doing}: the kernel says Invalid prefsrc address")
    route = canonical(replace(asked, link=link.name))
    everything = [(owner, existing) for owner in namespace.links_by_name.values() for existing in owner.routes]
    if replacing:
        for owner, existing in everything:
            if _key(existing) == _key(route):
                owner.routes.remove(existing)
                break
    elif any(_duplicates(existing, replace(route, link=owner.name), owner is link) for owner, existing in everything):
        raise Exists(f"cannot {doing}: the kernel says File exists")
    link.routes.append(route)


def _add_by_nexthop(namespace: FakeState, asked: KernelRoute, doing: str, *, replacing: bool) -> None:
    nexthop = namespace.nexthops_by_id.get(asked.nexthop)
    problem = ""
    if asked.link or asked.route.gateway is not None:
        problem = "Nexthop specification and nexthop id are mutually exclusive"
    elif nexthop is None:
        problem = "Nexthop id does not exist"
    elif nexthop.fdb:
        problem = "Route cannot point to a fdb nexthop"
    elif asked.route.destination.version == 6 and _is_ipv4(namespace, nexthop):
        problem = "IPv6 routes can not use an IPv4 nexthop"
    if problem:
        raise KernelRefused(f"cannot {doing}: the kernel says {problem}")
    route = canonical(asked)
    same = [existing for existing in namespace.nexthop_routes if _key(existing) == _key(route)]
    if replacing:
        for existing in same[:1]:
            namespace.nexthop_routes.remove(existing)
    elif any(existing.nexthop == route.nexthop for existing in same):
        raise Exists(f"cannot {doing}: the kernel says File exists")
    namespace.nexthop_routes.append(route)


def _reject(namespace: FakeState, route: KernelRoute, doing: str, *, replacing: bool) -> None:
    same = [existing for existing in namespace.rejected if _key(existing) == _key(route)]
    if same and not replacing:
        raise Exists(f"cannot {doing}: the kernel says File exists")
    namespace.rejected = [existing for existing in namespace.rejected if existing not in same] + [route]


def _is_ipv4(namespace: FakeState, nexthop: Nexthop) -> bool:
    members = [namespace.nexthops_by_id[number] for number, _ in nexthop.group] or [nexthop]
    return any(member.gateway is None or member.gateway.version == 4 for member in members)


def _key(route: KernelRoute) -> tuple[object, ...]:
    return route.route.destination, route.route.priority, route.route.table


def _duplicates(existing: KernelRoute, route: KernelRoute, same_link: bool) -> bool:
    if not same_link or _key(existing) != _key(route) or existing.route.gateway != route.route.gateway:
        return False
    return route.route.destination.version == 6 or existing == route


def _outgoing(namespace: FakeState, asked: KernelRoute, doing: str) -> FakeLink:
    if asked.link:
        return namespace.existing(asked.link, doing)
    for link in namespace.links_by_name.values():
        if link.up and asked.route.gateway is not None and reachable(link, asked.route.gateway):
            return link
    raise KernelRefused(f"cannot {doing}: the kernel says Nexthop has invalid gateway")


def reachable(link: FakeLink, gateway: Address) -> bool:
    if gateway.version == 6 and gateway.is_link_local:
        return True
    return any(route.route.gateway is None and gateway in route.route.destination for route in link.routes)


def delete(namespace: FakeState, asked: KernelRoute) -> None:
    """Delete the first route that matches. Raises ``Missing``."""
    wanted = canonical(asked)
    for existing in namespace.rejected if asked.unreachable else ():
        if _matches(existing, wanted, asked):
            namespace.rejected.remove(existing)
            return
    for existing in namespace.nexthop_routes if _may_match_nexthop(asked) else ():
        if asked.nexthop in (0, existing.nexthop) and _matches(existing, wanted, asked):
            namespace.nexthop_routes.remove(existing)
            return
    for link in namespace.links_by_name.values():
        for existing in link.routes if not (asked.nexthop or asked.unreachable) else ():
            if (not asked.link or link.name == asked.link) and _matches(existing, wanted, asked):
                link.routes.remove(existing)
                return
    if asked.link:
        namespace.existing(asked.link, f"delete the route {describe(asked)}")
    raise Missing(f"cannot delete the route {describe(asked)}: the kernel says No such process")


def _may_match_nexthop(asked: KernelRoute) -> bool:
    """Whether a request deletes routes with a nexthop: by its id, or an IPv6 one by its destination
    alone.
    """
    by_destination = asked.route.destination.version == 6 and not asked.link and asked.route.gateway is None
    return bool(asked.nexthop) or by_destination


def _matches(existing: KernelRoute, wanted: KernelRoute, asked: KernelRoute) -> bool:
    """An unset protocol, IPv4 metric, gateway or source in the request matches any."""
    one, two = existing.route, wanted.route
    if (one.destination, one.table, one.scope) != (two.destination, two.table, two.scope):
        return False
    if one.priority != two.priority and (two.destination.version == 6 or two.priority is not None):
        return False
    return (
        (two.gateway is None or one.gateway == two.gateway)
        and (not asked.protocol or existing.protocol == asked.protocol)
        and (asked.source is None or existing.source == asked.source)
    )


def listed(namespace: FakeState, link: str, family: int, table: int) -> tuple[KernelRoute, ...]:
    """As ``Namespace.routes``."""
    found = []
    for name, owner in namespace.links_by_name.items():
        for route in owner.routes if link in ("", name) else ():
            here = route.route.table or MAIN_TABLE
            if family in (0, route.route.destination.version) and (here == table if table else here != LOCAL_TABLE):
                found.append(replace(route, link=name))
    for route in namespace.nexthop_routes:
        here = route.route.table or MAIN_TABLE
        chosen = here == table if table else here != LOCAL_TABLE
        if chosen and family in (0, route.route.destination.version) and (not link or link in _links(namespace, route)):
            found.append(route)
    return tuple(sorted(found, key=lambda route: route.route.destination.version))


def _links(namespace: FakeState, route: KernelRoute) -> set[str]:
    nexthop = namespace.nexthops_by_id[route.nexthop]
    return {namespace.nexthops_by_id[number].link for number, _ in nexthop.group} or {nexthop.link}


def found(namespace: FakeState, question: RouteQuestion) -> FoundRoute:
    """The route to an address: this namespace's own, else the longest prefix of the main table."""
    to = question.destination
    if to.is_loopback or any(cidr.ip == to for cidr in namespace.every_address()):
        return FoundRoute(RouteType.LOCAL, "lo", table=MAIN_TABLE)
    there = [one for link in namespace.links_by_name.values() for one in link.routes if one.route.table is None]
    fitting = [one for one in there if one.route.destination.version == to.version and to in one.route.destination]
    if not fitting:
        return FoundRoute(RouteType.NONE)
    best = min(fitting, key=lambda one: (-one.route.destination.prefixlen, one.route.priority or 0))
    source = best.source
    if source is None:
        own = namespace.links_by_name[best.link].addresses
        source = next(
            (one.ip for one in own if one.version == to.version and one.is_link_local == to.is_link_local), None
        )
    return FoundRoute(RouteType.UNICAST, best.link, best.route.gateway, source, MAIN_TABLE, best.route.mtu or 0)
