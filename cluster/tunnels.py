"""Keys of encrypted networks: which generations a host has, and with which it sends, decided from what all say.

A new generation is had by all before one sends with it, and sent with by all before the last one goes, so
that no packet is lost while keys are replaced (docs/overlay.md, "Encryption").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.records import Member, Network

ENCRYPTION, GENERATION, KEYS = "encryption", "generation", "keys"
"""Keys of a network's record and of the files."""


@dataclass(frozen=True, slots=True)
class Generations:
    """``own`` are the generations that this host has keys of, the one to send with is ``sending``."""

    own: tuple[int, ...]
    sending: int


def wanted(network: Network) -> int:
    """The generation that the network is to have; 0 without encryption."""
    if not network.keys.get(ENCRYPTION):
        return 0
    found = network.keys.get(GENERATION)
    return found if isinstance(found, int) and found > 0 else 1


def generations(network: Network, node: str, members: Iterable[Member]) -> Generations:
    """What this host has and sends with, by what the others have published."""
    newest = wanted(network)
    others = [one for one in members if one.node != node and not one.problem]
    if newest == 1:
        return Generations((1,), 1)
    if not all(newest in _published(one) for one in others):
        return Generations((newest - 1, newest), newest - 1)
    last = all(one.keys.get(GENERATION) == newest for one in others)
    return Generations((newest,) if last else (newest - 1, newest), newest)


def _published(member: Member) -> set[object]:
    keys = member.keys.get(KEYS)
    return {one.get(GENERATION) for one in keys if isinstance(one, dict)} if isinstance(keys, list) else set()


def published(found: Generations, public: Mapping[int, str]) -> dict[str, object]:
    """What the host says of its keys, in its member record and in the network's file."""
    own = [{GENERATION: one, "key": public[one]} for one in found.own if one in public]
    return {KEYS: own, GENERATION: found.sending}
