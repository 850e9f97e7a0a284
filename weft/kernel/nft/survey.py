"""The definitions in weft's tables, all but elements, read in a third of a millisecond.

nftables before 1.1.0 fetches every element of a table to list it without them (50 ms for 10,000),
so the question "is all as it was installed?", which every ADD asks, goes to the kernel directly.
Only definitions are compared: handles, and counts of users or of elements, change by themselves.
"""

from __future__ import annotations

from _blake2 import blake2b  # hashlib would load OpenSSL, which takes 4 ms
from dataclasses import dataclass

from weft.errors import Missing
from weft.kernel.netlink.attributes import Attributes, parse, parse_list, string
from weft.kernel.netlink.constants import (
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETSET,
    NFT_MSG_GETTABLE,
    NFT_SET_ANONYMOUS,
    NFT_SET_EVAL,
    NFT_SET_INTERVAL,
    NFT_SET_MAP,
    NFT_SET_TIMEOUT,
    NFTA_CHAIN_FLAGS,
    NFTA_CHAIN_HOOK,
    NFTA_CHAIN_NAME,
    NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE,
    NFTA_CHAIN_TYPE,
    NFTA_EXPR_NAME,
    NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_TABLE,
    NFTA_RULE_USERDATA,
    NFTA_SET_DATA_LEN,
    NFTA_SET_DATA_TYPE,
    NFTA_SET_FLAGS,
    NFTA_SET_HANDLE,
    NFTA_SET_KEY_LEN,
    NFTA_SET_KEY_TYPE,
    NFTA_SET_NAME,
    NFTA_SET_TABLE,
    NFTA_SET_TIMEOUT,
    NFTA_TABLE_FLAGS,
    NFTA_TABLE_NAME,
)
from weft.kernel.nft.lookup import LENGTHS
from weft.kernel.nft.socket import NftSocket
from weft.kernel.schema import Shape

COUNTER = b"counter\0"
"""The name of an expression that counts packets."""
# The attributes that define an object, of all that the kernel lists.
_CHAIN_DEFINITION = (NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE, NFTA_CHAIN_FLAGS)
_RULE_DEFINITION = (NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA)
_SET_NUMBERS = (NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN, NFTA_SET_DATA_TYPE, NFTA_SET_DATA_LEN)
_SET_DEFINITION = (NFTA_SET_NAME, *_SET_NUMBERS, NFTA_SET_TIMEOUT)

_FLAGS = {NFT_SET_INTERVAL: "interval", NFT_SET_TIMEOUT: "timeout", NFT_SET_EVAL: "dynamic"}
_VERDICT = 0xFFFFFF00  # NFT_DATA_VERDICT, as a set's type of data
_INTEGER = 4
_TYPES = {
    7: "ipv4_addr", 8: "ipv6_addr", 9: "ether_addr", 12: "inet_proto", 13: "inet_service", 19: "mark", 23: "classid",
    41: "ifname",
}  # fmt: skip
"""nftables' data types (``enum datatypes`` in its datatype.h), which the kernel stores for it."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Tables as surveyed: a hash of their rules, chains and sets, and which are missing or dormant.

    ``chains`` have table, name and whether they are base chains; ``sets``, maps among them, have
    their handles; ``stamp`` is the stamp's comment.
    """

    fingerprint: str
    missing: tuple[str, ...]
    dormant: tuple[str, ...]
    chains: tuple[tuple[str, str, bool], ...]
    sets: tuple[tuple[Shape, int], ...]
    stamp: bytes


def survey(nft_socket: NftSocket, tables: tuple[str, ...], stamp_chain: str) -> Survey:
    """Survey tables, each named by family and name; the hash leaves the stamp out.

    Raises KernelRefused and Busy as ``NftSocket`` does.
    """
    return _survey(nft_socket, tables, stamp_chain.encode() + b"\0")


def declared(nft_socket: NftSocket, tables: tuple[str, ...]) -> dict[str, Shape]:
    """The sets and maps of the tables, by name.

    *Equivalent to:* ``nft list sets; nft list maps``, of these tables.
    """
    return {shape.name: shape for table in tables for shape, _ in _shapes(_sets(nft_socket, table), table)}


def _sets(nft_socket: NftSocket, table: str) -> list[Attributes]:
    family, _, plain = table.partition(" ")
    name = plain.encode() + b"\0"
    try:
        found = nft_socket.get_all(NFT_MSG_GETSET, family, string(NFTA_SET_TABLE, plain))
    except Missing:
        return []
    return [one for one in found if one[NFTA_SET_TABLE] == name]


def _shapes(found: list[Attributes], table: str) -> list[tuple[Shape, int]]:
    """Sets and maps with their handles, without anonymous ones."""
    return [
        (_shape(one, table), int.from_bytes(one[NFTA_SET_HANDLE], "big"))
        for one in found
        if not int.from_bytes(one.get(NFTA_SET_FLAGS, b""), "big") & NFT_SET_ANONYMOUS
    ]


def _shape(found: Attributes, table: str) -> Shape:
    numbers = {kind: int.from_bytes(found.get(kind, b""), "big") for kind in _SET_NUMBERS}
    flags = tuple(sorted(name for bit, name in _FLAGS.items() if numbers[NFTA_SET_FLAGS] & bit))
    data: tuple[str, ...] = ()
    if numbers[NFTA_SET_FLAGS] & NFT_SET_MAP:
        of_data = numbers[NFTA_SET_DATA_TYPE]
        data = ("verdict",) if of_data == _VERDICT else _types(of_data, numbers[NFTA_SET_DATA_LEN])
    name = found[NFTA_SET_NAME][:-1].decode("utf-8", "replace")
    return Shape(name, _types(numbers[NFTA_SET_KEY_TYPE], numbers[NFTA_SET_KEY_LEN]), data, flags, table)


def _types(concatenated: int, length: int) -> tuple[str, ...]:
    """The types of a key's parts, six bits each.

    A number's length is what the other parts leave (``Shape.padded``).
    """
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
        for part in sorted(_definition(one, _SET_DEFINITION) for one in held):
            digest.update(part)
    return Survey(digest.hexdigest(), tuple(missing), tuple(dormant), tuple(chains), tuple(sets), stamp)


_Table = tuple[bytes, dict[bytes, list[bytes]], set[bytes], list[Attributes], dict[bytes, bytes]]


def _table(nft_socket: NftSocket, table: str) -> _Table | None:
    """Flags; definitions by chain, its rules' among them; base chains; sets; comments by chain."""
    family, _, plain = table.partition(" ")
    name = plain.encode() + b"\0"
    (there,) = nft_socket.get(NFT_MSG_GETTABLE, [(family, (string(NFTA_TABLE_NAME, plain),))])
    if there is None:
        return None
    # The kernel filters no chains by table.
    every_chain = nft_socket.get_all(NFT_MSG_GETCHAIN, family)
    found_chains = [one for one in every_chain if one[NFTA_CHAIN_TABLE] == name]
    chains = {one[NFTA_CHAIN_NAME]: [_definition(one, _CHAIN_DEFINITION)] for one in found_chains}
    hooked = {one[NFTA_CHAIN_NAME] for one in found_chains if NFTA_CHAIN_HOOK in one}
    comments: dict[bytes, bytes] = {}
    for found in nft_socket.get_all(NFT_MSG_GETRULE, family, string(NFTA_RULE_TABLE, plain)):
        chain = found[NFTA_RULE_CHAIN]
        if found[NFTA_RULE_TABLE] == name and chain in chains:
            chains[chain].append(_rule_definition(found))
            comments[chain] = comments.get(chain, b"") + found.get(NFTA_RULE_USERDATA, b"")
    return there.get(NFTA_TABLE_FLAGS, b""), chains, hooked, _sets(nft_socket, table), comments


def _rule_definition(found: Attributes) -> bytes:
    """A rule's, without its counter, whose value changes."""
    expressions = found.get(NFTA_RULE_EXPRESSIONS, b"")
    if COUNTER in expressions:
        kept = (one for one in parse_list(expressions) if parse(one).get(NFTA_EXPR_NAME) != COUNTER)
        found = {**found, NFTA_RULE_EXPRESSIONS: b"".join(kept)}
    return _definition(found, _RULE_DEFINITION)


def _definition(found: Attributes, kinds: tuple[int, ...]) -> bytes:
    return b"".join(b"%d:%d:%b" % (kind, len(found[kind]), found[kind]) for kind in kinds if kind in found)
