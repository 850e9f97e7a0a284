"""The wire format, compared with dnspython; and malformed messages."""

from __future__ import annotations

import random
import struct

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.dns import codec, rrtypes
from discovery.dns.cache import parse_reply
from discovery.dns.codec import BadName, Malformed
from discovery.dns.network_zones import NetworkZone
from discovery.dns.responder import PendingQuery, Responder
from discovery.dns.settings import DnsSettings
from discovery.dns.view import View
from discovery.dns.zone import Zone
from discovery.structs import Instance
from lab.dns import MutableCatalog

LABELS = st.lists(st.binary(min_size=1, max_size=63), max_size=5)
TYPES = st.sampled_from([1, 2, 5, 6, 12, 15, 16, 28, 33, 65, 99, 255, 257, 65535])


def name_of(labels: list[bytes]) -> dns.name.Name:
    kept: list[bytes] = []
    for label in labels:
        if sum(len(each) + 1 for each in kept) + len(label) + 2 <= 255:
            kept.append(label)
    return dns.name.Name((*kept, b""))


@given(LABELS.map(name_of))
def test_names_are_encoded_as_by_dnspython(name: dns.name.Name) -> None:
    wire = name.to_wire()
    assert codec.decode_name(b"\0" * 12 + wire, 12) == (wire.lower(), 12 + len(wire))
    assert codec.labels(wire) == name.labels[:-1]
    assert codec.encode_labels(*name.labels[:-1]) == wire


@given(LABELS.map(name_of))
def test_names_in_text_are_read_by_dnspython(name: dns.name.Name) -> None:
    assert codec.name_to_text(name.to_wire()) == name.to_text()


def rdata_from_text(rrtype: int, text: str) -> bytes:
    rdata = dns.rdata.from_text(dns.rdataclass.IN, dns.rdatatype.RdataType.make(rrtype), text)
    return rdata.to_wire() or b""


@given(st.one_of(st.text(), st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))))
def test_txt_in_text_is_read_by_dnspython(value: str) -> None:
    data = rrtypes.txt_rdata(value)
    text = rrtypes.rdata_to_text(rrtypes.TXT, data, 0, len(data))
    assert text.startswith('"')
    assert text.isprintable()
    assert rdata_from_text(rrtypes.TXT, text) == data


PRESENTED = sorted({*rrtypes.NUMBERS.values(), 257} - {codec.ANY})


@given(st.sampled_from(PRESENTED), st.binary(max_size=40), st.lists(st.binary(min_size=1, max_size=9), max_size=2))
def test_data_in_text_is_the_data_of_the_record_alone(rrtype: int, data: bytes, labels: list[bytes]) -> None:
    """Independent of what follows in the message; malformed data is shown as hexadecimal."""
    for rdata in (data, data + dns.name.Name((*labels, b"")).to_wire(), data[:6] + codec.encode_labels(*labels)):
        for behind in (b"", b"\0" * 40, b"\1x\0" * 20):
            message = bytes(codec.HEADER_LENGTH) + rdata + behind
            end = codec.HEADER_LENGTH + len(rdata)
            text = rrtypes.rdata_to_text(rrtype, message, codec.HEADER_LENGTH, end)
            if text.startswith("\\#"):
                assert text == f"\\# {len(rdata)} {rdata.hex()}".rstrip()
            elif b"\xc0" not in rdata:
                assert rdata_from_text(rrtype, text).lower() == rdata.lower(), text


@pytest.mark.parametrize(
    ("rrtype", "data"),
    [
        (rrtypes.SRV, b"\0\1\0\2"),
        (rrtypes.SRV, b"\0\1\0\2\0\x50"),
        (rrtypes.SRV, b"\0\1\0\2\0\x50\1a"),
        (rrtypes.SRV, b"\0\1\0\2\0\x50\1a\0more"),
        (rrtypes.MX, b"\0"),
        (rrtypes.MX, b"\0\1"),
        (rrtypes.PTR, b""),
        (rrtypes.PTR, b"\1a"),
        (rrtypes.SOA, b"\0\0" + b"\0" * 19),
        (rrtypes.SOA, b"\0\0" + b"\0" * 21),
        (rrtypes.TXT, b""),
        (rrtypes.TXT, b"\5abc"),
        (rrtypes.A, b"\x0a\0\0"),
        (rrtypes.A, b"\x0a" * 16),
        (rrtypes.AAAA, b"\x0a" * 4),
    ],
)
def test_data_that_is_no_record_of_its_type_is_in_hexadecimal(rrtype: int, data: bytes) -> None:
    message = bytes(codec.HEADER_LENGTH) + data + bytes(40)
    end = codec.HEADER_LENGTH + len(data)
    expected = f"\\# {len(data)} {data.hex()}" if data else "\\# 0"
    assert rrtypes.rdata_to_text(rrtype, message, codec.HEADER_LENGTH, end) == expected


@given(st.text(max_size=300))
def test_text_is_encoded_as_a_name_or_refused(text: str) -> None:
    try:
        wire = codec.encode_name(text)
    except BadName as error:
        assert repr(text) in str(error)
    else:
        assert len(wire) <= 255
        assert dns.name.from_wire(wire, 0)[1] == len(wire)
        assert codec.name_to_text(wire)


@given(
    LABELS.map(name_of),
    TYPES,
    st.none() | st.integers(0, 65535),
    st.booleans(),
    st.lists(st.tuples(st.integers(1, 65535), st.binary(max_size=40)), max_size=3),
)
def test_queries_of_dnspython_are_parsed(
    name: dns.name.Name, kind: int, size: int | None, do: bool, options: list[tuple[int, bytes]]
) -> None:
    message = dns.message.QueryMessage(id=77)
    message.flags |= dns.flags.RD
    message.find_rrset(message.question, name, dns.rdataclass.IN, dns.rdatatype.RdataType(kind), create=True)
    if size is not None:
        given_options = [dns.edns.GenericOption(dns.edns.OptionType(code), data) for code, data in options]
        message.use_edns(0, dns.flags.DO if do else 0, size, options=given_options)
    query = codec.decode_query(message.to_wire(max_size=65535))
    assert (query.id, query.type, query.name) == (77, kind, name.to_wire().lower())
    assert query.question == name.to_wire() + struct.pack("!HH", kind, 1)
    assert query.edns == (size is not None)
    assert query.size == (512 if size is None else max(size, 512))
    assert query.do == (do and size is not None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.example.", "b.a.example.", "example.", "c.b.a.example."]),
            st.integers(0, 2**31 - 1),
            st.sampled_from(["A 10.0.0.1", "CNAME b.a.example.", "MX 5 c.b.a.example.", 'TXT "x" "y"']),
        ),
        max_size=8,
    )
)
def test_replies_with_compressed_names_are_parsed(given_records: list[tuple[str, int, str]]) -> None:
    message = dns.message.make_response(dns.message.make_query("b.a.example.", "A"))
    for name, ttl, text in given_records:
        kind, _, data = text.partition(" ")
        message.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, data))
    wire = message.to_wire()
    found = [
        (codec.name_to_text(one.name), one.ttl, dns.rdatatype.to_text(one.type)) for one in codec.decode_records(wire)
    ]
    assert found == [(name, ttl, text.split()[0]) for name, ttl, text in given_records]
    older = parse_reply(wire).aged(10)
    expected = [max(ttl - 10, 0) for _, ttl, _ in given_records]
    assert [one.ttl for one in codec.decode_records(older)] == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 11,
        bytes(4) + b"\0\1" + bytes(6),
        bytes(4) + b"\0\1" + bytes(6) + b"\xc0\x0c\0\1\0\1",
        bytes(4) + b"\0\1" + bytes(6) + b"\x40a\0\0\1\0\1",
        bytes(4) + b"\0\1" + bytes(6) + b"\1a" * 128 + b"\0\0\1\0\1",
        bytes(4) + b"\0\1" + bytes(6) + b"\1a\0\0\1\0\1x",
        bytes(4) + b"\0\1\0\0\0\0\xff\xff" + b"\1a\0\0\1\0\1",
        bytes(4) + b"\0\2" + bytes(6) + b"\1a\0\0\1\0\1" * 2,
    ],
    ids=["nothing", "short", "no question", "pointer", "label type", "long", "more", "counts", "two questions"],
)
def test_malformed_queries_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        codec.decode_query(data)


@pytest.mark.parametrize("count", [1, 2, 20_000])
def test_compression_pointer_loops_end(count: int) -> None:
    """Each points to the next, the last to the first: forwards, backwards and to itself."""
    start = 12
    back = b"".join(struct.pack("!H", 0xC000 | max(start, start + 2 * (at - 1))) for at in range(min(count, 8000)))
    for data in (bytes(12) + b"\xc0\x0c", bytes(12) + b"\xc0\x0e\xc0\x0c", bytes(12) + back):
        with pytest.raises(Malformed):
            codec.decode_name(data, len(data) - 2)


def responder() -> tuple[Responder, tuple[View, ...]]:
    web, odd = Instance("n1", "web-1", "web", "10.1.0.5", 80), Instance("n1", "x", "odd name.x", "h.example")
    world = MutableCatalog(web, odd)
    settings = DnsSettings()
    blue = NetworkZone("blue", records={"db": ("10.9.0.5", "fd00::5")}, reverse={"10.9.0.5": "db"})
    return Responder(Zone(world.catalog, settings), settings), (
        View((), settings),
        View((blue,), settings),
        View((blue,), settings, ()),
    )


RESPONDER, VIEWS = responder()


def answered(data: bytes, view: View, stream: bool) -> None:
    """Check that the reply to any message is valid DNS within the size limit."""
    reply = RESPONDER.respond(data, view, stream)
    if reply is None:
        assert len(data) < 12 or data[2] & 0x80
        return
    if isinstance(reply, PendingQuery):
        assert view.upstreams is not None
        return
    found = dns.message.from_wire(reply)
    assert found.flags & dns.flags.QR
    assert found.id == int.from_bytes(data[:2], "big")
    assert len(reply) <= (65535 if stream else 1232)


@given(st.binary(max_size=600), st.sampled_from(VIEWS), st.booleans())
def test_random_bytes(data: bytes, view: View, stream: bool) -> None:
    answered(data, view, stream)


@given(
    st.sampled_from(["web.service.weft", "db", "nix.weft", "5.0.9.10.in-addr.arpa", "www.example.com", "weft"]),
    TYPES,
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=4),
    st.integers(0, 60),
    st.sampled_from(VIEWS),
)
def test_damaged_queries(name: str, kind: int, edns: bool, flips: list[tuple[int, int]], cut: int, view: View) -> None:
    wire = bytearray(dns.message.make_query(name, kind, use_edns=0 if edns else False).to_wire())
    for at, byte in flips:
        wire[at % len(wire)] = byte
    answered(bytes(wire[: len(wire) - cut % len(wire)] if cut > 30 else wire), view, False)


def test_large_messages_are_refused_quickly() -> None:
    noise = random.Random(1).randbytes(65535 - 12)
    for body in (noise, b"\1a" * 32000, b"\xc0\x0c" * 32000, b"\x3f" + b"a" * 63 + noise):
        for counts in (b"\0\1" + bytes(6), b"\0\1\0\0\0\0\0\x08", b"\xff" * 8):
            answered(b"ab\1\0" + counts + body, VIEWS[1], True)
