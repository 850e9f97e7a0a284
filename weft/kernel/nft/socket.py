"""nf_tables over netlink, without libnftables, which lists all rules and sets before it changes a
single element.

Here are requests and transactions of messages that ``elements`` and ``batch`` make; rules and sets
are the library's. Sources: ``linux/netfilter/nf_tables.h``, ``nfnetlink.h``,
``net/netfilter/nfnetlink.c``, netlink(7).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from struct import Struct

from weft.errors import Busy, Exists, KernelLacks, KernelRefused, Missing
from weft.kernel.netlink.attributes import Attributes, attribute, parse
from weft.kernel.netlink.constants import (
    NETLINK_NETFILTER,
    NFNETLINK_V0,
    NFNL_BATCH_GENID,
    NFNL_MSG_BATCH_BEGIN,
    NFNL_MSG_BATCH_END,
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_BRIDGE,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_MSG_GETGEN,
    NFTA_GEN_ID,
    NLM_F_ACK,
    NLM_F_REQUEST,
)
from weft.kernel.netlink.transport import (
    HEADER_SIZE,
    DumpInterrupted,
    NetlinkSocket,
    Outcome,
    Request,
    pack,
    parse_error,
)

FAMILIES = {"inet": NFPROTO_INET, "ip": NFPROTO_IPV4, "bridge": NFPROTO_BRIDGE, "ip6": NFPROTO_IPV6}
_SUBSYSTEM = NFNL_SUBSYS_NFTABLES << 8
_SECONDS = 10
_DUMP_ATTEMPTS = 20
_SEND_BUFFER = 1 << 22  # bytes of a transaction
_WINDOW = 64  # requests at once; their answers fit the socket's buffer
_NFGENMSG = Struct("=BBH")
_BATCH_NFGENMSG = Struct("!BBH").pack(0, NFNETLINK_V0, NFNL_SUBSYS_NFTABLES)
_PREFIXES = {name: _NFGENMSG.pack(number, NFNETLINK_V0, 0) for name, number in FAMILIES.items()}
ATTRIBUTES = HEADER_SIZE + _NFGENMSG.size  # their offset in a message

Change = tuple[int, int, str, tuple[bytes, ...]]
"""One message of a transaction: its type, its flags, the table's family, its attributes."""


class NftSocket(NetlinkSocket):
    """A netlink socket to nf_tables in the namespace of the thread that made it.

    Raises KernelLacks where the kernel has no nftables, KernelRefused where it does not answer;
    then it must be closed, for answers may still come. Keep it otherwise: to close any socket of
    this kind waits until all that was deleted before is freed, 10 to 20 ms (nft_rcv_nl_event in
    ``nf_tables_api.c``).
    """

    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER, seconds=_SECONDS, send_buffer=_SEND_BUFFER, window=_WINDOW)

    def to_error(self, outcome: Outcome) -> KernelRefused:
        return nft_error(outcome.errno, outcome.sentence)

    def get_all(self, kind: int, family: str, *attributes: bytes, consistent: bool = True) -> list[Attributes]:
        """All objects of a kind and family, listed again where the rules change meanwhile, unless
        that does not matter.

        The kernel says where its answer ends: an empty list means that there are none. Raises Busy.
        """
        request = _request(kind, family, attributes, single=False)
        try:
            messages = self.dump(request, attempts=_DUMP_ATTEMPTS, consistent=consistent)
        except DumpInterrupted as error:
            raise Busy("the nftables rules keep changing", hint="try again") from error
        return [parse(message, ATTRIBUTES) for message in messages]

    def get(self, kind: int, requests: Iterable[tuple[str, tuple[bytes, ...]]]) -> list[Attributes | None]:
        """Objects by family and attributes, many in one datagram; None for each missing one."""
        found: list[Attributes | None] = []
        for outcome in self.attempt(*(_request(kind, family, given, single=True) for family, given in requests)):
            if outcome.errno not in (0, errno.ENOENT):
                raise self.to_error(outcome)
            found.append(parse(outcome.messages[0], ATTRIBUTES) if outcome.messages else None)
        return found

    def generation(self) -> int:
        """The number of the last transaction in this namespace, of any program: while it stays,
        nothing has changed.
        """
        (found,) = self.get(NFT_MSG_GETGEN, [("inet", ())])
        return int.from_bytes(found[NFTA_GEN_ID], "big") if found else 0

    def transact(self, changes: list[Change], expected: int = 0) -> int:
        """All of the changes or none: 0, or the errno of what was refused, with nothing changed.

        ERESTART says that the generation is not the ``expected`` one; 0 expects none.
        """
        with self._lock:
            begin = self.reserve(len(changes) + 2)
            last = begin + len(changes)
            generation = attribute(NFNL_BATCH_GENID, expected.to_bytes(4, "big")) if expected else b""
            messages = [pack(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, begin, _BATCH_NFGENMSG + generation)]
            for sequence, (kind, flags, family, attributes) in enumerate(changes, begin + 1):
                flags |= NLM_F_REQUEST | (NLM_F_ACK if sequence == last else 0)
                messages.append(pack(_SUBSYSTEM | kind, flags, sequence, _PREFIXES[family] + b"".join(attributes)))
            messages.append(pack(NFNL_MSG_BATCH_END, NLM_F_REQUEST, last + 1, _BATCH_NFGENMSG))
            self.send(b"".join(messages), "change nftables elements")
            refused = 0
            while True:
                for sequence, kind, flags, message in self.receive("change nftables elements"):
                    if not begin <= sequence <= last:
                        continue
                    number, sentence = parse_error(kind, flags, message)
                    refused = refused or number
                    if sequence == last or refused == errno.ERESTART:
                        return refused
                    if sequence == begin:  # the commit failed, and other answers may come
                        raise nft_error(refused, sentence)


def _request(kind: int, family: str, attributes: tuple[bytes, ...], *, single: bool) -> Request:
    return Request(_SUBSYSTEM | kind, 0, "list nftables objects", _PREFIXES[family] + b"".join(attributes), "", single)


def nft_error(number: int, sentence: str = "") -> KernelRefused:
    """The error for an errno of nf_tables."""
    message = f"nftables: {sentence or os.strerror(number)}"
    if number == errno.EEXIST:
        return Exists(message)
    if number == errno.ENOENT:
        return Missing(message)
    if number == errno.EOPNOTSUPP:
        return KernelLacks(message, hint="the kernel lacks an nftables module")
    return KernelRefused(message, hint="it takes CAP_NET_ADMIN: run weft as root" if number == errno.EPERM else "")
