"""What is said to nftables without its library, which reads all rules and sets before it changes a single element.

Here are the questions, and transactions of messages that ``nft_elements`` makes; rules and sets are the library's.
Sources: ``linux/netfilter/nf_tables.h``, ``nfnetlink.h``, ``net/netfilter/nfnetlink.c``, netlink(7).
"""

from __future__ import annotations

import _socket  # without the ``socket`` module's enumerations, which take milliseconds
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from struct import Struct
from sys import byteorder

from weft.errors import Exists, KernelLacks, KernelRefused, Missing

_NETLINK_NETFILTER = 12
_NFTABLES = 10
_SUBSYSTEM = _NFTABLES << 8
FAMILIES = {"inet": 1, "ip": 2, "bridge": 7, "ip6": 10}
"""What linux/netfilter.h calls them."""
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 1, 4, 0x300, 0x10
_ERROR, _DONE = 2, 3
_BEGIN, _END, _EXPECTED = 0x10, 0x11, 1
_ENOENT, _EEXIST, _EOPNOTSUPP = 2, 17, 95
ERESTART = 85
_GET_GENERATION, _GENERATION_ID = 16, 1
_NESTED = 0x8000
_ATTRIBUTE_TYPE = 0x3FFF
_SOL_SOCKET, _RECEIVE_TIME, _SEND_TIME, _SEND_BUFFER = 1, 20, 21, 32
_SECONDS = 10
_BUFFER = 1 << 17
_LARGEST = 1 << 22  # bytes of a transaction
_TOGETHER = 64  # questions in one go; their answers fit the socket's buffer
_MESSAGE = Struct("=IHHII")
_GENERIC = Struct("=BBH")
_ATTRIBUTE = Struct("=HH")
_NUMBER = Struct("=i")
_TIME = Struct("=qq")

Attributes = dict[int, bytes]
Change = tuple[int, int, str, tuple[bytes, ...]]
"""One message of a transaction: its kind, its flags, the table's family, its attributes."""


class NftSocket:
    """A netlink socket to nftables in the namespace of the thread that made it.

    Raises KernelLacks where the kernel has no nftables, KernelRefused where it does not answer; then it must
    be closed, for answers may still come. Keep it otherwise: to close any socket of this kind waits until all
    that was deleted before is freed, 10 to 20 ms (nft_rcv_nl_event in ``nf_tables_api.c``).
    """

    def __init__(self) -> None:
        kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
        try:
            self._socket = _socket.socket(_socket.AF_NETLINK, kind, _NETLINK_NETFILTER)
        except OSError as error:
            raise KernelLacks(f"the kernel has no nftables: {error.strerror}", hint="load nf_tables") from error
        # In the kernel and not by settimeout(), which asks poll(2) before every word.
        for option in (_RECEIVE_TIME, _SEND_TIME):
            self._socket.setsockopt(_SOL_SOCKET, option, _TIME.pack(_SECONDS, 0))
        with suppress(OSError):
            self._socket.setsockopt(_SOL_SOCKET, _SEND_BUFFER, _LARGEST)

    def close(self) -> None:
        self._socket.close()

    def all(self, kind: int, family: str, *attributes: bytes) -> list[Attributes]:
        """Ask for all of a kind and family; raises InterruptedError when they changed between two parts of the answer.

        The whole answer is taken in before that is said, so that the next question finds the socket empty.
        """
        self._send([_message(kind, family, _DUMP, 0, attributes)])
        found: list[Attributes] = []
        interrupted = False
        while True:
            for _, flags, code, body in self._receive():
                interrupted = interrupted or bool(flags & _INTERRUPTED)
                if code is None:
                    found.append(body)
                elif code:
                    raise refusal(-code)
                elif interrupted:
                    raise InterruptedError
                else:
                    return found

    def each(self, kind: int, questions: Iterable[tuple[str, tuple[bytes, ...]]]) -> list[Attributes | None]:
        """Ask for single things by family and attributes, many in one go; None for each that is missing."""
        asked = [_message(kind, family, 0, number, attributes) for number, (family, attributes) in enumerate(questions)]
        answers: list[Attributes | None] = [None] * len(asked)
        for first in range(0, len(asked), _TOGETHER):
            together = asked[first : first + _TOGETHER]
            self._send(together)
            open_questions = len(together)
            while open_questions:
                for number, _, code, body in self._receive():
                    open_questions -= 1
                    if code is None:
                        answers[number] = body
                    elif code != -_ENOENT:
                        raise refusal(-code)
        return answers

    def generation(self) -> int:
        """How many transactions there have been: the same as before where nothing was changed by anybody."""
        (found,) = self.each(_GET_GENERATION, [("inet", ())])
        return int.from_bytes(found[_GENERATION_ID], "big") if found else 0

    def transact(self, changes: list[Change], expected: int = 0) -> int:
        """All of the changes or none: 0, or the errno of what refused them, having done nothing.

        ERESTART says that the generation is not the ``expected`` one; 0 expects none.
        """
        generation = (attribute(_EXPECTED, expected.to_bytes(4, "big")),) if expected else ()
        last = len(changes)
        messages = [_batch(_BEGIN, 0, generation)]
        messages += [
            _message(kind, family, flags | (_ACK if number == last else 0), number, parts)
            for number, (kind, flags, family, parts) in enumerate(changes, 1)
        ]
        self._send([*messages, _batch(_END, last + 1, ())])
        refused = 0
        while True:
            for number, _, code, _ in self._receive():
                refused = refused or -(code or 0)
                if number == last or refused == ERESTART:
                    return refused
                if not number:  # the commit failed, and other answers may come
                    raise refusal(refused)

    def _send(self, messages: list[bytes]) -> None:
        try:
            self._socket.send(b"".join(messages))
        except OSError as error:
            raise KernelRefused(f"nftables cannot be asked: {error.strerror}") from error

    def _receive(self) -> Iterator[tuple[int, int, int | None, Attributes]]:
        """One packet of answers: number of the question, flags, error code (None: none) and attributes."""
        try:
            data = memoryview(self._socket.recv(_BUFFER))
        except OSError as error:
            raise KernelRefused(f"nftables does not answer: {error.strerror or error}") from error
        while data:
            length, answer, flags, number, _ = _MESSAGE.unpack_from(data)
            if answer in (_ERROR, _DONE):
                yield number, flags, _NUMBER.unpack_from(data, _MESSAGE.size)[0], {}
            else:
                yield number, flags, None, attributes(data[_MESSAGE.size + _GENERIC.size : length])
            data = data[(length + 3) & ~3 :]


def attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *values: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(values))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode("ascii") + b"\0")


def attributes(data: bytes | memoryview) -> Attributes:
    """Attributes by their kind; of several of a kind the last."""
    found: Attributes = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _ATTRIBUTE_TYPE] = bytes(data[_ATTRIBUTE.size : length])
        data = data[(length + 3) & ~3 :]
    return found


def _message(kind: int, family: str, flags: int, number: int, parts: tuple[bytes, ...]) -> bytes:
    body = _GENERIC.pack(FAMILIES[family], 0, 0) + b"".join(parts)
    return _MESSAGE.pack(_MESSAGE.size + len(body), _SUBSYSTEM | kind, flags | _REQUEST, number, 0) + body


def _batch(kind: int, number: int, parts: tuple[bytes, ...]) -> bytes:
    """The first or the last message of a transaction."""
    body = _GENERIC.pack(0, 0, _NFTABLES << 8 if byteorder == "little" else _NFTABLES) + b"".join(parts)
    return _MESSAGE.pack(_MESSAGE.size + len(body), kind, _REQUEST, number, 0) + body


def refusal(number: int) -> KernelRefused:
    """The error for an errno."""
    sentence = f"nftables: {os.strerror(number)}"
    if number == _EEXIST:
        return Exists(sentence)
    if number == _ENOENT:
        return Missing(sentence)
    if number == _EOPNOTSUPP:
        return KernelLacks(sentence, hint="the kernel lacks an nftables module")
    return KernelRefused(sentence, hint="it takes CAP_NET_ADMIN: run weft as root" if number == 1 else "")
