"""The socket against answers that a quiet kernel seldom gives, and what importing it costs."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from typing import Any

import pytest

from weft.errors import Exists, KernelLacks, KernelRefused, Missing
from weft.kernel.netlink import codec
from weft.kernel.netlink.refusals import refusal
from weft.kernel.netlink.socket import Request, RouteSocket, split

GET = Request(codec.GETLINK, 0, "look")


class Wire:
    """In the place of the kernel's end: what it answers to each send, datagram by datagram."""

    def __init__(self, *rounds: list[bytes | OSError | tuple[bytes, int, int]]) -> None:
        self.rounds = list(rounds)
        self.pending: list[Any] = []
        self.sent: list[bytes] = []

    def sendto(self, data: bytes, _: tuple[int, int]) -> None:
        self.sent.append(data)
        self.sequence = struct.unpack_from("=I", data, 8)[0]
        self.pending += self.rounds.pop(0)

    def recvmsg(self, _: int) -> tuple[bytes, list[Any], int, tuple[int, int]]:
        one = self.pending.pop(0)
        if isinstance(one, OSError):
            raise one
        data, flags, sender = one if isinstance(one, tuple) else (one, 0, 0)
        return self.numbered(data), [], flags, (sender, 0)

    def numbered(self, data: bytes) -> bytes:
        """The sequence number of the last request where a message says 0."""
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
    return message(codec.NEWLINK, struct.pack("=BxHiII", 0, 1, index, 0, 0), flags, sequence)


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


def test_a_dump_during_which_the_tables_changed_is_asked_for_again() -> None:
    wire = Wire([link(1, flags=0x10), done()], [link(2), done(flags=0x10)], [link(3), link(4) + done()])
    assert [one["index"] for one in on(wire).dump(GET)] == [3, 4]
    assert len(wire.sent) == 3


def test_a_dump_of_which_a_part_was_lost_is_asked_for_again() -> None:
    lost = OSError(errno.ENOBUFS, "No buffer space available")
    wire = Wire([link(1), lost], [link(7, sequence=1) + done(), link(9, sequence=1), link(2)])
    wire.rounds[1] = [link(7, sequence=1), message(3, struct.pack("=i", 0), sequence=1), link(2) + done()]
    assert [one["index"] for one in on(wire).dump(GET)] == [2]


def test_a_dump_that_never_settles_is_refused() -> None:
    wire = Wire(*([link(1, flags=0x10), done()] for _ in range(10)))
    with pytest.raises(KernelRefused, match="kept changing"):
        on(wire).dump(GET)


def test_an_error_at_the_end_of_a_dump_is_an_error() -> None:
    wire = Wire([link(1), message(3, struct.pack("=i", -errno.ENODEV))])
    with pytest.raises(Missing):
        on(wire).dump(GET)


def test_answers_to_something_else_or_from_somebody_else_are_passed_over() -> None:
    forged = (answer(errno.EPERM), 0, 4711)
    wire = Wire([answer(errno.EPERM, sequence=99), forged, link(5), answer(0)])
    assert [one["index"] for one in on(wire).request(GET)[0]] == [5]


def test_all_messages_of_a_call_leave_together_and_every_refusal_is_kept() -> None:
    wire = Wire([answer(0, sequence=1), answer(errno.EEXIST, sequence=2) + answer(0, sequence=3)])
    outcomes = on(wire).attempt(GET, Request(codec.GETLINK, 0, "make"), GET)
    assert len(wire.sent) == 1 and len(split(wire.sent[0])) == 3
    assert [type(outcome.problem) for outcome in outcomes] == [type(None), Exists, type(None)]


def test_more_messages_than_a_buffer_holds_leave_in_several_calls() -> None:
    rounds = [
        [answer(0, sequence=number) for number in part] for part in (range(1, 101), range(101, 201), range(201, 206))
    ]
    wire = Wire(*rounds)  # type: ignore[arg-type]
    assert len(on(wire).attempt(*[GET] * 205)) == 205 and len(wire.sent) == 3


@pytest.mark.parametrize("data", [(link(1), 0x20, 0), link(1)[:20], struct.pack("=IHHII", 4, 16, 0, 0, 0)])
def test_an_answer_cut_short_is_an_error_and_no_endless_loop(data: Any) -> None:
    with pytest.raises(KernelRefused, match="cut short"):
        on(Wire([data])).request(GET)


def test_the_kernel_s_own_sentence_is_in_the_message() -> None:
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
def test_every_errno_is_one_of_weft_s_errors(number: int, kind: type[KernelRefused], hint: str) -> None:
    error = refusal(number, "make the vlan link x", needs="the module 8021q")
    assert type(error) is kind and error.message.startswith("cannot make the vlan link x: the kernel says ")
    assert hint in error.hint


def test_what_is_not_supported_is_no_lack_where_nothing_is_named() -> None:
    assert type(refusal(errno.EOPNOTSUPP, "delete the link lo")) is KernelRefused


def test_pyroute2_s_machinery_is_not_imported_and_can_be_later() -> None:
    program = (
        "import sys; import weft.kernel.linux.kernel\n"
        "heavy = {'asyncio', 'multiprocessing', 'pyroute2.config', 'pyroute2', 'subprocess'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from pyroute2 import IPRoute\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
