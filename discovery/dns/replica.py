"""What a DNS server in a process of its own is told: the catalog, the networks and the host's name
servers, as JSON.

One direction only. ``Feed`` is in the agent, ``Replica`` in the process that answers.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import cast

from discovery import layout
from discovery.catalog import Catalog
from discovery.dns.network_zones import ClientConfig, NetworkZone
from discovery.dns.service_index import Visible
from discovery.dns.settings import DnsSettings, ListenAddress
from discovery.dns.upstreams import HostServers, Upstream
from discovery.layout import DecodeError
from discovery.structs import CatalogEntry, Check, Instance, Node, VirtualAddress
from store import Batch, Entry, Event

MAX_ENTRIES = 200
"""Of the catalog in one message."""

Send = Callable[[list[object]], None]


class Feed:
    """Sends the catalog's changes, and all of it to a new process; what ``visible`` hides is not sent."""

    def __init__(self, catalog: Catalog, send: Send, visible: Visible | None = None) -> None:
        self._catalog = catalog
        self._send = send
        self._visible = visible
        self._sent: set[str] = set()

    def restart(self) -> None:
        """The receiver has nothing yet: send everything."""
        self._sent.clear()
        self.reload()

    def reload(self) -> None:
        """Send everything again, and what is gone or may not be seen any more as deleted."""
        found = {layout.store_key(one): one for one in self._catalog.entries() if self._may_see(one)}
        changes = ((key, layout.encode(one), one.create_index, _modified(one)) for key, one in found.items())
        self._replace(changes, self._catalog.index)

    def load(self, entries: Sequence[Entry], revision: int) -> None:
        """Send what the catalog was loaded from, as it is stored."""
        seen = (one for one in entries if layout.split_key(one.key)[0] in layout.CATALOG_KINDS and self._is_sent(one))
        self._replace(((one.key, one.value, one.create_revision, one.mod_revision) for one in seen), revision)

    def _replace(self, found: Iterable[tuple[str, bytes, int, int]], revision: int) -> None:
        changes: list[object] = []
        sent = set()
        for key, value, created, modified in found:
            sent.add(key)
            changes.append([key, value.decode("utf-8", "surrogateescape"), created, modified])
        changes += ([key, None, 0, 0] for key in self._sent - sent)
        self._sent = sent
        for start in range(0, max(len(changes), 1), MAX_ENTRIES):
            self._send(["catalog", revision, changes[start : start + MAX_ENTRIES]])

    def apply(self, batch: Batch) -> None:
        """Send the changes of one revision."""
        changes: list[object] = []
        for event in batch.events:
            if layout.split_key(event.key)[0] not in layout.CATALOG_KINDS:
                continue
            entry = event.entry
            if entry is not None and self._is_sent(entry):
                self._sent.add(event.key)
                value = entry.value.decode("utf-8", "surrogateescape")
                changes.append([event.key, value, entry.create_revision, entry.mod_revision])
            elif event.key in self._sent:
                self._sent.discard(event.key)
                changes.append([event.key, None, 0, 0])
        if changes:
            self._send(["catalog", batch.revision, changes])

    def _is_sent(self, entry: Entry) -> bool:
        if self._visible is None:
            return True
        try:
            return self._may_see(layout.decode(entry))
        except DecodeError:
            return False

    def _may_see(self, one: CatalogEntry) -> bool:
        if self._visible is None:
            return True
        match one:
            case Node():
                return self._visible("node", one.name)
            case Instance():
                return self._visible("service", one.name) and self._visible("node", one.node)
            case Check():
                return self._visible("node", one.node) and (
                    not one.service_name or self._visible("service", one.service_name)
                )
            case VirtualAddress():
                return self._visible("service", one.service)
        return True


def _modified(one: CatalogEntry) -> int:
    return one.create_index if isinstance(one, VirtualAddress) else one.modify_index


def apply(catalog: Catalog, revision: int, changes: Iterable[tuple[str, str | None, int, int]]) -> None:
    """Apply changes that a feed has sent."""
    events = []
    for key, value, created, modified in changes:
        entry = (
            Entry(key, value.encode("utf-8", "surrogateescape"), created, modified, 1) if value is not None else None
        )
        events.append(Event(key, entry, None, revision))
    catalog.apply(Batch(revision, tuple(events)))


def zone_to_json(zone: NetworkZone) -> dict[str, object]:
    """A network's zone; links of link-local name servers by number, which needs no socket to look up."""
    found = asdict(zone)
    found["upstreams"] = [_with_index(text) for text in zone.upstreams]
    for client in found["clients"].values():
        client["upstreams"] = [_with_index(text) for text in client["upstreams"]]
    return found


def zone_from_json(found: Mapping[str, object]) -> NetworkZone:
    """The zone again."""

    def texts(name: str) -> tuple[str, ...]:
        return tuple(cast(list[str], found[name]))

    records = cast(Mapping[str, list[str]], found["records"])
    clients = cast(Mapping[str, Mapping[str, list[str]]], found["clients"])
    return NetworkZone(
        str(found["network"]),
        gateways=texts("gateways"),
        subnets=texts("subnets"),
        internal=found["internal"] is True,
        records={name: tuple(addresses) for name, addresses in records.items()},
        reverse=cast(Mapping[str, str], found["reverse"]),
        domains=texts("domains"),
        search=texts("search"),
        upstreams=texts("upstreams"),
        clients={
            address: ClientConfig(tuple(one["networks"]), tuple(one["upstreams"])) for address, one in clients.items()
        },
    )


def settings_to_json(settings: DnsSettings) -> dict[str, object]:
    """The settings, with links by number."""
    return asdict(settings) | {"recursors": [_with_index(text) for text in settings.recursors]}


def settings_from_json(found: Mapping[str, object]) -> DnsSettings:
    """The settings again."""
    parts = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    listen = cast(Iterable[Mapping[str, object]], parts["listen"])
    parts["listen"] = tuple(ListenAddress(str(one["address"]), int(str(one["port"]))) for one in listen)
    return DnsSettings(**parts)  # type: ignore[arg-type]


def _with_index(text: str) -> str:
    """``fe80::1%eth0`` as ``fe80::1%2``; as it is where there is no such link."""
    address, percent, rest = text.partition("%")
    link, bracket, port = rest.partition("]")
    if not percent or link.isdecimal():
        return text
    try:
        return f"{address}%{socket.if_nametoindex(link)}{bracket}{port}"
    except OSError:
        return text


class GivenServers:
    """The host's name servers, as the agent reads them from resolv.conf."""

    def __init__(self) -> None:
        self._servers: tuple[Upstream, ...] = ()
        self._search: frozenset[str] = frozenset()

    def servers(self) -> tuple[Upstream, ...]:
        """See ResolvConf."""
        return self._servers

    def search(self) -> frozenset[str]:
        """See ResolvConf."""
        return self._search

    def replace(self, servers: Iterable[tuple[str, int, int]], search: Iterable[str]) -> None:
        """What ``servers_to_json`` has made."""
        self._servers = tuple(Upstream(*one) for one in servers)
        self._search = frozenset(search)


def servers_to_json(host: HostServers) -> list[object]:
    """The arguments of ``GivenServers.replace``."""
    return [[[one.address, one.port, one.scope] for one in host.servers()], sorted(host.search())]
