"""The netlink transport: one socket of any netlink family, with requests, batches, dumps and
multicast events.

A request is answered by messages and an acknowledgement, which bears its sequence number: what
bears another one (an answer to an earlier request that was given up, an event) is skipped. All
requests of one call leave in one datagram, and each has its own outcome::

    socket = NetlinkSocket(NETLINK_ROUTE)
    [[link]] = socket.request(Request(RTM_GETLINK, 0, "look up lo", body, single=True))
    routes = socket.dump(Request(RTM_GETROUTE, 0, "list the routes", body))

A socket belongs to the network namespace in which it was opened. Sources: ``netlink(7)``,
``linux/netlink.h``, ``net/netlink/af_netlink.c``.
"""

from __future__ import annotations

import errno
from _socket import socket
from _thread import allocate_lock
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from struct import Struct
from struct import error as StructError
from sys import byteorder
from typing import ParamSpec, TypeVar

from weft.errors import KernelRefused
from weft.kernel.netlink.attributes import get_string, parse
from weft.kernel.netlink.constants import (
    AF_NETLINK,
    MSG_DONTWAIT,
    MSG_TRUNC,
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_CAP_ACK,
    NETLINK_DROP_MEMBERSHIP,
    NETLINK_EXT_ACK,
    NETLINK_GENERIC,
    NETLINK_GET_STRICT_CHK,
    NETLINK_NETFILTER,
    NETLINK_ROUTE,
    NETLINK_SOCK_DIAG,
    NETLINK_XFRM,
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_NOOP,
    NLMSG_OVERRUN,
    NLMSGERR_ATTR_MSG,
    SO_RCVBUF,
    SO_RCVBUFFORCE,
    SO_RCVTIMEO,
    SO_SNDBUF,
    SO_SNDBUFFORCE,
    SO_SNDTIMEO,
    SOCK_CLOEXEC,
    SOCK_RAW,
    SOL_NETLINK,
    SOL_SOCKET,
)
from weft.kernel.netlink.errors import error_from_errno

HEADER_SIZE = 16
"""Bytes of a ``struct nlmsghdr``, before what its family defines."""

Parameters = ParamSpec("Parameters")
Found = TypeVar("Found")

Body = tuple[int, int, bytes]
"""A request's type, flags and body."""

_NLMSGHDR = Struct("=IHHII")
_ERRNO = Struct("=i")
_LAST_ERRNO = 4095  # MAX_ERRNO in include/linux/err.h
_TIMEVAL = Struct("=qq")
_DATAGRAM_SIZE = 1 << 16
_MODULES = {
    NETLINK_ROUTE: "rtnetlink",
    NETLINK_GENERIC: "generic netlink",
    NETLINK_XFRM: "the module xfrm_user",
    NETLINK_SOCK_DIAG: "sock_diag (inet_diag, tcp_diag, udp_diag)",
    NETLINK_NETFILTER: "nfnetlink (nf_tables, nf_conntrack_netlink)",
}
_DUMP_ATTEMPTS = 10
_LAST_SEQUENCE = 0xFFFFFFFF

Message = tuple[int, int, int, bytes]
"""Sequence number, type and flags of a message, and all its bytes, header included."""


class NoAnswer(KernelRefused):
    """The kernel did not answer in time, or the socket failed: close it, a late answer may come."""


class MessagesLost(NoAnswer):
    """More messages arrived than the receive buffer holds, and some were dropped (ENOBUFS)."""


class DumpInterrupted(KernelRefused):
    """The tables changed during each attempt to list them (NLM_F_DUMP_INTR)."""


@dataclass(slots=True)
class Request:
    """One message to be sent.

    ``action`` completes "cannot …" in an error, ``needs`` names what a kernel lacks that does not
    support this. ``single`` says that one message or an error answers it, so that no
    acknowledgement is asked for.
    """

    type: int
    flags: int
    action: str
    body: bytes = b""
    needs: str = ""
    single: bool = False


class Outcome:
    """What came back for one request: its messages, the errno (0: done) and the kernel's sentence
    about it.
    """

    __slots__ = ("complete", "errno", "messages", "request", "sentence")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.messages: list[bytes] = []
        self.errno = 0
        self.sentence = ""
        self.complete = False

    @property
    def error(self) -> KernelRefused | None:
        """The refusal as one of weft's errors, None where there was none."""
        if not self.errno:
            return None
        return error_from_errno(self.errno, self.request.action, self.sentence, needs=self.request.needs)

    def take(self, kind: int, flags: int, message: bytes) -> bool:
        """Take in one message of the answer; whether that completed it."""
        if self.complete:
            return False
        if kind in (NLMSG_ERROR, NLMSG_DONE):
            self.errno, self.sentence = parse_error(kind, flags, message)
            self.complete = True
        elif kind not in (NLMSG_NOOP, NLMSG_OVERRUN):
            self.messages.append(message)
            self.complete = self.request.single
        return self.complete


def parses_answer(read: Callable[Parameters, Found]) -> Callable[Parameters, Found]:
    """Decorates a function that reads the kernel's answers: where one is malformed (an attribute is
    missing or has another size), the function raises KernelRefused.
    """

    @wraps(read)
    def reads(*args: Parameters.args, **named: Parameters.kwargs) -> Found:
        try:
            return read(*args, **named)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, StructError) as error:
            raise KernelRefused(f"cannot read the kernel's answer ({read.__name__}): {error!r}") from error

    return reads


class NetlinkSocket:
    """A netlink socket in the calling thread's network namespace, usable from any thread.

    ``seconds`` is how long to wait for an answer (None: for ever), as a timeout of the kernel's:
    Python's own asks poll(2) before every call. ``window`` is how many requests may be under way at
    once, so that their answers fit the receive buffer. Raises KernelRefused.
    """

    def __init__(
        self,
        protocol: int,
        *,
        groups: int = 0,
        seconds: int | None = None,
        receive_buffer: int = 0,
        send_buffer: int = 0,
        window: int = 100,
    ) -> None:
        try:
            self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
            for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
                self._socket.setsockopt(SOL_NETLINK, option, 1)
            if protocol == NETLINK_ROUTE:
                with suppress(OSError):  # since Linux 4.20
                    self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
            if receive_buffer:
                self._set_buffer(SO_RCVBUFFORCE, SO_RCVBUF, receive_buffer)
            if send_buffer:
                self._set_buffer(SO_SNDBUFFORCE, SO_SNDBUF, send_buffer)
            if seconds is not None:
                for option in (SO_RCVTIMEO, SO_SNDTIMEO):
                    self._socket.setsockopt(SOL_SOCKET, option, _TIMEVAL.pack(seconds, 0))
            if groups:
                self._socket.bind((0, groups))
        except OSError as error:
            needs, action = _MODULES[protocol], "open a netlink socket"
            raise error_from_errno(error.errno or errno.EIO, action, needs=needs) from error
        self._bound = bool(groups)
        self._seconds = seconds
        self._window = window
        self._lock = allocate_lock()
        self._sequence = 0

    def _set_buffer(self, force: int, plain: int, size: int) -> None:
        try:
            self._socket.setsockopt(SOL_SOCKET, force, size)
        except OSError:  # without CAP_NET_ADMIN the system's limit holds
            self._socket.setsockopt(SOL_SOCKET, plain, size)

    def close(self) -> None:
        """Close the socket; a second time does nothing."""
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor, for poll(2) and ioctl(2)."""
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """The socket's port id (``nlmsg_pid``), 0 before the first request."""
        return int(self._socket.getsockname()[0])

    # Requests

    def request(self, *requests: Request) -> list[list[bytes]]:
        """Send all at once and return the messages that answer each; raises the first refusal.

        The kernel goes on to the next request after it refused one: none may rely on an earlier one
        of the same call.
        """
        outcomes = self.attempt(*requests)
        for outcome in outcomes:
            if outcome.errno:
                raise self.to_error(outcome)
        return [outcome.messages for outcome in outcomes]

    def attempt(self, *requests: Request) -> list[Outcome]:
        """Send all at once (a window at a time) and return what became of each."""
        if len(requests) <= self._window:
            return self._exchange(requests) if requests else []
        parts = (requests[first : first + self._window] for first in range(0, len(requests), self._window))
        return [outcome for part in parts for outcome in self._exchange(part)]

    def attempt_many(self, bodies: Iterable[Body], action: str) -> list[tuple[int, Outcome]]:
        """Send all, many at once, and return those that the kernel refused: their places, and outcomes.

        Each is packed as it is sent, and the kernel acknowledges the last of each window alone. Not for
        requests that messages answer. ``action`` is what all of them do together.
        """
        rest, done = iter(bodies), 0
        refused: list[tuple[int, Outcome]] = []
        while part := list(islice(rest, _MANY)):
            refused += [(done + place, outcome) for place, outcome in self._exchange_many(part, action)]
            done += len(part)
        return refused

    def _exchange_many(self, bodies: list[Body], action: str) -> list[tuple[int, Outcome]]:
        with self._lock:
            first = self.reserve(len(bodies))
            last = first + len(bodies) - 1
            packed = [
                pack(kind, flags | (NLM_F_REQUEST if sequence < last else _REQUEST_ACK), sequence, body)
                for sequence, (kind, flags, body) in enumerate(bodies, first)
            ]
            self.send(b"".join(packed), action)
            refused = []
            complete = False
            while not complete:
                for sequence, kind, flags, message in self.receive(action):
                    if first <= sequence <= last:
                        of_kind, with_flags, body = bodies[sequence - first]
                        outcome = Outcome(Request(of_kind, with_flags, action, body))
                        outcome.take(kind, flags, message)
                        complete = sequence == last
                        if outcome.errno:
                            refused.append((sequence - first, outcome))
            return refused

    def dump(self, request: Request, *, attempts: int = _DUMP_ATTEMPTS, consistent: bool = True) -> list[bytes]:
        """All messages that answer a dump, listed again while the tables change meanwhile.

        Raises DumpInterrupted where no attempt went through undisturbed; ``consistent=False`` takes
        the first.
        """
        for _ in range(attempts):
            with suppress(MessagesLost):
                outcome, interrupted = self._dump(request)
                if outcome.errno:
                    raise self.to_error(outcome)
                if not (interrupted and consistent):
                    return outcome.messages
        raise DumpInterrupted(
            f"cannot {request.action}: the tables kept changing meanwhile", hint="try again when the host is quieter"
        )

    def dump_each(self, request: Request, use: Callable[[bytes], None]) -> None:
        """Call ``use`` with each message that answers a dump, and keep none: where there may be very many.

        Raises MessagesLost where some were dropped; those before have been used.
        """
        outcome, _ = self._dump(request, use)
        if outcome.errno:
            raise self.to_error(outcome)

    def submit(self, request: Request) -> None:
        """Send one request without waiting for its acknowledgement (see ``completed``)."""
        with self._lock:
            self.send(
                pack(request.type, request.flags | NLM_F_REQUEST | NLM_F_ACK, self.reserve(1), request.body),
                request.action,
            )

    def completed(self, request: Request) -> Outcome | None:
        """The outcome of the request that was submitted last, None where the next datagram does not
        tell it.
        """
        outcome = Outcome(request)
        for sequence, kind, flags, message in self.receive(request.action):
            if sequence == self._sequence and outcome.take(kind, flags, message):
                return outcome
        return None

    def to_error(self, outcome: Outcome) -> KernelRefused:
        """The error for an outcome; a family with errors of its own overrides this."""
        return outcome.error or KernelRefused(f"cannot {outcome.request.action}")

    def _exchange(self, requests: Sequence[Request]) -> list[Outcome]:
        with self._lock:
            first = self.reserve(len(requests))
            self.send(
                b"".join(
                    pack(one.type, one.flags | (NLM_F_REQUEST if one.single else _REQUEST_ACK), sequence, one.body)
                    for sequence, one in enumerate(requests, first)
                ),
                requests[0].action,
            )
            outcomes = [Outcome(one) for one in requests]
            waiting = len(outcomes)
            while waiting:
                for sequence, kind, flags, message in self.receive(requests[0].action):
                    if 0 <= sequence - first < len(outcomes):
                        waiting -= outcomes[sequence - first].take(kind, flags, message)
            return outcomes

    def _dump(self, request: Request, use: Callable[[bytes], None] | None = None) -> tuple[Outcome, bool]:
        with self._lock:
            first = self.reserve(1)
            self.send(pack(request.type, request.flags | _REQUEST_DUMP, first, request.body), request.action)
            outcome, interrupted = Outcome(request), False
            while not outcome.complete:
                for sequence, kind, flags, message in self.receive(request.action):
                    if sequence == first:
                        interrupted |= bool(flags & NLM_F_DUMP_INTR)
                        outcome.take(kind, flags, message)
                if use is not None:
                    for message in outcome.messages:
                        use(message)
                    outcome.messages.clear()
            return outcome, interrupted

    # Events

    def join(self, group: int) -> None:
        """Subscribe to a multicast group."""
        if not self._bound:  # an unbound socket receives no events that the kernel itself causes
            if not self.port:
                self._socket.bind((0, 0))
            self._bound = True
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)

    def leave(self, group: int) -> None:
        """Cancel a subscription."""
        self._socket.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, group)

    # Datagrams

    def reserve(self, count: int) -> int:
        """The first of so many consecutive sequence numbers."""
        if self._sequence + count > _LAST_SEQUENCE:
            self._sequence = 0
        first = self._sequence + 1
        self._sequence += count
        return first

    def send(self, data: bytes, action: str) -> None:
        """Hand packed messages to the kernel, which has worked on them when this returns."""
        try:
            self._socket.send(data)
        except OSError as error:
            raise error_from_errno(error.errno or errno.EIO, action) from error

    def receive(self, action: str, *, wait: bool = True) -> list[Message]:
        """The messages of the next datagram; none where there is no datagram and ``wait`` is False.

        Raises MessagesLost where earlier ones were dropped, NoAnswer where none comes in time.
        """
        while True:
            try:
                data, _, flags, sender = self._socket.recvmsg(_DATAGRAM_SIZE, 0, 0 if wait else MSG_DONTWAIT)
            except BlockingIOError as error:
                if not wait:
                    return []
                raise NoAnswer(f"cannot {action}: no answer from the kernel in {self._seconds} seconds") from error
            except OSError as error:
                kind = MessagesLost if error.errno == errno.ENOBUFS else NoAnswer
                raise kind(f"cannot {action}: no answer from the kernel: {error.strerror or error}") from error
            if sender[0] == 0:  # any process may send to a netlink socket; port 0 is the kernel
                break
        if flags & MSG_TRUNC:
            raise NoAnswer(f"cannot {action}: the kernel's answer was truncated")
        return unpack(data)


_MANY = 500
"""Requests of ``attempt_many`` at once: all their refusals fit the receive buffer."""
_REQUEST_ACK, _REQUEST_DUMP = NLM_F_REQUEST | NLM_F_ACK, NLM_F_REQUEST | NLM_F_DUMP


def pack(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One message: the header, and what its family defines."""
    return _NLMSGHDR.pack(HEADER_SIZE + len(body), kind, flags, sequence, 0) + body


def unpack(data: bytes) -> list[Message]:
    """The messages in a datagram. Raises KernelRefused where one is truncated."""
    messages, offset, end = [], 0, len(data)
    while offset + HEADER_SIZE <= end:
        length, kind, flags, sequence, _ = _NLMSGHDR.unpack_from(data, offset)
        if length < HEADER_SIZE or offset + length > end:
            raise KernelRefused("cannot read the kernel's answer: a message in it is truncated")
        messages.append((sequence, kind, flags, data[offset : offset + length]))
        offset += (length + 3) & ~3
    return messages


def type_of(message: bytes) -> int:
    """A message's type (``nlmsg_type``)."""
    return int.from_bytes(message[4:6], byteorder)


def port_of(message: bytes) -> int:
    """The port id of the socket that sent a message, or whose request caused an event
    (``nlmsg_pid``).
    """
    return int.from_bytes(message[12:16], byteorder)


def parse_error(kind: int, flags: int, message: bytes) -> tuple[int, str]:
    """The errno in NLMSG_ERROR or NLMSG_DONE, 0 for an acknowledgement, and the kernel's sentence
    about it.
    """
    if len(message) < HEADER_SIZE + _ERRNO.size:
        return 0, ""
    number = -_ERRNO.unpack_from(message, HEADER_SIZE)[0]
    if not 0 <= number <= _LAST_ERRNO:
        return errno.EPROTO, ""
    if not number or not flags & NLM_F_ACK_TLVS:
        return number, ""
    offset = HEADER_SIZE + _ERRNO.size
    if kind == NLMSG_ERROR:  # the request follows, its header alone where it is capped
        length = int.from_bytes(message[offset : offset + 4], byteorder)
        offset += HEADER_SIZE if flags & NLM_F_CAPPED else (length + 3) & ~3
    return number, get_string(parse(message, offset), NLMSGERR_ATTR_MSG)
