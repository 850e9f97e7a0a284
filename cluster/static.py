"""Static addresses: which ones this host claims, asks others for, hands over and gives back.

A static address is a block of one address in a static range of its network. Its record says which host it
is at, and each of its changes is a transaction on that record. A host that wants one which another host has
writes an *ask* beside it; the other hands it over if no container there has it, else writes that into the ask.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from dataclasses import replace as changed
from ipaddress import ip_network

from cluster.blocks import Blocks, Change, is_static
from cluster.records import Ask, Block, Network
from weft.claims import Claim
from weft.types import Address


@dataclass(frozen=True, slots=True)
class Asking:
    """Ask the host that has an address."""

    ask: Ask


@dataclass(frozen=True, slots=True)
class Refusal:
    """The ask with the reason why the address is not handed over."""

    ask: Ask


def decide(
    blocks: Blocks, node: str, leased: Collection[Address], claims: Collection[Claim], asks: Collection[Ask]
) -> list[Change | Asking | Refusal]:
    """What the host ``node`` does next about static addresses."""
    users = {address: claim for claim in claims for address in claim.addresses}
    return [
        *_wanted(blocks, node, users.values(), asks),
        *_asked_for(blocks, node, leased, {address: str(claim) for address, claim in users.items()}, asks),
        *_unused(blocks, node, {*leased, *users}),
    ]


def _wanted(blocks: Blocks, node: str, claims: Iterable[Claim], asks: Collection[Ask]) -> Iterator[Change | Asking]:
    asked = {(one.address, one.token) for one in asks if one.node == node}
    for claim in dict.fromkeys(claims):
        for address in claim.addresses:
            single = ip_network(address)
            if not is_static(blocks.network, single) or _is_machine(blocks.network, address):
                continue
            there = blocks.at(single)
            if there is None:
                yield Change(None, Block(single, node))
            elif there.node != node and (address, claim.token) not in asked:
                yield Asking(Ask(blocks.network.name, address, node, claim.token))


def _asked_for(
    blocks: Blocks, node: str, leased: Collection[Address], users: dict[Address, str], asks: Iterable[Ask]
) -> Iterator[Change | Refusal]:
    handed_over = set()
    for ask in asks:
        block = blocks.at(ip_network(ask.address))
        if block is None or block.node != node or ask.node == node or ask.refused or ask.address in handed_over:
            continue
        if ask.address in leased or ask.address in users:
            by = users.get(ask.address, "a container")
            yield Refusal(changed(ask, refused=f"{by} on host {node} uses it"))
        else:
            handed_over.add(ask.address)
            yield Change(block, changed(block, node=ask.node), block.subnet, ask=ask)


def _unused(blocks: Blocks, node: str, used: Collection[Address]) -> Iterator[Change]:
    for part in blocks.of(node):
        if is_static(blocks.network, part) and not any(one in part for one in used):
            block = blocks.at(part)
            if block is not None and block.node == node:
                yield Change(block, None, part)


def answer(
    blocks: Blocks, node: str, claim: Claim, own: Collection[Address], asks: Iterable[Ask], unanswered: str
) -> str | None:
    """What came of a claim: why it is refused, "" if it is not, None if that is open. ``own`` are the
    addresses that this host has, and which its files say; ``unanswered`` says why nobody answers, if nobody does.
    """
    network = blocks.network
    for address in claim.addresses:
        if address in own:
            continue
        if _is_machine(network, address):
            return refused(address, network, "it is for machines on the VLAN")
        if not is_static(network, ip_network(address)):
            return refused(address, network, f"it is in no static range ({_ranges(network)})")
        mine = (one for one in asks if (one.address, one.node, one.token) == (address, node, claim.token))
        if found := next((one.refused for one in mine if one.refused), ""):
            return refused(address, network, found)
        if not unanswered:
            return None
        there = blocks.at(ip_network(address))
        if there is not None and there.node != node:
            unanswered = (
                f"host {there.node} has it and does not answer; once that host is certainly off, weft node rm "
                f"{there.node} --powered-off frees it"
            )
        return refused(address, network, unanswered)
    return ""


def _is_machine(network: Network, address: Address) -> bool:
    gateway = network.vlan_gateway
    return gateway is not None and address in gateway.range


def refused(address: Address, network: Network, why: str) -> str:
    return f"address {address} of network {network.name} is not available: {why}"


def _ranges(network: Network) -> str:
    return ", ".join(map(str, network.static)) or "it has none; weft network create -o static=RANGE"
