"""What the store says of a network as the files that this host's ADD reads (docs/overlay.md)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from cluster import tunnels
from cluster.blocks import Blocks, lost
from cluster.records import Member, Network
from weft import identity, overlay
from weft.types import Address, Subnet

Json = dict[str, object]
log = logging.getLogger(__name__)
_OUTER = {4: 50, 6: 70}
"""Bytes of VXLAN's headers, by the IP version of the underlay."""
_ENCRYPTED = {4: 130, 6: 150}
"""The same with WireGuard's."""


@dataclass(frozen=True, slots=True)
class Host:
    """This host: its ``node`` name, and the underlay address for VXLAN packets with its link's MTU in bytes."""

    node: str
    underlay: Address
    mtu: int


def vtep(network: Network, node: str) -> str:
    """The MAC address of a host's VXLAN link."""
    return identity.mac("vtep", network.name, node)


def own_blocks(blocks: Blocks, node: str, leased: Iterable[Address], withheld: Iterable[Subnet]) -> tuple[Subnet, ...]:
    """What this host may lease from: its blocks but those that it is about to give away, and for the
    leased addresses outside, themselves.
    """
    given = set(withheld)
    parts = [rest for part in blocks.of(node) for rest in _kept(part, given)]
    return (*parts, *lost(parts, leased))


def _kept(part: Subnet, given: set[Subnet]) -> Iterable[Subnet]:
    if part in given:
        return ()
    halves = [*part.subnets(1)] if part.prefixlen < part.max_prefixlen else []
    return (halves[0],) if len(halves) == 2 and halves[1] in given else (part,)


def inner_mtu(network: Network, host: Host, members: Iterable[Member]) -> int:
    """The network's MTU: that of the smallest underlay of its hosts, less VXLAN's headers."""
    smallest = min([host.mtu, *(one.mtu for one in members if one.mtu and not one.problem)])
    return smallest - (_ENCRYPTED if tunnels.wanted(network) else _OUTER)[host.underlay.version]


def network_file(
    network: Network,
    host: Host,
    own: tuple[Subnet, ...],
    fenced: tuple[Subnet, ...],
    mtu: int,
    keys: Mapping[str, object],
) -> Json:
    """``NAME.json``; ``fenced`` are addresses that are leased here and nothing more."""
    found: Json = {
        "format": overlay.FORMAT,
        "network": network.name,
        "vni": network.vni,
        "port": network.port,
        "mac": vtep(network, host.node),
        "underlay": str(host.underlay),
        "mtu": mtu,
        "subnets": [str(one) for one in network.subnets],
        "blocks": [str(one) for one in own],
        "static": [str(one) for one in (*network.static, *fenced)],
        "kept": True,
        **network.keys,
        **keys,
    }
    return found | ({"gateway": str(network.gateway)} if network.gateway is not None else {})


def peers_file(
    network: Network, host: Host, blocks: Blocks, members: Mapping[str, Member], mtus: Mapping[str, int]
) -> Json:
    """``NAME.peers.json``: the other hosts that have blocks; ``mtus`` as probed."""
    owners = blocks.owners()
    found = overlay.OverlayNetwork(
        network.name, network.vni, vtep(network, host.node), host.underlay, 0, network.subnets, ()
    )
    known: dict[object, str] = {found.mac: "", found.underlay: ""}
    peers: list[Json] = []
    for node in sorted(owners):
        member = members.get(node)
        if node == host.node or member is None or member.problem:
            continue
        mtu = mtus.get(node, 0)
        peer = overlay.Peer(node, ip_address(member.underlay), member.mac, tuple(owners[node]), mtu)
        # One record that does not fit must not make the whole file invalid.
        if problem := overlay.peer_problem(peer, found, known):
            log.warning("network %s: host %s is left out: it %s", network.name, node, problem)
            continue
        peers.append(
            {
                **{key: value for key, value in member.keys.items() if key != tunnels.GENERATION},
                "name": node,
                "underlay": member.underlay,
                "mac": member.mac,
                "blocks": [str(one) for one in peer.blocks],
                **({"mtu": mtu} if mtu else {}),
            }
        )
    return {"format": overlay.FORMAT, "network": network.name, "peers": peers}


def text(document: Json) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()
