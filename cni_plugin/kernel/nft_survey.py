"""What is in weft's table but for the elements, read from the kernel in a third of a millisecond.

nftables before 1.1.0 fetches every element of a table to list it without them (50 ms for 10,000), so the
question "is all as it was installed?", which every ADD asks, goes to the kernel directly. Only what a rule says is
looked at: handles, and counts of users or of elements, change by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from cni_plugin.errors import Busy
from cni_plugin.kernel.nft_netlink import Attributes, Questions, text

_ATTEMPTS = 20
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_SET = 1, 4, 7, 10

# The attributes that say what a thing is, of all that the kernel tells of it.
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_SAYS = 1, 3, (3, 4, 5, 7, 10)  # name, hook, policy, type, flags
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_COMMENT = 1, 2, 4, 7
_SET_TABLE, _SET_SAYS = 1, (2, 3, 4, 5, 6, 7, 11)  # name, flags, types and lengths of key and data, timeout


@dataclass(frozen=True, slots=True)
class Survey:
    """A table: a hash of its rules, chains and sets, whether it sleeps, its chains, and the stamp's comment."""

    fingerprint: str
    dormant: bool
    chains: tuple[str, ...]
    stamp: bytes


def survey(questions: Questions, table: str, stamp_chain: str) -> Survey | None:
    """The table of family inet, None where it is missing; the hash leaves the stamp out.

    Raises KernelRefused as ``Questions`` does, and Busy where the rules never rest.
    """
    for _ in range(_ATTEMPTS):
        try:
            return _survey(questions, table, stamp_chain.encode() + b"\0")
        except InterruptedError:
            continue
    raise Busy("the nftables rules keep changing", hint="try again")


def _survey(questions: Questions, table: str, stamp_chain: bytes) -> Survey | None:
    name = table.encode() + b"\0"
    (there,) = questions.each(_GET_TABLE, [(text(_TABLE_NAME, table),)])
    if there is None:
        return None
    chains = {
        found[_CHAIN_NAME]: _said(found, _CHAIN_SAYS)
        for found in questions.all(_GET_CHAIN)  # the kernel filters no chains by table
        if found[_CHAIN_TABLE] == name
    }
    rules: dict[bytes, list[bytes]] = {}
    stamp = b""
    for found in questions.all(_GET_RULE, text(_RULE_TABLE, table)):
        if found[_RULE_TABLE] == name:
            rules.setdefault(found[_RULE_CHAIN], []).append(_said(found, (_RULE_EXPRESSIONS, _RULE_COMMENT)))
            if found[_RULE_CHAIN] == stamp_chain:
                stamp += found.get(_RULE_COMMENT, b"")
    sets = [
        _said(found, _SET_SAYS)
        for found in questions.all(_GET_SET, text(_SET_TABLE, table))
        if found[_SET_TABLE] == name
    ]
    digest = blake2b(there.get(_TABLE_FLAGS, b""), digest_size=8)
    for chain in sorted(chains.keys() - {stamp_chain}):
        for part in (chains[chain], *rules.get(chain, ())):
            digest.update(part + b"\n")
    for part in sorted(sets):
        digest.update(part)
    dormant = any(there.get(_TABLE_FLAGS, b""))
    return Survey(digest.hexdigest(), dormant, tuple(chain[:-1].decode() for chain in chains), stamp)


def _said(found: Attributes, kinds: tuple[int, ...]) -> bytes:
    return b"".join(b"%d:%d:%b" % (kind, len(found[kind]), found[kind]) for kind in kinds if kind in found)
