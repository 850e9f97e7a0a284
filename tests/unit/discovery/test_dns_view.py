"""Names of containers: which ones a client can resolve, and which are never forwarded."""

from __future__ import annotations

import dns.rcode
import pytest

from discovery.dns.network_zones import ClientConfig, NetworkZone, NetworkZones
from discovery.dns.responder import PendingQuery, Responder
from discovery.dns.settings import DnsSettings
from discovery.dns.view import View, parse_subnets
from discovery.dns.zone import Zone
from discovery.structs import Instance
from lab.dns import MutableCatalog, question, read, records

BLUE = NetworkZone(
    "blue",
    records={
        "db": ("10.9.0.5", "fd00:9::5"),
        "db.main": ("10.9.0.5",),
        "web": ("10.9.0.6", "10.9.0.7"),
        "4f1d2c3b5a69": ("10.9.0.6",),
    },
    reverse={"10.9.0.5": "db", "fd00:9::5": "db", "10.9.0.6": "web"},
    search=("given.example",),
)
RED = NetworkZone("red", records={"db": ("10.8.0.5",), "only-red": ("10.8.0.6",)}, domains=())
LOCAL = parse_subnets(("10.9.0.0/24", "10.8.0.0/24", "fd00:9::/64", "nonsense"))


class Asked:
    def __init__(self, *networks: NetworkZone, upstreams: tuple[str, ...] | None = ()) -> None:
        settings = DnsSettings(network_ttl=4)
        world = MutableCatalog(Instance("n1", "w", "web", "10.1.0.5", 80), Instance("n1", "c", "both", "10.9.0.6", 80))
        self.view = View(networks, settings, upstreams, lambda: LOCAL, lambda: ("corp.example",))
        self.responder = Responder(Zone(world.catalog, settings), settings)

    def __call__(self, name: str, kind: str = "A") -> object:
        """The data of the records, the rcode if there are none, or "asked" if it is forwarded."""
        found = [self.responder.respond(question(name, kind), self.view) for _ in range(2)]
        if isinstance(found[0], PendingQuery):
            return "asked"
        first, second = (read(each) for each in found)
        assert records(first.answer) == records(second.answer)
        assert first.rcode() == second.rcode()
        if not first.answer:
            return dns.rcode.to_text(first.rcode())
        return sorted(item.to_text() for each in first.answer for item in each)


def test_names_of_containers() -> None:
    ask = Asked(BLUE)
    assert ask("db") == ["10.9.0.5"]
    assert ask("DB", "AAAA") == ["fd00:9::5"]
    assert ask("web") == ["10.9.0.6", "10.9.0.7"]
    assert ask("4f1d2c3b5a69") == ["10.9.0.6"]
    for name in ("db.dns.podman", "db.blue", "Db.Blue", "db.main", "db.main.blue", "db.main.dns.podman"):
        assert ask(name) == ["10.9.0.5"], name
    assert ask("web.service.weft") == ["10.1.0.5"]


def test_the_ttl_is_that_of_the_network() -> None:
    reply = read(Asked(BLUE).responder.respond(question("db"), Asked(BLUE).view))
    assert records(reply.answer) == ["db. 4 IN A 10.9.0.5"]


def test_other_types_of_known_names_are_empty_and_not_forwarded() -> None:
    ask = Asked(BLUE)
    for kind in ("AAAA", "MX", "TXT", "SRV", "HTTPS", "NS", "SOA"):
        assert ask("web", kind) == "NOERROR", kind
        assert ask("web.blue", kind) == "NOERROR", kind
    assert ask("dns.podman", "SOA") == "NOERROR"


@pytest.mark.parametrize("upstreams", [(), None])
def test_names_that_are_never_forwarded(upstreams: tuple[str, ...] | None) -> None:
    ask = Asked(BLUE, upstreams=upstreams)
    for name in (
        *("nix", "nix.dns.podman", "a.b.dns.podman", "only-red"),
        *("web.corp.example", "web.given.example", "db.main.corp.example"),
        *("x.invalid", "x.onion", "99.0.8.10.in-addr.arpa"),
    ):
        for kind in ("A", "AAAA", "MX"):
            assert ask(name, kind) == "NXDOMAIN", (name, kind)


def test_other_names_are_forwarded() -> None:
    ask = Asked(BLUE)
    for name in ("example.com", "nix.corp.example", "nix.blue", "x.web", ".", "4.3.2.1.in-addr.arpa", "web.example"):
        assert ask(name) == "asked", name
    assert ask("localhost") == ["127.0.0.1"]
    assert ask("x.localhost", "AAAA") == ["::1"]


def test_queries_of_an_internal_network_are_not_forwarded() -> None:
    ask = Asked(BLUE, upstreams=None)
    assert ask("db") == ["10.9.0.5"]
    for name in ("example.com", "nix.blue", ".", "4.3.2.1.in-addr.arpa"):
        assert ask(name) == "NXDOMAIN", name


def test_names_of_other_networks_do_not_resolve() -> None:
    assert Asked(RED)("db") == ["10.8.0.5"]
    assert Asked(RED)("web") == "NXDOMAIN"
    assert Asked(RED)("db.blue") == "asked"
    assert Asked(RED)("5.0.9.10.in-addr.arpa", "PTR") == "NXDOMAIN"
    assert Asked(BLUE, RED)("db") == ["10.8.0.5", "10.9.0.5"]
    assert Asked(BLUE, RED)("only-red") == ["10.8.0.6"]


def test_names_of_addresses() -> None:
    ask = Asked(BLUE)
    assert ask("5.0.9.10.in-addr.arpa", "PTR") == ["db.dns.podman."]
    assert ask("5.0.0.0." + "0." * 20 + "9.0.0.0.0.0.d.f.ip6.arpa", "PTR") == ["db.dns.podman."]
    assert ask("6.0.9.10.in-addr.arpa", "PTR") == ["web.dns.podman."]
    assert ask("5.0.9.10.in-addr.arpa", "A") == "NOERROR"
    # A name that no container has may be that of a service.
    assert ask("5.0.1.10.in-addr.arpa", "PTR") == ["web.service.dc1.weft."]
    assert Asked(NetworkZone("x", reverse={"10.9.0.1": "a b"}, domains=()))("1.0.9.10.in-addr.arpa", "PTR") == [
        "a\\032b.x."
    ]


def test_invalid_names_and_addresses_are_skipped() -> None:
    strange = NetworkZone("n" * 70, records={"a": ("nonsense",), "b": ("10.0.0.1",)}, reverse={"10.9.0.1": "a..b"})
    ask = Asked(strange)
    assert ask("b") == ["10.0.0.1"]
    assert ask("a") == "NOERROR"
    assert ask("1.0.9.10.in-addr.arpa", "PTR") == "NOERROR"


def test_subscribers_are_told_of_changed_networks() -> None:
    names = NetworkZones()
    told: list[frozenset[str]] = []
    end = names.subscribe(told.append)
    names.put(BLUE)
    names.put(BLUE)
    names.replace([BLUE, RED])
    names.replace([NetworkZone("red", clients={"10.8.0.5": ClientConfig(("blue",))})])
    names.remove("nix")
    names.remove("red")
    end()
    names.put(RED)
    assert told == [frozenset({"blue"}), frozenset({"red"}), frozenset({"blue", "red"}), frozenset({"red"})]
    assert names.networks() == (RED,)
    assert names.network("blue") is None
