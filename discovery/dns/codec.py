"""The DNS wire format, by hand: what weft writes, and the little that it must understand of what it is sent.

Names are kept as they are on the wire, in lower case and without pointers: ``b"\\x03web\\x00"``. A byte in A to Z
cannot be a label's length (at most 63), so ``bytes.lower`` does a whole name.
Sources: RFC 1035 section 4, RFC 2782 (SRV), RFC 3596 (AAAA), RFC 6891 (EDNS), RFC 9619 (one question).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, inet_pton
from struct import Struct, error

A, NS, CNAME, SOA, PTR, HINFO, MX, TXT, AAAA, SRV, OPT = 1, 2, 5, 6, 12, 13, 15, 16, 28, 33, 41
IXFR, AXFR, MAILB, MAILA, ANY = 251, 252, 253, 254, 255
LAST_META = 255
FIRST_META = 128
"""Types from here to LAST_META ask for something to be done (a transfer, a key), not for records; but ANY."""
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = 0, 1, 2, 3, 4, 5
BADVERS = 16

QR, AA, TC, RD = 0x8000, 0x0400, 0x0200, 0x0100
RA, AD, CD = 0x0080, 0x0020, 0x0010
OPCODE = 0x7800
DO = 0x8000
"""In the flags of OPT: the client understands DNSSEC (RFC 3225)."""

HEADER_LENGTH = 12
MAX_NAME_LENGTH = 255
MAX_LABEL_LENGTH = 63
DEFAULT_UDP_SIZE = 512
"""What a UDP client without EDNS takes, in bytes."""
EDNS_UDP_SIZE = 1232
"""What weft sends and takes over UDP with EDNS: it passes every link without fragments."""
QUESTION_NAME = b"\xc0\x0c"
"""A pointer to the name of the question, which always stands at the same place."""
MAX_QUERY_RECORDS = 8
"""More records than a query has any use for."""
MAX_POINTERS = 32
"""More pointers than anybody makes a name of; each costs who reads it."""

_HEADER = Struct("!HHHHHH")
_FIXED = Struct("!HHIH")
_SRV = Struct("!HHH")


class Malformed(ValueError):
    """These bytes are no DNS message."""


class BadName(ValueError):
    """This text can be no domain name: a label is empty or longer than 63 bytes, or all of it longer than 255."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query as it was understood: ``question`` as it was sent, ``name`` in lower case, ``size`` what is taken."""

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
        """What is asked, however it is written: name, type and class."""
        return self.name + self.question[-4:]


@dataclass(frozen=True, slots=True)
class ParsedRecord:
    """A record of a message: where its TTL and its data stand. ``section``: 1 answer, 2 authority, 3 additional."""

    section: int
    name: bytes
    type: int
    ttl: int
    ttl_at: int
    data_at: int
    end: int


def encode_name(text: str) -> bytes:
    """A name for the wire: "web.weft." or "web.weft"; case is kept. Raises BadName. Source: RFC 1035 section 3.1."""
    if text in ("", "."):
        return b"\0"
    parts = []
    for label in text.removesuffix(".").split("."):
        encoded = label.encode("utf-8", "surrogateescape")
        if not 0 < len(encoded) <= MAX_LABEL_LENGTH:
            raise BadName(f"{text!r}: a label has 1 to {MAX_LABEL_LENGTH} bytes, and {label!r} has {len(encoded)}")
        parts.append(bytes((len(encoded),)) + encoded)
    found = b"".join(parts) + b"\0"
    if len(found) > MAX_NAME_LENGTH:
        raise BadName(f"{text!r}: a name has at most {MAX_NAME_LENGTH} bytes on the wire, and this has {len(found)}")
    return found


def labels(name: bytes) -> tuple[bytes, ...]:
    """The labels of a whole, valid name, without the root's."""
    found = []
    at = 0
    while length := name[at]:
        found.append(name[at + 1 : at + 1 + length])
        at += 1 + length
    return tuple(found)


def encode_labels(*parts: bytes) -> bytes:
    """A name of labels, the root's added; they must be short enough."""
    return b"".join(bytes((len(part),)) + part for part in parts) + b"\0"


def name_to_text(name: bytes) -> str:
    """A name for people: ``web.weft.``; bytes that do not print are escaped."""
    shown = (label.decode("ascii", "backslashreplace").replace(".", "\\.") for label in labels(name))
    return "".join(part + "." for part in shown) or "."


def encode_record(owner: bytes, kind: int, ttl: int, data: bytes) -> bytes:
    """A resource record of class IN; TTL in seconds."""
    return owner + _FIXED.pack(kind, IN, ttl, len(data)) + data


def pack_address(written: str) -> bytes:
    """The 4 or 16 bytes of an address as somebody wrote it; none if it is no address, but a name."""
    try:
        return inet_pton(AF_INET6 if ":" in written else AF_INET, written)
    except (OSError, ValueError):
        return b""


def address_record(owner: bytes, address: bytes, ttl: int) -> bytes:
    """An A or AAAA record of the bytes of an address."""
    return encode_record(owner, A if len(address) == 4 else AAAA, ttl, address)


def addresses_of_type(addresses: Iterable[bytes], kind: int) -> list[bytes]:
    """Those that are asked for, as bytes: of IPv4, of IPv6, or for ANY of one of them."""
    known = [each for each in addresses if each]
    size = {A: 4, AAAA: 16}.get(kind) or (min(map(len, known), default=0) if kind == ANY else 0)
    return [each for each in known if len(each) == size]


def srv_record(owner: bytes, ttl: int, priority: int, weight: int, port: int, target: bytes) -> bytes:
    """An SRV record; its target is never compressed. Source: RFC 2782."""
    return encode_record(owner, SRV, ttl, _SRV.pack(priority, weight, port) + target)


def text_record(owner: bytes, ttl: int, value: str) -> bytes:
    """A TXT record of one text, in pieces of 255 bytes."""
    data = value.encode("utf-8", "surrogateescape")
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)] or [b""]
    return encode_record(owner, TXT, ttl, b"".join(bytes((len(piece),)) + piece for piece in pieces))


def soa_record(owner: bytes, ttl: int, names: tuple[bytes, bytes], numbers: tuple[int, int, int, int, int]) -> bytes:
    """An SOA record: primary server and mailbox; serial, refresh, retry, expire and minimum in seconds."""
    return encode_record(owner, SOA, ttl, names[0] + names[1] + b"".join(each.to_bytes(4, "big") for each in numbers))


def opt_record(code: int = 0, do: bool = False, options: bytes = b"") -> bytes:
    """The OPT of a reply (or of a query: code 0), version 0; ``code`` is the whole response code. Source: RFC 6891."""
    flags = (code >> 4) << 24 | (DO if do else 0)
    return (
        b"\0"
        + OPT.to_bytes(2, "big")
        + EDNS_UDP_SIZE.to_bytes(2, "big")
        + flags.to_bytes(4, "big")
        + (len(options).to_bytes(2, "big") + options)
    )


def ede_option(code: int, said: str = "") -> bytes:
    """An option that tells people why. Source: RFC 8914."""
    told = said.encode()
    return b"\0\x0f" + (2 + len(told)).to_bytes(2, "big") + code.to_bytes(2, "big") + told


def encode_header(identity: int, flags: int, *counts: int) -> bytes:
    """What stands in front: id, flags, and the counts of the four sections, if they are given."""
    return b"".join(each.to_bytes(2, "big") for each in (identity, flags, *counts))


def decode_name(data: bytes, at: int) -> tuple[bytes, int]:
    """A name in lower case, its pointers followed, and where it ends. Raises Malformed.

    A pointer must lead to before the name's own part that it is in, so that none leads round in a circle.
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
                    raise Malformed("a name is too long")
                if not length:
                    return bytes(parts).lower(), at if end < 0 else end
            elif length >= 192:
                target = (length & 63) << 8 | data[at + 1]
                if end < 0:
                    end = at + 2
                pointers += 1
                if target >= bound or target < HEADER_LENGTH or pointers > MAX_POINTERS:
                    raise Malformed("a pointer does not lead back, or is one of too many")
                bound = at = target
            else:
                raise Malformed("a label of an unknown kind")
    except IndexError:
        raise Malformed("a name is cut off") from None


def decode_query(data: bytes) -> Query:
    """A message with one question and nothing else but additional records. Raises Malformed.

    Of the additional records OPT is looked at, the others (a signature) are passed over.
    """
    if len(data) < HEADER_LENGTH:
        raise Malformed("no header")
    identity, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    if questions != 1 or answers or authorities or additionals > MAX_QUERY_RECORDS:
        raise Malformed("a query has one question, no answer and few additional records")
    end = _question_end(data)
    name = data[HEADER_LENGTH : end - 4].lower()
    kind = int.from_bytes(data[end - 4 : end - 2], "big")
    edns, version, size, do = False, 0, DEFAULT_UDP_SIZE, False
    at = end
    for _ in range(additionals):
        owner, at = decode_name(data, at)
        try:
            this, limit, ttl, length = _FIXED.unpack_from(data, at)
        except error:
            raise Malformed("a record is cut off") from None
        at += _FIXED.size + length
        if at > len(data):
            raise Malformed("a record is cut off")
        if this == OPT:
            if edns or owner != b"\0" or not _options_fit(data[at - length : at]):
                raise Malformed("EDNS is as it must not be")
            edns, version, size, do = True, ttl >> 16 & 0xFF, max(limit, DEFAULT_UDP_SIZE), bool(ttl & DO)
    if at != len(data):
        raise Malformed("something is behind the message")
    return Query(identity, flags, data[HEADER_LENGTH:end], name, kind, edns, version, size, do)


def _question_end(data: bytes) -> int:
    """Where the question ends. Raises Malformed; there is nothing before it that a pointer could lead to."""
    at = HEADER_LENGTH
    while True:
        if at >= len(data):
            raise Malformed("the question is cut off")
        length = data[at]
        if length > MAX_LABEL_LENGTH:
            raise Malformed("a pointer in the question")
        at += 1 + length
        if at - HEADER_LENGTH > MAX_NAME_LENGTH or at + 4 > len(data):
            raise Malformed("the question is too long, or cut off")
        if not length:
            return at + 4


def _options_fit(data: bytes) -> bool:
    at = 0
    while at < len(data):
        at += 4 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at == len(data)


def decode_records(data: bytes) -> Iterator[ParsedRecord]:
    """Every record of a reply with one question. Raises Malformed where the message is none."""
    if len(data) < HEADER_LENGTH:
        raise Malformed("no header")
    _, _, questions, *counts = _HEADER.unpack_from(data)
    if questions != 1:
        raise Malformed("not one question")
    at = _question_end(data)
    for section, count in enumerate(counts, start=1):
        for _ in range(count):
            name, at = decode_name(data, at)
            try:
                kind, _, ttl, length = _FIXED.unpack_from(data, at)
            except error:
                raise Malformed("a record is cut off") from None
            start = at + _FIXED.size
            if start + length > len(data):
                raise Malformed("a record is cut off")
            # A TTL with the highest bit is none (RFC 2181 section 8).
            yield ParsedRecord(section, name, kind, 0 if ttl >> 31 else ttl, at + 4, start, start + length)
            at = start + length
    if at != len(data):
        raise Malformed("something is behind the message")


def question_bytes(data: bytes) -> bytes:
    """The question of a reply as it was sent: name, type and class. Raises Malformed."""
    if len(data) < HEADER_LENGTH:
        raise Malformed("no header")
    if data[4:6] != b"\0\1":
        raise Malformed("not one question")
    return data[HEADER_LENGTH : _question_end(data)]
