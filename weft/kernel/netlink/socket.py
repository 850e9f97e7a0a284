"""One route-netlink socket: requests out, acknowledgements and answers in.

A socket belongs to the namespace in which it was made, whatever its users do afterwards. Requests of one
call leave in one ``sendmsg``. Source: ``netlink(7)``, ``linux/netlink.h``, ``net/netlink/af_netlink.c``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from _socket import SOCK_CLOEXEC, SOCK_RAW, socket
from dataclasses import dataclass, field
from typing import Any

from weft.errors import KernelRefused
from weft.kernel.interface import Link
from weft.kernel.netlink import codec
from weft.kernel.netlink.refusals import refusal

_AF_NETLINK, _NETLINK_ROUTE, _SOL_NETLINK = 16, 0, 270
_CAP_ACK, _EXT_ACK, _STRICT_CHECK = 10, 11, 12
_ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 1, 2
_SOL_SOCKET, _SO_RCVBUF = 1, 8
_NOOP, _ERROR, _DONE, _OVERRUN = 1, 2, 3, 4
_F_DUMP_INTERRUPTED, _F_ACK_SENTENCE = 0x10, 0x200
_MSG_TRUNC = 0x20
_SENTENCE = 1
_HEADER = struct.Struct("=IHHII")
_LARGEST = 1 << 16
_RECEIVE_BUFFER = 1 << 20
_DUMP_TRIES = 10
_MOST_AT_ONCE = 100


@dataclass(slots=True)
class Request:
    """One message to be sent. ``doing`` completes "cannot …" and ``needs`` names what the kernel may lack.

    Where little of the answer is wanted, ``decoded`` is False and the answers are bytes. ``single`` says that it is
    answered by one message or a refusal, so that no acknowledgement is needed.
    """

    kind: int
    flags: int
    doing: str
    fields: dict[str, Any] = field(default_factory=dict)
    attributes: codec.Attributes | bytes = field(default_factory=list)
    needs: str = ""
    decoded: bool = True
    single: bool = False


@dataclass(slots=True)
class Outcome:
    """What came back for one request: the answers, and the refusal if there was one."""

    answers: list[Any]
    problem: KernelRefused | None = None


class _Interrupted(Exception):
    """A dump is of no use: the tables changed in the middle of it, or a part was lost for want of buffer."""


class RouteSocket:
    """A route-netlink socket in the calling thread's namespace; usable from any thread, one at a time."""

    def __init__(self, *, groups: int = 0) -> None:
        try:
            self._socket = socket(_AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, _NETLINK_ROUTE)
        except OSError as error:
            raise refusal(error.errno or errno.EIO, "open a route-netlink socket") from error
        for option in (_CAP_ACK, _EXT_ACK, _STRICT_CHECK):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError as error:
                if error.errno != errno.ENOPROTOOPT:  # strict checking came with Linux 4.20
                    raise refusal(error.errno or errno.EIO, "set up a route-netlink socket") from error
        self._socket.setsockopt(_SOL_SOCKET, _SO_RCVBUF, _RECEIVE_BUFFER)
        self._socket.bind((0, groups))
        self._lock = threading.Lock()
        self._sequence = 0
        self.indexes: dict[str, int] = {}
        """Links' indexes as last seen: to be believed where the index still has that name."""
        self.seen: dict[str, tuple[float, Link]] = {}
        """Links as last seen, and when: to be believed as far as ``links.glance`` does."""

    def close(self) -> None:
        self._socket.close()

    def join(self, group: int) -> None:
        """Hear a multicast group's announcements from now on."""
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def leave(self, group: int) -> None:
        self._socket.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, group)

    def fileno(self) -> int:
        return self._socket.fileno()

    def request(self, *requests: Request) -> list[list[Any]]:
        """Send all at once and return the answers to each; raises the first refusal.

        The kernel goes on to the next message after it refused one: a request must not rely on an earlier one
        of the same call.
        """
        outcomes = self.attempt(*requests)
        for outcome in outcomes:
            if outcome.problem is not None:
                raise outcome.problem
        return [outcome.answers for outcome in outcomes]

    def attempt(self, *requests: Request) -> list[Outcome]:
        """Send all at once (a hundred a time) and return what became of each."""
        if len(requests) > _MOST_AT_ONCE:  # more acknowledgements than this could overflow the receive buffer
            return self.attempt(*requests[:_MOST_AT_ONCE]) + self.attempt(*requests[_MOST_AT_ONCE:])
        if not requests:
            return []
        with self._lock:
            outcomes: dict[int, Outcome] = {}
            waiting: dict[int, Request] = {}
            data = bytearray()
            for one in requests:
                sequence = self._next()
                waiting[sequence] = one
                outcomes[sequence] = Outcome([])
                flags = one.flags | codec.REQUEST | (0 if one.single else codec.ACK)
                data += _encoded(one, flags, sequence)
            self.send(bytes(data), requests[0].doing)
            while waiting:
                for sequence, kind, flags, payload in split(self.receive(requests[0].doing)):
                    if sequence in waiting and _take(outcomes[sequence], waiting[sequence], kind, flags, payload):
                        del waiting[sequence]
            return list(outcomes.values())

    def dump(self, request: Request) -> list[Any]:
        """All the answers to a dump, asked again while the tables changed in the middle of it."""
        for _ in range(_DUMP_TRIES):
            try:
                return self._dump(request)
            except _Interrupted:
                continue
        raise KernelRefused(
            f"cannot {request.doing}: it kept changing while it was read", hint="try again when the host is quieter"
        )

    def _dump(self, request: Request) -> list[Any]:
        with self._lock:
            sequence = self._next()
            flags = request.flags | codec.REQUEST | codec.DUMP
            self.send(_encoded(request, flags, sequence), request.doing)
            outcome, interrupted, done = Outcome([]), False, False
            while not done:
                try:
                    messages = split(self.receive(request.doing))
                except KernelRefused as error:
                    cause = error.__cause__
                    if isinstance(cause, OSError) and cause.errno == errno.ENOBUFS:
                        raise _Interrupted from error
                    raise
                for answers_to, kind, answer_flags, payload in messages:
                    if answers_to != sequence:
                        continue
                    interrupted |= bool(answer_flags & _F_DUMP_INTERRUPTED)
                    done |= _take(outcome, request, kind, answer_flags, payload)
            if outcome.problem is not None:
                raise outcome.problem
            if interrupted:
                raise _Interrupted
            return outcome.answers

    def _next(self) -> int:
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        return self._sequence

    def send(self, data: bytes, doing: str) -> None:
        """Hand encoded messages to the kernel, which works on them before this returns."""
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            raise refusal(error.errno or errno.EIO, doing) from error

    def receive(self, doing: str) -> bytes:
        """One datagram from the kernel."""
        while True:
            try:
                data, _, flags, sender = self._socket.recvmsg(_LARGEST)
            except OSError as error:
                raise refusal(error.errno or errno.EIO, f"{doing}, its answer is lost") from error
            if sender[0] == 0:  # anybody may send to a netlink socket; only port 0 is the kernel
                break
        if flags & _MSG_TRUNC:
            raise KernelRefused(f"cannot {doing}: the kernel's answer was cut short")
        return bytes(data)


def _encoded(request: Request, flags: int, sequence: int) -> bytes:
    try:
        return codec.encode(request.kind, flags, sequence, request.fields, request.attributes)
    except (struct.error, ValueError, TypeError, OSError) as error:
        raise KernelRefused(f"cannot {request.doing}: a value does not fit in the request: {error}") from error


def split(data: bytes) -> list[tuple[int, int, int, memoryview]]:
    """The messages in a datagram: sequence number, type, flags, bytes with the header."""
    messages, view, place = [], memoryview(data), 0
    while place + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, place)
        if length < _HEADER.size or place + length > len(data):
            raise KernelRefused("cannot read the kernel's answer: a message in it is cut short")
        messages.append((sequence, kind, flags, view[place : place + length]))
        place += (length + 3) & ~3
    return messages


def outcome_of(data: bytes, request: Request) -> KernelRefused | None:
    """The refusal in the acknowledgement of a single request, None if it was done."""
    outcome = Outcome([])
    for _, kind, flags, message in split(data):
        _take(outcome, request, kind, flags, message)
    return outcome.problem


def _take(outcome: Outcome, request: Request, kind: int, flags: int, data: memoryview) -> bool:
    """Note one message of an answer; whether it was the last."""
    if kind in (_ERROR, _DONE):
        number = -struct.unpack_from("=i", data, _HEADER.size)[0] if len(data) >= _HEADER.size + 4 else 0
        if number:
            skip = 4 + _HEADER.size if kind == _ERROR else 4
            sentence = _sentence(data[_HEADER.size + skip :]) if flags & _F_ACK_SENTENCE else ""
            outcome.problem = refusal(number, request.doing, sentence, needs=request.needs)
        return True
    if kind not in (_NOOP, _OVERRUN):
        outcome.answers.append(codec.decode(kind, bytes(data)) if request.decoded else bytes(data))
        return request.single
    return False


def _sentence(data: memoryview) -> str:
    """The text among the attributes of an extended acknowledgement."""
    place = 0
    while place + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, place)
        if length < 4:
            break
        if kind & 0x3FFF == _SENTENCE:
            return bytes(data[place + 4 : place + length]).rstrip(b"\0").decode("utf-8", "replace")
        place += (length + 3) & ~3
    return ""


def link_name(descriptor: int, index: int) -> str:
    """The name of the link with that index in a socket's namespace, "" if there is none (SIOCGIFNAME)."""
    try:
        answer = fcntl.ioctl(descriptor, 0x8910, struct.pack("=16si20x", b"", index))
    except OSError:
        return ""
    return os.fsdecode(answer[:16].split(b"\0", 1)[0])
