"""The process that answers DNS: no capability, no file, no user of this host.

It gets its listening sockets, the catalog and the networks from the agent (``dns_front``), and tells it
how much it has answered. Queries and upstream servers' replies are parsed here alone.
"""

from __future__ import annotations

import asyncio
import encodings.idna
import encodings.punycode  # noqa: F401
import socket
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import astuple
from typing import cast

from cni_plugin.agent import confined
from discovery.catalog import Catalog
from discovery.dns.network_zones import NetworkZones
from discovery.dns.replica import GivenServers, apply, settings_from_json, zone_from_json
from discovery.dns.server import DnsServer
from weft.pair import Message, Pair


def run(end: socket.socket) -> None:
    """Answer until the agent closes its end."""
    confined.serve(_Worker(end).serve)


class _Worker:
    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._catalog = Catalog()
        self._names = NetworkZones()
        self._host = GivenServers()
        self._server: DnsServer | None = None
        self._work: asyncio.Queue[Coroutine[object, object, object]] = asyncio.Queue()
        self._handlers: Mapping[str, Callable[..., None]] = {
            "settings": self._start,
            "catalog": lambda revision, changes: apply(self._catalog, revision, changes),
            "networks": lambda zones: self._names.replace(map(zone_from_json, zones)),
            "servers": self._host.replace,
        }

    async def serve(self) -> None:
        """Do in order what cannot be done at once. Without an agent nothing is answered any more."""
        self._pair = Pair(self._end, confined.AGENTS_BYTES, self._received, confined.end, descriptors=64)
        while True:
            await (await self._work.get())

    @property
    def _running(self) -> DnsServer:
        assert self._server is not None
        return self._server

    def _received(self, message: Message, descriptors: list[int]) -> None:
        """Change what answers are made of at once, and do all else in the order in which it comes."""
        kind, *values = message
        if (change := self._handlers.get(str(kind))) is not None:
            change(*values)
        else:
            self._work.put_nowait(self._later(str(kind), values, descriptors))

    async def _later(self, kind: str, values: list[object], descriptors: list[int]) -> None:
        server = self._running
        if kind == "ping":
            self._pair.send(["pong", *values, server.connections, server.inflight, *astuple(server.counters)])
            return
        host, port, *networks = cast(tuple[str, int, list[str]], values)
        served = tuple(networks[0]) if networks else ()
        match kind:
            case "open":
                udp, tcp = (socket.socket(fileno=one) for one in descriptors)
                await server.open((host, port), served, udp, tcp)
            case "assign":
                server.assign((host, port), served)
            case "withdraw":
                server.withdraw((host, port))

    def _start(self, settings: Mapping[str, object]) -> None:
        server = DnsServer(
            self._catalog, self._names, settings_from_json(settings), binds=False, resolv_conf=self._host
        )
        server.before_queries = self._pair.drain  # who has seen a change over HTTP sees it over DNS
        self._server = server
        self._work.put_nowait(server.start())
