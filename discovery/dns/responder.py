"""From a query's bytes to a reply's, or to what must be asked elsewhere first. No sockets here.

Most queries take the short way: what they ask for is looked up as bytes, and the reply is put together of what was
prepared. All else is read properly.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import random

from discovery.dns import codec
from discovery.dns.answers import AnswerRecord, PreparedAnswer, fit, prepare
from discovery.dns.codec import (
    AA,
    AD,
    ANY,
    BADVERS,
    FORMERR,
    NOTIMP,
    OPCODE,
    PTR,
    QR,
    RA,
    RD,
    REFUSED,
    TC,
    Malformed,
    Query,
)
from discovery.dns.settings import DnsSettings
from discovery.dns.view import View, parse_reverse_name
from discovery.dns.zone import Zone

MAX_MESSAGE = 65535
_COUNTS_PLAIN = b"\0\1\0\0\0\0\0\0"
_COUNTS_EDNS = b"\0\1\0\0\0\0\0\1"
_OPT_START = b"\0\0\x29"
_OPT_NO_OPTIONS = b"\0\0\0\0\0\0"
_PLAIN_OPT = codec.opt_record()
_MAX_CNAME_CHAIN = 4


COUNTER_HELP = {
    "queries": "Messages received, by UDP and TCP.",
    "malformed": "Messages that were none, or no queries.",
    "refused": "Queries that were refused.",
    "forwarded": "Queries that others had to answer.",
    "cached": "Of those, answered from what was kept.",
    "failed": "Of those, not answered in time by anybody.",
    "truncated": "Answers that were cut, so that the client asks by TCP.",
    "streams": "Queries by TCP.",
    "foreign": "Messages from outside of the network that is served, which get no answer.",
}
"""What is counted, and what each count says."""


@dataclass(slots=True)
class Counters:
    """What happened since the start, as COUNTED says."""

    queries: int = 0
    malformed: int = 0
    refused: int = 0
    forwarded: int = 0
    failed: int = 0
    cached: int = 0
    truncated: int = 0
    streams: int = 0
    foreign: int = 0


@dataclass(frozen=True, slots=True)
class PendingQuery:
    """A query that somebody else has the answer to. ``asked`` is the question: name in lower case, type and class.

    With ``start``, the reply begins with that CNAME, and ``asked`` is about where it leads.
    """

    query: Query
    view: View
    stream: bool
    asked: bytes
    start: PreparedAnswer | None = None


class Responder:
    """Answers queries."""

    def __init__(self, zone: Zone, settings: DnsSettings) -> None:
        self.counts = Counters()
        self._zone = zone
        self._size = settings.udp_size
        self._limit = settings.answer_limit or MAX_MESSAGE

    def respond(self, data: bytes, view: View, stream: bool = False) -> bytes | PendingQuery | None:
        """The reply to a message; None if it deserves none. ``stream``: it came over TCP."""
        counts = self.counts
        counts.queries += 1
        end = data.find(b"\0", codec.HEADER_LENGTH) + 5
        key = data[codec.HEADER_LENGTH : end - 4].lower() + data[end - 4 : end]
        prepared = self._zone.kept.get(key) or view.kept.get(key)
        if prepared is None or not prepared.rests or data[2] & 0xFE or len(prepared.units) > self._limit:
            return self._respond(data, view, stream, prepared)
        # A key that is known is a whole question: the name ends where its first zero byte is, and all lengths fit.
        tail = data[end:]
        if not tail and data[4:12] == _COUNTS_PLAIN:
            room, opt, numbers = codec.DEFAULT_UDP_SIZE, b"", prepared.counts
        elif len(tail) == 11 and tail[:3] == _OPT_START and tail[5:] == _OPT_NO_OPTIONS and data[4:12] == _COUNTS_EDNS:
            room, opt, numbers = min(max(tail[3] << 8 | tail[4], 512), self._size), _PLAIN_OPT, prepared.counts_edns
        else:
            return self._respond(data, view, stream, prepared)
        rests = prepared.rests
        reply = b"".join((
            data[:2], bytes((0x84 | data[2] & 1, view.recursion | prepared.code)), numbers,
            data[codec.HEADER_LENGTH : end], rests[int(random() * len(rests))], opt,
        ))  # fmt: skip
        return reply if stream or len(reply) <= room else self._respond(data, view, stream, prepared)

    def _respond(
        self, data: bytes, view: View, stream: bool, prepared: PreparedAnswer | None
    ) -> bytes | PendingQuery | None:
        """The same, thoroughly."""
        if len(data) < codec.HEADER_LENGTH or data[2] & 0x80:
            self.counts.malformed += 1
            return None
        identity, flags = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
        if flags & OPCODE:
            self.counts.refused += 1
            return codec.encode_header(identity, QR | flags & (OPCODE | RD) | NOTIMP, 0, 0, 0, 0)
        try:
            query = codec.decode_query(data)
        except Malformed:
            self.counts.malformed += 1
            return codec.encode_header(identity, QR | flags & RD | FORMERR, 0, 0, 0, 0)
        problem = _error_code(query)
        if problem:
            self.counts.refused += 1
            return self.brief(query, problem)
        if prepared is None:
            prepared = self._find(query, view)
        if prepared is None:
            if view.upstreams is None or not query.flags & RD:
                self.counts.refused += 1
                return self.brief(query, view.refusal if query.flags & RD else REFUSED)
            return PendingQuery(query, view, stream, query.key)
        if prepared.target:
            prepared = self._follow(prepared, query.type)
            if prepared.target and view.upstreams is not None and query.flags & RD:
                return PendingQuery(query, view, stream, prepared.target + query.question[-4:], prepared)
        return self.compose(query, prepared, view, stream)

    def _find(self, query: Query, view: View) -> PreparedAnswer | None:
        domain = self._zone.domain_of(query.name)
        if domain:
            return self._zone.answer(query.name, query.type, domain)
        found = view.answer(query.name, query.type)
        if (found is None or found.code) and query.type in (PTR, ANY):
            address = parse_reverse_name(codec.labels(query.name))
            found = (self._zone.pointer(address) if address is not None else None) or found
        return found

    def _follow(self, prepared: PreparedAnswer, kind: int) -> PreparedAnswer:
        """Put what a CNAME leads to behind it, as far as that is weft's to answer."""
        for _ in range(_MAX_CNAME_CHAIN):
            target = prepared.target
            domain = self._zone.domain_of(target) if target else b""
            if not domain:
                break
            found = self._zone.answer(target, kind, domain)
            # Prepared records bear the question's name; here it is the target's.
            moved = [
                AnswerRecord(target + unit.record[len(codec.QUESTION_NAME) :], unit.extras) for unit in found.units
            ]
            chain = (*prepared.chain, *(target + each[len(codec.QUESTION_NAME) :] for each in found.chain))
            prepared = prepare(found.code, moved, chain=chain, target=found.target)
        return prepared

    def compose(self, query: Query, prepared: PreparedAnswer, view: View, stream: bool, flags: int = AA) -> bytes:
        """A reply of what was prepared; cut where the client takes no more."""
        opt = (codec.opt_record(do=True) if query.do else _PLAIN_OPT) if query.edns else b""
        size = MAX_MESSAGE if stream else min(query.size, self._size)
        if prepared.rests and len(prepared.units) <= self._limit:
            rest = prepared.rests[int(random() * len(prepared.rests))]
            head = codec.encode_header(query.id, flags | QR | query.flags & RD | view.recursion | prepared.code)
            reply = head + (prepared.counts_edns if query.edns else prepared.counts) + query.question + rest + opt
            if len(reply) <= size:
                return reply
        room = size - codec.HEADER_LENGTH - len(query.question) - len(opt)
        body, (answers, authorities, extras), whole = fit(prepared, room, self._limit)
        if not whole:
            self.counts.truncated += 1
        flags |= QR | query.flags & RD | view.recursion | prepared.code | (0 if whole else TC)
        start = codec.encode_header(query.id, flags, 1, answers, authorities, extras + query.edns)
        return start + query.question + body + opt

    def brief(self, query: Query, code: int, view: View | None = None, options: bytes = b"") -> bytes:
        """A reply that has nothing but a code, and for clients with EDNS the reason."""
        flags = QR | query.flags & RD | code & 15 | (view.recursion if view else 0)
        opt = codec.opt_record(code, query.do, options) if query.edns else b""
        return codec.encode_header(query.id, flags, 1, 0, 0, int(query.edns)) + query.question + opt

    def splice(self, pending: PendingQuery, start: PreparedAnswer, message: bytes) -> bytes:
        """What weft knows, a CNAME, and what somebody else said of where it leads. Raises Malformed."""
        kind = pending.query.type
        found = [one for one in codec.decode_records(message) if one.section == 1 and one.type == kind]
        units = [
            AnswerRecord(codec.encode_record(start.target, kind, one.ttl, message[one.data_at : one.end]))
            for one in found
        ]
        return self.compose(pending.query, prepare(units=units, chain=start.chain), pending.view, pending.stream)

    def relay(self, pending: PendingQuery, message: bytes) -> bytes:
        """The reply of somebody else, as it is for this client: its id, its spelling of the question, its size.

        ``message`` has that question, no OPT, and all its records.
        """
        query = pending.query
        opt = codec.opt_record(do=query.do) if query.edns else b""
        dropped = AA | TC | RD | (0 if query.do or query.flags & AD else AD)
        flags = int.from_bytes(message[2:4], "big") & ~dropped | QR | RA | query.flags & RD
        size = MAX_MESSAGE if pending.stream else min(query.size, self._size)
        if len(message) + len(opt) > size:
            self.counts.truncated += 1
            return codec.encode_header(query.id, flags | TC, 1, 0, 0, int(query.edns)) + query.question + opt
        counts = message[4:10] + (int.from_bytes(message[10:12], "big") + query.edns).to_bytes(2, "big")
        head = query.id.to_bytes(2, "big") + flags.to_bytes(2, "big") + counts
        return head + query.question + message[codec.HEADER_LENGTH + len(query.question) :] + opt


def _error_code(query: Query) -> int:
    """The code of the refusal that a query deserves, 0 for none."""
    if query.version:
        return BADVERS
    if query.type in (0, codec.OPT):
        return FORMERR
    if codec.FIRST_META <= query.type <= codec.LAST_META and query.type != ANY:
        return NOTIMP
    return REFUSED if query.question[-2:] != b"\0\1" else 0
