"""Direct routing: a peer on a segment of this host is reached by its underlay address, without VXLAN.

Which peers these are is asked of the kernel whenever the rows are compared: those to which no gateway leads.
All others, and these again once a router is between, are reached by VXLAN.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import ClassVar

from cni_plugin.dataplane import packets
from cni_plugin.dataplane.overlay import (
    DIRECT_CLOSED4,
    DIRECT_CLOSED6,
    DIRECT_PEERS4,
    DIRECT_PEERS6,
    DIRECT_ROUTED4,
    DIRECT_ROUTED6,
)
from cni_plugin.ops.operation import Machine
from cni_plugin.ops.overlay import PeerElements
from cni_plugin.ops.overlay_rows import segments
from weft.kernel.values import Element
from weft.overlay import OverlayNetwork, Peer

_SETS = {4: DIRECT_PEERS4, 6: DIRECT_PEERS6}
_WITHIN = {4: packets.INTRA_NETWORK4, 6: packets.INTRA_NETWORK6}
_ISOLATED = {
    "closed": {4: DIRECT_CLOSED4, 6: DIRECT_CLOSED6},
    "routed": {4: DIRECT_ROUTED4, 6: DIRECT_ROUTED6},
}


@dataclass(frozen=True, slots=True)
class DirectPeers(PeerElements):
    """The addresses from which packets come in without VXLAN, each by the link that its host is behind: the
    blocks of peers, and their underlay addresses, which masquerading gives to clients of virtual addresses.

    *Equivalent to:* ``nft add element inet weft direct_peers4 { LINK . BLOCK . BRIDGE }`` for each.
    """

    SETS: ClassVar[tuple[str, ...]] = tuple(_SETS.values())
    SHOWN: ClassVar[int] = 1

    bridge: str

    def wanted(self, machine: Machine, network: OverlayNetwork, peers: tuple[Peer, ...]) -> set[Element]:
        links = segments(machine.host, network, peers)
        return {
            Element(_SETS[part.version], (links[peer.name], part, self.bridge), mark=self.mark)
            for peer in peers
            if peer.name in links
            for part in (*peer.blocks, ip_network(peer.underlay))
            if part.version == peer.underlay.version
        }

    def commands(self, namespace: str) -> tuple[str, ...]:
        return (f"nft list set inet weft direct_peers4  # of {self.network}",)


def direct_elements(mark: str, network: OverlayNetwork, bridge: str, isolation: str) -> tuple[Element, ...]:
    """The elements that let the network's own containers to the others by the uplink, and no others."""
    found = []
    for one in network.subnets:
        found.append(Element(_WITHIN[one.version], (bridge, one), mark=mark))
        if isolation in _ISOLATED:
            found.append(Element(_ISOLATED[isolation][one.version], (one,), mark=mark))
    return tuple(found)
