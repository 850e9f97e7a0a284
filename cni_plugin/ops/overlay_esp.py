"""IPsec of an encrypted overlay network: ESP in transport mode for its VXLAN packets, on a UDP port of its own.

For each peer there is a policy in each direction, and a state for each of this host's keys. So nothing is
sent in clear where a state is missing; where a policy is, a rule drops what is not encrypted (docs/ruleset.md,
``overlay_to_peer``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cni_plugin.ops.operation import Machine
from cni_plugin.ops.overlay import Encryption, peers_of
from weft import esp, overlay, wireguard
from weft.errors import Exists, KernelLacks
from weft.kernel.interface import Namespace
from weft.kernel.values import EspPolicy, EspRow, EspState
from weft.overlay import OverlayNetwork, Peer
from weft.wireguard import TunnelKey

Spis = dict[str, tuple[int, int]]
"""By the peer's key: the SPIs of what this host sends with, and receives with."""
_NONE = (esp.NO_STATE, esp.NO_STATE)


@dataclass(frozen=True, slots=True)
class Esp(Encryption):
    """The IPsec states and policies of an encrypted overlay network.

    This host sends with the state of one generation, and receives with any. *Equivalent to:* ``ip xfrm state
    add``, ``ip xfrm policy update``. Raises Busy without a private key, KernelLacks without ESP.
    """

    def undo(self, machine: Machine) -> None:
        try:
            machine.host.delete_esp(machine.host.esp(self._reqid))
        except KernelLacks:
            return  # then there is none

    def commands(self, namespace: str) -> tuple[str, ...]:
        found = overlay.read_network(self.path, self.network)
        lines = []
        for peer in peers_of(found, self.path) or ():
            for source, destination, direction in (
                (found.underlay, peer.underlay, "out"),
                (peer.underlay, found.underlay, "in"),
            ):
                ends = f"src {source} dst {destination}"
                selector = f"{ends} proto udp dport {found.port}"
                kind = f"proto esp reqid {self._reqid:#x} mode transport"
                for key in found.keys:
                    if any(key.generation == one.generation for one in peer.keys):
                        aead = "aead 'rfc4106(gcm(aes))' KEY 128 flag esn replay-window 128"
                        lines.append(f"ip xfrm state add {ends} spi SPI {kind} {aead} sel {selector}")
                lines.append(f"ip xfrm policy update {selector} dir {direction} priority 0x77 tmpl {ends} {kind}")
        return tuple(lines)

    @property
    def _reqid(self) -> int:
        return esp.REQIDS | self.vni

    def repairs(self, host: Namespace, *, only_tell: bool = False) -> Iterator[str]:
        found = overlay.read_network(self.path, self.network)
        peers = peers_of(found, self.path)
        if peers is None:
            return
        there = set(host.esp(self._reqid))
        wanted: set[EspRow] = set()
        spis: dict[int, Spis] = {}
        for key in found.keys:
            used = esp.used(self.path, key.generation)
            ours = [(peer, one.key) for peer in peers for one in peer.keys if one.generation == key.generation]
            states = {one for peer, public in ours for one in self._states(found, peer, used.get(public, _NONE))}
            if not states <= there:
                if not only_tell:
                    self._discard(host, key, used)
                yield f"IPsec states of generation {key.generation} are gone, and its key must not be used again"
                used = {}
            elif new := [(peer, public) for peer, public in ours if public not in used]:
                if not only_tell:
                    self._add(host, found, key, new, used)
                    states = {one for peer, public in ours for one in self._states(found, peer, used[public])}
                yield from (f"the IPsec states for {peer.underlay} are missing" for peer, _ in new)
            if used:
                wanted |= states
            spis[key.generation] = used
        policies = {policy for peer in peers for policy in self._policies(found, peer, spis)}
        missing = policies - there
        if missing and not only_tell:
            host.add_esp(missing)
        yield from (f"the IPsec policy from {one.source} to {one.destination} is missing" for one in missing)
        # A policy that was replaced is not there any more.
        kept = {_place(one) for one in policies}
        stray = [one for one in there - wanted if isinstance(one, EspState) or _place(one) not in kept]
        if stray and not only_tell:
            host.delete_esp(stray)
        yield from (f"an IPsec row from {one.source} to {one.destination} belongs to no peer" for one in stray)

    def _states(
        self, found: OverlayNetwork, peer: Peer, spis: tuple[int, int], keys: tuple[bytes, bytes] = (b"", b"")
    ) -> tuple[EspState, ...]:
        if esp.NO_STATE in spis:
            return ()
        here, there = found.underlay, peer.underlay
        return (
            EspState(here, there, found.port, self._reqid, spis[0], keys[0]),
            EspState(there, here, found.port, self._reqid, spis[1], keys[1]),
        )

    def _add(
        self, host: Namespace, found: OverlayNetwork, key: TunnelKey, new: Iterable[tuple[Peer, str]], used: Spis
    ) -> None:
        """Add the states for peers that have a key of the same generation."""
        private, before = wireguard.read_key(self.path, key.generation), dict(used)
        states: list[EspState] = []
        for peer, public in new:
            try:
                out, back = esp.derive(private, key.key, public, self.vni, key.generation)
            except ValueError:
                used[public] = _NONE  # that peer's key is worth nothing: its policy lets nothing pass
                continue
            used[public] = out.spi, back.spi
            states += self._states(found, peer, used[public], (out.key, back.key))
        esp.note_use(self.path, key.generation, used)
        try:
            host.add_esp(states)
        except KernelLacks:
            esp.note_use(self.path, key.generation, before)
            raise
        except Exists:  # another program has that SPI: with another key they are others
            self._discard(host, key, used)
            raise

    def _discard(self, host: Namespace, key: TunnelKey, used: Spis) -> None:
        """Remove the key, of which the agent makes another one, and its states."""
        esp.discard(self.path, key.generation)
        gone = {spi for pair in used.values() for spi in pair}
        host.delete_esp([one for one in host.esp(self._reqid) if isinstance(one, EspState) and one.spi in gone])

    def _policies(self, found: OverlayNetwork, peer: Peer, spis: dict[int, Spis]) -> tuple[EspPolicy, EspPolicy]:
        chosen = wireguard.sending(found.keys, found.generation, peer.keys)
        spi = spis[chosen.generation].get(chosen.key, _NONE)[0] if chosen is not None else esp.NO_STATE
        here, there = found.underlay, peer.underlay
        return (
            EspPolicy(here, there, found.port, self._reqid, spi, out=True),
            EspPolicy(there, here, found.port, self._reqid, 0, out=False),
        )


def _place(policy: EspPolicy) -> tuple[object, ...]:
    """What there is one policy of."""
    return policy.out, policy.source, policy.destination, policy.port
