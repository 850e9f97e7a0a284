"""Services, nodes and virtual addresses by DNS, as in Consul; replies are parsed by dnspython."""

from __future__ import annotations

import collections

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discovery.dns import rrtypes
from discovery.dns.responder import PendingQuery, Responder
from discovery.dns.settings import DnsSettings
from discovery.dns.view import View
from discovery.dns.zone import Zone
from discovery.structs import Check, Instance, Node, PreparedQuery, Status, VirtualAddress, Weights
from lab.dns import MutableCatalog, question, read, records

NXDOMAIN, NOERROR = dns.rcode.NXDOMAIN, dns.rcode.NOERROR


class Asked:
    """A zone that can be queried."""

    def __init__(
        self, world: MutableCatalog, told: DnsSettings | None = None, upstreams: tuple[str, ...] | None = None
    ) -> None:
        told = told or DnsSettings()
        self.zone = Zone(world.catalog, told)
        self.responder = Responder(self.zone, told)
        self.view = View((), told, upstreams)

    def raw(self, name: str, kind: str = "A", *, stream: bool = False, **more: object) -> object:
        return self.responder.respond(question(name, kind, **more), self.view, stream)  # type: ignore[arg-type]

    def __call__(self, name: str, kind: str = "A", *, stream: bool = False, **more: object) -> dns.message.Message:
        found = read(self.raw(name, kind, stream=stream, **more))
        again = read(self.raw(name, kind, stream=stream, **more))
        assert records(again.answer) == records(found.answer) or found.flags & dns.flags.TC
        return found

    def answers(self, name: str, kind: str = "A", **more: object) -> list[str]:
        """The data of the answer section."""
        found = self(name, kind, **more)  # type: ignore[arg-type]
        assert found.rcode() == NOERROR
        return sorted(item.to_text() for each in found.answer for item in each)

    def rcode(self, name: str, kind: str = "A") -> tuple[str, int]:
        """The rcode and the number of answers; a negative reply must have the SOA."""
        found = self(name, kind)
        assert bool(found.answer) != any("SOA" in line for line in records(found.authority))
        return dns.rcode.to_text(found.rcode()), len(records(found.answer))


def web(number: int, **more: object) -> Instance:
    return Instance("n1", f"web-{number}", "web", f"10.1.0.{number}", 80, **more)  # type: ignore[arg-type]


def test_the_addresses_of_a_service() -> None:
    world = MutableCatalog(web(1), web(2), Instance("n1", "web-6", "web", "fd00::6", 80), Instance("n1", "own", "web"))
    ask = Asked(world)
    assert ask.answers("web.service.weft") == ["10.0.0.1", "10.1.0.1", "10.1.0.2"]
    assert ask.answers("web.service.consul", "AAAA") == ["fd00::6"]
    assert ask.answers("WEB.Service.dc1.Weft") == ["10.0.0.1", "10.1.0.1", "10.1.0.2"]
    found = ask("web.service.weft", edns=True)
    assert found.flags & dns.flags.AA
    assert not found.flags & dns.flags.RA
    assert found.edns == 0
    assert not found.options


def test_the_reply_repeats_the_spelling_of_the_question() -> None:
    ask = Asked(MutableCatalog(web(1)))
    for _ in range(2):
        assert "wEb.SerVice.weFT." in records(ask("wEb.SerVice.weFT").question)[0]


def test_nxdomain_and_nodata() -> None:
    ask = Asked(MutableCatalog(web(1), Instance("n1", "six", "six", "fd00::6")))
    assert ask.rcode("nix.service.weft") == ("NXDOMAIN", 0)
    assert ask.rcode("web.service.weft", "AAAA") == ("NOERROR", 0)
    assert ask.rcode("six.service.weft", "A") == ("NOERROR", 0)
    assert ask.rcode("web.service.weft", "MX") == ("NOERROR", 0)
    assert ask.rcode("web.service.weft", "HTTPS") == ("NOERROR", 0)
    assert ask.rcode("web.service.dc2.weft") == ("NXDOMAIN", 0)
    assert ask.rcode("web.weft") == ("NXDOMAIN", 0)
    assert ask.rcode("web.virtual.weft") == ("NOERROR", 0)
    assert ask.rcode("nix.node.weft") == ("NXDOMAIN", 0)
    # Empty non-terminals exist (RFC 8020).
    for name in ("service.weft", "node.weft", "dc1.weft", "service.dc1.weft", "_tcp.web.service.weft"):
        assert ask.rcode(name) == ("NOERROR", 0), name


def test_other_domains_are_refused() -> None:
    ask = Asked(MutableCatalog(web(1)))
    for name in ("web.service.wefts", "web.service.xweft", "example.com", "."):
        assert ask(name).rcode() == dns.rcode.REFUSED
    ask = Asked(MutableCatalog(web(1)), upstreams=("192.0.2.1",))
    assert isinstance(ask.raw("example.com"), PendingQuery)
    assert read(ask.raw("example.com", flags=0)).rcode() == dns.rcode.REFUSED
    assert read(ask.raw("nix.service.weft")).rcode() == NXDOMAIN


def test_only_healthy_instances() -> None:
    world = MutableCatalog(web(1), web(2), web(3))
    ask, strict = Asked(world), Asked(world, DnsSettings(only_passing=True))
    world.check("web-1", Status.PASSING)
    world.check("web-2", Status.WARNING)
    world.check("web-3", Status.CRITICAL)
    assert ask.answers("web.service.weft") == ["10.1.0.1", "10.1.0.2"]
    assert strict.answers("web.service.weft") == ["10.1.0.1"]
    world.check("web-1", Status.CRITICAL)
    world.check("web-2", Status.CRITICAL)
    assert ask.rcode("web.service.weft") == ("NXDOMAIN", 0)
    world.check("web-2", Status.PASSING)
    assert ask.answers("web.service.weft") == ["10.1.0.2"]
    world.check("", Status.CRITICAL)
    assert ask.rcode("web.service.weft") == ("NXDOMAIN", 0)


def test_answers_follow_changes_of_the_catalog() -> None:
    world = MutableCatalog(web(1))
    ask = Asked(world)
    assert ask.answers("web.service.weft") == ["10.1.0.1"]
    world.put(web(2))
    assert ask.answers("web.service.weft") == ["10.1.0.1", "10.1.0.2"]
    world.put(Instance("n1", "web-2", "web", "10.1.0.9"))
    assert ask.answers("web.service.weft") == ["10.1.0.1", "10.1.0.9"]
    world.put(Instance("n1", "web-2", "web"))
    world.put(Node("n1", "10.0.0.77"))
    assert ask.answers("web.service.weft") == ["10.0.0.77", "10.1.0.1"]
    world.drop(web(1), web(2))
    assert ask.rcode("web.service.weft") == ("NXDOMAIN", 0)
    world.drop(Node("n1", ""))
    assert ask.rcode("n1.node.weft") == ("NXDOMAIN", 0)


def test_names_are_case_insensitive() -> None:
    world = MutableCatalog(web(1))
    ask = Asked(world)
    assert ask.answers("web.service.weft") == ["10.1.0.1"]
    world.put(Instance("n1", "other", "WEB", "10.1.0.9", 80))
    assert ask.answers("Web.service.weft") == ["10.1.0.1", "10.1.0.9"]
    world.drop(web(1))
    assert ask.answers("web.service.weft") == ["10.1.0.9"]


def test_a_service_of_many_instances_on_one_node() -> None:
    """Each has a check; an algorithm of quadratic time would take minutes."""
    world = MutableCatalog(*(Instance("n1", f"w{n}", "web", f"10.1.{n >> 8}.{n & 255}", 80) for n in range(4000)))
    checks = [Check("n1", f"c{n}", "c", Status.PASSING, service_id=f"w{n}") for n in range(4000)]
    world.put(*checks)
    ask = Asked(world)
    assert len(records(read(ask.raw("web.service.weft", stream=True)).answer)) > 3000
    for number in range(500):
        assert not read(ask.raw(f"t{number}.web.service.weft")).answer
    world.check("w7", Status.CRITICAL)
    assert ask.zone.cache == {}


def test_the_cache_contains_only_names_that_exist() -> None:
    world = MutableCatalog(*(web(number) for number in range(1, 9)))
    ask = Asked(world)
    for number in range(500):
        ask.raw(f"tag{number}.web.service.weft")
        ask.raw(f"nix{number}.service.weft")
        ask.raw(f"{number:08x}.addr.weft")
        ask.raw("web.service.weft", f"TYPE{1000 + number}")
        world.put(web(1))
        ask.raw("web.service.weft")
        ask.raw("web.virtual.weft")
    assert len(ask.zone.cache) <= 4


def test_tags() -> None:
    world = MutableCatalog(web(1, tags=("v1", "Master")), web(2, tags=("v2", "a.b")))
    ask = Asked(world)
    assert ask.answers("v1.web.service.weft") == ["10.1.0.1"]
    assert ask.answers("master.web.service.dc1.weft") == ["10.1.0.1"]
    assert ask.answers("a.b.web.service.weft") == ["10.1.0.2"]
    assert ask.rcode("b.web.service.weft") == ("NOERROR", 0)
    assert ask.rcode("v3.web.service.weft") == ("NXDOMAIN", 0)


def test_services_as_rfc_2782_names_them() -> None:
    world = MutableCatalog(web(1, tags=("v1",)), web(2, ports={"admin": 9000}, protocol="tcp"))
    ask = Asked(world)
    both = ["1 1 80 0a010001.addr.dc1.weft.", "1 1 80 0a010002.addr.dc1.weft."]
    for name in ("_web._tcp.service.weft", "_web._tcp.weft", "_web._tcp.service.dc1.weft", "_web._tcp.dc1.weft"):
        assert ask.answers(name, "SRV") == both, name
    assert ask.answers("_web._v1.service.weft", "SRV") == both[:1]
    assert ask.rcode("_nix._tcp.service.weft", "SRV") == ("NXDOMAIN", 0)
    assert ask.answers("_admin._tcp.web.service.weft", "SRV") == ["1 1 9000 0a010002.addr.dc1.weft."]
    assert ask.rcode("_admin._udp.web.service.weft", "SRV") == ("NXDOMAIN", 0)
    assert ask.rcode("_nix._tcp.web.service.weft", "SRV") == ("NXDOMAIN", 0)


def test_srv_records_have_weights_targets_and_their_addresses() -> None:
    world = MutableCatalog(
        web(1, weights=Weights(7, 3)),
        Instance("n1", "own", "web", "", 81),
        Instance("n1", "six", "web", "fd00::6", 82),
        Instance("n1", "far", "web", "db.example.com", 83),
    )
    world.check("web-1", Status.WARNING)
    ask = Asked(world)
    found = ask("web.service.weft", "SRV")
    assert sorted(item.to_text() for each in found.answer for item in each) == [
        "1 1 81 n1.node.dc1.weft.",
        "1 1 82 fd000000000000000000000000000006.addr.dc1.weft.",
        "1 1 83 db.example.com.",
        "1 3 80 0a010001.addr.dc1.weft.",
    ]
    assert records(found.additional) == [
        "0a010001.addr.dc1.weft. 0 IN A 10.1.0.1",
        "fd000000000000000000000000000006.addr.dc1.weft. 0 IN AAAA fd00::6",
        "n1.node.dc1.weft. 0 IN A 10.0.0.1",
    ]
    for line in records(found.additional):
        name, _, _, kind, address = line.split()
        assert ask.answers(name, kind) == [address]


def test_nodes() -> None:
    world = MutableCatalog(
        Node("n2.rack1", "10.0.0.2", meta={"rfc1035-note": "plain", "os": "linux"}),
        Node("Six", "fd00::1"),
        Node("far", "far.example.com"),
    )
    ask = Asked(world)
    assert ask.answers("n1.node.weft") == ["10.0.0.1"]
    assert ask.answers("n2.rack1.node.dc1.weft") == ["10.0.0.2"]
    assert ask.answers("n2.rack1.node.weft", "TXT") == ['"os=linux"', '"plain"']
    assert ask.answers("six.node.weft", "AAAA") == ["fd00::1"]
    assert ask.rcode("six.node.weft", "A") == ("NOERROR", 0)
    assert ask.rcode("rack1.node.weft", "A") == ("NOERROR", 0)
    world.drop(Node("n2.rack1", ""))
    assert ask.rcode("rack1.node.weft", "A") == ("NXDOMAIN", 0)
    assert ask.answers("far.node.weft", "A") == ["far.example.com."]


def test_addr_names() -> None:
    ask = Asked(MutableCatalog())
    assert ask.answers("0a000001.addr.dc1.weft") == ["10.0.0.1"]
    assert ask.answers("fd00000000000000000000000000000F.addr.weft", "AAAA") == ["fd00::f"]
    assert ask.rcode("0a000001.addr.weft", "AAAA") == ("NOERROR", 0)
    for name in ("0a0000.addr.weft", "0a 00 01.addr.weft", "0a00000g.addr.weft", "x.0a000001.addr.weft"):
        assert ask.rcode(name) == ("NXDOMAIN", 0), name


def test_virtual_addresses() -> None:
    world = MutableCatalog(web(1), VirtualAddress("web", "10.200.0.1"), VirtualAddress("web", "fd01::1"))
    ask = Asked(world)
    assert ask.answers("web.virtual.weft") == ["10.200.0.1"]
    assert ask.answers("web.virtual.weft", "AAAA") == ["fd01::1"]
    world.drop(VirtualAddress("web", "10.200.0.1"))
    world.put(VirtualAddress("web", "10.200.0.2"))
    assert ask.answers("web.virtual.weft") == ["10.200.0.2"]
    assert ask.answers("2.0.200.10.in-addr.arpa", "PTR") == ["web.virtual.weft."]


def test_names_of_addresses() -> None:
    six, same = Instance("n1", "six", "six", "fd00::6"), Instance("n1", "same", "same", "10.0.0.1")
    world = MutableCatalog(web(1), six, same)
    ask = Asked(world)
    assert ask.answers("1.0.0.10.in-addr.arpa", "PTR") == ["n1.node.dc1.weft."]
    assert ask.answers("1.0.1.10.in-addr.arpa", "PTR") == ["web.service.dc1.weft."]
    reverse = dns.name.from_text("6" + ".0" * 27 + ".0.0.d.f.ip6.arpa").to_text()
    assert ask.answers(reverse, "PTR") == ["six.service.dc1.weft."]
    assert ask("9.0.0.10.in-addr.arpa", "PTR").rcode() == dns.rcode.REFUSED
    # Written another way, and under an id that another service had.
    world.put(Instance("n1", "six", "seven", "FD00:0::0006"))
    world.drop(six)
    assert ask.answers(reverse, "PTR") == ["seven.service.dc1.weft."]
    world.drop(Instance("n1", "six", "seven"))
    assert ask(reverse, "PTR").rcode() == dns.rcode.REFUSED


def test_soa_and_ns_of_the_zone() -> None:
    ask = Asked(MutableCatalog(Instance("n1", "consul", "consul", "", 8300)))
    assert ask.answers("weft", "SOA")[0].startswith("ns.weft. hostmaster.weft. ")
    assert ask.answers("consul", "SOA")[0].startswith("ns.consul. hostmaster.consul. ")
    found = ask("consul", "NS")
    assert records(found.answer) == ["consul. 0 IN NS n1.node.dc1.consul."]
    assert records(found.additional) == ["n1.node.dc1.consul. 0 IN A 10.0.0.1"]
    assert ask.answers("ns.weft") == ["10.0.0.1"]
    assert ask.rcode("weft", "A") == ("NOERROR", 0)


def test_any_is_answered_with_one_record_type() -> None:
    ask = Asked(MutableCatalog(web(1), Instance("n1", "six", "web", "fd00::6", 80)))
    assert ask.answers("web.service.weft", "ANY") == ["10.1.0.1"]


def test_services_with_a_host_name_have_a_cname() -> None:
    world = MutableCatalog(
        Instance("n1", "a", "far", "db.example.com", 1),
        Instance("n1", "b", "near", "n1.node.weft", 1),
        Instance("n1", "c", "ring", "ring.service.weft", 1),
        Instance("n1", "d", "one", "two.service.weft", 1),
        Instance("n1", "e", "two", "one.service.weft", 1),
    )
    ask = Asked(world)
    assert records(ask("far.service.weft").answer) == ["far.service.weft. 0 IN CNAME db.example.com."]
    assert records(ask("near.service.weft").answer) == [
        "n1.node.weft. 0 IN A 10.0.0.1",
        "near.service.weft. 0 IN CNAME n1.node.weft.",
    ]
    assert ask("ring.service.weft").rcode() == NOERROR
    assert len(records(ask("one.service.weft").answer)) <= 6
    pending = Asked(world, upstreams=("192.0.2.1",)).raw("far.service.weft", "AAAA")
    assert isinstance(pending, PendingQuery)
    assert pending.question == b"\x02db\x07example\x03com\x00\x00\x1c\x00\x01"


@pytest.mark.parametrize("kind", sorted({*rrtypes.NUMBERS, "CAA"} - {"ANY"}))
def test_a_cname_answers_for_every_type(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """RFC 1034 section 4.3.2 step 3a. It does not hide records of services, as in Consul."""
    monkeypatch.setitem(rrtypes.NODE_RECORDS, 257, lambda node: [b"\0\5issueca.example"])
    world = MutableCatalog(
        Node("far", "db.example.com", meta={"os": "linux"}),
        Node("near", "n1.node.weft", meta={"os": "bsd"}),
        Node("n1", "10.0.0.1", meta={"os": "linux"}),
        Instance("far", "w", "web", port=80),
    )
    ask = Asked(world)
    assert records(ask("far.node.weft", kind).answer) == ["far.node.weft. 0 IN CNAME db.example.com."]
    found = records(ask("web.service.weft", kind).answer)
    if kind == "SRV":
        assert found == ["web.service.weft. 0 IN SRV 1 1 80 db.example.com."]
    else:
        assert found == ["web.service.weft. 0 IN CNAME db.example.com."]
    followed = {"A": "10.0.0.1", "TXT": '"os=linux"', "CAA": '0 issue "ca.example"'}
    assert records(ask("near.node.weft", kind).answer) == [
        *([f"n1.node.weft. 0 IN {kind} {followed[kind]}"] if kind in followed else []),
        "near.node.weft. 0 IN CNAME n1.node.weft.",
    ]
    pending = Asked(world, upstreams=("192.0.2.1",)).raw("far.node.weft", kind)
    assert isinstance(pending, PendingQuery) == (kind != "CNAME")


@pytest.mark.parametrize(
    ("kind", "data"), [("MX", "10 mail.example."), ("NS", "ns.example."), ("SOA", "ns.example. who.example. 1 2 3 4 5")]
)
def test_upstream_records_behind_a_cname_are_uncompressed(kind: str, data: str) -> None:
    """A compression pointer is an offset in the upstream's message and means nothing in weft's."""
    ask = Asked(MutableCatalog(Node("far", "a-name-of-some-length.example")), upstreams=("192.0.2.1",))
    pending = ask.raw("far.node.weft", kind)
    assert isinstance(pending, PendingQuery)
    assert pending.cname is not None
    upstream = dns.message.make_response(dns.message.make_query("a-name-of-some-length.example", kind))
    upstream.answer.append(dns.rrset.from_text("a-name-of-some-length.example.", 7, "IN", kind, data))
    found = read(ask.responder.append_to_cname(pending, pending.cname, upstream.to_wire()))
    assert records(found.answer) == [
        f"a-name-of-some-length.example. 7 IN {kind} {data}",
        "far.node.weft. 0 IN CNAME a-name-of-some-length.example.",
    ]


def test_every_type_with_records_is_cached() -> None:
    for rrtype in (*rrtypes.NODE_RECORDS, *rrtypes.SERVICE_RECORDS):
        assert rrtypes.is_cacheable(rrtype), rrtype
    assert not rrtypes.is_cacheable(4711)


def test_ttls() -> None:
    world = MutableCatalog(web(1))
    world.put(Instance("n1", "d", "db-main", "10.1.0.7", 1), Instance("n1", "e", "x", "10.1.0.8", 1))
    ask = Asked(world, DnsSettings(node_ttl=3, service_ttl={"web": 5, "db-*": 6, "db*": 7, "*": 9}))
    found = {name: ask(f"{name}.service.weft").answer[0].ttl for name in ("web", "db-main", "x")}
    assert found == {"web": 5, "db-main": 6, "x": 9}
    assert ask("n1.node.weft").answer[0].ttl == 3


def test_answers_are_rotated_evenly() -> None:
    for many in (3, 12):
        ask = Asked(MutableCatalog(*(web(number) for number in range(1, many + 1))))
        asked = question("web.service.weft")
        at = len(asked) + 12
        replies = [ask.responder.respond(asked, ask.view) for _ in range(200 * many)]
        first = collections.Counter(reply[at : at + 4] for reply in replies if isinstance(reply, bytes))
        assert len(first) == many
        assert all(110 < count < 290 for count in first.values()), first


@pytest.mark.parametrize("kind", ["A", "SRV"])
@pytest.mark.parametrize("size", [0, 512, 700, 1232, 4096])
def test_replies_are_truncated_between_records(kind: str, size: int) -> None:
    instances = [Instance(f"n{n % 3}", f"w{n}", "web", f"10.1.{n}.1", 80) for n in range(200)]
    ask = Asked(MutableCatalog(Node("n0", "10.0.0.9"), Node("n2", "10.0.0.2"), *instances))
    bound = min(max(size, 512), 1232)
    raw = ask.raw("web.service.weft", kind, edns=bool(size), size=size or 512)
    found = read(raw)
    assert len(raw) <= bound  # type: ignore[arg-type]
    assert len(raw) > bound - 120, "truncated further than needed"  # type: ignore[arg-type]
    assert found.flags & dns.flags.TC
    if kind == "SRV":
        # Each SRV record has the address of its target; there are no other addresses.
        targets = {line.split()[-1] for line in records(found.answer)}
        assert targets == {line.split()[0] for line in records(found.additional)}
    whole = read(ask.raw("web.service.weft", kind, stream=True))
    assert not whole.flags & dns.flags.TC
    assert len(records(whole.answer)) == 200


@pytest.mark.parametrize("place", ["dc1", "dc1.dc", "default.ns.dc1.dc", "default.ns.default.ap.dc1.dc", "default.ap"])
def test_this_place_in_every_form_of_consul(place: str) -> None:
    ask = Asked(MutableCatalog(web(1), VirtualAddress("web", "10.79.0.1")))
    assert ask.answers(f"web.service.{place}.consul") == ["10.1.0.1"]
    assert ask.answers(f"N1.node.{place}.consul") == ["10.0.0.1"]
    assert ask.answers(f"web.virtual.{place}.consul") == ["10.79.0.1"]
    for other in ("dc2", "dc2.dc", "team.ns.dc1.dc", "dc1.dc.dc"):
        assert ask.rcode(f"web.service.{other}.consul") == ("NXDOMAIN", 0)


def test_unicode_names_as_resolvers_send_them() -> None:
    unicode = Instance("bücherei", "b", "bücher", "10.1.0.9", 80)
    world = MutableCatalog(Node("bücherei", "10.0.0.9"), unicode)
    ask = Asked(world)
    assert ask.answers("xn--bcher-kva.service.weft") == ["10.1.0.9"]
    assert ask.answers("XN--Bcherei-n2a.node.weft") == ["10.0.0.9"]
    for invalid in ("xn--", "xn--bcher", "xn--99999999999"):
        assert ask.rcode(f"{invalid}.service.weft") == ("NXDOMAIN", 0)
    world.drop(unicode)
    assert ask.rcode("xn--bcher-kva.service.weft") == ("NXDOMAIN", 0)


def test_a_limit_of_answers() -> None:
    ask = Asked(MutableCatalog(*(web(number) for number in range(1, 7))), DnsSettings(answer_limit=2))
    found = {tuple(records(read(ask.raw("web.service.weft")).answer)) for _ in range(100)}
    assert {len(each) for each in found} == {2}
    assert len(found) > 5


def test_zone_transfers_and_other_opcodes_are_not_implemented() -> None:
    ask = Asked(MutableCatalog(web(1)))
    assert ask("weft", "AXFR").rcode() == dns.rcode.NOTIMP
    assert ask("weft", "IXFR").rcode() == dns.rcode.NOTIMP
    message = dns.message.make_query("web.service.weft", "A")
    for opcode in (1, 2, 4, 5, 6, 15):
        message.set_opcode(opcode)
        reply = ask.responder.respond(message.to_wire(), ask.view)
        assert isinstance(reply, bytes)
        assert dns.message.from_wire(reply).rcode() == dns.rcode.NOTIMP
    message.set_opcode(0)
    message.flags |= dns.flags.QR
    assert ask.responder.respond(message.to_wire(), ask.view) is None
    chaos = dns.message.make_query("version.bind", "TXT", "CH")
    assert read(ask.responder.respond(chaos.to_wire(), ask.view)).rcode() == dns.rcode.REFUSED


def test_edns() -> None:
    ask = Asked(MutableCatalog(web(1)))
    cookie = dns.edns.GenericOption(dns.edns.OptionType(10), b"12345678")
    strange = dns.message.make_query("web.service.weft", "A", use_edns=0, options=[cookie], want_dnssec=True)
    found = read(ask.responder.respond(strange.to_wire(), ask.view))
    assert found.edns == 0
    assert not found.options
    assert found.ednsflags & dns.flags.DO
    newer = dns.message.make_query("web.service.weft", "A", use_edns=1)
    found = read(ask.responder.respond(newer.to_wire(), ask.view))
    assert (found.rcode(), found.edns, records(found.answer)) == (dns.rcode.BADVERS, 0, [])
    twice = bytearray(dns.message.make_query("web.service.weft", "A", use_edns=0).to_wire())
    twice[11] = 2
    twice += twice[-11:]
    assert read(ask.responder.respond(bytes(twice), ask.view)).rcode() == dns.rcode.FORMERR


Step = tuple[int, str, str, int, tuple[str, ...], Status | None] | int
INSTANCES = st.tuples(
    st.integers(0, 5),
    st.sampled_from(["web", "Web", "db"]),
    st.sampled_from(["", "10.1.0.1", "10.1.0.2", "fd00::1", "host.example.com"]),
    st.integers(0, 65535),
    st.sampled_from([(), ("v1",), ("V1", "v2")]),
    st.sampled_from([*Status, None]),
)


@settings(max_examples=60)
@given(st.lists(st.one_of(INSTANCES, st.integers(0, 5)), max_size=12), st.booleans())
def test_answers_match_the_catalog(history: list[Step], strict: bool) -> None:
    """After each random change: instances are added, changed and removed."""
    world = MutableCatalog()
    ask = Asked(world, DnsSettings(only_passing=strict))
    there: dict[int, tuple[Instance, Status | None]] = {}
    for step in history:
        if isinstance(step, int):
            if step in there:
                world.drop(there.pop(step)[0])
        else:
            number, name, address, port, tags, status = step
            if number in there:
                world.drop(there.pop(number)[0])
            there[number] = (Instance("n1", f"i{number}", name, address, port, tags=tags), status)
            world.put(there[number][0])
            world.drop(Check("n1", f"service:i{number}", ""))
            if status is not None:
                world.check(f"i{number}", status)
        bad = {Status.CRITICAL, Status.WARNING} if strict else {Status.CRITICAL}
        for name in ("web", "db"):
            for tag in ("", "v1"):
                healthy = [
                    one for one, status in there.values()
                    if status not in bad and one.name.lower() == name and (not tag or tag in map(str.lower, one.tags))
                ]  # fmt: skip
                hosts = {one.address or "10.0.0.1" for one in healthy}
                found = ask(f"{tag}.{name}.service.weft" if tag else f"{name}.service.weft", edns=True)
                assert (found.rcode() == NXDOMAIN) == (not healthy)
                data = {item.to_text() for each in found.answer for item in each}
                four = {host for host in hosts if host.startswith("10.")}
                only_names = hosts == {"host.example.com"}
                assert data == ({"host.example.com."} if only_names else four)
                located = ask(f"{tag}.{name}.service.weft" if tag else f"{name}.service.weft", "SRV", edns=True)
                ports = {item.port for each in located.answer for item in each}
                assert ports == {one.port for one in healthy}


@settings(max_examples=30)
@given(st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=80), st.text(max_size=80))
def test_any_service_name(service: str, node: str, address: str) -> None:
    """Whatever names are registered, every reply is valid DNS."""
    world = MutableCatalog(Node(node, address, meta={node: service}), Instance("n1", "j", service, address, 80))
    world.put(Instance(node, "i", service, "", 80, tags=(service,), meta={node: service}))
    ask = Asked(world)
    for name in (service, node):
        labels = [label for label in name.encode().split(b".") if 0 < len(label) < 64]
        for kind in (b"service", b"node", b"virtual"):
            asked = dns.name.Name((*labels, kind, b"weft", b""))
            for wanted in rrtypes.NUMBERS:
                for stream in (False, True):
                    read(ask.responder.respond(dns.message.make_query(asked, wanted).to_wire(), ask.view, stream))
    read(ask.raw("1.0.0.10.in-addr.arpa", "PTR"))


def test_a_record_type_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    caa = b"\0\5issueca.example"
    monkeypatch.setitem(rrtypes.NODE_RECORDS, 257, lambda node: [caa] if node.name == "n1" else [])
    monkeypatch.setitem(
        rrtypes.SERVICE_RECORDS, 257, lambda health, context: (caa, ()) if health.instance.meta.get("ca") else None
    )
    world = MutableCatalog(web(1, meta={"ca": "yes"}), web(2), Node("n2", "10.0.0.2"), Instance("n1", "db", "db"))
    ask = Asked(world)
    assert ask.answers("n1.node.weft", "CAA") == ['0 issue "ca.example"']
    assert ask.rcode("n2.node.weft", "CAA") == ("NOERROR", 0)
    assert ask.answers("web.service.weft", "CAA") == ['0 issue "ca.example"']
    assert ask.rcode("db.service.weft", "CAA") == ("NOERROR", 0)
    assert len(ask.zone.cache) == 4
    world.put(web(1))
    assert ask.rcode("web.service.weft", "CAA") == ("NOERROR", 0)
    world.put(Instance("n1", "db", "db", meta={"ca": "yes"}))
    assert ask.answers("db.service.weft", "CAA") == ['0 issue "ca.example"']
    assert rrtypes.rdata_to_text(257, caa, 0, len(caa)) == f"\\# {len(caa)} {caa.hex()}"


def test_prepared_queries() -> None:
    query = PreparedQuery("id-1", "near-db", "Web", ("v1",), ttl=7.0)
    template = PreparedQuery("id-2", "t-", "${name.suffix}", template="name_prefix_match")
    world = MutableCatalog(web(1, tags=("v1",)), web(2), query, template)
    ask = Asked(world)
    for name in ("near-db", "NEAR-DB", "id-1"):
        for place in ("query.weft", "query.dc1.consul"):
            assert records(ask(f"{name}.{place}").answer) == [f"{name}.{place}. 7 IN A 10.1.0.1"]
    assert ask.answers("near-db.query.weft", "SRV") == ["1 1 80 0a010001.addr.dc1.weft."]
    assert ask.answers("t-web.query.weft") == ["10.1.0.1", "10.1.0.2"]
    assert ask.rcode("t-none.query.weft") == ("NOERROR", 0)
    assert ask.rcode("none.query.weft") == ("NXDOMAIN", 0)
    world.check("web-1", Status.CRITICAL)
    assert ask.rcode("near-db.query.weft") == ("NOERROR", 0)
    world.drop(query)
    assert ask.rcode("near-db.query.weft") == ("NXDOMAIN", 0)


def test_a_template_that_leads_to_itself() -> None:
    """A host whose name is in query.consul, and a template for every name, ended all servers
    (hashicorp/consul#4040).
    """
    every = PreparedQuery("id", "", "${name.full}", template="name_prefix_match")
    world = MutableCatalog(every, Node("n2", "loop.query.consul"), Instance("n2", "l", "loop", "loop.query.consul", 80))
    ask = Asked(world, upstreams=())
    for name in ("loop.query.consul", "loop.service.consul", "n2.node.consul", "none.query.consul"):
        for kind in ("A", "SRV", "ANY"):
            assert ask.raw(name, kind) is not None


def test_a_limit_of_answers_with_edns() -> None:
    """hashicorp/consul#3355: the limit was ignored with EDNS."""
    ask = Asked(MutableCatalog(*(web(number) for number in range(1, 40))), DnsSettings(answer_limit=3))
    for size in (512, 4096):
        assert len(read(ask.raw("web.service.weft", edns=True, size=size)).answer[0]) == 3


def test_a_domain_that_only_ends_alike_is_not_ours() -> None:
    """hashicorp/consul#6741: every domain that ended in "consul" was taken for the zone."""
    ask = Asked(MutableCatalog(web(1)))
    for name in ("web.service.myconsul", "web.service.my-weft", "web.serviceconsul"):
        assert read(ask.raw(name)).rcode() == dns.rcode.REFUSED
