"""What is in weft's tables but for the elements, read from the kernel in a third of a millisecond.

nftables before 1.1.0 fetches every element of a table to list it without them (50 ms for 10,000), so the
question "is all as it was installed?", which every ADD asks, goes to the kernel directly. Only what a rule says is
looked at: handles, and counts of users or of elements, change by themselves.
"""

from __future__ import annotations

from _blake2 import blake2b  # hashlib would load OpenSSL, which takes 4 ms
from dataclasses import dataclass

from weft.errors import Busy
from weft.kernel.nft.socket import Attributes, NftSocket, text

_ATTEMPTS = 20
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_SET = 1, 4, 7, 10

# The attributes that say what a thing is, of all that the kernel tells of it.
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_SAYS = 1, 3, (3, 4, 5, 7, 10)  # name, hook, policy, type, flags
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_COMMENT = 1, 2, 4, 7
_SET_TABLE, _SET_SAYS = 1, (2, 3, 4, 5, 6, 7, 11)  # name, flags, types and lengths of key and data, timeout


@dataclass(frozen=True, slots=True)
class Survey:
    """Some tables: a hash of their rules, chains and sets, which of them are missing and which sleep, their
    chains (table and name), and the stamp's comment."""

    fingerprint: str
    missing: tuple[str, ...]
    dormant: tuple[str, ...]
    chains: tuple[tuple[str, str], ...]
    stamp: bytes


def survey(nft_socket: NftSocket, tables: tuple[str, ...], stamp_chain: str) -> Survey:
    """The tables, each named by family and name; the hash leaves the stamp out, which is in the first of them.

    Raises KernelRefused as ``NftSocket`` does, and Busy where the rules never rest.
    """
    for _ in range(_ATTEMPTS):
        try:
            return _survey(nft_socket, tables, stamp_chain.encode() + b"\0")
        except InterruptedError:
            continue
    raise Busy("the nftables rules keep changing", hint="try again")


def _survey(nft_socket: NftSocket, tables: tuple[str, ...], stamp_chain: bytes) -> Survey:
    digest = blake2b(digest_size=8)
    missing: list[str] = []
    dormant: list[str] = []
    chains: list[tuple[str, str]] = []
    stamp = b""
    for table in tables:
        found = _table(nft_socket, table)
        if found is None:
            missing.append(table)
            continue
        flags, parts, sets, comments = found
        stamp = stamp or comments.get(stamp_chain, b"")
        dormant += [table] if any(flags) else []
        chains += [(table, chain[:-1].decode()) for chain in parts]
        digest.update(flags)
        for chain in sorted(parts.keys() - {stamp_chain}):
            for part in parts[chain]:
                digest.update(part + b"\n")
        for part in sorted(sets):
            digest.update(part)
    return Survey(digest.hexdigest(), tuple(missing), tuple(dormant), tuple(chains), stamp)


_Table = tuple[bytes, dict[bytes, list[bytes]], list[bytes], dict[bytes, bytes]]


def _table(nft_socket: NftSocket, table: str) -> _Table | None:
    """A table's flags, what its chains and their rules say, what its sets say, and the comments in each chain."""
    family, _, plain = table.partition(" ")
    name = plain.encode() + b"\0"
    (there,) = nft_socket.each(_GET_TABLE, [(family, (text(_TABLE_NAME, plain),))])
    if there is None:
        return None
    chains = {
        found[_CHAIN_NAME]: [_said(found, _CHAIN_SAYS)]
        for found in nft_socket.all(_GET_CHAIN, family)  # the kernel filters no chains by table
        if found[_CHAIN_TABLE] == name
    }
    comments: dict[bytes, bytes] = {}
    for found in nft_socket.all(_GET_RULE, family, text(_RULE_TABLE, plain)):
        chain = found[_RULE_CHAIN]
        if found[_RULE_TABLE] == name and chain in chains:
            chains[chain].append(_said(found, (_RULE_EXPRESSIONS, _RULE_COMMENT)))
            comments[chain] = comments.get(chain, b"") + found.get(_RULE_COMMENT, b"")
    sets = [
        _said(found, _SET_SAYS)
        for found in nft_socket.all(_GET_SET, family, text(_SET_TABLE, plain))
        if found[_SET_TABLE] == name
    ]
    return there.get(_TABLE_FLAGS, b""), chains, sets, comments


def _said(found: Attributes, kinds: tuple[int, ...]) -> bytes:
    return b"".join(b"%d:%d:%b" % (kind, len(found[kind]), found[kind]) for kind in kinds if kind in found)
