"""From the bytes of a query to those of the reply, or to what is to be forwarded first. No sockets
here.

Most queries take the fast path: the question is looked up as bytes in the caches of zone and view,
and the reply is a join of the query's id and question with an answer encoded in advance. All others
are parsed.
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
    QR,
    RA,
    RD,
    REFUSED,
    TC,
    Malformed,
    Query,
)
from discovery.dns.rrtypes import PTR, uncompressed
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
    "queries": "Messages received over UDP and TCP.",
    "malformed": "Messages that are not valid DNS queries.",
    "refused": "Queries refused.",
    "forwarded": "Queries forwarded to upstream servers.",
    "cached": "Forwarded queries answered from the cache.",
    "failed": "Forwarded queries that no upstream server answered in time.",
    "truncated": "Replies truncated, so that the client retries over TCP.",
    "streams": "Queries received over TCP.",
    "foreign": "Messages from outside the network served, dropped.",
}
"""The counters and their help texts."""


@dataclass(slots=True)
class Counters:
    """Events since the start; see COUNTER_HELP."""

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
    """A query to forward. ``question`` is what to ask upstream: name in lower case, type and class.

    With ``cname`` the reply begins with that CNAME, and ``question`` is about its target.
    """

    query: Query
    view: View
    tcp: bool
    question: bytes
    cname: PreparedAnswer | None = None


class Responder:
    """Answers queries from zone and view."""

    def __init__(self, zone: Zone, settings: DnsSettings) -> None:
        self.counters = Counters()
        self._zone = zone
        self._limit = settings.answer_limit or MAX_MESSAGE

    def respond(self, data: bytes, view: View, tcp: bool = False) -> bytes | PendingQuery | None:
        """The reply to a message; None for a message that gets none."""
        counters = self.counters
        counters.queries += 1
        end = data.find(b"\0", codec.HEADER_LENGTH) + 5
        key = data[codec.HEADER_LENGTH : end - 4].lower() + data[end - 4 : end]
        answer = self._zone.cache.get(key) or view.cache.get(key)
        if answer is None or not answer.bodies or data[2] & 0xFE or len(answer.records) > self._limit:
            return self._respond(data, view, tcp, answer)
        # A cached key is a valid question: its name ends at the first zero byte, and all label lengths fit.
        tail = data[end:]
        if not tail and data[4:12] == _COUNTS_PLAIN:
            size, opt, counts = codec.DEFAULT_UDP_SIZE, b"", answer.counts
        elif len(tail) == 11 and tail[:3] == _OPT_START and tail[5:] == _OPT_NO_OPTIONS and data[4:12] == _COUNTS_EDNS:
            size, opt, counts = min(max(tail[3] << 8 | tail[4], 512), view.udp_size), _PLAIN_OPT, answer.counts_edns
        else:
            return self._respond(data, view, tcp, answer)
        bodies = answer.bodies
        reply = b"".join((
            data[:2], bytes((0x84 | data[2] & 1, view.recursion | answer.rcode)), counts,
            data[codec.HEADER_LENGTH : end], bodies[int(random() * len(bodies))], opt,
        ))  # fmt: skip
        return reply if tcp or len(reply) <= size else self._respond(data, view, tcp, answer)

    def _respond(
        self, data: bytes, view: View, tcp: bool, answer: PreparedAnswer | None
    ) -> bytes | PendingQuery | None:
        """The slow path: parse the query; ``answer`` is the cached one, if any."""
        if len(data) < codec.HEADER_LENGTH or data[2] & 0x80:
            self.counters.malformed += 1
            return None
        identity, flags = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")
        if flags & OPCODE:
            self.counters.refused += 1
            return codec.encode_header(identity, QR | flags & (OPCODE | RD) | NOTIMP, 0, 0, 0, 0)
        try:
            query = codec.decode_query(data)
        except Malformed:
            self.counters.malformed += 1
            return codec.encode_header(identity, QR | flags & RD | FORMERR, 0, 0, 0, 0)
        if rcode := _error_code(query):
            self.counters.refused += 1
            return self.error_reply(query, rcode)
        if answer is None:
            answer = self._find(query, view)
        if answer is None:
            if view.upstreams is None or not query.flags & RD:
                self.counters.refused += 1
                return self.error_reply(query, view.refusal if query.flags & RD else REFUSED)
            return PendingQuery(query, view, tcp, query.key)
        if answer.target:
            answer = self._follow_cname(answer, query.type)
            if answer.target and view.upstreams is not None and query.flags & RD:
                return PendingQuery(query, view, tcp, answer.target + query.question[-4:], answer)
        return self.compose(query, answer, view, tcp)

    def _find(self, query: Query, view: View) -> PreparedAnswer | None:
        domain = self._zone.domain_of(query.name)
        if domain:
            return self._zone.answer(query.name, query.type, domain)
        found = view.answer(query.name, query.type)
        if (found is None or found.rcode) and query.type in (PTR, ANY):
            address = parse_reverse_name(codec.labels(query.name))
            found = (self._zone.pointer(address) if address is not None else None) or found
        return found

    def _follow_cname(self, answer: PreparedAnswer, rrtype: int) -> PreparedAnswer:
        """Resolve the CNAME's target as long as it is in one of weft's zones."""
        for _ in range(_MAX_CNAME_CHAIN):
            target = answer.target
            domain = self._zone.domain_of(target) if target else b""
            if not domain:
                break
            found = self._zone.answer(target, rrtype, domain)
            # Prepared records point at the question's name; here the owner is the target.
            owner = len(codec.QUESTION_NAME)
            records = [AnswerRecord(target + each.record[owner:], each.additional) for each in found.records]
            cnames = (*answer.cnames, *(target + each[owner:] for each in found.cnames))
            answer = prepare(found.rcode, records, cnames=cnames, target=found.target)
        return answer

    def compose(self, query: Query, answer: PreparedAnswer, view: View, tcp: bool, flags: int = AA) -> bytes:
        """Encode a reply; truncated (TC) to what the client accepts."""
        opt = (codec.opt_record(do=True) if query.do else _PLAIN_OPT) if query.edns else b""
        size = MAX_MESSAGE if tcp else min(query.size, view.udp_size)
        if answer.bodies and len(answer.records) <= self._limit:
            body = answer.bodies[int(random() * len(answer.bodies))]
            header = codec.encode_header(query.id, flags | QR | query.flags & RD | view.recursion | answer.rcode)
            reply = header + (answer.counts_edns if query.edns else answer.counts) + query.question + body + opt
            if len(reply) <= size:
                return reply
        room = size - codec.HEADER_LENGTH - len(query.question) - len(opt)
        body, (answers, authorities, additional), complete = fit(answer, room, self._limit)
        if not complete:
            self.counters.truncated += 1
        flags |= QR | query.flags & RD | view.recursion | answer.rcode | (0 if complete else TC)
        header = codec.encode_header(query.id, flags, 1, answers, authorities, additional + query.edns)
        return header + query.question + body + opt

    def error_reply(self, query: Query, rcode: int, view: View | None = None, options: bytes = b"") -> bytes:
        """A reply without records; for clients with EDNS with the extended code and these
        options.
        """
        flags = QR | query.flags & RD | rcode & 15 | (view.recursion if view else 0)
        opt = codec.opt_record(rcode, query.do, options) if query.edns else b""
        return codec.encode_header(query.id, flags, 1, 0, 0, int(query.edns)) + query.question + opt

    def append_to_cname(self, pending: PendingQuery, cname: PreparedAnswer, message: bytes) -> bytes:
        """A reply of weft's CNAME and an upstream server's answer for its target. Raises
        Malformed.
        """
        rrtype = pending.query.type
        found = [one for one in codec.decode_records(message) if one.section == 1 and one.type == rrtype]
        records = [
            AnswerRecord(
                codec.encode_record(cname.target, rrtype, one.ttl, uncompressed(rrtype, message, one.data_at, one.end))
            )
            for one in found
        ]
        return self.compose(pending.query, prepare(records=records, cnames=cname.cnames), pending.view, pending.tcp)

    def relay(self, pending: PendingQuery, message: bytes) -> bytes:
        """An upstream server's reply with this client's id, spelling of the question (0x20), and
        size limit.

        ``message`` has the same question, no OPT, and is complete.
        """
        query = pending.query
        opt = codec.opt_record(do=query.do) if query.edns else b""
        dropped = AA | TC | RD | (0 if query.do or query.flags & AD else AD)
        flags = int.from_bytes(message[2:4], "big") & ~dropped | QR | RA | query.flags & RD
        size = MAX_MESSAGE if pending.tcp else min(query.size, pending.view.udp_size)
        if len(message) + len(opt) > size:
            self.counters.truncated += 1
            return codec.encode_header(query.id, flags | TC, 1, 0, 0, int(query.edns)) + query.question + opt
        counts = message[4:10] + (int.from_bytes(message[10:12], "big") + query.edns).to_bytes(2, "big")
        header = query.id.to_bytes(2, "big") + flags.to_bytes(2, "big") + counts
        return header + query.question + message[codec.HEADER_LENGTH + len(query.question) :] + opt


def _error_code(query: Query) -> int:
    """The response code for a query that is not served, 0 for one that is."""
    if query.version:
        return BADVERS
    if query.type in (0, codec.OPT):
        return FORMERR
    if codec.FIRST_META <= query.type <= codec.LAST_META and query.type != ANY:
        return NOTIMP
    return REFUSED if query.question[-2:] != b"\0\1" else 0
