"""The DNS wire format: messages, names, queries and records; record types are in ``rrtypes``.

Names are kept in wire format, in lower case and uncompressed: ``b"\\x03web\\x00"``. A length byte
is at most 63, so it is never one of A to Z, and ``bytes.lower`` lowers a whole name.
Sources: RFC 1035 section 4, RFC 6891 (EDNS), RFC 9619 (one question).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct, error

OPT, ANY = 41, 255
FIRST_META, LAST_META = 128, 255
"""Query types in this range ask for an operation (a transfer, a key) and not for records, but for
ANY.
"""
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
BADVERS = 16

QR, AA, TC, RD = 0x8000, 0x0400, 0x0200, 0x0100
RA, AD, CD = 0x0080, 0x0020, 0x0010
OPCODE = 0x7800
DO = 0x8000
"""DNSSEC OK, in the flags of OPT (RFC 3225)."""

HEADER_LENGTH = 12
MAX_NAME_LENGTH = 255
MAX_LABEL_LENGTH = 63
DEFAULT_UDP_SIZE = 512
"""Bytes that a UDP client without EDNS accepts."""
EDNS_UDP_SIZE = 1232
"""Bytes that weft sends and accepts over UDP with EDNS: never fragmented (DNS flag day 2020)."""
QUESTION_NAME = b"\xc0\x0c"
"""A compression pointer to the question's name, which is always at offset 12."""
MAX_QUERY_RECORDS = 8
"""Additional records accepted in a query."""
MAX_POINTERS = 32
"""Compression pointers followed in one name."""

_HEADER = Struct("!HHHHHH")
_FIXED = Struct("!HHIH")


class Malformed(ValueError):
    """The bytes are not a valid DNS message."""


class BadName(ValueError):
    """The text is not a valid domain name: a label is empty or over 63 bytes, or the name is over
    255.
    """


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query. ``question`` as received, ``name`` in lower case, ``size`` the client's UDP
    payload size.
    """

    id: int
    flags: int
    question: bytes
    name: bytes
    type: int
    edns: bool = False
    version: int = 0
    size: int = DEFAULT_UDP_SIZE
    do: bool = False

    @property
    def key(self) -> bytes:
        """The question with the name in lower case: name, type and class."""
        return self.name + self.question[-4:]


@dataclass(frozen=True, slots=True)
class ParsedRecord:
    """A record in a message, by offsets. ``section``: 1 answer, 2 authority, 3 additional."""

    section: int
    name: bytes
    type: int
    ttl: int
    ttl_at: int
    data_at: int
    end: int


def encode_name(text: str) -> bytes:
    """A name in wire format: "web.weft." or "web.weft"; case is kept. Raises BadName. Source: RFC
    1035 section 3.1.
    """
    if text in ("", "."):
        return b"\0"
    parts = []
    for label in text.removesuffix(".").split("."):
        encoded = label.encode("utf-8", "surrogateescape")
        if not 0 < len(encoded) <= MAX_LABEL_LENGTH:
            raise BadName(f"{text!r}: a label has 1 to {MAX_LABEL_LENGTH} bytes, {label!r} has {len(encoded)}")
        parts.append(bytes((len(encoded),)) + encoded)
    found = b"".join(parts) + b"\0"
    if len(found) > MAX_NAME_LENGTH:
        raise BadName(f"{text!r}: a name has at most {MAX_NAME_LENGTH} bytes in wire format, this one {len(found)}")
    return found


def labels(name: bytes) -> tuple[bytes, ...]:
    """The labels of a valid name in wire format, without the root."""
    found = []
    at = 0
    while length := name[at]:
        found.append(name[at + 1 : at + 1 + length])
        at += 1 + length
    return tuple(found)


def encode_labels(*parts: bytes) -> bytes:
    """A name in wire format from its labels, which are not checked."""
    return b"".join(bytes((len(part),)) + part for part in parts) + b"\0"


def name_to_text(name: bytes) -> str:
    """A name in presentation format: ``web.weft.``; other than printable ASCII is escaped as
    ``\\DDD`` (RFC 1035 section 5.1).
    """
    return "".join("".join(map(_escape, label)) + "." for label in labels(name)) or "."


def _escape(byte: int) -> str:
    """A byte of a label: what is special in a zone file with a backslash, what is not printable as
    ``\\DDD``.
    """
    if not 0x21 <= byte <= 0x7E:
        return f"\\{byte:03d}"
    return f"\\{chr(byte)}" if byte in b'".;()@$\\' else chr(byte)


def encode_record(owner: bytes, rrtype: int, ttl: int, data: bytes) -> bytes:
    """A resource record of class IN in wire format; TTL in seconds."""
    return owner + _FIXED.pack(rrtype, IN, ttl, len(data)) + data


def opt_record(code: int = 0, do: bool = False, options: bytes = b"") -> bytes:
    """An OPT record, version 0; ``code`` is the extended response code, 0 in queries. Source: RFC
    6891.
    """
    flags = (code >> 4) << 24 | (DO if do else 0)
    return (
        b"\0"
        + OPT.to_bytes(2, "big")
        + EDNS_UDP_SIZE.to_bytes(2, "big")
        + flags.to_bytes(4, "big")
        + (len(options).to_bytes(2, "big") + options)
    )


def ede_option(code: int, text: str = "") -> bytes:
    """An Extended DNS Error option with its text. Source: RFC 8914."""
    encoded = text.encode()
    return b"\0\x0f" + (2 + len(encoded)).to_bytes(2, "big") + code.to_bytes(2, "big") + encoded


def encode_header(identity: int, flags: int, *counts: int) -> bytes:
    """A message header: id, flags, and the counts of the four sections if given."""
    return b"".join(each.to_bytes(2, "big") for each in (identity, flags, *counts))


def decode_name(data: bytes, at: int) -> tuple[bytes, int]:
    """A name in lower case and uncompressed, and the offset behind it. Raises Malformed.

    A pointer must lead to before the part of the name that it ends, which excludes loops.
    """
    parts = bytearray()
    end = -1
    bound = at
    pointers = 0
    try:
        while True:
            length = data[at]
            if length < 64:
                parts += data[at : at + 1 + length]
                at += 1 + length
                if len(parts) > MAX_NAME_LENGTH or at > len(data):
                    raise Malformed("name too long")
                if not length:
                    return bytes(parts).lower(), at if end < 0 else end
            elif length >= 192:
                target = (length & 63) << 8 | data[at + 1]
                if end < 0:
                    end = at + 2
                pointers += 1
                if target >= bound or target < HEADER_LENGTH or pointers > MAX_POINTERS:
                    raise Malformed("bad compression pointer")
                bound = at = target
            else:
                raise Malformed("unknown label type")
    except IndexError:
        raise Malformed("truncated name") from None


def decode_query(data: bytes) -> Query:
    """Parse a query: one question, no answers, few additional records. Raises Malformed.

    Of the additional records only OPT is interpreted; others (TSIG, SIG(0)) are skipped.
    """
    if len(data) < HEADER_LENGTH:
        raise Malformed("truncated header")
    identity, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    if questions != 1 or answers or authorities or additionals > MAX_QUERY_RECORDS:
        raise Malformed("not a query with one question and no answer")
    end = _question_end(data)
    name = data[HEADER_LENGTH : end - 4].lower()
    rrtype = int.from_bytes(data[end - 4 : end - 2], "big")
    edns, version, size, do = False, 0, DEFAULT_UDP_SIZE, False
    at = end
    for _ in range(additionals):
        owner, at = decode_name(data, at)
        try:
            this, limit, ttl, length = _FIXED.unpack_from(data, at)
        except error:
            raise Malformed("truncated record") from None
        at += _FIXED.size + length
        if at > len(data):
            raise Malformed("truncated record")
        if this == OPT:
            if edns or owner != b"\0" or not _options_fit(data[at - length : at]):
                raise Malformed("malformed OPT record")
            edns, version, size, do = True, ttl >> 16 & 0xFF, max(limit, DEFAULT_UDP_SIZE), bool(ttl & DO)
    if at != len(data):
        raise Malformed("trailing bytes")
    return Query(identity, flags, data[HEADER_LENGTH:end], name, rrtype, edns, version, size, do)


def _question_end(data: bytes) -> int:
    """The offset behind the question. Raises Malformed; a pointer is invalid here, as no name
    precedes.
    """
    at = HEADER_LENGTH
    while True:
        if at >= len(data):
            raise Malformed("truncated question")
        length = data[at]
        if length > MAX_LABEL_LENGTH:
            raise Malformed("compression pointer in the question")
        at += 1 + length
        if at - HEADER_LENGTH > MAX_NAME_LENGTH or at + 4 > len(data):
            raise Malformed("question too long or truncated")
        if not length:
            return at + 4


def _options_fit(data: bytes) -> bool:
    at = 0
    while at < len(data):
        at += 4 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at == len(data)


def decode_records(data: bytes) -> Iterator[ParsedRecord]:
    """The records of a reply with one question. Raises Malformed."""
    if len(data) < HEADER_LENGTH:
        raise Malformed("truncated header")
    _, _, questions, *counts = _HEADER.unpack_from(data)
    if questions != 1:
        raise Malformed("not exactly one question")
    at = _question_end(data)
    for section, count in enumerate(counts, start=1):
        for _ in range(count):
            name, at = decode_name(data, at)
            try:
                rrtype, _, ttl, length = _FIXED.unpack_from(data, at)
            except error:
                raise Malformed("truncated record") from None
            start = at + _FIXED.size
            if start + length > len(data):
                raise Malformed("truncated record")
            # A TTL with the most significant bit set counts as 0 (RFC 2181 section 8).
            yield ParsedRecord(section, name, rrtype, 0 if ttl >> 31 else ttl, at + 4, start, start + length)
            at = start + length
    if at != len(data):
        raise Malformed("trailing bytes")


def question_bytes(data: bytes) -> bytes:
    """The question of a reply as received: name, type and class. Raises Malformed."""
    if len(data) < HEADER_LENGTH:
        raise Malformed("truncated header")
    if data[4:6] != b"\0\1":
        raise Malformed("not exactly one question")
    return data[HEADER_LENGTH : _question_end(data)]
