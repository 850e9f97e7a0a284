"""Whether a network's subnets are free on this host, before anything of a new network is set up.

A subnet that is another network's, or part of what the host has addresses in or routes to, would take
those addresses from the host: its gateway would be a container. Only networks where the host has an
address itself (bridge, ptp) and that are configured as weft's own are refused, and only what they add:
a network that is set up keeps working, and ``weft doctor`` reports it. The kernel and the records of
other networks are read when a network is set up, not at each ADD.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from cni_plugin.ops import Gateways, PoolLease
from cni_plugin.ops.operation import Operation
from cni_plugin.plan import modules
from cni_plugin.service.context import ServiceContext
from cni_plugin.service.records import Record
from cni_plugin.service.removal import is_kept
from cni_plugin.wire.plugins import OWN_NAME
from cni_plugin.wire.request import Request
from ipam.ranges import Span
from weft import virtual_ranges
from weft.errors import Conflict
from weft.kernel.interface import Namespace
from weft.kernel.values import KernelRoute
from weft.types import Subnet

KEY = "allowOverlap"
_MAIN_TABLE = 254
_SPECIAL = tuple(
    (ip_network(text), what)
    for text, what in (
        ("0.0.0.0/8", "addresses of this host itself"),
        ("127.0.0.0/8", "the loopback addresses"),
        ("169.254.169.254/32", "the address of cloud metadata services"),
        ("224.0.0.0/4", "the multicast addresses"),
        ("::1/128", "the loopback address"),
        ("fe80::/10", "the link-local addresses"),
        ("ff00::/8", "the multicast addresses"),
    )
)
_AGGREGATES = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")))
"""Routes to all of one of these, or more, say nothing of who uses its parts: routers and VPNs have them."""


@dataclass(frozen=True, slots=True)
class Use:
    """A subnet in use: ``by`` what, and on which link of the host; "" where it is no link's."""

    subnet: Subnet
    by: str
    link: str = ""


def special(subnet: Subnet) -> str:
    """What addresses of special use a subnet contains, "" if none."""
    return next((f"{what}, {one}" for one, what in _SPECIAL if overlap(one, subnet)), "")


def overlap(one: Subnet, other: Subnet) -> bool:
    return one.version == other.version and one.overlaps(other)


def of_addresses(host: Namespace) -> Iterator[Use]:
    """The subnets in which this host has addresses, but those of loopback and IPv6 link-local."""
    for link, address in host.all_addresses():
        if not address.is_loopback and not (address.version == 6 and address.is_link_local):
            yield Use(address.network, f"the address {address} of this host's {link}", link)


def of_routes(host: Namespace) -> Iterator[Use]:
    """The destinations of this host's routes in the main table, but default routes and others as wide
    as a whole private range.
    """
    for known, link in with_links(host, host.routes(table=_MAIN_TABLE)):
        destination = known.route.destination
        wide = destination.prefixlen <= (8 if destination.version == 4 else 7) or destination in _AGGREGATES
        if not wide and not destination.is_link_local and not destination.is_multicast:
            over = f" over {link}" if link else ""
            yield Use(destination, f"this host's route to {destination}{over}", link)


def with_links(host: Namespace, routes: Collection[KernelRoute]) -> Iterator[tuple[KernelRoute, str]]:
    """Routes, each with its link: that of its nexthop object, where it has one as those to peers have."""
    links = {one.id: one.link for one in host.nexthops()} if any(one.nexthop for one in routes) else {}
    for one in routes:
        yield one, one.link or links.get(one.nexthop, "")


def of_virtual_ranges() -> Iterator[Use]:
    """The ranges of services' virtual addresses."""
    for one in virtual_ranges.configured():
        yield Use(one, f"the range {one} of virtual addresses ([balancer] ranges in weft.toml)", "weft-services")


def refuse(context: ServiceContext, request: Request, record: Record) -> None:
    """Refuse an ADD that gives the network a subnet which is in use. Raises Conflict, naming who uses it.

    The caller holds the shared lock, and has not recorded the network yet.
    """
    before = context.recorded_shared(record.attachment.network)
    subnets = list(_new_subnets(request, record, before))
    if not subnets or request.config.keys.flag(KEY):
        return
    network = record.attachment.network
    for subnet in subnets:
        if what := special(subnet):
            raise Conflict(
                f"subnet {subnet} of network {network} contains {what}", hint=f"use another subnet, or set {KEY}"
            )
        other = _other_network(context, record, subnet) or _host_use(context, record, subnet, before)
        if other is not None:
            raise Conflict(
                f"subnet {subnet} of network {network} overlaps with {other.subnet}: {other.by}",
                hint=f"use another subnet (weft network create chooses a free one), or set {KEY} of {network} to true",
            )


def _new_subnets(request: Request, record: Record, before: Sequence[Operation]) -> Iterator[Subnet]:
    """The subnets in which the host gets an address by this ADD, and had none of this network."""
    if request.plugin != OWN_NAME or not record.driver or request.config.previous is not None:
        return
    gateways = _networks_of(record.shared)
    if gateways:
        yield from dict.fromkeys(one for one in gateways if one not in _networks_of(before))
    elif not before and modules.declared(record.driver).routed and not modules.declared(record.driver).gateway_key:
        yield from dict.fromkeys(ip.address.network for ip in record.result.ips)


def _networks_of(operations: Iterable[Operation]) -> list[Subnet]:
    return [address.network for one in _gateways(operations) for address in one.addresses]


def _gateways(operations: Iterable[Operation]) -> list[Gateways]:
    return [one for one in operations if isinstance(one, Gateways)]


def _other_network(context: ServiceContext, record: Record, subnet: Subnet) -> Use | None:
    """The other network that has the subnet, with containers. On the same bridge both may have it, if
    they lease different addresses of it.
    """
    own = {one.link for one in _gateways(record.shared)}
    for other in context.records.networks():
        if other.network == record.attachment.network:
            continue
        for gateways in _gateways(other.shared):
            theirs = next((one.network for one in gateways.addresses if overlap(one.network, subnet)), None)
            if theirs is None:
                continue
            attached = [one for one in context.records.all() if one.attachment.network == other.network]
            if attached and (gateways.link not in own or _leases_meet(record, attached)):
                count = f"{len(attached)} container{'' if len(attached) == 1 else 's'}"
                return Use(theirs, f"network {other.network} on {gateways.link}, with {count}", gateways.link)
    return None


def _leases_meet(record: Record, others: Iterable[Record]) -> bool:
    """Whether both lease some address; unless both lease from weft's pools, that is not known."""
    own = _spans(record)
    theirs = [_spans(other) for other in others]
    return not own or any(not spans or any(a.overlaps(b) for a in own for b in spans) for spans in theirs)


def _spans(record: Record) -> list[Span]:
    leases = (one for one in record.operations if isinstance(one, PoolLease))
    return [each.span for lease in leases for ranges in lease.pool.sets for each in ranges]


def _host_use(context: ServiceContext, record: Record, subnet: Subnet, before: Sequence[Operation]) -> Use | None:
    """The address, route or virtual range of this host that overlaps with the subnet."""
    host = context.kernel.host
    gateways = _gateways(record.shared)
    addresses = list(of_addresses(host))
    held = {(use.link, use.subnet) for use in addresses}
    anycast = {(one.link, each.network) for one in gateways if one.anycast for each in one.held}
    if not held.isdisjoint(anycast | {(one.link, subnet) for one in gateways}):
        return None  # the network is set up, and only its record is lost
    own = {one.link for one in (*gateways, *_gateways(before))}
    met = [
        use
        for use in (*addresses, *of_routes(host), *of_virtual_ranges())
        if overlap(use.subnet, subnet) and use.link not in own and not _is_in_vrf(host, use.link)
    ]
    unused = _unused_bridges(context, {use.link for use in met}) if met else set()
    return next((use for use in met if use.link not in unused), None)


def _unused_bridges(context: ServiceContext, links: set[str]) -> set[str]:
    """Those of the links that are the bridges of networks without attachments: ADD removes those that are
    in the way.
    """
    owners = {
        one.network: {each.link for each in _gateways(one.shared)} & links
        for one in context.records.networks()
        if not is_kept(one.shared)
    }
    if not any(owners.values()):
        return set()
    used = {record.attachment.network for record in context.records.all()}
    return {link for network, theirs in owners.items() if network not in used for link in theirs}


def _is_in_vrf(host: Namespace, name: str) -> bool:
    """Whether the link's addresses are another routing domain's."""
    link = host.link(name) if name else None
    master = host.link(link.master) if link is not None and link.master else None
    return master is not None and master.kind == "vrf"
