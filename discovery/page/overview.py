"""The page's data as one JSON document: nodes, networks, attachments and services.

The document has a version of its own, since the catalog's index does not cover attachments. It is
written on demand, at most four times a second, and reuses the JSON of unchanged services. Details
(check outputs, tags, metadata) come from Consul's endpoints.
"""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from discovery import catalog as topics
from discovery.catalog import Catalog, Topic
from discovery.structs import Health, Instance, Node, worst_status
from weft import __version__

MAX_INSTANCES = 5000
MAX_INSTANCES_PER_SERVICE = 1000
MAX_ATTACHMENTS = 5000
MAX_NODES = 1000
"""Bounds of the document, which says how many more there are."""
MAX_NAMES = 16
MAX_PORTS = 64
"""Names of an attachment, tags of a service, and published ports of an attachment, in the document."""
MIN_WRITE_INTERVAL = 0.25
"""Seconds between two writes of the document."""
_SLICE = 50  # instances written before yielding to the event loop: a millisecond
_MAX_REVISION_TIMES = 4096
_RESOLUTION = 1.0


@dataclass(frozen=True, slots=True)
class AttachmentSummary:
    """A container's interface on a network of this host. ``addresses`` are CIDR, ``since`` Unix
    seconds.
    """

    owner: str
    network: str
    container: str
    interface: str
    addresses: tuple[str, ...] = ()
    gateways: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    domain: str = ""
    internal: bool = False
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class NetworkSummary:
    """A network that is configured on this host. ``pools`` are its ranges of addresses, each with the
    number of leases and of addresses.
    """

    name: str
    driver: str
    subnets: tuple[str, ...] = ()
    pools: tuple[tuple[str, int, int], ...] = ()
    internal: bool = False


class Overview:
    """The document and its version. Not thread-safe."""

    def __init__(self, catalog: Catalog, node: Node, *, domain: str = "") -> None:
        """``domain``: the DNS domain of services, "" without DNS."""
        self._catalog = catalog
        self._static = {
            "Node": node.name,
            "Datacenter": node.datacenter,
            "Version": __version__,
            "Domain": domain,
        }
        self._attachments: tuple[AttachmentSummary, ...] = ()
        self._networks: tuple[NetworkSummary, ...] = ()
        self._attachments_json: tuple[object, object, bytes, bytes] = (None, None, b"[]", b"[]")
        self._started = time.time()
        # Greater than any version of a previous agent, so that open pages update after a restart.
        self.version = round(self._started * 1000)
        self._revision_times: list[tuple[int, float]] = [(catalog.index, self._started)]
        self._services: dict[str, tuple[int, int, bytes]] = {}
        self._written: tuple[int, bytes] = (0, b"")
        self._written_at = 0.0
        self._writing = asyncio.Lock()
        self._changes = asyncio.Event()
        catalog.subscribe(self._on_catalog_change)

    def set_attachments(
        self, attachments: Iterable[AttachmentSummary], networks: Iterable[NetworkSummary] = ()
    ) -> None:
        """Replace the attachments and the networks of this host."""
        found = tuple(sorted(attachments, key=lambda one: (one.network, one.names, one.container, one.interface)))
        configured = tuple(networks)
        if (found, configured) != (self._attachments, self._networks):
            self._attachments, self._networks = found, configured
            self._change()

    def _on_catalog_change(self, revision: int, _: frozenset[Topic]) -> None:
        now = time.time()
        if now - self._revision_times[-1][1] >= _RESOLUTION:
            self._revision_times.append((revision, now))
            if len(self._revision_times) > _MAX_REVISION_TIMES:
                # Thin out the older half.
                self._revision_times[: _MAX_REVISION_TIMES // 2] = self._revision_times[: _MAX_REVISION_TIMES // 2 : 2]
        else:
            self._revision_times[-1] = (max(revision, self._revision_times[-1][0]), self._revision_times[-1][1])
        self._change()

    def _change(self) -> None:
        self.version += 1
        self._changes.set()
        self._changes = asyncio.Event()

    async def wait(self, version: int, seconds: float) -> tuple[int, bytes]:
        """Wait until the version differs, at most ``seconds``; the document with its version.

        A version of another agent differs at once.
        """
        if version == self.version:
            try:
                async with asyncio.timeout(seconds):
                    await self._changes.wait()
            except TimeoutError:
                pass
        async with self._writing:
            if self._written[0] != self.version:
                await asyncio.sleep(max(0.0, self._written_at + MIN_WRITE_INTERVAL - time.monotonic()))
                version = self.version
                self._written = (version, await self._write(version))
                self._written_at = time.monotonic()
            return self._written

    async def _write(self, version: int) -> bytes:
        names = sorted(self._catalog.names())
        services: list[bytes] = []
        left, more = MAX_INSTANCES, 0
        for name in names:
            if left <= 0:
                more += 1
                continue
            count, text = await self._service(name)
            left -= count
            services.append(text)
        for name in self._services.keys() - set(names):
            del self._services[name]
        head = {
            "Index": version,
            **self._static,
            "Now": round(time.time(), 3),
            "Started": round(self._started, 3),
            "Omitted": {
                "Services": more,
                "Attachments": max(0, len(self._attachments) - MAX_ATTACHMENTS),
                "Nodes": max(0, len(self._catalog.nodes()) - MAX_NODES),
            },
        }
        networks, attachments = await self._attachment_views()
        parts = {
            "Nodes": _json([self._node_view(one) for one in self._catalog.nodes()[:MAX_NODES]]),
            "Networks": networks,
            "Attachments": attachments,
            "Services": b"[" + b",".join(services) + b"]",
        }
        rest = b"".join(b',"%s":%s' % (name.encode(), text) for name, text in parts.items())
        return _json(head)[:-1] + rest + b"}"

    async def _service(self, name: str) -> tuple[int, bytes]:
        """The JSON of a service, and its number of instances."""
        seen = self._catalog.changed(topics.service(name), topics.health(name), topics.virtual(name))
        known = self._services.get(name)
        if known is not None and known[0] == seen:
            return known[1:]
        instances = self._catalog.instances(name)
        written: list[bytes] = []
        for start in range(0, min(len(instances), MAX_INSTANCES_PER_SERVICE), _SLICE):
            for one in instances[start : min(start + _SLICE, MAX_INSTANCES_PER_SERVICE)]:
                node = self._catalog.node(one.node)
                if node is not None:
                    written.append(_json(self._instance(Health(node, one, self._catalog.checks_of(one)))))
            await asyncio.sleep(0)
        facts = {
            "Name": name,
            "Tags": sorted({tag for one in instances[:MAX_INSTANCES_PER_SERVICE] for tag in one.tags})[:MAX_NAMES],
            "Virtual": [one.address for one in self._catalog.virtual_addresses(name)],
            "Omitted": max(0, len(instances) - MAX_INSTANCES_PER_SERVICE),
        }
        text = _json(facts)[:-1] + b',"Instances":[' + b",".join(written) + b"]}"
        if seen == self._catalog.changed(topics.service(name), topics.health(name), topics.virtual(name)):
            self._services[name] = (seen, len(written), text)
        return len(written), text

    def _instance(self, one: Health) -> dict[str, object]:
        instance = one.instance
        revision = max((check.modify_index for check in one.checks), default=0)
        return {
            "ID": instance.id,
            "Node": instance.node,
            "Addresses": list(one.addresses),
            "Port": instance.port,
            "Protocol": instance.protocol,
            "Status": "maintenance" if one.maintenance else one.status.value,
            "Checked": any(check.service_id for check in one.checks),
            "Network": instance.meta.get("network", ""),
            "Owner": instance.owner,
            "Changed": self._time_of(max(revision, instance.modify_index)),
        }

    def _node_view(self, node: Node) -> dict[str, object]:
        checks = self._catalog.checks_of(Instance(node.name, "", ""))  # the node's own checks
        revision = max((check.modify_index for check in checks), default=0)
        away = any(check.maintenance for check in checks)
        return {
            "Name": node.name,
            "Address": node.address,
            "Status": "maintenance" if away else worst_status(checks).value,
            "Changed": self._time_of(max(revision, node.modify_index)),
        }

    async def _attachment_views(self) -> tuple[bytes, bytes]:
        """The JSON of networks and attachments; cached until they change."""
        shown, configured = self._attachments, self._networks
        if self._attachments_json[0] is not shown or self._attachments_json[1] is not configured:
            written: list[bytes] = []
            for number, one in enumerate(islice(shown, MAX_ATTACHMENTS)):
                written.append(_json(_attachment_view(one)))
                if number % _SLICE == 0:
                    await asyncio.sleep(0)
            networks = _json(_networks(shown, configured))
            self._attachments_json = (shown, configured, networks, b"[" + b",".join(written) + b"]")
        return self._attachments_json[2:]

    def _time_of(self, revision: int) -> float:
        """The time of a revision in Unix seconds; 0 if it is older than this agent."""
        if revision <= max(self._revision_times[0][0], self._catalog.changed()):
            return 0
        place = min(bisect_left(self._revision_times, (revision, 0.0)), len(self._revision_times) - 1)
        return round(self._revision_times[place][1], 1)


def _attachment_view(one: AttachmentSummary) -> dict[str, object]:
    return {
        "ID": one.owner,
        "Network": one.network,
        "Container": one.container,
        "Interface": one.interface,
        "Addresses": list(one.addresses),
        "Names": list(one.names[:MAX_NAMES]),
        "Ports": list(one.ports[:MAX_PORTS]),
        "Domain": one.domain,
        "Since": round(one.since, 1),
    }


def _networks(
    attachments: Iterable[AttachmentSummary], configured: Iterable[NetworkSummary]
) -> list[dict[str, object]]:
    """The networks that are configured on this host or have containers there, sorted by name."""
    found: dict[str, list[AttachmentSummary]] = {}
    known = {one.name: one for one in configured}
    for one in attachments:
        found.setdefault(one.network, []).append(one)
    return [
        {
            "Name": name,
            "Driver": known[name].driver if name in known else "",
            "Subnets": list(known[name].subnets) if name in known else [],
            "Pools": [
                {"Ranges": ranges, "Used": used, "Size": size}
                for ranges, used, size in (known[name].pools if name in known else ())
            ],
            "Gateways": sorted({address for one in found.get(name, ()) for address in one.gateways}),
            "Domains": sorted({one.domain for one in found.get(name, ()) if one.domain}),
            "Internal": known[name].internal if name in known else any(one.internal for one in found[name]),
            "Attachments": len(found.get(name, ())),
        }
        for name in sorted(found.keys() | known.keys())
    ]


def _json(value: object) -> bytes:
    # "<" is escaped, so that the document contains no element even if parsed as HTML.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return text.encode("utf-8", "replace")
