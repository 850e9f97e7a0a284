"""The transport with replies that an idle kernel rarely sends, and the modules that it imports."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from typing import Any

import pytest

from weft.errors import Exists, KernelLacks, KernelRefused, Missing
from weft.kernel.netlink import codec
from weft.kernel.netlink.constants import NETLINK_ROUTE, RTM_GETLINK, RTM_NEWLINK, RTNLGRP_LINK
from weft.kernel.netlink.errors import error_from_errno
from weft.kernel.netlink.rtnetlink import RouteSocket
from weft.kernel.netlink.transport import (
    DumpInterrupted,
    MessagesLost,
    NetlinkSocket,
    NoAnswer,
    Request,
    parse_error,
    unpack,
)

GET = Request(RTM_GETLINK, 0, "look", codec.encode(RTM_GETLINK, {}, []))


class Wire:
    """A fake socket: the datagrams received after each send."""

    def __init__(self, *rounds: list[bytes | OSError | tuple[bytes, int, int]]) -> None:
        self.rounds = list(rounds)
        self.pending: list[Any] = []
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)
        self.sequence = struct.unpack_from("=I", data, 8)[0]
        self.pending += self.rounds.pop(0)

    def recvmsg(self, *_: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        one = self.pending.pop(0)
        if isinstance(one, OSError):
            raise one
        data, flags, sender = one if isinstance(one, tuple) else (one, 0, 0)
        return self.numbered(data), [], flags, (sender, 0)

    def numbered(self, data: bytes) -> bytes:
        """Replace the sequence number 0 of messages by that of the last request."""
        out = bytearray(data)
        for place in offsets(data):
            if struct.unpack_from("=I", out, place + 8)[0] == 0:
                struct.pack_into("=I", out, place + 8, self.sequence)
        return bytes(out)

    def close(self) -> None: ...


def offsets(data: bytes) -> list[int]:
    places, place = [], 0
    while place + 16 <= len(data):
        places.append(place)
        place += (max(struct.unpack_from("=I", data, place)[0], 16) + 3) & ~3
    return places


def message(kind: int, payload: bytes, flags: int = 0, sequence: int = 0) -> bytes:
    data = struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0) + payload
    return data + b"\0" * (-len(data) % 4)


def link(index: int, flags: int = 0, sequence: int = 0) -> bytes:
    return message(RTM_NEWLINK, struct.pack("=BxHiII", 0, 1, index, 0, 0), flags, sequence)


def done(flags: int = 0) -> bytes:
    return message(3, struct.pack("=i", 0), flags)


def answer(number: int, sentence: str = "", sequence: int = 0) -> bytes:
    payload = struct.pack("=i", -number) + b"\0" * 16
    if sentence:
        text = sentence.encode() + b"\0"
        payload += struct.pack("=HH", 4 + len(text), 1) + text
    return message(2, payload, 0x100 | (0x200 if sentence else 0), sequence)


def on(wire: Wire) -> RouteSocket:
    made = RouteSocket()
    made.close()
    made._socket = wire  # type: ignore[assignment]
    return made


def indexes(messages: list[bytes]) -> list[int]:
    return [codec.decode(message)["index"] for message in messages]


def test_an_interrupted_dump_is_repeated() -> None:
    wire = Wire([link(1, flags=0x10), done()], [link(2), done(flags=0x10)], [link(3), link(4) + done()])
    assert indexes(on(wire).dump(GET)) == [3, 4]
    assert len(wire.sent) == 3


def test_a_dump_with_lost_datagrams_is_repeated() -> None:
    lost = OSError(errno.ENOBUFS, "No buffer space available")
    wire = Wire([link(1), lost], [link(7, sequence=1) + done(), link(9, sequence=1), link(2)])
    wire.rounds[1] = [link(7, sequence=1), message(3, struct.pack("=i", 0), sequence=1), link(2) + done()]
    assert indexes(on(wire).dump(GET)) == [2]


def test_a_dump_that_is_always_interrupted_fails() -> None:
    wire = Wire(*([link(1, flags=0x10), done()] for _ in range(10)))
    with pytest.raises(DumpInterrupted, match="kept changing"):
        on(wire).dump(GET)


def test_an_error_in_nlmsg_done_is_raised() -> None:
    wire = Wire([link(1), message(3, struct.pack("=i", -errno.ENODEV))])
    with pytest.raises(Missing):
        on(wire).dump(GET)


def test_replies_with_another_sequence_number_or_sender_are_ignored() -> None:
    forged = (answer(errno.EPERM), 0, 4711)
    wire = Wire([answer(errno.EPERM, sequence=99), forged, link(5), answer(0)])
    assert indexes(on(wire).request(GET)[0]) == [5]


def test_a_batch_is_sent_at_once_and_every_error_is_returned() -> None:
    wire = Wire([answer(0, sequence=1), answer(errno.EEXIST, sequence=2) + answer(0, sequence=3)])
    outcomes = on(wire).attempt(GET, Request(RTM_GETLINK, 0, "make", GET.body), GET)
    assert len(wire.sent) == 1 and len(unpack(wire.sent[0])) == 3
    assert [type(outcome.error) for outcome in outcomes] == [type(None), Exists, type(None)]


def test_a_batch_larger_than_the_buffer_is_split() -> None:
    rounds = [
        [answer(0, sequence=number) for number in part] for part in (range(1, 101), range(101, 201), range(201, 206))
    ]
    wire = Wire(*rounds)  # type: ignore[arg-type]
    assert len(on(wire).attempt(*[GET] * 205)) == 205 and len(wire.sent) == 3


@pytest.mark.parametrize("data", [(link(1), 0x20, 0), link(1)[:20], struct.pack("=IHHII", 4, 16, 0, 0, 0)])
def test_a_truncated_reply_is_an_error(data: Any) -> None:
    with pytest.raises(KernelRefused, match="truncated"):
        on(Wire([data])).request(GET)


def test_the_extended_acknowledgement_is_in_the_message() -> None:
    with pytest.raises(KernelRefused) as caught:
        on(Wire([answer(errno.EINVAL, "Nexthop has invalid gateway.")])).request(GET)
    assert caught.value.message == "cannot look: the kernel says Nexthop has invalid gateway"


@pytest.mark.parametrize(
    ("number", "kind", "hint"),
    [
        (errno.EEXIST, Exists, ""),
        (errno.ENODEV, Missing, ""),
        (errno.ENOENT, Missing, ""),
        (errno.ESRCH, Missing, ""),
        (errno.EADDRNOTAVAIL, Missing, ""),
        (errno.EOPNOTSUPP, KernelLacks, "the module 8021q"),
        (errno.EPERM, KernelRefused, "CAP_NET_ADMIN"),
        (errno.ENETDOWN, KernelRefused, "the link is down"),
        (errno.EINVAL, KernelRefused, ""),
    ],
)
def test_every_errno_is_mapped_to_an_error(number: int, kind: type[KernelRefused], hint: str) -> None:
    error = error_from_errno(number, "make the vlan link x", needs="the module 8021q")
    assert type(error) is kind and error.message.startswith("cannot make the vlan link x: the kernel says ")
    assert hint in error.hint


def test_eopnotsupp_without_a_kind_is_no_missing_module() -> None:
    assert type(error_from_errno(errno.EOPNOTSUPP, "delete the link lo")) is KernelRefused


def test_pyroute2_is_not_imported_as_a_whole_but_can_be_later() -> None:
    program = (
        "import sys; import weft.kernel.linux.kernel\n"
        "heavy = {'asyncio', 'multiprocessing', 'pyroute2.config', 'pyroute2', 'subprocess'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from pyroute2 import IPRoute\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_enobufs_and_a_timeout_are_distinct_errors() -> None:
    lost = OSError(errno.ENOBUFS, "No buffer space available")
    wire = Wire([lost])
    socket = on(wire)
    socket.send(b"\0" * 16, "watch")
    with pytest.raises(MessagesLost, match="cannot watch: no answer from the kernel: No buffer space"):
        socket.receive("watch")
    wire.pending = [BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")] * 2
    assert socket.receive("watch", wait=False) == []
    with pytest.raises(NoAnswer, match="cannot watch: no answer from the kernel in"):
        socket.receive("watch")


def test_the_extended_acknowledgement_after_an_uncapped_request() -> None:
    request = message(RTM_GETLINK, b"\0" * 21)[:37]
    text = b"Too bad\0"
    payload = struct.pack("=i", -errno.EINVAL) + request + b"\0" * 3 + struct.pack("=HH", 4 + len(text), 1) + text
    assert parse_error(2, 0x200, message(2, payload, 0x200)) == (errno.EINVAL, "Too bad")


def test_a_multicast_group_is_joined_and_left_by_a_bound_socket() -> None:
    """An unbound socket would not receive notifications of changes by the kernel itself."""
    socket = NetlinkSocket(NETLINK_ROUTE)
    socket.join(RTNLGRP_LINK)
    assert socket.port != 0
    socket.leave(RTNLGRP_LINK)
    socket.join(RTNLGRP_LINK)
    socket.close()


def test_a_socket_that_has_sent_joins_a_group_too() -> None:
    socket = NetlinkSocket(NETLINK_ROUTE)
    [[lo]] = socket.request(Request(RTM_GETLINK, 0, "look up lo", struct.pack("=BxHiII", 0, 0, 1, 0, 0), single=True))
    assert codec.decode(lo)["index"] == 1
    port = socket.port
    socket.join(RTNLGRP_LINK)
    assert socket.port == port != 0
    socket.close()


def test_receive_times_out() -> None:
    socket = NetlinkSocket(NETLINK_ROUTE, seconds=1)
    with pytest.raises(NoAnswer, match="in 1 seconds"):
        socket.receive("wait")
    socket.close()
