"""A table whose elements are kept by bytes: written in one transaction, read back, and watched for others' hands.

``nft_elements`` writes what a runtime attaches, by types and with marks; here keys and data are the bytes that the
kernel has, for tables with hundreds of thousands of elements that one process owns. Sources:
``linux/netfilter/nf_tables.h``, ``nfnetlink.h``, ``net/netfilter/nf_tables_api.c`` (what is told, and to whom).
"""

from __future__ import annotations

import _socket  # without the ``socket`` module's enumerations, which take milliseconds
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from struct import Struct
from typing import TypeVar

from weft.errors import KernelLacks
from weft.kernel.nft.socket import Attributes, Change, NftSocket, _message, attribute, attributes, nested, refusal, text

Key = tuple[str, bytes]
"""An element's place: the name of its set or map, and its key."""
Entry = tuple[str, bytes, bytes | str]
"""The same with its data: b"" in a set, the name of the chain to go to in a map of verdicts."""
Kind = TypeVar("Kind", Key, Entry)

_NEW, _GET, _DELETE = 12, 13, 14
_CREATE, _DUMP = 0x400, 0x300
_GOTO = -4
_TABLE, _SET, _ELEMENTS = 1, 2, 3
_ITEM = 1
_KEY, _DATA = 1, 2
_VALUE, _VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_NESTED = 0x8000
_TOGETHER = 400  # elements in a message: an attribute's length has 16 bits, an element here takes up to 100 bytes
_ATTRIBUTE = Struct("=HH")
_NETLINK_NETFILTER = 12
_GROUP = 7  # NFNLGRP_NFTABLES
_ADD_MEMBERSHIP, _SOL_NETLINK = 1, 270
_RECEIVE_BUFFER = 33  # SO_RCVBUFFORCE
_WATCH_BUFFER = 1 << 22
_MESSAGE = Struct("=IHHII")
_shapes: dict[tuple[int, int], Struct] = {}


class ElementSocket(NftSocket):
    """The elements of one table, named by family and name; else like ``NftSocket``."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self._family, _, self._plain = table.partition(" ")
        self._name = text(_TABLE, self._plain)

    @property
    def port(self) -> int:
        """The netlink port that the kernel names as the author of what was written here; 0 before anything was said."""
        return int(self._socket.getsockname()[0])

    def write(self, delete: Iterable[Key], add: Iterable[Entry]) -> None:
        """Delete elements, then add others, as one transaction: whoever looks sees all of it or nothing.

        Raises Missing where one to delete, or its set, is not there; KernelRefused where a key has other data already.
        Nothing is changed then. *Equivalent to:* ``nft -f`` with ``delete element`` and ``add element``.
        """
        changes = self._changes(_DELETE, 0, delete, _bare) + self._changes(_NEW, _CREATE, add, _whole)
        if changes and (refused := self.transact(changes)):
            raise refusal(refused)

    def read(self, name: str) -> list[tuple[bytes, bytes | str]]:
        """Every element of a set or map: its key and its data, as ``write`` takes them. Raises Missing.

        It does not matter here that others change their tables meanwhile. *Equivalent to:* ``nft list map``.
        """
        self._send([_message(_GET, self._family, _DUMP, 0, (self._name, text(_SET, name)))])
        found: list[tuple[bytes, bytes | str]] = []
        while True:
            for _, _, code, answer in self._receive():
                if code is None:
                    found += _elements(answer)
                elif code:
                    raise refusal(-code)
                else:
                    return found

    def _changes(self, kind: int, flags: int, given: Iterable[Kind], pack: Callable[[Kind], bytes]) -> list[Change]:
        """A message for each set, or several where there are many elements."""
        groups: dict[str, list[bytes]] = {}
        for one in given:
            groups.setdefault(one[0], []).append(pack(one))
        return [
            (
                kind,
                flags,
                self._family,
                (self._name, text(_SET, name), nested(_ELEMENTS, *items[first : first + _TOGETHER])),
            )
            for name, items in groups.items()
            for first in range(0, len(items), _TOGETHER)
        ]


class TableWatch:
    """Tells when somebody else has changed a table, or taken it away. Register ``fileno`` for reading."""

    def __init__(self, table: str) -> None:
        self._mark = table.partition(" ")[2].encode("ascii") + b"\0"
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        try:
            self._socket = _socket.socket(_socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        except OSError as error:
            raise KernelLacks(f"the kernel has no nftables: {error.strerror}", hint="load nf_tables") from error
        with suppress(OSError):
            self._socket.setsockopt(_socket.SOL_SOCKET, _RECEIVE_BUFFER, _WATCH_BUFFER)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def changed_by_others(self, own: int, most: int = 64) -> bool:
        """Whether one of the next so many packets tells of a change that the netlink port ``own`` did not make.

        True as well where some packets were lost. Never waits.
        """
        for _ in range(most):
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return False
            except OSError:  # ENOBUFS: more than could be kept
                return True
            if self._mark in data and _MESSAGE.unpack_from(data)[4] != own:
                return True
        return False


def _bare(place: Key) -> bytes:
    return nested(_ITEM, nested(_KEY, attribute(_VALUE, place[1])))


def _whole(entry: Entry) -> bytes:
    _, key, data = entry
    if isinstance(data, str):
        code = attribute(_VERDICT_CODE, _GOTO.to_bytes(4, "big", signed=True))
        verdict = nested(_VERDICT, code, text(_VERDICT_CHAIN, data))
        return nested(_ITEM, nested(_KEY, attribute(_VALUE, key)), nested(_DATA, verdict))
    if not data:
        return nested(_ITEM, nested(_KEY, attribute(_VALUE, key)))
    # The one kind of which there are thousands, packed in one go. Keys and data are of whole words.
    sizes = len(key), len(data)
    shape = _shapes.get(sizes)
    if shape is None:
        shape = _shapes[sizes] = Struct(f"=HHHHHH{sizes[0]}sHHHH{sizes[1]}s")
    first, second = sizes
    return shape.pack(
        shape.size, _ITEM | _NESTED, first + 8, _KEY | _NESTED, first + 4, _VALUE, key,
        second + 8, _DATA | _NESTED, second + 4, _VALUE, data,
    )  # fmt: skip


def _elements(answer: Attributes) -> Iterator[tuple[bytes, bytes | str]]:
    items, place = answer.get(_ELEMENTS, b""), 0
    while place + _ATTRIBUTE.size <= len(items):
        length = _ATTRIBUTE.unpack_from(items, place)[0]
        if length < _ATTRIBUTE.size:
            return
        found = attributes(items[place + _ATTRIBUTE.size : place + length])
        place += (length + 3) & ~3
        data = attributes(found.get(_DATA, b""))
        verdict = attributes(data.get(_VERDICT, b"")).get(_VERDICT_CHAIN, b"")
        key = attributes(found[_KEY])[_VALUE]
        yield key, verdict.rstrip(b"\0").decode("ascii", "replace") if _VERDICT in data else data.get(_VALUE, b"")
