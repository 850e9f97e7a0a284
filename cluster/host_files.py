"""What the store says of a network as the files that this host's ADD reads (docs/overlay.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from cluster import tunnels
from cluster.blocks import Blocks, lost
from cluster.records import Member, Network, without
from weft import identity, overlay
from weft.overlay_modes import L2, PORTS, VLAN_GATEWAY
from weft.types import Address, Subnet

Json = dict[str, object]
_IP = {4: 20, 6: 40}
"""Bytes of an IP header."""
_VXLAN = 8 + 8 + 14
"""Bytes of the headers of UDP, VXLAN and the inner Ethernet frame."""
_WIREGUARD = _IP[6] + 8 + 32
"""What WireGuard adds beside the outer IP header, with the VXLAN packet's own, which is IPv6."""
_ESP, _ESP_END, _ESP_BLOCK = 8 + 8 + 16, 2, 4
"""SPI, sequence number, counter and check value of ESP; its trailer; and what it is padded to (RFC 4303, 4106)."""
_LEAST = {4: 576, 6: 1280}
"""The least MTU of a network, in bytes: RFC 791 and RFC 8200."""


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
    given = tuple(withheld)
    parts = [rest for part in blocks.of(node) for rest in without(part, given)]
    return (*parts, *lost(parts, leased))


def inner_mtu(network: Network, host: Host, members: Iterable[Member]) -> int:
    """The network's MTU: that of the smallest underlay of its hosts, less the headers that it adds."""
    least = _least_mtu(network, host)
    smallest = min([host.mtu, *(one.mtu for one in members if one.mtu >= least and not one.problem)])
    inside = smallest - _IP[host.underlay.version]
    match network.keys.get(tunnels.ENCRYPTION):
        case overlay.WIREGUARD:
            inside -= _WIREGUARD
        case overlay.IPSEC:
            inside = (inside - _ESP) // _ESP_BLOCK * _ESP_BLOCK - _ESP_END
    return inside - _VXLAN


def _least_mtu(network: Network, host: Host) -> int:
    """The smallest underlay with which a host can take part: what is smaller must not make the network unusable."""
    headers = _IP[host.underlay.version] + _VXLAN + (max(_WIREGUARD, _ESP) if tunnels.wanted(network) else 0)
    return _LEAST[max(one.version for one in network.subnets)] + headers


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
    gateway = network.keys.get(VLAN_GATEWAY)
    if isinstance(gateway, dict) and gateway.get("host") == host.node:
        found[VLAN_GATEWAY] = {**gateway, "local": True}
    return found | ({"gateway": str(network.gateway)} if network.gateway is not None else {})


def peers_file(
    network: Network,
    host: Host,
    blocks: Blocks,
    members: Mapping[str, Member],
    mtus: Mapping[str, int],
    keys: Mapping[str, object],
) -> tuple[Json, dict[str, str]]:
    """``NAME.peers.json``: the other hosts that have blocks, ``mtus`` as probed, ``keys`` as in this host's own
    file; and the hosts that are left out, with the reason.

    One record that does not fit must not make the whole file invalid. Of two hosts that say the same of
    themselves, the one stays that has taken part longer.
    """
    owners = blocks.owners()
    found = overlay.OverlayNetwork(
        network.name, network.vni, vtep(network, host.node), host.underlay, 0, network.subnets, ()
    )
    known: dict[object, str] = {found.mac: "this host", found.underlay: "this host"}
    known |= dict.fromkeys((one.key for one in tunnels.parsed(keys, network)), "this host")
    peers: list[Json] = []
    left_out: dict[str, str] = {}
    gateway = network.vlan_gateway
    others = [one for node in owners.keys() - {host.node} if (one := members.get(node)) is not None]
    for member in sorted(others, key=lambda one: (one.created, one.node)):
        if member.problem:
            continue
        if 0 < member.mtu < (least := _least_mtu(network, host)):
            left_out[member.node] = f"has an underlay with an MTU of {member.mtu}, and the network needs {least}"
            continue
        mtu, public = mtus.get(member.node, 0), tunnels.parsed(member.keys, network)
        own = tuple(owners[member.node])
        peer = overlay.Peer(member.node, ip_address(member.underlay), member.mac, own, mtu, public)
        if problem := overlay.peer_problem(peer, found, known):
            left_out[member.node] = problem
            continue
        machines = (gateway.range,) if gateway is not None and gateway.host == member.node else ()
        peers.append(
            {
                "name": member.node,
                "underlay": member.underlay,
                "mac": member.mac,
                "blocks": [str(one) for one in (*peer.blocks, *machines)],
                **({"mtu": mtu} if mtu else {}),
                **({tunnels.KEYS: member.keys[tunnels.KEYS]} if public else {}),
                **({PORTS: member.keys[PORTS]} if PORTS in member.keys and network.mode == L2 else {}),
            }
        )
    peers.sort(key=lambda one: str(one["name"]))
    return {"format": overlay.FORMAT, "network": network.name, "peers": peers}, left_out


def text(document: Json) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()
