"""DNS as the agent sees it: its listening sockets, and the process that answers (``dns_worker``).

The sockets stay bound here while that process is replaced: queries wait in them. It is replaced when it
ends, stops, does not answer, or sends anything but what is expected of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterable
from dataclasses import astuple, fields

from discovery.catalog import Catalog
from discovery.dns.listeners import Listeners, SocketAddress
from discovery.dns.network_zones import NetworkZone, NetworkZones
from discovery.dns.replica import Feed, servers_to_json, settings_to_json, zone_to_json
from discovery.dns.responder import Counters
from discovery.dns.server import export
from discovery.dns.service_index import Visible
from discovery.dns.settings import DnsSettings
from discovery.dns.upstreams import ResolvConf
from discovery.metrics import Metrics
from weft import proc_stat
from weft.errors import WeftError
from weft.pair import Malformed, Message, Pair
from weft.spawner import Spawner

log = logging.getLogger("weft.dns")

NAME = "dns"
"""The worker's name."""
PING_SECONDS = 0.5
"""Between two questions whether it answers."""
_LATE_SECONDS = 1.0  # without an answer: its state is looked at
_HUNG_SECONDS = 10.0  # without an answer, whatever its state; a loaded machine is slow
_SYNC_SECONDS = 2.0  # that an attachment waits for its names
_MOST_BYTES = 1024  # of its messages
_LEAST_LIFE = 1.0  # seconds; a process that ends earlier is replaced after a pause
_MOST_PAUSE = 5.0
_LARGEST = 1 << 63


class DnsFront:
    """A part of the agent. ``visible`` as in ServiceIndex, None where everything is."""

    def __init__(
        self,
        catalog: Catalog,
        names: NetworkZones,
        settings: DnsSettings,
        metrics: Metrics,
        spawner: Spawner,
        visible: Visible | None = None,
    ) -> None:
        self.names = names
        self.feed = Feed(catalog, self._send, visible)
        """The worker's copy of the catalog."""
        self.permissions_changed = self.feed.reload
        """Is called when ``visible`` answers differently."""
        self.counters = Counters()
        self.connections = self.inflight = 0
        self._settings = settings
        self._spawner = spawner
        self._listeners = Listeners(names, settings, self)
        self._resolv_conf = ResolvConf(settings.resolv_conf)
        self._told_servers: list[object] = []
        self._sockets: dict[SocketAddress, tuple[socket.socket, socket.socket]] = {}
        self._former = Counters()
        self._pair: Pair | None = None
        self._process = 0
        self._started = 0.0
        self._pause = 0.0
        self._asked = self._answered = 0
        self._asked_at: dict[int, float] = {}
        self._answers = asyncio.Condition()
        self._replacing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        names.subscribe(lambda changed: self._send_networks())
        export(metrics, self)
        metrics.counter("weft_dns_restarts_total", "Replacements of the process that answers DNS.", read=self._restarts)
        metrics.read_before(self._sync)
        self._starts = 0

    @property
    def addresses(self) -> tuple[SocketAddress, ...]:
        """The addresses that are listened on."""
        return tuple(self._listeners.bound)

    @property
    def bind_errors(self) -> dict[SocketAddress, str]:
        """Addresses that could not be bound, and why."""
        return self._listeners.bind_errors

    async def start(self) -> None:
        """Start the worker, and bind all listeners. Raises WeftError."""
        self._start_worker()
        await self._listeners.start()
        self._watching = asyncio.create_task(self._watch())
        await self._sync()

    async def stop(self) -> None:
        """Close all sockets, here and in the worker."""
        for task in (self._watching, self._replacing):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._end_worker()
        await self._listeners.stop()

    async def set_networks(self, networks: Iterable[NetworkZone]) -> None:
        """Replace the networks; returns when all listeners that can be bound are, and answer."""
        self.names.replace(networks)
        await self._listeners.reconcile()
        await self._sync()

    # Listeners: Serving

    async def open(
        self, address: SocketAddress, networks: tuple[str, ...], udp: socket.socket, tcp: socket.socket
    ) -> None:
        self._sockets[address] = udp, tcp
        self._send_sockets(address, networks)

    def assign(self, address: SocketAddress, networks: tuple[str, ...]) -> None:
        self._send(["assign", *address, networks])

    def withdraw(self, address: SocketAddress) -> None:
        self._send(["withdraw", *address])
        for one in self._sockets.pop(address):
            one.close()

    # What the worker is told

    def _send(self, message: list[object], descriptors: Iterable[int] = ()) -> None:
        if self._pair is not None:
            self._pair.send(message, descriptors)

    def _send_networks(self) -> None:
        self._send(["networks", [zone_to_json(one) for one in self.names.networks()]])

    def _send_sockets(self, address: SocketAddress, networks: tuple[str, ...]) -> None:
        self._send(["open", *address, networks], [one.fileno() for one in self._sockets[address]])

    def _send_servers(self) -> None:
        servers = servers_to_json(self._resolv_conf)
        if servers != self._told_servers:
            self._send(["servers", *servers])
            self._told_servers = servers

    async def _sync(self) -> None:
        """Wait until the worker has done all that it was told, if it answers in time."""
        self._ping()
        number = self._asked
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SYNC_SECONDS), self._answers:
                await self._answers.wait_for(lambda: self._answered >= number)

    def _ping(self) -> None:
        self._asked += 1
        self._asked_at[self._asked] = time.monotonic()
        self._send(["ping", self._asked])

    # What it says

    def _received(self, message: Message, descriptors: list[int]) -> None:
        """Take its only message, a pong. Raises Malformed."""
        kind, *numbers = message
        if kind != "pong" or len(numbers) != 3 + len(fields(Counters)):
            raise Malformed(f"an unexpected message: {str(message)[:80]}")
        found = []
        for one in numbers:
            if type(one) is not int or not 0 <= one < _LARGEST:
                raise Malformed(f"{str(one)[:40]!r} is no count")
            found.append(one)
        number, self.connections, self.inflight, *counts = found
        if not self._answered < number <= self._asked:
            raise Malformed(f"an answer to question {number}, which was not asked")
        self.counters = Counters(*(one + former for one, former in zip(counts, astuple(self._former), strict=True)))
        self._answered = number
        for asked in [one for one in self._asked_at if one <= number]:
            del self._asked_at[asked]
        self._wake()

    def _wake(self) -> None:
        async def notify() -> None:
            async with self._answers:
                self._answers.notify_all()

        self._waking = asyncio.ensure_future(notify())

    # Its life

    def _restarts(self) -> float:
        return max(self._starts - 1, 0)

    def _start_worker(self) -> None:
        """Start it and tell it everything. Raises WeftError."""
        self._process, end = self._spawner.start(NAME)
        self._started = time.monotonic()
        self._starts += 1
        self._former, self._told_servers = self.counters, []
        # Whoever waits for an earlier answer waits for this process's first.
        self._asked_at.clear()
        self._pair = Pair(end, _MOST_BYTES, self._received, self._ended)
        self._send(["settings", settings_to_json(self._settings)])
        self._send_servers()
        self._send_networks()
        self.feed.restart()
        for address, networks in self._listeners.bound.items():
            self._send_sockets(address, networks)
        self._ping()

    def _end_worker(self) -> None:
        if self._pair is not None:
            self._pair.close()
            self._pair = None
        with contextlib.suppress(WeftError):
            self._spawner.kill(self._process)

    def _ended(self, why: str) -> None:
        """The worker has closed its end, or sent what it must not."""
        if self._replacing is None:
            log.error("replacing the process that answers DNS (pid %d): %s", self._process, why or "it has ended")
            self._replacing = asyncio.create_task(self._replace())

    async def _replace(self) -> None:
        self._end_worker()
        short = time.monotonic() - self._started < _LEAST_LIFE
        self._pause = min(max(2 * self._pause, 0.1), _MOST_PAUSE) if short else 0.0
        while True:
            await asyncio.sleep(self._pause)
            try:
                self._start_worker()
                break
            except WeftError as error:
                log.error("DNS is not answered: %s", error.message)
                self._pause = _MOST_PAUSE
        self._replacing = None

    async def _watch(self) -> None:
        """Ask it every so often, and replace it when it does not answer."""
        while True:
            await asyncio.sleep(PING_SECONDS)
            if self._replacing is not None:
                continue
            self._send_servers()
            late = time.monotonic() - min(self._asked_at.values(), default=time.monotonic())
            if late > _HUNG_SECONDS or (late > _LATE_SECONDS and _is_stopped(self._process)):
                self._ended(f"it has not answered for {late:.1f} s")
            elif len(self._asked_at) < 2 * _HUNG_SECONDS / PING_SECONDS:
                self._ping()


def _is_stopped(process: int) -> bool:
    try:
        return proc_stat.fields(process)[0] in ("T", "t", "Z", "X")
    except OSError:
        return True
