"""The ranges of a host-local configuration: parsing, defaults and validation.

An attachment gets one address from each *set* of ranges. Keys and defaults are host-local's;
``exclude`` is from whereabouts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from weft.section import Section, quoted
from weft.types import Address, Dns, Route, Subnet

_MAPPED = IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class Span:
    """The addresses from ``first`` to ``last`` inclusive, of one family."""

    first: Address
    last: Address

    def __contains__(self, address: Address) -> bool:
        return self.first.version == address.version and int(self.first) <= int(address) <= int(self.last)

    def overlaps(self, other: Span) -> bool:
        """Whether they have an address in common."""
        return other.first in self or self.first in other

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Range:
    """A range of a subnet to lease from, its exclusions, and the gateway of its addresses.

    With ``request_outside`` a runtime may request any host address of the subnet; one ``on_request``
    leases only requested addresses.
    """

    subnet: Subnet
    span: Span
    gateway: Address | None
    exclude: tuple[Span, ...] = ()
    request_outside: bool = False
    on_request: bool = False

    @property
    def requests(self) -> Span:
        """The addresses that a runtime may request."""
        return _hosts(self.subnet) if self.request_outside else self.span


Sets = tuple[tuple[Range, ...], ...]


@dataclass(frozen=True, slots=True)
class Pool:
    """A host-local configuration.

    ``directory`` is the network's lease directory (``/var/lib/cni/networks/blue``). ``requested``
    are the addresses that the runtime asks for, at most one of each set.
    """

    network: str
    directory: str
    sets: Sets
    routes: tuple[Route, ...] = ()
    dns: Dns = field(default_factory=Dns)
    requested: tuple[Address, ...] = ()


def address_at(version: int, number: int) -> Address:
    """The IPv4 or IPv6 address with a numeric value."""
    return IPv4Address(number) if version == 4 else IPv6Address(number)


def gateways(sets: Sets) -> frozenset[Address]:
    """The gateways of all ranges, which are never leased."""
    return frozenset(each.gateway for ranges in sets for each in ranges if each.gateway is not None)


def usable(each: Range, gateways: frozenset[Address]) -> list[tuple[int, int]]:
    """The intervals of a range that may be leased without a request, ascending: without exclusions
    and gateways.
    """
    if each.on_request:
        return []
    holes = [(int(span.first), int(span.last)) for span in each.exclude]
    holes += [(int(address), int(address)) for address in gateways if address in each.span]
    start, end = int(each.span.first), int(each.span.last)
    intervals = []
    for first, last in sorted(holes):
        if first > start:
            intervals.append((start, min(first - 1, end)))
        start = max(start, last + 1)
        if start > end:
            return intervals
    return [*intervals, (start, end)]


def size(ranges: tuple[Range, ...], gateways: frozenset[Address]) -> int:
    """The number of addresses that a set can lease."""
    return sum(last - first + 1 for each in ranges for first, last in usable(each, gateways))


def describe(ranges: tuple[Range, ...]) -> str:
    """A set in messages: "10.1.0.1-10.1.0.254, 10.2.0.1-10.2.0.254"."""
    return ", ".join(str(each.span) for each in ranges)


_KEYS = ("subnet", "rangeStart", "rangeEnd", "gateway", "exclude", "ranges", "requestOutsideRange")
_parsed: dict[str, Sets] = {}
"""Parsed configurations by their text: each attachment of a network has the same one."""
_MAX_PARSED, _MAX_TEXT = 256, 4096


def read_sets(ipam: Section, runtime: Section, version: str) -> Sets:
    """All sets of a configuration: ``runtimeConfig.ipRanges``, then ``subnet``, then ``ranges``.

    Problems are added to the section; the result is then incomplete.
    """
    text = repr([version, runtime.raw("ipRanges"), *(ipam.raw(key) for key in _KEYS)])
    sets = _parsed.get(text)
    if sets is None:
        sets = _sets(ipam, runtime, version)
        if not ipam.problems.found and len(text) < _MAX_TEXT:
            if len(_parsed) >= _MAX_PARSED:
                _parsed.clear()
            _parsed[text] = sets
    return sets


def _sets(ipam: Section, runtime: Section, version: str) -> Sets:
    common, outside = tuple(_spans(ipam, "exclude")), ipam.flag("requestOutsideRange")
    named: list[list[tuple[str, Range]]] = list(_nested(runtime, "ipRanges", common, outside))
    if "subnet" in ipam:
        found = _range(ipam, common, outside)
        named.append([(ipam.path, found)] if found else [])
    else:
        for key in ("rangeStart", "rangeEnd"):
            if ipam.raw(key) not in (None, ""):  # templates leave empty ones
                ipam.problem(key, f"needs {ipam.at('subnet')} beside it")
    named.extend(_nested(ipam, "ranges", common, outside))
    if not named and not ipam.problems.found:
        ipam.problems.add(f"{ipam.at('ranges')} is missing: there is no range to lease from")
    _check_together(ipam, named, version)
    return tuple(tuple(each for _, each in ranges) for ranges in named)


def _nested(section: Section, key: str, common: tuple[Span, ...], outside: bool) -> Iterator[list[tuple[str, Range]]]:
    """The sets in a list of lists of ranges."""
    for outer, members in enumerate(section.items(key)):
        path = f"{section.at(key)}[{outer}]"
        if not isinstance(members, list):
            section.problems.add(f"{path} {quoted(members)} must be a list of ranges")
            continue
        if not members:
            section.problems.add(f"{path} is empty: a set needs a range")
        found = []
        for inner, member in enumerate(members):
            each = Section(member, f"{path}[{inner}]", section.problems)
            if isinstance(member, dict) and (one := _range(each, common, outside, own=True)):
                found.append((each.path, one))
        yield found


def _range(section: Section, common: tuple[Span, ...], request_outside: bool, *, own: bool = False) -> Range | None:
    """A range, with host-local's defaults. ``own``: it may have its own ``exclude``."""
    if not section.text("subnet"):
        section.problems.add(f"{section.at('subnet')} is missing")
        return None
    subnet = section.subnet("subnet")
    if subnet is None:
        return None
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        section.problem("subnet", f"is too small: the longest prefix is /{subnet.max_prefixlen - 2}")
        return None
    if isinstance(subnet, IPv6Network) and subnet.overlaps(_MAPPED):
        section.problem("subnet", "has IPv4-mapped addresses; use IPv4")
        return None
    inside = _hosts(subnet)
    first = _bound(section, "rangeStart", subnet, inside)
    last = _bound(section, "rangeEnd", subnet, inside)
    gateway = section.address("gateway")
    if gateway is None:
        gateway = inside.first
    elif gateway not in inside and not (subnet.version == gateway.version == 6 and gateway.is_link_local):
        section.problem("gateway", f"is not a host address of {subnet} ({inside})")
    span = Span(first or inside.first, last or inside.last)
    if int(span.first) > int(span.last):
        section.problem("rangeStart", f"is after the end of the range, {span.last}")
        return None
    spans = tuple(common)
    if own:
        for each in _spans(section, "exclude"):
            if not each.overlaps(inside):
                section.problem("exclude", f"has {each}, which is not in {subnet}")
            spans += (each,)
    found = Range(subnet, span, gateway, request_outside=request_outside)
    return replace(found, exclude=tuple(each for each in spans if each.overlaps(found.requests)))


def _hosts(subnet: Subnet) -> Span:
    """The host addresses of a subnet: without the network address and IPv4's broadcast address."""
    last = int(subnet.broadcast_address) - (1 if subnet.version == 4 else 0)
    return Span(address_at(subnet.version, int(subnet.network_address) + 1), address_at(subnet.version, last))


def _bound(section: Section, key: str, subnet: Subnet, inside: Span) -> Address | None:
    """The start or end of a range; None for the default, the first or last host address.

    Podman's ``--ip-range`` writes the network and broadcast address; these are accepted and never
    leased.
    """
    value = section.address(key)
    if value is None or value in inside:
        return value
    if value == (subnet.network_address if key == "rangeStart" else subnet.broadcast_address):
        return None
    if value.version != subnet.version or not _within(subnet, value):
        section.problem(key, f"is not in {subnet}")
    else:
        what = "network" if value == subnet.network_address else "broadcast"
        section.problem(key, f"is the {what} address of {subnet}")
    return None


def _within(subnet: Subnet, address: Address) -> bool:
    return int(subnet.network_address) <= int(address) <= int(subnet.broadcast_address)


def _spans(section: Section, key: str) -> Iterator[Span]:
    """Exclusions: addresses, ranges "a-b" or subnets."""
    for text in section.texts(key):
        span = parse_span(text)
        if span is None:
            section.problems.add(
                f"{section.at(key)} {quoted(text)} is not an address, a range like 10.1.0.5-10.1.0.9, or a subnet"
            )
        else:
            yield span


def parse_span(text: str) -> Span | None:
    """Parse "10.1.0.5", "10.1.0.5-10.1.0.9" or "10.1.0.0/28"; None for anything else."""
    try:
        if "/" in text:
            subnet = ip_network(text.strip())
            return Span(subnet.network_address, subnet.broadcast_address)
        start, dash, end = text.partition("-")
        first = ip_address(start.strip())
        last = ip_address(end.strip()) if dash else first
    except ValueError:
        return None
    if first.version != last.version or int(first) > int(last) or "%" in text:
        return None
    return Span(first, last)


def _check_together(ipam: Section, named: list[list[tuple[str, Range]]], version: str) -> None:
    """Check for mixed families in a set, overlaps, and sets without an address."""
    never = gateways(tuple(tuple(each for _, each in ranges) for ranges in named))
    families = []
    for ranges in named:
        if not ranges:
            continue
        if len({each.subnet.version for _, each in ranges}) > 1:
            ipam.problems.add(f"{ranges[0][0]} and {ranges[-1][0]} mix IPv4 and IPv6 in one set; use a set for each")
            continue
        families.append(ranges[0][1].subnet.version)
        if not size(tuple(each for _, each in ranges), never):
            ipam.problems.add(f"{ranges[0][0]} has no address to lease: all are gateways or excluded")
    flat = [pair for ranges in named for pair in ranges]
    for index, (path, each) in enumerate(flat):
        for other_path, other in flat[:index]:
            if each.span.overlaps(other.span):
                ipam.problems.add(f"{path} ({each.span}) overlaps {other_path} ({other.span})")
    if version in ("", "0.1.0", "0.2.0") and len(families) > len(set(families)):
        ipam.problems.add(
            f"cniVersion {version or '0.1.0'} allows one address of each family; use 0.3.0 or later for more sets"
        )
