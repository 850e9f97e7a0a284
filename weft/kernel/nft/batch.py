"""Elements of one table as bytes: written in one transaction, listed, and watched for other
programs' changes.

``elements`` writes what a runtime attaches, by types and with marks; here keys and data are the
kernel's bytes, for tables with hundreds of thousands of elements that one process owns. Sources:
``linux/netfilter/nf_tables.h``, ``nfnetlink.h``, ``net/netfilter/nf_tables_api.c`` (what is
notified, and to whom).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import TypeVar

from weft.errors import KernelRefused
from weft.kernel.netlink.attributes import Attributes, attribute, nested, parse, parse_list, string
from weft.kernel.netlink.constants import (
    NETLINK_NETFILTER,
    NFNLGRP_NFTABLES,
    NFT_GOTO,
    NFT_MSG_DELSETELEM,
    NFT_MSG_GETSETELEM,
    NFT_MSG_NEWSETELEM,
    NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT,
    NFTA_LIST_ELEM,
    NFTA_SET_ELEM_DATA,
    NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE,
    NFTA_VERDICT_CHAIN,
    NFTA_VERDICT_CODE,
    NLA_F_NESTED,
    NLM_F_CREATE,
)
from weft.kernel.netlink.transport import NetlinkSocket, port_of
from weft.kernel.nft.socket import Change, NftSocket, nft_error

Key = tuple[str, bytes]
"""An element's set or map, and its key."""
Entry = tuple[str, bytes, bytes | str]
"""The same with its data: b"" in a set, the name of the chain to go to in a map of verdicts."""
Kind = TypeVar("Kind", Key, Entry)

_MAX_ELEMENTS = 400  # in a message: an attribute's length has 16 bits, an element here takes up to 100 bytes
_WATCH_BUFFER = 1 << 22
_shapes: dict[tuple[int, int], Struct] = {}


class ElementSocket(NftSocket):
    """The elements of one table, named by family and name."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self._family, _, name = table.partition(" ")
        self._table = string(NFTA_SET_ELEM_LIST_TABLE, name)

    def write(self, delete: Iterable[Key], add: Iterable[Entry]) -> None:
        """Delete elements, then add others, as one transaction.

        Raises Missing where one to delete, or its set, is not there; KernelRefused where a key has
        other data already. Nothing is changed then. *Equivalent to:* ``nft -f`` with ``delete
        element`` and ``add element``.
        """
        changes = self._changes(NFT_MSG_DELSETELEM, 0, delete, _pack_key)
        changes += self._changes(NFT_MSG_NEWSETELEM, NLM_F_CREATE, add, _pack_entry)
        if changes and (refused := self.transact(changes)):
            raise nft_error(refused)

    def read(self, name: str) -> list[tuple[bytes, bytes | str]]:
        """Every element of a set or map: its key and its data, as ``write`` takes them.

        Raises Missing.

        Changes of other tables meanwhile do not matter. *Equivalent to:* ``nft list map``.
        """
        request = self._table, string(NFTA_SET_ELEM_LIST_SET, name)
        answers = self.get_all(NFT_MSG_GETSETELEM, self._family, *request, consistent=False)
        return [element for answer in answers for element in _unpack(answer)]

    def _changes(self, kind: int, flags: int, given: Iterable[Kind], pack: Callable[[Kind], bytes]) -> list[Change]:
        """A message for each set, or several where there are many elements."""
        groups: dict[str, list[bytes]] = {}
        for one in given:
            groups.setdefault(one[0], []).append(pack(one))
        changes: list[Change] = []
        for name, packed in groups.items():
            place: tuple[bytes, bytes] = (self._table, string(NFTA_SET_ELEM_LIST_SET, name))
            for first in range(0, len(packed), _MAX_ELEMENTS):
                elements = nested(NFTA_SET_ELEM_LIST_ELEMENTS, *packed[first : first + _MAX_ELEMENTS])
                changes.append((kind, flags, self._family, (*place, elements)))
        return changes


class TableWatch:
    """Tells when another program has changed a table, or deleted it.

    Register ``fileno`` for reading.
    """

    def __init__(self, table: str) -> None:
        self._name = table.partition(" ")[2].encode("ascii") + b"\0"
        self._socket = NetlinkSocket(NETLINK_NETFILTER, receive_buffer=_WATCH_BUFFER)
        self._socket.join(NFNLGRP_NFTABLES)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def changed_by_others(self, own: int, limit: int = 64) -> bool:
        """Whether one of the next ``limit`` datagrams tells of a change by another netlink port
        than ``own``.

        True as well where notifications were lost. Never waits.
        """
        for _ in range(limit):
            try:
                messages = self._socket.receive("watch nftables", wait=False)
            except KernelRefused:  # MessagesLost among them
                return True
            if not messages:
                return False
            if any(self._name in message for _, _, _, message in messages) and port_of(messages[0][3]) != own:
                return True
        return False


def _pack_key(place: Key) -> bytes:
    return nested(NFTA_LIST_ELEM, nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, place[1])))


def _pack_entry(entry: Entry) -> bytes:
    _, key, data = entry
    if isinstance(data, str):
        code = attribute(NFTA_VERDICT_CODE, NFT_GOTO.to_bytes(4, "big", signed=True))
        verdict = nested(NFTA_DATA_VERDICT, code, string(NFTA_VERDICT_CHAIN, data))
        return nested(
            NFTA_LIST_ELEM,
            nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, key)),
            nested(NFTA_SET_ELEM_DATA, verdict),
        )
    if not data:
        return _pack_key((entry[0], key))
    # The one kind of which there are thousands, packed in one go. Keys and data are of whole words.
    sizes = len(key), len(data)
    shape = _shapes.get(sizes)
    if shape is None:
        shape = _shapes[sizes] = Struct(f"=HHHHHH{sizes[0]}sHHHH{sizes[1]}s")
    first, second = sizes
    return shape.pack(
        shape.size, NFTA_LIST_ELEM | NLA_F_NESTED,
        first + 8, NFTA_SET_ELEM_KEY | NLA_F_NESTED, first + 4, NFTA_DATA_VALUE, key,
        second + 8, NFTA_SET_ELEM_DATA | NLA_F_NESTED, second + 4, NFTA_DATA_VALUE, data,
    )  # fmt: skip


def _unpack(answer: Attributes) -> Iterator[tuple[bytes, bytes | str]]:
    for element in parse_list(answer.get(NFTA_SET_ELEM_LIST_ELEMENTS, b"")):
        found = parse(element)
        key = parse(found[NFTA_SET_ELEM_KEY])[NFTA_DATA_VALUE]
        data = parse(found.get(NFTA_SET_ELEM_DATA, b""))
        if NFTA_DATA_VERDICT in data:
            chain = parse(data[NFTA_DATA_VERDICT]).get(NFTA_VERDICT_CHAIN, b"")
            yield key, chain.rstrip(b"\0").decode("ascii", "replace")
        else:
            yield key, data.get(NFTA_DATA_VALUE, b"")
