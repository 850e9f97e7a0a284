"""IPAM type blocks: leases from this host's blocks of an overlay network.

The blocks are in the network's file (``weft.overlay``); leasing is host-local's, on its lease
directory, so that it needs no other host. Keys: ``file``, ``dataDir``, ``routes``, ``resolvConf``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ipam import host_local_config
from ipam.ranges import Pool, Range, Sets, Span, address_at
from weft import overlay
from weft.cni_keys import routes
from weft.errors import WeftError
from weft.identity import OVERLAY_GATEWAY6
from weft.overlay import OverlayNetwork
from weft.section import Section
from weft.types import Address, Subnet

_RANGES = ("subnet", "ranges", "rangeStart", "rangeEnd", "gateway", "exclude", "requestOutsideRange")


def read(ipam: Section, *, network: str, arguments: Mapping[str, str], args_cni: Section, runtime: Section) -> Pool:
    """The pool of this host's blocks. Problems are added to the sections; the pool is then incomplete."""
    for key in _RANGES:
        if key in ipam:
            ipam.problem(key, "is not allowed with type blocks: the network's file has the subnets and blocks")
    sets: Sets = ()
    try:
        found = overlay.read_network(overlay.configured_path(ipam, network), network)
        sets = tuple(sets_of(found))
        if len(sets) < len(found.subnets):
            missing = [str(one) for one in found.subnets if one.version not in found.own]
            ipam.problems.add(f"this host has no block of {' and '.join(missing)} yet, the subnet of {network}")
    except WeftError as error:
        ipam.problems.add(str(error))
    return Pool(
        network=network,
        directory=host_local_config.directory(ipam, network),
        sets=sets,
        routes=routes(ipam),
        dns=host_local_config.resolv_conf(ipam),
        requested=host_local_config.requested(ipam, sets, arguments, args_cni, runtime),
    )


def sets_of(network: OverlayNetwork) -> Iterator[tuple[Range, ...]]:
    """A set for each subnet of which this host has blocks: its free parts, and the static ranges."""
    for subnet in network.subnets:
        blocks = [one for one in network.blocks if one.version == subnet.version]
        if blocks and network.kept:
            # The agent gets any address of a static range for this host, if it is free.
            static = [one for one in network.static if one.version == subnet.version]
            dynamic = [one for one in blocks if not network.is_static(one[0])]
            # Those that are leased here, and in no block of this host's, may be within another one.
            blocks = [*dynamic, *(one for one in static if not any(one != o and one[0] in o for o in static))]
        if blocks:
            yield tuple(each for block in sorted(blocks) for each in _ranges(network, subnet, block))


def _ranges(network: OverlayNetwork, subnet: Subnet, block: Subnet) -> Iterator[Range]:
    gateway: Address | None = network.gateway if subnet.version == 4 else OVERLAY_GATEWAY6
    first, last = overlay.bounds(block)
    edges = {int(subnet.network_address), int(subnet.broadcast_address) if subnet.version == 4 else -1}
    static = [
        (max(first, int(one.network_address)), min(last, int(one.broadcast_address)))
        for one in network.static
        if one.version == subnet.version
    ]
    own = int(network.own[subnet.version])
    taken = [(number, number) for number in (own, *edges) if first <= number <= last]
    reserved = [one for one in static if one[0] <= one[1]]
    for low, high in _without(first, last, [*taken, *reserved]):
        yield _range(subnet, low, high, gateway)
    for start, end in reserved:
        for low, high in _without(start, end, taken):
            yield _range(subnet, low, high, gateway, on_request=True)


def _range(subnet: Subnet, low: int, high: int, gateway: Address | None, *, on_request: bool = False) -> Range:
    span = Span(address_at(subnet.version, low), address_at(subnet.version, high))
    return Range(subnet, span, gateway, on_request=on_request)


def _without(first: int, last: int, holes: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of an interval outside the holes, ascending."""
    for low, high in sorted(holes):
        if low > first:
            yield first, min(low - 1, last)
        first = max(first, high + 1)
    if first <= last:
        yield first, last
