"""Forwarding on real loopback sockets, with upstreams that fail, spoof or send too much."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from discovery.dns.cache import ReplyCache, parse_reply
from discovery.dns.network_zones import NetworkZone
from discovery.dns.settings import DnsSettings, ListenAddress
from discovery.dns.upstreams import ResolvConf, parse_upstream
from discovery.structs import Instance
from lab.dns import MutableCatalog, Upstream, ask, ask_stream, free_port, question, read, records, running
from lab.waiting import until

Answer = Callable[[dns.message.Message, bool], Iterable[bytes]]


def answer(query: dns.message.Message, *texts: str, ttl: int = 60) -> dns.message.Message:
    reply = dns.message.make_response(query, recursion_available=True)
    name = query.question[0].name
    for text in texts:
        kind, _, data = text.partition(" ")
        reply.answer.append(dns.rrset.from_text(name, ttl, "IN", kind, data))
    return reply


def says(*texts: str, ttl: int = 60) -> Answer:
    return lambda query, _: [answer(query, *texts, ttl=ttl).to_wire()]


@contextlib.contextmanager
def upstreams(*answers: Answer) -> Iterator[tuple[Upstream, ...]]:
    made = [Upstream(each) for each in answers]
    try:
        yield tuple(made)
    finally:
        for each in made:
            each.close()


class Host:
    """A server for the host with these recursors."""

    def __init__(self, stack: contextlib.ExitStack, *recursors: str, catalog: MutableCatalog | None = None) -> None:
        self.port = free_port()
        settings = DnsSettings(listen=(ListenAddress("127.0.0.1", self.port),), recursors=recursors)
        self.running = stack.enter_context(running((catalog or MutableCatalog()).catalog, settings))
        self.counters = self.running.server.counters

    def ask(self, name: str, kind: str = "A", **more: object) -> dns.message.Message:
        reply = ask("127.0.0.1", self.port, question(name, kind, **more))  # type: ignore[arg-type]
        return read(reply)


def asked(host: Host, name: str, kind: str = "A", **more: object) -> list[str]:
    found = host.ask(name, kind, **more)
    assert found.rcode() == 0
    return sorted(item.to_text() for each in found.answer for item in each)


def test_an_answer_is_forwarded_and_cached() -> None:
    with contextlib.ExitStack() as stack:
        (one,) = stack.enter_context(upstreams(says("A 192.0.2.7", "A 192.0.2.8")))
        host = Host(stack, one.address)
        for edns in (False, True, False):
            found = host.ask("wWw.Example.com", edns=edns)
            assert records(found.answer) == [f"wWw.Example.com. 60 IN A 192.0.2.{n}" for n in (7, 8)]
            assert found.flags & dns.flags.RA
            assert not found.flags & dns.flags.AA
            assert (found.edns == 0) == edns
        assert len(one.queries) == 2
        assert host.counters.cached == 1
        assert host.ask("www.example.com", flags=0).rcode() == dns.rcode.REFUSED


def test_query_ids_ports_and_spelling_are_random() -> None:
    """Against cache poisoning: random ids, source ports, and letter case of the name (DNS 0x20)."""
    with contextlib.ExitStack() as stack:
        (one,) = stack.enter_context(upstreams(says("A 192.0.2.7", ttl=0)))
        host = Host(stack, one.address)
        for number in range(60):
            asked(host, f"long-enough-to-spell.{number}.example.com")
        assert len({each.id for each in one.queries}) > 55
        assert len(set(one.ports)) > 55
        spelled = {each.question[0].name.labels[0] for each in one.queries}
        assert len(spelled) > 50


def test_forged_answers_are_ignored() -> None:
    """Replies with a wrong id, question or source are ignored; the right one is awaited."""

    def lie(query: dns.message.Message, stream: bool) -> list[bytes]:
        if stream:
            return [answer(query, "A 192.0.2.7").to_wire()]
        wrong = answer(query, "A 198.51.100.66")
        wrong.id = query.id ^ 1
        other = answer(dns.message.make_query("www.example.org", "A", id=query.id), "A 198.51.100.66")
        no_reply = bytearray(answer(query, "A 198.51.100.66").to_wire())
        no_reply[2] &= 0x7F
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with stranger:
            stranger.sendto(answer(query, "A 198.51.100.66").to_wire(), ("127.0.0.1", liar.ports[-1]))
        right = answer(query, "A 192.0.2.7").to_wire()
        return [wrong.to_wire(), other.to_wire(), bytes(no_reply), b"", b"x" * 12, right]

    with contextlib.ExitStack() as stack:
        (liar,) = stack.enter_context(upstreams(lie))
        host = Host(stack, liar.address)
        assert asked(host, "www.example.com") == ["192.0.2.7"]


def test_an_upstream_that_changes_letter_case_is_queried_by_tcp_then_without_0x20() -> None:
    def lower(query: dns.message.Message, stream: bool) -> list[bytes]:
        plain = dns.message.make_query(query.question[0].name.to_text().lower(), "A", id=query.id)
        return [answer(plain, f"A 192.0.2.{2 if stream else 1}", ttl=0).to_wire()]

    with contextlib.ExitStack() as stack:
        (one,) = stack.enter_context(upstreams(lower))
        host = Host(stack, one.address)
        assert asked(host, "certainly-has-letters.example.com") == ["192.0.2.2"]
        assert asked(host, "certainly-has-letters.example.com") == ["192.0.2.1"]


def test_many_forged_answers_cause_a_retry_by_tcp() -> None:
    def guess(query: dns.message.Message, stream: bool) -> list[bytes]:
        if stream:
            return [answer(query, "A 192.0.2.7").to_wire()]
        found = []
        for number in range(20):
            wrong = answer(query, "A 198.51.100.66")
            wrong.id = query.id ^ (number + 1)
            found.append(wrong.to_wire())
        return found

    with contextlib.ExitStack() as stack:
        (one,) = stack.enter_context(upstreams(guess))
        assert asked(Host(stack, one.address), "www.example.com") == ["192.0.2.7"]


def test_a_truncated_answer_is_fetched_by_tcp() -> None:
    texts = [f"A 192.0.2.{n}" for n in range(200)]

    def large(query: dns.message.Message, stream: bool) -> list[bytes]:
        found = answer(query, *(texts if stream else ()))
        if not stream:
            found.flags |= dns.flags.TC
        return [found.to_wire()]

    with contextlib.ExitStack() as stack:
        (one,) = stack.enter_context(upstreams(large))
        host = Host(stack, one.address)
        found = host.ask("www.example.com")
        assert found.flags & dns.flags.TC
        assert not found.answer
        (whole,) = ask_stream("127.0.0.1", host.port, question("www.example.com"))
        assert len(records(read(whole).answer)) == 200


@pytest.mark.parametrize("how", ["silent", "refusing", "failing", "garbage", "closed"])
def test_the_next_upstream_is_queried_if_one_fails(how: str) -> None:
    def bad(query: dns.message.Message, _: bool) -> list[bytes]:
        if how == "silent":
            return []
        if how == "garbage":
            reply = answer(query, "A 192.0.2.1").to_wire()
            return [reply[:-2]]
        found = answer(query)
        found.set_rcode(dns.rcode.REFUSED if how == "refusing" else dns.rcode.SERVFAIL)
        return [found.to_wire()]

    with contextlib.ExitStack() as stack:
        first, second = stack.enter_context(upstreams(bad, says("A 192.0.2.7")))
        if how == "closed":
            first.close()
        host = Host(stack, first.address, second.address)
        for number in range(3):
            assert asked(host, f"www{number}.example.com") == ["192.0.2.7"]


def test_servfail_has_an_extended_error_if_no_upstream_answers() -> None:
    with contextlib.ExitStack() as stack:
        (one,) = stack.enter_context(upstreams(says()))
        one.close()
        host = Host(stack, one.address)
        found = host.ask("www.example.com", edns=True)
        assert found.rcode() == dns.rcode.SERVFAIL
        assert [option.otype for option in found.options] == [dns.edns.OptionType.EDE]
        assert host.ask("www.example.com").rcode() == dns.rcode.SERVFAIL
        assert host.counters.failed == 2


def test_weft_does_not_forward_to_itself() -> None:
    port = free_port()
    settings = DnsSettings(listen=(ListenAddress("127.0.0.1", port),), recursors=(f"127.0.0.1:{port}",))
    with running(MutableCatalog().catalog, settings) as own:
        assert read(ask("127.0.0.1", port, question("www.example.com"))).rcode() == dns.rcode.SERVFAIL
        assert own.server.counters.queries == 1


def test_identical_pending_queries_are_forwarded_once() -> None:
    with contextlib.ExitStack() as stack:
        (one,) = stack.enter_context(upstreams(lambda query, _: []))
        host = Host(stack, one.address)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", host.port))
            for _ in range(100):
                client.send(question("www.example.com"))
            until(lambda: host.counters.queries == 100)
            until(lambda: one.queries)
            assert len(one.queries) <= 2


def test_pending_queries_of_one_client_are_limited() -> None:
    with contextlib.ExitStack() as stack:
        (one,) = stack.enter_context(upstreams(lambda query, _: []))
        host = Host(stack, one.address)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", host.port))
            client.settimeout(10)
            for number in range(300):
                client.send(question(f"www{number}.example.com"))
            until(lambda: host.counters.queries == 300)
            assert host.counters.failed >= 300 - 128
            assert read(client.recv(4096)).rcode() == dns.rcode.SERVFAIL
        # Another source address counts as another client.
        assert ask("127.0.0.1", host.port, question("weft", "SOA"), source="127.0.0.9") is not None


def test_the_cname_of_a_service_is_resolved() -> None:
    world = MutableCatalog(Instance("n1", "far", "far", "db.example.com", 1))
    with contextlib.ExitStack() as stack:
        (one,) = stack.enter_context(upstreams(says("A 192.0.2.7", ttl=33)))
        host = Host(stack, one.address, catalog=world)
        assert records(host.ask("far.service.weft").answer) == [
            "db.example.com. 33 IN A 192.0.2.7",
            "far.service.weft. 0 IN CNAME db.example.com.",
        ]


def test_networks_have_their_own_upstreams_and_internal_ones_none(tmp_path: Path) -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        one, two = stack.enter_context(upstreams(says("A 192.0.2.1"), says("A 192.0.2.2")))
        common = {"subnets": ("127.0.0.0/8",)}
        networks = (
            NetworkZone("a", ("127.0.0.2",), upstreams=(one.address,), **common),  # type: ignore[arg-type]
            NetworkZone("b", ("127.0.0.3",), upstreams=(two.address,), **common),  # type: ignore[arg-type]
            NetworkZone("c", ("127.0.0.4",), upstreams=(two.address,), internal=True, **common),  # type: ignore[arg-type]
        )
        settings = DnsSettings(listen=(), network_port=port, resolv_conf=str(tmp_path / "none"))
        stack.enter_context(running(MutableCatalog().catalog, settings, *networks))
        for address, expected in (("127.0.0.2", "192.0.2.1"), ("127.0.0.3", "192.0.2.2")):
            found = read(ask(address, port, question("www.example.com")))
            assert records(found.answer) == [f"www.example.com. 60 IN A {expected}"]
        seen = len(two.queries)
        for name in ("www.example.com", "other.example.com"):
            assert read(ask("127.0.0.4", port, question(name))).rcode() == dns.rcode.NXDOMAIN
            (reply,) = ask_stream("127.0.0.4", port, question(name))
            assert read(reply).rcode() == dns.rcode.NXDOMAIN
        assert len(two.queries) == seen


def test_resolv_conf_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path, now = tmp_path / "resolv.conf", [0.0]
    conf = ResolvConf(str(path), lambda: now[0])
    assert conf.servers() == ()
    path.write_text("# nothing\nsearch Corp.Example. b.example\nnameserver 9.9.9.9 # one\nnameserver nonsense\n")
    assert conf.servers() == ()
    now[0] = 2
    assert [each.address for each in conf.servers()] == ["9.9.9.9"]
    assert conf.search() == {"corp.example", "b.example"}
    path.write_text("".join(f"nameserver 192.0.2.{n}\n" for n in range(1, 6)) + "nameserver fe80::1%lo\n")
    now[0] = 4
    assert [each.address for each in conf.servers()] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    path.unlink()
    now[0] = 6
    assert len(conf.servers()) == 3, "the former servers stay while the file is missing"


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("9.9.9.9", ("9.9.9.9", 53)),
        ("9.9.9.9:5353", ("9.9.9.9", 5353)),
        ("fd00::1", ("fd00::1", 53, 0, 0)),
        ("[fd00::1]:5353", ("fd00::1", 5353, 0, 0)),
        ("fe80::1%lo", ("fe80::1", 53, 0, 1)),
        ("fe80::1%7", ("fe80::1", 53, 0, 7)),
    ],
)
def test_upstreams_are_parsed(written: str, place: tuple[object, ...]) -> None:
    assert parse_upstream(written).sockaddr == place


@pytest.mark.parametrize("written", ["", "dns.example", "9.9.9.9:0", "9.9.9.9:70000", "9.9.9.9:x", "fe80::1%nolink0"])
def test_invalid_upstreams_are_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"does not appear|port|invalid literal|link"):
        parse_upstream(written)


def test_replies_are_cached_for_their_ttl() -> None:
    cache = ReplyCache()
    query = dns.message.make_query("www.example.com", "A")
    cache.put(b"a", parse_reply(answer(query, "A 192.0.2.1", "A 192.0.2.2", ttl=30).to_wire()), 100.0)
    assert dns.message.from_wire(cache.get(b"a", 110.5) or b"").answer[0].ttl == 20
    assert cache.get(b"a", 130.0) is None
    assert len(cache) == 0
    soa = dns.rrset.from_text("example.com.", 900, "IN", "SOA", "a. b. 1 2 3 4 50")
    for code, kept in ((dns.rcode.NXDOMAIN, True), (dns.rcode.NOERROR, True), (dns.rcode.SERVFAIL, False)):
        nothing = answer(query)
        nothing.set_rcode(code)
        nothing.authority.append(soa)
        cache.put(b"b", parse_reply(nothing.to_wire()), 0.0)
        assert (cache.get(b"b", 49.0) is not None) == kept
        assert cache.get(b"b", 51.0) is None
    cache.put(b"c", parse_reply(answer(query).to_wire()), 0.0)
    assert cache.get(b"c", 0.0) is None, "a negative answer without SOA is not cached"


def test_the_cache_is_bounded() -> None:
    cache = ReplyCache()
    query = dns.message.make_query("www.example.com", "TXT")
    large = parse_reply(answer(query, *(f'TXT "{"x" * 250}"' for _ in range(4))).to_wire())
    for number in range(30_000):
        cache.put(str(number).encode(), large, 0.0)
    assert 5000 < len(cache) <= 10_000
    assert cache.get(b"29999", 1.0) is not None
    assert cache.get(b"0", 1.0) is None


def test_the_opt_record_of_the_upstream_is_removed() -> None:
    query = dns.message.make_query("www.example.com", "A", use_edns=0)
    reply = answer(query, "A 192.0.2.1")
    reply.use_edns(0, 0, 4096, options=[dns.edns.GenericOption(dns.edns.OptionType(10), b"cookie12")])
    found = dns.message.from_wire(parse_reply(reply.to_wire()).message)
    assert found.edns == -1
    assert records(found.answer) == ["www.example.com. 60 IN A 192.0.2.1"]


def test_queries_are_refused_without_upstreams() -> None:
    with contextlib.ExitStack() as stack:
        (one,) = stack.enter_context(upstreams(says("A 192.0.2.7")))
        host = Host(stack)
        assert host.ask("www.example.com").rcode() == dns.rcode.REFUSED
        assert not one.queries
