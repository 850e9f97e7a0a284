"""What is in weft's tables but for the elements, read from the kernel in a third of a millisecond.

nftables before 1.1.0 fetches every element of a table to list it without them (50 ms for 10,000), so the
question "is all as it was installed?", which every ADD asks, goes to the kernel directly. Only what a rule says is
looked at: handles, and counts of users or of elements, change by themselves.
"""

from __future__ import annotations

from _blake2 import blake2b  # hashlib would load OpenSSL, which takes 4 ms
from dataclasses import dataclass

from weft.errors import Busy, Missing
from weft.kernel.nft.lookup import LENGTHS
from weft.kernel.nft.socket import Attributes, NftSocket, text
from weft.kernel.schema import Shape

_ATTEMPTS = 20
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_SET = 1, 4, 7, 10

# The attributes that say what a thing is, of all that the kernel tells of it.
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_SAYS = 1, 3, 4, (3, 4, 5, 7, 10)  # name, hook, policy, type, flags
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_COMMENT = 1, 2, 4, 7
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_HANDLE = 1, 2, 3, 16
_SET_KEY_TYPE, _SET_KEY_LENGTH, _SET_DATA_TYPE, _SET_DATA_LENGTH = 4, 5, 6, 7
_SET_NUMBERS = (_SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LENGTH, _SET_DATA_TYPE, _SET_DATA_LENGTH)
_SET_SAYS = (_SET_NAME, *_SET_NUMBERS, 11)  # and the timeout

_ANONYMOUS, _MAP = 0x1, 0x8
_FLAGS = {0x4: "interval", 0x10: "timeout", 0x20: "dynamic"}
_VERDICT = 0xFFFFFF00
_INTEGER = 4
_TYPES = {
    7: "ipv4_addr", 8: "ipv6_addr", 9: "ether_addr", 12: "inet_proto", 13: "inet_service", 19: "mark", 21: "classid",
    41: "ifname",
}  # fmt: skip
"""nftables' numbers for types of data (``enum datatypes`` in its datatype.h), which the kernel keeps for it."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Some tables: a hash of their rules, chains and sets; which of them are missing and which are dormant; their
    chains (table, name, whether a hook enters it), their sets and maps with handles, and the stamp's comment."""

    fingerprint: str
    missing: tuple[str, ...]
    dormant: tuple[str, ...]
    chains: tuple[tuple[str, str, bool], ...]
    sets: tuple[tuple[Shape, int], ...]
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


def declared(nft_socket: NftSocket, tables: tuple[str, ...]) -> dict[str, Shape]:
    """The sets and maps of the tables, by name. *Equivalent to:* ``nft list sets; nft list maps``, of these tables."""
    for _ in range(_ATTEMPTS):
        try:
            return {shape.name: shape for table in tables for shape, _ in _shapes(_sets(nft_socket, table), table)}
        except InterruptedError:
            continue
    raise Busy("the nftables rules keep changing", hint="try again")


def _sets(nft_socket: NftSocket, table: str) -> list[Attributes]:
    family, _, plain = table.partition(" ")
    name = plain.encode() + b"\0"
    try:
        found = nft_socket.all(_GET_SET, family, text(_SET_TABLE, plain))
    except Missing:
        return []
    return [one for one in found if one[_SET_TABLE] == name]


def _shapes(found: list[Attributes], table: str) -> list[tuple[Shape, int]]:
    """Sets and maps with their handles; those that rules have of their own are left out."""
    return [
        (_shape(one, table), int.from_bytes(one[_SET_HANDLE], "big"))
        for one in found
        if not int.from_bytes(one.get(_SET_FLAGS, b""), "big") & _ANONYMOUS
    ]


def _shape(found: Attributes, table: str) -> Shape:
    numbers = {kind: int.from_bytes(found.get(kind, b""), "big") for kind in _SET_NUMBERS}
    flags = tuple(sorted(name for bit, name in _FLAGS.items() if numbers[_SET_FLAGS] & bit))
    data: tuple[str, ...] = ()
    if numbers[_SET_FLAGS] & _MAP:
        of_data = numbers[_SET_DATA_TYPE]
        data = ("verdict",) if of_data == _VERDICT else _types(of_data, numbers[_SET_DATA_LENGTH])
    name = found[_SET_NAME][:-1].decode("utf-8", "replace")
    return Shape(name, _types(numbers[_SET_KEY_TYPE], numbers[_SET_KEY_LENGTH]), data, flags, table)


def _types(concatenated: int, length: int) -> tuple[str, ...]:
    """The types of a key's parts, six bits each. A number's length is what the other parts leave (``Shape.padded``)."""
    numbers: list[int] = []
    while concatenated:
        numbers.insert(0, concatenated & 0x3F)
        concatenated >>= 6
    names = [_TYPES.get(number, f"type{number}") for number in numbers]
    rest = length - sum((LENGTHS.get(name, 0) + 3) & ~3 for name in names)
    return tuple(f"bits{8 * rest}" if number == _INTEGER else name for number, name in zip(numbers, names, strict=True))


def _survey(nft_socket: NftSocket, tables: tuple[str, ...], stamp_chain: bytes) -> Survey:
    digest = blake2b(digest_size=8)
    missing: list[str] = []
    dormant: list[str] = []
    chains: list[tuple[str, str, bool]] = []
    sets: list[tuple[Shape, int]] = []
    stamp = b""
    for table in tables:
        found = _table(nft_socket, table)
        if found is None:
            missing.append(table)
            continue
        flags, parts, hooked, held, comments = found
        stamp = stamp or comments.get(stamp_chain, b"")
        dormant += [table] if any(flags) else []
        chains += [(table, chain[:-1].decode(), chain in hooked) for chain in parts]
        sets += _shapes(held, table)
        digest.update(flags)
        for chain in sorted(parts.keys() - {stamp_chain}):
            for part in parts[chain]:
                digest.update(part + b"\n")
        for part in sorted(_said(one, _SET_SAYS) for one in held):
            digest.update(part)
    return Survey(digest.hexdigest(), tuple(missing), tuple(dormant), tuple(chains), tuple(sets), stamp)


_Table = tuple[bytes, dict[bytes, list[bytes]], set[bytes], list[Attributes], dict[bytes, bytes]]


def _table(nft_socket: NftSocket, table: str) -> _Table | None:
    """A table's flags; what its chains and their rules say; base chains; sets; the comments of each chain's rules."""
    family, _, plain = table.partition(" ")
    name = plain.encode() + b"\0"
    (there,) = nft_socket.each(_GET_TABLE, [(family, (text(_TABLE_NAME, plain),))])
    if there is None:
        return None
    found_chains = [one for one in nft_socket.all(_GET_CHAIN, family) if one[_CHAIN_TABLE] == name]  # no filter there
    chains = {one[_CHAIN_NAME]: [_said(one, _CHAIN_SAYS)] for one in found_chains}
    hooked = {one[_CHAIN_NAME] for one in found_chains if _CHAIN_HOOK in one}
    comments: dict[bytes, bytes] = {}
    for found in nft_socket.all(_GET_RULE, family, text(_RULE_TABLE, plain)):
        chain = found[_RULE_CHAIN]
        if found[_RULE_TABLE] == name and chain in chains:
            chains[chain].append(_said(found, (_RULE_EXPRESSIONS, _RULE_COMMENT)))
            comments[chain] = comments.get(chain, b"") + found.get(_RULE_COMMENT, b"")
    return there.get(_TABLE_FLAGS, b""), chains, hooked, _sets(nft_socket, table), comments


def _said(found: Attributes, kinds: tuple[int, ...]) -> bytes:
    return b"".join(b"%d:%d:%b" % (kind, len(found[kind]), found[kind]) for kind in kinds if kind in found)
