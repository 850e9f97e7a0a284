"""The catalog, networks and settings arrive in a DNS server of another process as they were sent."""

from __future__ import annotations

import json

import pytest

from discovery import layout
from discovery.catalog import Catalog
from discovery.dns.network_zones import ClientConfig, NetworkZone
from discovery.dns.replica import (
    Feed,
    GivenServers,
    apply,
    servers_to_json,
    settings_from_json,
    settings_to_json,
    zone_from_json,
    zone_to_json,
)
from discovery.dns.settings import DnsSettings, ListenAddress
from discovery.dns.upstreams import Upstream
from discovery.structs import CatalogEntry, Check, Instance, Node, PreparedQuery, Status, VirtualAddress
from store import Batch, Entry, Event

VALUES: tuple[CatalogEntry, ...] = (
    Node("n1", "10.0.0.1"),
    Node("n2", "10.0.0.2"),
    Instance("n1", "web-1", "web", "10.0.0.3", 80, tags=("é", "b")),
    Instance("n1", "secret-1", "secret", "10.0.0.4", 81),
    Check("n1", "c", "c", Status.PASSING, "web-1", "web"),
    Check("n1", "s", "s", Status.PASSING, "secret-1", "secret"),
    VirtualAddress("web", "10.1.0.1"),
    VirtualAddress("secret", "10.1.0.2"),
    PreparedQuery("q", "find", service="web"),
)


class Copies:
    """A catalog, and a copy of it that only messages reach."""

    def __init__(self, hidden: set[str] | None = None) -> None:
        self.catalog, self.copy, self.revision = Catalog(), Catalog(), 1
        self.hidden = hidden
        visible = None if hidden is None else lambda kind, name: name not in (self.hidden or ())
        self.feed = Feed(self.catalog, self._send, visible)

    def _send(self, message: list[object]) -> None:
        kind, revision, changes = json.loads(json.dumps(message))
        assert kind == "catalog"
        apply(self.copy, revision, changes)

    def change(self, *values: CatalogEntry, gone: tuple[CatalogEntry, ...] = ()) -> None:
        self.revision += 1
        now = self.revision
        events = [Event(key, Entry(key, value, now, now, 1), None, now) for key, value in map(_encoded, values)]
        events += [Event(layout.store_key(one), None, None, now) for one in gone]
        events.append(Event("/weft/v2/kv/key", Entry("/weft/v2/kv/key", b"\xff", now, now, 1), None, now))
        batch = Batch(now, tuple(events))
        self.feed.apply(batch)
        self.catalog.apply(batch)

    def names(self) -> set[str]:
        return {layout.store_key(one) for one in self.copy.entries()}


def _encoded(value: CatalogEntry) -> tuple[str, bytes]:
    return layout.store_key(value), layout.encode(value)


def test_the_copy_follows_and_a_new_one_gets_everything() -> None:
    both = Copies()
    both.change(*VALUES)
    assert list(both.copy.entries()) == list(both.catalog.entries())
    both.change(Instance("n1", "web-1", "web", "10.0.0.9", 80), gone=VALUES[3:4])
    assert list(both.copy.entries()) == list(both.catalog.entries())
    assert [one.address for one in both.copy.instances("web")] == ["10.0.0.9"] and not both.copy.instances("secret")
    both.copy = Catalog()
    both.feed.restart()
    assert sorted(map(repr, both.copy.entries())) == sorted(map(repr, both.catalog.entries()))


def test_what_is_hidden_is_not_sent() -> None:
    both = Copies({"secret", "n2"})
    both.change(*VALUES)
    shown = {layout.store_key(one) for one in VALUES if "secret" not in repr(one) and "n2" not in repr(one)}
    assert both.names() == shown
    both.hidden = set()
    both.feed.reload()
    assert both.names() == {layout.store_key(one) for one in VALUES}
    both.hidden = {"secret", "n2"}
    both.feed.reload()
    assert both.names() == shown


def test_a_zone_arrives_as_it_was() -> None:
    zone = NetworkZone(
        "blue", ("10.9.0.1",), ("10.9.0.0/24",), True, {"web": ("10.9.0.2", "10.9.0.3")}, {"10.9.0.2": "web"},
        ("dns.podman",), ("lan",), ("9.9.9.9", "[fd00::1]:5353"), {"10.9.0.2": ClientConfig(("red",), ("8.8.8.8",))},
    )  # fmt: skip
    assert zone_from_json(json.loads(json.dumps(zone_to_json(zone)))) == zone


@pytest.mark.parametrize(
    ("server", "sent"),
    [("fe80::1%lo", "fe80::1%1"), ("[fe80::1%lo]:53", "[fe80::1%1]:53"), ("fe80::1%7", "fe80::1%7"),
     ("fe80::1%nolink", "fe80::1%nolink"), ("9.9.9.9:53", "9.9.9.9:53")],
)  # fmt: skip
def test_links_of_name_servers_are_sent_by_number(server: str, sent: str) -> None:
    assert zone_to_json(NetworkZone("blue", upstreams=(server,)))["upstreams"] == [sent]
    assert settings_to_json(DnsSettings(recursors=(server,)))["recursors"] == [sent]


def test_settings_and_servers_arrive_as_they_were() -> None:
    settings = DnsSettings(
        ("weft",), listen=(ListenAddress("127.0.0.1", 53),), recursors=("9.9.9.9",), service_ttl={"*": 5}, udp_size=1400
    )
    assert settings_from_json(json.loads(json.dumps(settings_to_json(settings)))) == settings
    host, given = GivenServers(), GivenServers()
    host.replace([("fe80::1", 53, 2), ("9.9.9.9", 5353, 0)], ["lan"])
    given.replace(*json.loads(json.dumps(servers_to_json(host))))
    assert given.servers() == (Upstream("fe80::1", 53, 2), Upstream("9.9.9.9", 5353)) and given.search() == {"lan"}
