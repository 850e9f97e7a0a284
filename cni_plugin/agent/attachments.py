"""Names and services of this host's containers, read from their files and published in DNS and the
registry.

``ops/announcement.py`` writes a file for each attachment and asks the agent to refresh. What has no
file any more is deregistered, also after a restart of the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_interface
from typing import Protocol

from cni_plugin.agent.recorded import Configured, Recorded
from discovery.consul.check_definitions import parse_check
from discovery.consul.json_fields import BadField, Fields
from discovery.dns.network_zones import ClientConfig, NetworkZone, NetworkZones
from discovery.page.overview import AttachmentSummary, NetworkSummary, Overview
from discovery.reach import HOST, PUBLISHED_TAG, SCOPE_META
from discovery.registry import Registry
from discovery.structs import NETWORK_META, CheckDefinition, Instance, ServiceAddress, Weights
from store import Invalid
from weft import files, remarks
from weft.container_names import looked_up, not_served
from weft.errors import StateDamaged
from weft.remarks import Remarks
from weft.service_options import NETWORK_CHECKS, TTL_CHECK
from weft.types import Cidr

log = logging.getLogger(__name__)

FOLDER = "names"
_MOST_BYTES = 1 << 20  # of a file
_SHORT_ID = 12
_PATH = re.compile(r"(?:(?P<scheme>https?):)?(?P<path>/(?!/).*)")
"""What an HTTP check of a container may name instead of a URL."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """The file of one attachment."""

    owner: str
    network: str
    container: str
    interface: str
    namespace: str
    addresses: tuple[Cidr, ...]
    gateways: tuple[str, ...]
    internal: bool
    names: tuple[str, ...]
    domain: str
    services: tuple[Mapping[str, object], ...]
    nameservers: tuple[str, ...] = ()
    namespace_inode: int = 0
    published: tuple[tuple[int, int, str], ...] = ()


class Shared(Protocol):
    """Names that hosts have in common (``shared_names``)."""

    def networks(self) -> Collection[str]: ...

    def publish(self, announced: Mapping[str, Announcement]) -> None: ...

    def others(self) -> Iterator[Announcement]: ...


class Attachments:
    """Publishes the files of the folder ``names`` in ``run``, the host's folder below /run.

    ``permitted``: domains, other than the networks' own, below which names are served. ``reserved``
    returns the names, in lower case, that no service may have.
    """

    def __init__(
        self,
        run: str,
        names: NetworkZones,
        registry: Registry,
        overview: Overview | None = None,
        permitted: Collection[str] = (),
        reserved: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._run = run
        self._folder = os.path.join(run, FOLDER)
        self._permitted = permitted
        self._reserved = reserved
        self._remarked = {owner: remarks.read(run, owner) for owner in remarks.owners(run)}
        self._names = names
        self._registry = registry
        self._overview = overview
        self._recorded = Recorded(run)
        self._configured = Configured()
        self._known: dict[str, tuple[tuple[int, int], Announcement | None]] = {}
        self._offered: dict[str, tuple[Announcement, bool]] = {}
        self._refused: dict[str, tuple[str, ...]] = {}
        self._lock = asyncio.Lock()
        self.shared: Shared | None = None
        """The names of containers on other hosts, once they are known."""

    @property
    def count(self) -> int:
        """How many attachments there are."""
        return len(self._known)

    def refresh_names(self) -> Mapping[str, Announcement]:
        """Read the files, and update DNS; what they announce, by the attachments' marks."""
        found = self._read()
        everyone = [*found.values()]
        if self.shared is not None:
            self.shared.publish(found)
            own = {one.network for one in everyone}
            everyone += (one for one in self.shared.others() if one.network in own)
        self._names.replace(networks(everyone, self._permitted))
        return found

    async def refresh(self) -> None:
        """Read the files, and update DNS and the registry. Raises StoreError."""
        async with self._lock:
            found = self.refresh_names()
            if self._overview is not None:
                # Parsing a thousand records for the first time takes a second.
                recorded, configured = await asyncio.to_thread(self._page)
                self._overview.set_attachments(_joined(self._summaries(), recorded), configured)
            for owner in (self._registry.owners() | self._offered.keys()) - found.keys():
                await self._registry.offer(owner, ())
                self._offered.pop(owner, None)
            for owner, one in found.items():
                wanted = one, self._is_of_host(one)
                if self._offered.get(owner) != wanted:
                    refused = await self._offer(owner, *wanted)
                    if refused:
                        self._refused[owner] = refused  # asked for again each time
                    else:
                        self._offered[owner] = wanted
                        self._refused.pop(owner, None)
            await self._registry.drop_orphans()
            self._remark(found)

    async def _offer(self, owner: str, one: Announcement, is_of_host: bool) -> tuple[str, ...]:
        """Register an attachment's services; why some are not registered. Raises StoreError, but not for what the
        store can never take: the other attachments' services are registered all the same.
        """
        shared = {str(each.get("name")) for each in one.services if each.get("shared") is True}
        offered = list(offers(one, is_of_host))
        try:
            return await self._registry.offer(owner, offered, shared=shared, reserved=self._reserved())
        except Invalid as error:
            return (f"services are not registered: {error.message}",)

    def _page(self) -> tuple[list[AttachmentSummary], list[NetworkSummary]]:
        """What the web page shows by the files of records and networks."""
        configured: list[NetworkSummary] = []
        with contextlib.suppress(StateDamaged):
            configured = self._configured.read()
        return self._recorded.read(), configured

    def _is_of_host(self, one: Announcement) -> bool:
        """Whether only this host has a route to the container: it is the gateway, and the network is its own."""
        return self.shared is not None and bool(one.gateways) and one.network not in self.shared.networks()

    def _remark(self, found: Mapping[str, Announcement]) -> None:
        """Log and write down what is not as the attachments ask for it."""
        self._refused = {owner: why for owner, why in self._refused.items() if owner in found}
        for owner in self._remarked.keys() - found.keys():
            remarks.remove(self._run, owner)
            del self._remarked[owner]
        for owner, one in found.items():
            now = Remarks(self._refused.get(owner, ()), unserved(one, self._permitted))
            before = self._remarked.get(owner, Remarks())
            if now == before:
                continue
            for sentence in (*now.refused, *now.unserved):
                if sentence not in (*before.refused, *before.unserved):
                    fields = {"network": one.network, "container": one.container, "interface": one.interface}
                    said = {"event": "refusal", "fields": {**fields, "error": sentence}}
                    log.warning("%s/%s on %s: %s", one.container, one.interface, one.network, sentence, extra=said)
            with contextlib.suppress(StateDamaged):
                remarks.write(self._run, owner, now)
                self._remarked[owner] = now

    def _summaries(self) -> Iterator[AttachmentSummary]:
        """The attachments for the web page; a file is as old as its attachment."""
        for (_, written), one in self._known.values():
            if one is not None:
                yield AttachmentSummary(
                    owner=one.owner,
                    network=one.network,
                    container=one.container,
                    interface=one.interface,
                    addresses=tuple(map(str, one.addresses)),
                    gateways=one.gateways,
                    names=one.names,
                    domain=one.domain,
                    internal=one.internal,
                    since=written / 1e9,
                )

    def _read(self) -> dict[str, Announcement]:
        """Every valid announcement; unchanged files are not read again."""
        now: dict[str, tuple[tuple[int, int], Announcement | None]] = {}
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:
            entries = []
        for entry in entries:
            if not entry.name.endswith(".json"):
                continue
            try:
                about = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            state = (about.st_ino, about.st_mtime_ns)
            held = self._known.get(entry.name)
            now[entry.name] = held if held is not None and held[0] == state else (state, _announcement(entry.path))
        self._known = now
        return {one.owner: one for _, one in now.values() if one is not None}


def _joined(announced: Iterable[AttachmentSummary], recorded: Iterable[AttachmentSummary]) -> list[AttachmentSummary]:
    """The announced attachments, and those that have only a record."""
    found = {(one.network, one.container, one.interface): one for one in recorded}
    for one in announced:
        key = one.network, one.container, one.interface
        found[key] = replace(one, ports=found[key].ports) if key in found else one
    return list(found.values())


def _announcement(path: str) -> Announcement | None:
    """The announcement in a file; None, and a warning in the log, for an invalid one."""
    try:
        found = json.loads(files.read(path, _MOST_BYTES))
        return Announcement(
            owner=os.path.basename(path).removesuffix(".json"),
            network=str(found["network"]),
            container=str(found["container"]),
            interface=str(found["interface"]),
            namespace=str(found["namespace"]),
            addresses=tuple(ip_interface(text) for text in found["addresses"]),
            gateways=tuple(map(str, found["gateways"])),
            internal=found["internal"] is True,
            names=tuple(map(str, found["names"])),
            domain=str(found["domain"]),
            services=tuple(dict(one) for one in found["services"]),
            nameservers=tuple(map(str, found.get("nameservers", ()))),
            namespace_inode=int(found.get("namespace_inode", 0)),
            published=tuple((int(host), int(inner), str(kind)) for host, inner, kind in found.get("published", ())),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("ignoring %s: %s", path, error)
        return None


def unserved(one: Announcement, permitted: Collection[str] = ()) -> tuple[str, ...]:
    """Why some of an attachment's names are not served, a sentence each."""
    return tuple(filter(None, (_not_served(one, name, permitted) for name in one.names)))


def _not_served(one: Announcement, name: str, permitted: Collection[str]) -> str:
    return not_served(name, tuple(filter(None, (one.domain, one.network.lower()))), permitted)


def networks(announcements: Iterable[Announcement], permitted: Collection[str] = ()) -> Iterator[NetworkZone]:
    """The DNS zone of each network that has containers."""
    together: dict[str, list[Announcement]] = {}
    on: dict[str, set[str]] = {}
    for one in announcements:
        together.setdefault(one.network, []).append(one)
        on.setdefault(one.container, set()).add(one.network)
    for network, members in together.items():
        records: dict[str, dict[str, None]] = {}
        reverse: dict[str, str] = {}
        clients: dict[str, ClientConfig] = {}
        for one in members:
            addresses = [str(cidr.ip) for cidr in one.addresses]
            served = [name for name in one.names if not _not_served(one, name, permitted)]
            for name in served:
                records.setdefault(looked_up(name), {}).update(dict.fromkeys(addresses))
            others = tuple(sorted(on[one.container] - {network}))
            for address in addresses:
                if served:
                    reverse[address] = served[0]
                if others:
                    clients[address] = ClientConfig(others)
        yield NetworkZone(
            network,
            gateways=tuple(dict.fromkeys(gateway for one in members for gateway in one.gateways)),
            subnets=tuple(sorted({str(cidr.network) for one in members for cidr in one.addresses})),
            internal=any(one.internal for one in members),
            records={name: tuple(found) for name, found in records.items()},
            reverse=reverse,
            domains=tuple(sorted({one.domain for one in members if one.domain})),
            upstreams=tuple(dict.fromkeys(server for one in members for server in one.nameservers)),
            clients=clients,
        )


def offers(one: Announcement, is_of_host: bool = False) -> Iterator[tuple[Instance, tuple[CheckDefinition, ...]]]:
    """The service instances of an attachment, each with its check; ``is_of_host``: other hosts have no route to
    it.
    """
    for found in one.services:
        service = Fields(found)
        try:
            instance = _instance(one, service, is_of_host)
        except BadField as error:
            log.warning("ignoring a service of %s: %s", one.container, error)
            continue
        checks: tuple[CheckDefinition, ...] = ()
        asked = service.get("check")
        if isinstance(asked, Mapping):
            try:
                checks = (_check(one, instance, asked),)
            except ValueError as error:
                log.warning("ignoring the check of service %s in %s: %s", instance.name, one.container, error)
        yield instance, checks


def _instance(one: Announcement, service: Fields, is_of_host: bool) -> Instance:
    name, port = service.text("name"), service.number("port", high=65535)
    protocol = service.text("protocol")
    if not name:
        service.invalid("name", name, "must not be empty")
    tagged = {f"lan_ipv{cidr.version}": ServiceAddress(str(cidr.ip), port) for cidr in reversed(one.addresses)}
    virtual = service.get("virtual")
    if virtual:
        tagged["virtual"] = ServiceAddress(virtual if isinstance(virtual, str) else "", port)
    meta = service.string_map("meta") | {NETWORK_META: one.network}
    if is_of_host:
        meta[SCOPE_META] = HOST
        for host, inner, kind in one.published:
            if inner == port and kind == (protocol or kind):
                tagged[PUBLISHED_TAG] = ServiceAddress("", host)
    weights = service.object_("weights") or Fields({})
    return Instance(
        node="",
        id=_instance_id(one, name, port, protocol),
        name=name,
        address=str(one.addresses[0].ip) if one.addresses else "",
        port=port,
        protocol=protocol,
        tags=service.string_list("tags"),
        meta=meta,
        tagged_addresses=tagged,
        weights=Weights(weights.number("passing", default=1), weights.number("warning", default=1)),
        owner=one.owner,
    )


def _instance_id(one: Announcement, name: str, port: int, protocol: str) -> str:
    """The id of an instance: the attachment's mark tells it from those of all other attachments, as the
    beginning of a container's id does not.
    """
    parts = (name, one.container[:_SHORT_ID], one.owner, str(port or ""), protocol if port else "")
    return "-".join(filter(None, parts))


def _check(one: Announcement, instance: Instance, asked: Mapping[str, object]) -> CheckDefinition:
    """The check, run in the container's namespace; a path (also ``https:/path``) or port alone refers to the
    container's address.
    """
    whole = dict(asked)
    host = f"[{instance.address}]" if ":" in instance.address else instance.address
    place = f"{host}:{instance.port}"
    if matched := _PATH.fullmatch(str(whole.get("http", ""))):
        whole["http"] = f"{matched['scheme'] or 'http'}://{place}{matched['path']}"
    for kind in ("tcp", "udp"):
        given = str(whole.get(kind, ""))
        if kind in whole and not given.strip(":0123456789"):
            whole[kind] = f"{host}:{given.strip(':')}" if given.strip(":") else place
    found = parse_check(Fields(whole), service_id=instance.id)
    if found.type not in (*NETWORK_CHECKS, TTL_CHECK):
        raise BadField(f"a container's check cannot be of type {found.type}")
    return replace(
        found,
        id=f"service:{instance.id}",
        name=found.name or f"Service '{instance.name}' check",
        netns=one.namespace,
        netns_inode=one.namespace_inode,
        reachable=tuple(str(cidr.ip) for cidr in one.addresses),
    )
