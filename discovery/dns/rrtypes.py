"""DNS record types: for each its number, its RFC, its encoder, and the names of weft's zones that
have it.

To add a type, add a section here, anywhere, with what applies of::

    CAA = _rrtype("CAA", 257)

    # NODE.node.weft: the data of each record that the node has
    @node_records(CAA)
    def _node_caa(node: Node) -> list[bytes]: ...

    # NAME.service.weft, per healthy instance: data and additional records, None for no record
    @service_records(CAA)
    def _service_caa(health: Health, context: ServiceContext) -> ServiceRecord | None: ...

    # as a zone file has it, for ``weft dns-lookup``; without it, RFC 3597's hexadecimal
    @presentation(CAA)
    def _caa_to_text(message: bytes, start: int, end: int) -> str: ...

A type whose data has the form of another's joins that type's section and presentation, as CNAME
that of PTR. Such records exist only at ``NODE.node`` and ``NAME.service`` (with its tag and RFC 2782
forms). The zone, its cache and the command go by these tables. Addresses (A, AAAA, CNAME) and the
zone's own records (SOA, NS, PTR) are answered by ``zone`` itself, since they depend on what the name
stands for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, inet_pton

from discovery.dns.codec import ANY, Malformed, decode_name, encode_record, name_to_text
from discovery.dns.naming import encode_host, full_name, node_name
from discovery.structs import Health, Node

NodeRecords = Callable[[Node], Iterable[bytes]]
ServiceRecord = tuple[bytes, tuple[bytes, ...]]
"""The data of a record, and whole additional records that go with it."""
Presentation = Callable[[bytes, int, int], str]
"""Message, start and end of a record's data; the message is there since names in it may be
compressed.
"""

NUMBERS: dict[str, int] = {}
"""Type numbers by mnemonic."""


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """Context of a service query. ``port_name`` is the named port asked for, "" for the main
    one.
    """

    zone: bytes
    """The zone's name in wire format and lower case: ``b"\\x04weft\\x00"``."""
    datacenter: bytes
    """The datacenter's label, without its length byte: ``b"dc1"``."""
    ttl: int
    port_name: str = ""


ServiceRecords = Callable[[Health, ServiceContext], ServiceRecord | None]

NODE_RECORDS: dict[int, NodeRecords] = {}
SERVICE_RECORDS: dict[int, ServiceRecords] = {}
_PRESENTATIONS: dict[int, Presentation] = {}


def _rrtype(mnemonic: str, number: int) -> int:
    NUMBERS[mnemonic] = number
    return number


def node_records(rrtype: int) -> Callable[[NodeRecords], NodeRecords]:
    """Register what nodes' names have of a type; a node without any is answered NODATA."""

    def register(records: NodeRecords) -> NodeRecords:
        NODE_RECORDS[rrtype] = records
        return records

    return register


def service_records(rrtype: int) -> Callable[[ServiceRecords], ServiceRecords]:
    """Register the record that each healthy instance contributes to its service's name, None for
    none; a service of such instances only is answered NODATA.
    """

    def register(record: ServiceRecords) -> ServiceRecords:
        SERVICE_RECORDS[rrtype] = record
        return record

    return register


def presentation(*rrtypes: int) -> Callable[[Presentation], Presentation]:
    """Register how the data of these types is written in a zone file."""

    def register(to_text: Presentation) -> Presentation:
        _PRESENTATIONS.update(dict.fromkeys(rrtypes, to_text))
        return to_text

    return register


def rdata_to_text(rrtype: int, message: bytes, start: int, end: int) -> str:
    """A record's data in presentation format; unknown types and malformed data as ``\\# LENGTH
    HEX`` (RFC 3597). No byte outside the data is read, but those of compressed names.
    """
    data = message[start:end]
    to_text = _PRESENTATIONS.get(rrtype)
    if to_text is not None:
        try:
            return to_text(message, start, end)
        except (Malformed, ValueError, IndexError, struct.error):
            pass
    return f"\\# {len(data)} {data.hex()}".rstrip()


def is_cacheable(rrtype: int) -> bool:
    """Whether answers of a type are cached; those of made-up types are not, so that they cannot fill
    the memory.
    """
    return rrtype in _ZONE_TYPES or rrtype in NODE_RECORDS or rrtype in SERVICE_RECORDS


def uncompressed(rrtype: int, message: bytes, start: int, end: int) -> bytes:
    """A record's data for use in another message, its names uncompressed. Raises Malformed. Source:
    RFC 3597 section 4.
    """
    prefix, names = _NAMES_IN_RDATA.get(rrtype, (end - start, 0))
    at = start + prefix
    found = message[start:at]
    for _ in range(names):
        name, at = decode_name(message, at)
        found += name
    if at > end:
        raise Malformed("a name exceeds its record")
    return found + message[at:end]


# A (RFC 1035 section 3.4.1), AAAA (RFC 3596)

A = _rrtype("A", 1)
AAAA = _rrtype("AAAA", 28)


def pack_address(text: str) -> bytes:
    """The 4 or 16 bytes of an address; b"" for a host name."""
    try:
        return inet_pton(AF_INET6 if ":" in text else AF_INET, text)
    except (OSError, ValueError):
        return b""


def address_record(owner: bytes, address: bytes, ttl: int) -> bytes:
    """An A record of 4 bytes, an AAAA record of 16."""
    return encode_record(owner, A if len(address) == 4 else AAAA, ttl, address)


def address_records(owner: bytes, hosts: Iterable[str], ttl: int) -> tuple[bytes, ...]:
    """An A or AAAA record of each host that is an address."""
    return tuple(address_record(owner, address, ttl) for host in hosts if (address := pack_address(host)))


def addresses_of_type(addresses: Iterable[bytes], rrtype: int) -> list[bytes]:
    """The packed addresses that a query of this type gets; for ANY those of one family (RFC
    8482).
    """
    known = [each for each in addresses if each]
    size = {A: 4, AAAA: 16}.get(rrtype) or (min(map(len, known), default=0) if rrtype == ANY else 0)
    return [each for each in known if len(each) == size]


@presentation(A)
def _a_to_text(message: bytes, start: int, end: int) -> str:
    return str(IPv4Address(message[start:end]))


@presentation(AAAA)
def _aaaa_to_text(message: bytes, start: int, end: int) -> str:
    return str(IPv6Address(message[start:end]))


# SRV (RFC 2782)

SRV = _rrtype("SRV", 33)


@service_records(SRV)
def _service_srv(health: Health, context: ServiceContext) -> ServiceRecord:
    """Port and target of an instance, with the target's addresses as additional records.

    The target is the node's name if the instance has no address of its own, else
    ``HEXADDRESS.addr``; a host name in place of the address is the target itself, which must not be
    an alias (RFC 2782), as in Consul.
    """
    instance = health.instance
    port = instance.port_number(context.port_name) if context.port_name else instance.port
    packed = pack_address(health.address)
    target = b""
    if packed and not instance.address:
        target = node_name(health.node, context.datacenter, context.zone)
    if packed and not target:
        target = full_name(packed.hex(), b"addr", context.datacenter, context.zone)
    if not target:
        target = encode_host(health.address) or context.zone
    weight = min(max(health.weight, 0), 65535)
    return srv_rdata(1, weight, port, target), address_records(target, [health.address], context.ttl)


def srv_rdata(priority: int, weight: int, port: int, target: bytes) -> bytes:
    """The data of an SRV record; the target is never compressed."""
    return struct.pack("!HHH", priority, weight, port) + target


@presentation(SRV)
def _srv_to_text(message: bytes, start: int, end: int) -> str:
    numbers = " ".join(map(str, struct.unpack("!HHH", message[start : min(start + 6, end)])))
    return f"{numbers} {_last_name(message, start + 6, end)}"


# TXT (RFC 1035 section 3.3.14)

TXT = _rrtype("TXT", 16)


@node_records(TXT)
def _node_txt(node: Node) -> list[bytes]:
    """The node's metadata as ``key=value``; keys that begin with ``rfc1035-`` give their value
    alone, as in Consul.
    """
    pairs = sorted(node.meta.items())
    return [txt_rdata(value if key.lower().startswith("rfc1035-") else f"{key}={value}") for key, value in pairs]


def txt_rdata(value: str) -> bytes:
    """The data of a TXT record: one text, in character strings of at most 255 bytes."""
    data = _encode_text(value)
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)] or [b""]
    return b"".join(bytes((len(piece),)) + piece for piece in pieces)


@presentation(TXT)
def _txt_to_text(message: bytes, start: int, end: int) -> str:
    found: list[str] = []
    while start < end or not found:
        after = start + 1 + message[start]
        if after > end:
            raise Malformed("a character string exceeds its record")
        found.append(f'"{_quoted_text(message[start + 1 : after])}"')
        start = after
    return " ".join(found)


def _quoted_text(data: bytes) -> str:
    """A character string within quotes: what is not printable UTF-8 as ``\\DDD`` (RFC 1035 section
    5.1).
    """
    return "".join(
        f"\\{one}"
        if one in '"\\'
        else one
        if one.isprintable()
        else "".join(f"\\{byte:03d}" for byte in _encode_text(one))
        for one in data.decode("utf-8", "surrogateescape")
    )


def _encode_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# PTR, NS, CNAME (RFC 1035 sections 3.3.12, 3.3.11, 3.3.1)

PTR = _rrtype("PTR", 12)
NS = _rrtype("NS", 2)
CNAME = _rrtype("CNAME", 5)


@presentation(PTR, NS, CNAME)
def _target_to_text(message: bytes, start: int, end: int) -> str:
    return _last_name(message, start, end)


# SOA (RFC 1035 section 3.3.13)

SOA = _rrtype("SOA", 6)


def soa_rdata(primary: bytes, mailbox: bytes, serial: int) -> bytes:
    """The data of weft's SOA: a refresh of an hour, and negative answers that are not cached
    (minimum 0).
    """
    return primary + mailbox + struct.pack("!IIIII", serial & 0xFFFFFFFF, 3600, 600, 86400, 0)


@presentation(SOA)
def _soa_to_text(message: bytes, start: int, end: int) -> str:
    primary, at = decode_name(message, start)
    mailbox, at = decode_name(message, at)
    numbers = " ".join(map(str, struct.unpack("!IIIII", message[at:end])))
    return f"{name_to_text(primary)} {name_to_text(mailbox)} {numbers}"


# MX (RFC 1035 section 3.3.9): read only

MX = _rrtype("MX", 15)


@presentation(MX)
def _mx_to_text(message: bytes, start: int, end: int) -> str:
    (preference,) = struct.unpack("!H", message[start : min(start + 2, end)])
    return f"{preference} {_last_name(message, start + 2, end)}"


# ANY (RFC 8482), a query type only

_rrtype("ANY", ANY)

# HTTPS (RFC 9460): weft has none, but browsers ask for it with every name

HTTPS = _rrtype("HTTPS", 65)

_ZONE_TYPES = frozenset((A, AAAA, SOA, NS, ANY, HTTPS))
_NAMES_IN_RDATA = {PTR: (0, 1), NS: (0, 1), CNAME: (0, 1), SOA: (0, 2), MX: (2, 1), SRV: (6, 1)}
"""Types whose data has names that may be compressed: the bytes before, and how many names follow."""


def _last_name(message: bytes, at: int, end: int) -> str:
    """The name that ends a record's data. Raises Malformed if it does not end there."""
    name, after = decode_name(message, at)
    if after != end:
        raise Malformed("a name does not end with its record")
    return name_to_text(name)
