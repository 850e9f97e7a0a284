"""One real packet whose way through the nftables rules of this host is traced by the kernel.

A rule before all others marks exactly this packet (``meta nftrace set 1``), in tables that this process owns:
the kernel deletes them when the process ends, however it ends (NFT_TABLE_F_OWNER, since Linux 5.12). Sources:
``net/netfilter/nf_tables_trace.c``, nft(8) (``nft monitor trace``).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from struct import pack

from weft.checksum import internet_checksum
from weft.errors import KernelLacks, KernelRefused
from weft.kernel import netns
from weft.kernel.netlink.attributes import get_string, parse
from weft.kernel.netlink.constants import (
    NETLINK_NETFILTER,
    NF_DROP,
    NFNLGRP_NFTRACE,
    NFPROTO_NETDEV,
    NFT_MSG_TRACE,
    NFT_TRACETYPE_POLICY,
    NFT_TRACETYPE_RETURN,
    NFT_TRACETYPE_RULE,
    NFTA_TRACE_CHAIN,
    NFTA_TRACE_POLICY,
    NFTA_TRACE_RULE_HANDLE,
    NFTA_TRACE_TABLE,
    NFTA_TRACE_TYPE,
    NFTA_TRACE_VERDICT,
    NFTA_VERDICT_CODE,
)
from weft.kernel.netlink.transport import NetlinkSocket
from weft.kernel.nft.owned import OwnedTable
from weft.kernel.nft.socket import ATTRIBUTES, FAMILIES
from weft.kernel.schema import Chain, Rule, Table
from weft.types import Address, NamespaceId

SECONDS = 0.9
"""How long an answer is waited for: TCP repeats a SYN after a second."""
_NAMES = {number: name for name, number in FAMILIES.items()} | {NFPROTO_NETDEV: "netdev"}
_OWN = "weft-trace-"
_FIRST = "-10000"  # a priority before all others'
_HOOKS = {"inet": ("prerouting", "output"), "bridge": ("prerouting",)}
_ECHO = {4: (8, 0), 6: (128, 129)}  # the types of ICMP's echo request and reply
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1, "icmpv6": 58}
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "sctp": socket.SOCK_STREAM}


@dataclass(frozen=True, slots=True)
class Step:
    """A rule that matched the packet, or with handle 0 the policy of a chain that dropped it.

    ``table`` is the family and the name.
    """

    table: str
    chain: str
    handle: int
    dropped: bool


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of the packet: ``answer`` is ``connected``, ``answered``, ``refused``, or the error that came
    back; "" where nothing came within 0.9 s.
    """

    answer: str
    steps: tuple[Step, ...]

    @property
    def arrived(self) -> bool:
        """Whether the answer is of its destination."""
        return self.answer in ("connected", "answered", "refused") and self.dropped is None

    @property
    def dropped(self) -> Step | None:
        return next((one for one in self.steps if one.dropped), None)


class LivePacket:
    """The first packet of a connection, sent by a socket in a network namespace (None: this thread's).

    ``bind`` first, then ``send`` once; ``close`` in any case. All raise KernelRefused.
    """

    def __init__(self, sender: NamespaceId | None, destination: Address, protocol: str, port: int) -> None:
        self._sender, self._destination, self._protocol, self._port = sender, destination, protocol, port
        self._undo = ExitStack()
        self._is_echo = protocol not in _KINDS

    def close(self) -> None:
        self._undo.close()

    def bind(self, source: Address) -> int:
        """Choose the source port, or the identifier of an echo request, and return it."""
        family = socket.AF_INET if source.version == 4 else socket.AF_INET6
        kind = socket.SOCK_RAW if self._is_echo else _KINDS[self._protocol]
        try:
            with nullcontext() if self._sender is None else netns.entered(self._sender):
                self._socket = socket.socket(family, kind | socket.SOCK_NONBLOCK, _PROTOCOLS[self._protocol])
            self._undo.callback(self._socket.close)
            self._socket.bind((str(source), 0))
        except OSError as error:
            raise KernelRefused(f"cannot send from {source}: {error.strerror}") from error
        self._source = source
        self._number = os.getpid() & 0xFFFF if self._is_echo else int(self._socket.getsockname()[1])
        return self._number

    def send(self) -> Sent:
        """Mark the packet, send it, and listen until it is dropped, answered, or 0.9 s have passed."""
        with ExitStack() as undo:
            trace = NetlinkSocket(NETLINK_NETFILTER)
            undo.callback(trace.close)
            trace.join(NFNLGRP_NFTRACE)
            for family in _HOOKS:
                table = OwnedTable(self._table(family), persist=False)
                undo.callback(table.close)
                if not table.claim():
                    raise KernelLacks(
                        "this kernel has no nftables tables that end with their owner", hint="Linux 5.12 has them"
                    )
            return self._listen(trace, self._start())

    def _table(self, family: str) -> Table:
        version = "ip" if self._source.version == 4 else "ip6"
        match = [f"{version} saddr {self._source} {version} daddr {self._destination}"]
        if self._is_echo:
            request = _ECHO[self._source.version][0]
            match.append(f"meta l4proto {_PROTOCOLS[self._protocol]} @th,0,8 {request} @th,32,16 {self._number}")
        else:
            match.append(f"{self._protocol} sport {self._number} {self._protocol} dport {self._port}")
        if self._protocol == "tcp":
            match.append("tcp flags & (fin | syn | rst | ack) == syn")
        return table(family, f"{_OWN}{os.getpid()}", " ".join(match))

    def _start(self) -> str:
        """Send it; the error that the kernel answers at once."""
        try:
            if self._is_echo:
                self._socket.sendto(self._echo(), (str(self._destination), 0))
                return ""
            number = self._socket.connect_ex((str(self._destination), self._port))
            if self._protocol == "udp" and not number:
                self._socket.send(b"")
        except OSError as error:
            number = error.errno or errno.EIO
        return "" if number in (0, errno.EINPROGRESS) else _answer(number)

    def _echo(self) -> bytes:
        request = _ECHO[self._source.version][0]
        blank = pack("!BBHHH", request, 0, 0, self._number, 1)
        return blank[:2] + pack("!H", internet_checksum(blank)) + blank[4:]

    def _listen(self, trace: NetlinkSocket, answer: str) -> Sent:
        poll = select.poll()
        poll.register(trace.fileno(), select.POLLIN)
        poll.register(self._socket, select.POLLIN | (0 if self._is_echo or self._protocol == "udp" else select.POLLOUT))
        steps: list[Step] = []
        deadline = time.monotonic() + SECONDS
        while not answer and not (steps and steps[-1].dropped) and (left := deadline - time.monotonic()) > 0:
            ready = dict(poll.poll(left * 1000))
            if self._socket.fileno() in ready:
                answer = self._received()
            while messages := trace.receive("trace a packet", wait=False):
                steps += [step for _, kind, _, message in messages for step in traced(kind, message)]
        return Sent(answer, tuple(steps))

    def _received(self) -> str:
        """What the socket says: "" for a packet that is not the answer."""
        if number := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return _answer(number)
        if self._protocol in ("tcp", "sctp"):
            return "connected"
        try:
            data = self._socket.recv(2048)
        except BlockingIOError:
            return ""
        except OSError as error:
            return _answer(error.errno or errno.EIO)
        if not self._is_echo:
            return "answered"
        if self._source.version == 4:
            data = data[(data[0] & 15) * 4 :]
        wanted = bytes((_ECHO[self._source.version][1],)), self._number.to_bytes(2, "big")
        return "answered" if (data[:1], data[4:6]) == wanted else ""


def table(family: str, name: str, match: str) -> Table:
    """A table of a family that marks what matches, before all others' rules."""
    rule = Rule(f"{match} meta nftrace set 1", "this packet")
    chains = (
        Chain(f"trace_{hook}", "marks one packet", (rule,), hook=hook, priority=_FIRST) for hook in _HOOKS[family]
    )
    return Table(family, name, "weft trace --live", (), tuple(chains))


def _answer(number: int) -> str:
    return "refused" if number == errno.ECONNREFUSED else os.strerror(number)


def traced(kind: int, message: bytes) -> Iterator[Step]:
    """The rule of a message of the kernel's trace; nothing for the end of a chain, and of the tables here."""
    if kind & 0xFF != NFT_MSG_TRACE:
        return
    found = parse(message, ATTRIBUTES)
    name = get_string(found, NFTA_TRACE_TABLE)
    family = _NAMES.get(message[ATTRIBUTES - 4], "")
    sort = int.from_bytes(found.get(NFTA_TRACE_TYPE, b""), "big")
    verdict = int.from_bytes(parse(found.get(NFTA_TRACE_VERDICT, b"")).get(NFTA_VERDICT_CODE, b"\xff"), "big")
    chain, handle = get_string(found, NFTA_TRACE_CHAIN), int.from_bytes(found.get(NFTA_TRACE_RULE_HANDLE, b""), "big")
    if name.startswith(_OWN):
        return
    # Without a handle: the end of a chain. Rules that return are of the type return before Linux 6.7.
    if sort in (NFT_TRACETYPE_RULE, NFT_TRACETYPE_RETURN) and handle:
        yield Step(f"{family} {name}", chain, handle, verdict & 0xFF == NF_DROP)
    elif sort == NFT_TRACETYPE_POLICY and found.get(NFTA_TRACE_POLICY) == NF_DROP.to_bytes(4, "big"):
        yield Step(f"{family} {name}", chain, 0, True)
