"""Which blocks a host claims, gives back and lends: decisions, from what the store says and what is leased.

Each decision is one change of one key, on the condition that the key is as it was seen, so that of two
hosts with the same idea one succeeds. What is given away is first withheld from leasing (``withhold``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from cluster.records import Ask, Block, Network
from weft import overlay
from weft.types import Address, Subnet

FULL, ROOMY = 0.8, 0.5
"""A host claims a block where so much of its blocks is leased, and gives one back where no more would be."""
_SMALLEST = {4: 30, 6: 124}
"""The longest prefix of what is lent."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The leases of a network on this host. ``idle`` are its blocks that had none for a while."""

    leased: frozenset[Address] = frozenset()
    idle: frozenset[Subnet] = frozenset()


@dataclass(frozen=True, slots=True)
class Change:
    """From one value of a block's key to another; None: there is no key. ``withhold`` is what must not be
    leased any more before the change, ``served`` the host whose wish it is, ``ask`` what is granted.
    """

    old: Block | None
    new: Block | None
    withhold: Subnet | None = None
    served: str = ""
    ask: Ask | None = None

    @property
    def subnet(self) -> Subnet:
        one = self.new or self.old
        assert one is not None
        return one.subnet


@dataclass(frozen=True, slots=True)
class Wish:
    """No block is free: the host asks others to lend it one."""

    version: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """All blocks of a network, in the order in which they were claimed."""

    network: Network
    all: tuple[Block, ...]
    _by_subnet: Mapping[Subnet, Block] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_subnet", {one.subnet: one for one in self.all})

    def at(self, subnet: Subnet) -> Block | None:
        return self._by_subnet.get(subnet)

    def of(self, node: str) -> tuple[Subnet, ...]:
        """What a node has, its oldest block first: the first address of that is the host's own."""
        return tuple(part for block in self.all for part in block.of(node))

    def owners(self) -> dict[str, list[Subnet]]:
        """What each node has."""
        found: dict[str, list[Subnet]] = {}
        for block in self.all:
            for node in dict.fromkeys((block.node, *(owner for _, owner in block.parts))):
                found.setdefault(node, []).extend(block.of(node))
        return {node: parts for node, parts in found.items() if parts}

    def free(self, subnet: Subnet, start: int) -> Subnet | None:
        """The first block from number ``start`` on that nobody has and that is no static range."""
        length = self.network.length(subnet.version)
        count = 1 << (length - subnet.prefixlen)
        if sum(one.subnet.prefixlen == length and one.subnet.version == subnet.version for one in self.all) >= count:
            return None
        size = 1 << (subnet.max_prefixlen - length)
        first = int(subnet.network_address)
        for step in range(count):
            number = (start + step) % count
            found = ip_network((first + number * size, length))
            if found not in self._by_subnet and not is_static(self.network, found):
                return found
        return None

    def block_of(self, address: Address) -> Subnet:
        """The block that an address is in, whoever has it: its own one where it is static."""
        single = ip_network(address)
        if is_static(self.network, single):
            return single
        length = self.network.length(address.version)
        rest = address.max_prefixlen - length
        return ip_network((int(address) >> rest << rest, length))


def is_static(network: Network, part: Subnet) -> bool:
    """Whether a part of the network's subnets is in a static range."""
    return any(one.version == part.version and part.network_address in one for one in network.static)


def static_problem(network: Network, static: Subnet) -> str:
    """Why a range cannot be static, "" if it can: it must consist of whole blocks."""
    inside = next((one for one in network.subnets if one.version == static.version and one.overlaps(static)), None)
    if inside is None or static.prefixlen <= inside.prefixlen:
        return "is not a part of the network's subnet"
    length = network.length(static.version)
    return f"must consist of whole blocks: a prefix of at most {length}" if static.prefixlen > length else ""


def overlaps(one: Subnet, other: Subnet) -> bool:
    return one.version == other.version and one.overlaps(other)


def usable(part: Subnet) -> int:
    """How many addresses of a block can be leased, about: not its first, which may be the host's own."""
    first, last = overlay.bounds(part)
    return max(last - first, 1)


def decide(
    blocks: Blocks,
    node: str,
    usage: Usage,
    wanted: Mapping[str, Sequence[int]],
    start: int,
    *,
    joined: bool = True,
    may_claim: bool = True,
) -> list[Change | Wish]:
    """What the host ``node`` does next. ``wanted`` are the IP versions that other hosts ask a block of,
    ``start`` is a random number. Without ``may_claim`` what looks free may be another host's, and hosts only lend.

    A host that does not take part in the network (``joined``) keeps what it leases from.
    """
    found: list[Change | Wish] = [*_asserted(blocks, node, usage)]
    if found:
        return found
    for subnet in blocks.network.subnets:
        own = [one for one in blocks.of(node) if one.version == subnet.version]
        dynamic = [one for one in own if not is_static(blocks.network, one)]
        used = {part: _leases(part, usage) for part in dynamic}
        room, taken = sum(map(usable, dynamic)), sum(used.values())
        if joined and (not dynamic or taken >= FULL * room):
            free = blocks.free(subnet, start) if may_claim else None
            found.append(Change(None, Block(free, node)) if free is not None else Wish(subnet.version))
            continue
        change = _given_back(blocks, node, dynamic[0 if not joined else 1 :], usage, room, taken, joined)
        if change is None and not (may_claim and blocks.free(subnet, 0) is not None):
            change = _lent(blocks, node, subnet, used, usage.leased, wanted)
        if change is not None:
            found.append(change)
    return found


def _leases(part: Subnet, usage: Usage) -> int:
    if part.num_addresses <= len(usage.leased):
        return sum(one in usage.leased for one in part)
    return sum(one in part for one in usage.leased if one.version == part.version)


def _asserted(blocks: Blocks, node: str, usage: Usage) -> Iterator[Change]:
    """Claims of what this host leases from and the store knows nothing of, since it was restored."""
    known = {one.version for one in blocks.network.subnets}
    for subnet in {blocks.block_of(one) for one in usage.leased if one.version in known}:
        if blocks.at(subnet) is None and any(overlaps(one, subnet) for one in blocks.network.subnets):
            yield Change(None, Block(subnet, node))


def _given_back(
    blocks: Blocks, node: str, parts: Sequence[Subnet], usage: Usage, room: int, taken: int, joined: bool
) -> Change | None:
    """The release of a block that was idle, the latest first."""
    for part in reversed(parts):
        if part in usage.idle and (not joined or taken <= ROOMY * (room - usable(part))):
            change = released(_holding(blocks, part, node), node, part)
            if change is not None:
                return change
    return None


def _holding(blocks: Blocks, part: Subnet, node: str) -> Block:
    return next(one for one in blocks.all if part in one.of(node))


def released(block: Block, node: str, part: Subnet) -> Change | None:
    """The change that gives back what a node has of a block; None where it has lent of it to others."""
    if part != block.subnet and (part, node) in block.parts:
        rest = tuple(each for each in block.parts if each != (part, node))
        return Change(block, replace(block, parts=rest), part)
    return Change(block, None, part) if block.subnet == part and block.node == node else None


def _lent(
    blocks: Blocks,
    node: str,
    subnet: Subnet,
    used: Mapping[Subnet, int],
    leased: Iterable[Address],
    wanted: Mapping[str, Sequence[int]],
) -> Change | None:
    """The loan of the upper half of a block without leases there."""
    version = subnet.version
    asking = sorted(one for one, versions in wanted.items() if version in versions and one != node)
    if not asking:
        return None
    for part in sorted(used, key=lambda one: (one.prefixlen, used[one])):
        block = _holding(blocks, part, node)
        if part.prefixlen >= _SMALLEST[version] or block.node != node:
            continue
        upper = [*part.subnets(1)][1]
        if any(one in upper for one in leased):
            continue
        return Change(block, replace(block, parts=(*block.parts, (upper, asking[0]))), upper, asking[0])
    return None


def freed(block: Block, gone: str) -> Change | None:
    """The change after a node was removed; what it has lent of a block makes a borrower its owner."""
    rest = tuple(each for each in block.parts if each[1] != gone)
    if block.node != gone:
        return Change(block, replace(block, parts=rest)) if rest != block.parts else None
    if not rest:
        return Change(block, None)
    heir = rest[0][1]
    return Change(block, replace(block, node=heir, parts=tuple(each for each in rest if each[1] != heir)))


def lost(own: Iterable[Subnet], leased: Iterable[Address]) -> tuple[Subnet, ...]:
    """The leased addresses in no block of this host: they work on, and nothing else is leased beside them."""
    parts = tuple(own)
    outside = [one for one in leased if not any(one.version == part.version and one in part for part in parts)]
    return tuple(ip_network(one) for one in sorted(outside, key=lambda one: (one.version, int(one))))
