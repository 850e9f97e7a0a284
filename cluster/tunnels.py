"""Keys of encrypted networks: which generations a host has, and with which it sends, decided from what all say.

A new generation is had by all before one sends with it, and sent with by all before the last one goes, so
that no packet is lost while keys are replaced (docs/overlay.md, "Encryption").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.records import Member, Network
from weft import overlay, wireguard
from weft.wireguard import TunnelKey

ENCRYPTION, GENERATION, KEYS, READY = "encryption", "generation", "keys", "ready"
"""Keys of a network's record and of the files. A member's record says with READY the generation of which it knew
everybody's keys, and with GENERATION the one that it sends with.
"""


@dataclass(frozen=True, slots=True)
class Generations:
    """``own`` are the generations that this host has keys of; of ``ready`` it knows the keys of all hosts; it
    sends with ``sending``.
    """

    own: tuple[int, ...]
    ready: int
    sending: int


def wanted(network: Network) -> int:
    """The generation that the network is to have; 0 without encryption."""
    if not network.keys.get(ENCRYPTION):
        return 0
    found = network.keys.get(GENERATION)
    return found if isinstance(found, int) and 0 < found <= wireguard.LAST_GENERATION else 1


def generations(network: Network, node: str, members: Iterable[Member]) -> Generations:
    """What this host has and sends with, by what the others have published.

    Each step waits until all others have said that they took the one before. A host that takes part
    from now on has the newest alone, as those it meets do.
    """
    newest = wanted(network)
    others = [one for one in members if one.node != node and not one.problem]
    if newest == 1:
        return Generations((1,), 1, 1)
    last = newest - 1
    if not all(newest in _published(one) for one in others):
        return Generations((last, newest), last, last)
    if not _all_say(others, READY, newest):
        return Generations((last, newest), newest, last)
    if not _all_say(others, GENERATION, newest):
        return Generations((last, newest), newest, newest)
    return Generations((newest,), newest, newest)


def lagging(network: Network, members: Iterable[Member]) -> list[str]:
    """The hosts that do not send with the newest generation yet, or have older keys still."""
    newest = wanted(network)
    taking_part = [one for one in members if not one.problem]
    return sorted(one.node for one in taking_part if newest and _published(one) != {newest})


def _published(member: Member) -> set[object]:
    keys = member.keys.get(KEYS)
    return {one.get(GENERATION) for one in keys if isinstance(one, dict)} if isinstance(keys, list) else set()


def _all_say(members: Iterable[Member], key: str, generation: int) -> bool:
    return all(one.keys.get(key) == generation for one in members)


def published(found: Generations, public: Mapping[int, str]) -> dict[str, object]:
    """What the host says of its keys, in its member record and in the network's file."""
    own = [{GENERATION: one, "key": public[one]} for one in found.own if one in public]
    return {KEYS: own, READY: found.ready, GENERATION: found.sending}


def parsed(said: Mapping[str, object], network: Network) -> tuple[TunnelKey, ...]:
    """The keys in what a host says; none of a network without encryption. Raises ValueError."""
    keys = said.get(KEYS) if wanted(network) else None
    return wireguard.parse_keys(keys, network.vni) if isinstance(keys, list) else ()


def is_ipsec(network: Network) -> bool:
    return network.keys.get(ENCRYPTION) == overlay.IPSEC


def ports(network: Network) -> set[int]:
    """The UDP ports that a network has on each host."""
    own = {network.port}
    if network.keys.get(ENCRYPTION) == overlay.WIREGUARD:
        own |= {wireguard.default_port(network.vni, generation) for generation in range(wireguard.MOST_KEYS)}
    return own
