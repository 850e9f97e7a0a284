"""Direct routing: a peer on a segment of this host is reached by its underlay address, without VXLAN.

Which peers these are is asked of the kernel whenever the rows are compared: those to which no gateway leads.
All others, and these again once a router is between, are reached by VXLAN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from cni_plugin.dataplane import packets
from cni_plugin.ops.operation import Machine, Operation, reapply
from cni_plugin.ops.overlay import peers_of
from cni_plugin.ops.overlay_rows import segments
from weft import overlay
from weft.errors import Missing
from weft.kernel.interface import Element
from weft.overlay import OverlayNetwork

_SETS = {4: packets.DIRECT_PEERS4, 6: packets.DIRECT_PEERS6}
_WITHIN = {4: packets.INTRA_NETWORK4, 6: packets.INTRA_NETWORK6}
_ISOLATED = {
    "closed": {4: packets.DIRECT_CLOSED4, 6: packets.DIRECT_CLOSED6},
    "routed": {4: packets.DIRECT_ROUTED4, 6: packets.DIRECT_ROUTED6},
}


@dataclass(frozen=True, slots=True)
class DirectPeers(Operation):
    """The addresses from which packets come in without VXLAN, each by the link that its host is behind: the
    blocks of peers, and their underlay addresses, which masquerading gives to clients of virtual addresses.

    *Equivalent to:* ``nft add element inet weft direct_peers4 { LINK . BLOCK . BRIDGE }`` for each.
    """

    mark: str
    network: str
    path: str
    bridge: str

    def _differing(self, machine: Machine) -> tuple[list[Element], list[Element]]:
        """The elements that are missing, and those that should not be."""
        found = overlay.read_network(self.path, self.network)
        peers = peers_of(found, self.path)
        if peers is None:
            return [], []
        there = set(self._there(machine))
        links = segments(machine.host, found, peers)
        wanted = {
            Element(_SETS[part.version], (links[peer.name], part, self.bridge), mark=self.mark)
            for peer in peers
            if peer.name in links
            for part in (*peer.blocks, ip_network(peer.underlay))
            if part.version == peer.underlay.version
        }
        return [*(wanted - there)], [*(there - wanted)]

    def _there(self, machine: Machine) -> Iterator[Element]:
        rules = machine.rules()
        for name in _SETS.values():
            with contextlib.suppress(Missing):
                yield from (one for one in rules.elements(name) if one.mark == self.mark)

    def apply(self, machine: Machine) -> bool:
        missing, stray = self._differing(machine)
        if stray:
            machine.rules().delete(stray)
        if missing:
            machine.rules().add(missing)
        return bool(missing or stray)

    def undo(self, machine: Machine) -> None:
        if found := list(self._there(machine)):
            machine.rules().delete(found)

    def mismatch(self, machine: Machine) -> str | None:
        missing, stray = self._differing(machine)
        if missing:
            return f"nftables lacks {missing[0].key[1]} in {missing[0].collection}"
        return f"nftables has {stray[0].key[1]} in {stray[0].collection}, which is no peer's" if stray else None

    def is_missing(self, machine: Machine) -> bool:
        return False  # OverlayRows, which is applied after it, tells whether the files have changed

    def restore(self, machine: Machine) -> bool:
        return reapply(self, machine)

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
