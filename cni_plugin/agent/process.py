"""The agent's process: its parts in one event loop, DNS started first, stopped by a signal.

A part that cannot start (its port is in use) is retried, and does not affect the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from cni_plugin.agent import (
    catalog_file,
    connection_metrics,
    later,
    limits,
    service_metrics,
    uplink,
)
from cni_plugin.agent import node as own_node
from cni_plugin.agent import report as reports
from cni_plugin.agent.attachments import Attachments
from cni_plugin.agent.claim_hold import Hold
from cni_plugin.agent.clustering import Clustering
from cni_plugin.agent.commands import Commands
from cni_plugin.agent.definitions import Definitions
from cni_plugin.agent.dns_front import DnsFront
from cni_plugin.agent.echo import Echo
from cni_plugin.agent.host_metrics import HostMetrics
from cni_plugin.agent.kept_catalog import KeptCatalog
from cni_plugin.agent.report import Report
from cni_plugin.agent.settings import Settings
from cni_plugin.agent.stores import is_new, open_store
from discovery import layout
from discovery.acl.tokens import Tokens
from discovery.balancer.allocate import Allocator
from discovery.balancer.balancer import Balancer
from discovery.catalog import Catalog
from discovery.catalog_sync import CatalogSync
from discovery.dns.network_zones import NetworkZones
from discovery.metrics import Metrics
from discovery.page.overview import Overview
from discovery.registry import Registry
from store import Store, StoreError
from store.embedded import EmbeddedStore
from weft import __version__
from weft.daemon_socket import DaemonSocket
from weft.daemons import REFRESHED
from weft.errors import StateDamaged, WeftError
from weft.spawner import Spawner

if TYPE_CHECKING:
    from cni_plugin.agent.overlays import Overlays
    from discovery.api.server import ApiServer

log = logging.getLogger("weft.agent")

_RETRY_SECONDS = 2.0  # between attempts to start a part
_REPLY_SECONDS = 0.2  # for the response to a leave request
_CHECK_SECONDS = 2.0  # between two checks of socket and files


class Part(Protocol):
    """One service of the agent."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@dataclass(slots=True)
class Parts:
    """The parts of a running agent that it refers to later."""

    registry: Registry
    attachments: Attachments
    dns: DnsFront | None
    api: ApiServer
    overlays: Overlays
    clustering: Clustering


class Agent:
    """The agent of one host. It stops after ``idle`` seconds without attachments and services; 0:
    never.
    """

    def __init__(
        self,
        settings: Settings,
        place: DaemonSocket,
        spawner: Spawner,
        echo: dict[int, socket.socket],
        *,
        idle: float = 0.0,
        damage: str = "",
    ) -> None:
        self._echo = echo
        self._settings = settings
        self._spawner = spawner
        self._place = place
        self._folder = os.path.dirname(place.path)
        self._idle = idle
        self._busy = time.monotonic()
        self._started = time.time()
        self._reported: Report | None = None
        self._definitions: Definitions | None = None
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started_parts: list[Part] = []
        self._is_recovering = False
        self._overlay_data = str(catalog_file.folder(settings) / "overlay")
        self.damage = damage
        """Damage of the store's file that was met while it was open."""
        self.problems: dict[str, str] = {}
        """The parts that could not start, with the error."""

    async def run(self) -> bool:
        """Serve until a signal or idle; whether to start again, with the store's file recovered.

        Raises StoreError where the store cannot be opened.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ended.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._task(self._on_hangup()))
        spawner_end = os.pidfd_open(self._spawner.process)
        loop.add_reader(spawner_end, self._on_spawner_ended, spawner_end)
        if is_new(self._settings):
            Hold(self._overlay_data).accept()
        store = await open_store(self._settings, self.damage)
        try:
            parts = await self._start_parts(store)
            self._report(parts)
            took = round(1000 * (time.time() - self._started), 1)
            fields = {"message": f"serves, process {os.getpid()}", "source": "agent", "level": "INFO", "ms": took}
            log.info("started in %.1f s", took / 1000, extra={"event": "log", "fields": fields})
            self._serve_socket(parts, store)
            _notify("READY=1")
            await self._ended.wait()
        finally:
            if not self._is_recovering:
                _notify("STOPPING=1")
            loop.remove_reader(self._place.listener.fileno())
            self._place.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for part in reversed(self._started_parts):
                with contextlib.suppress(Exception):
                    await part.stop()
            await store.close()
            loop.remove_reader(spawner_end)
            os.close(spawner_end)
        return self._is_recovering

    def _on_spawner_ended(self, descriptor: int) -> None:
        """A process with threads must not fork another one."""
        asyncio.get_running_loop().remove_reader(descriptor)
        log.error("the process that starts workers has ended, stopping")
        self._ended.set()

    async def _start_parts(self, store: Store) -> Parts:
        settings, metrics, catalog, names = self._settings, Metrics(), Catalog(), NetworkZones()
        limits.export(metrics)
        service_metrics.export(metrics, catalog)
        uplink.export(metrics)
        HostMetrics(metrics, self._folder, os.stat("/proc/self/ns/net").st_ino)
        port = int(settings.http.listen[0].rpartition(":")[2]) if settings.http.listen else 0
        registry = Registry(await asyncio.to_thread(own_node.read, settings), store, store, port=port)
        domain = settings.dns.domains[0] if settings.dns is not None else ""
        overview = Overview(catalog, registry.node, domain=domain)
        permitted = settings.dns.alias_domains if settings.dns is not None else ()

        def node_names() -> set[str]:
            return {one.name.lower() for one in (registry.node, *catalog.nodes())}

        attachments = Attachments(self._folder, names, registry, overview, permitted, node_names)
        gc.disable()  # what a large catalog allocates stays
        clustering = Clustering(settings, self._folder, store, registry, self._restart)
        if clustering.member is not None:
            await self._start_part("cluster", clustering.member)
        resumed, problem = await _resumed(registry)
        if not resumed and not problem:
            await self._start_part("registry", registry)
        acl = settings.http.acl
        tokens = Tokens(allow=acl.allow, default=acl.default, datacenter=registry.node.datacenter)
        dns: DnsFront | None = None
        if settings.dns is not None:
            visible = tokens.default_reads if acl.enabled else None
            dns = DnsFront(catalog, names, settings.dns, metrics, self._spawner, visible)
            if acl.enabled:
                tokens.on_change = dns.permissions_changed
            with contextlib.suppress(WeftError):  # its start tries again
                dns.start_worker()
        kept = KeptCatalog(str(catalog_file.folder(settings) / "catalog.json")) if settings.store is not None else None
        own = layout.local_prefix(registry.node.name)  # most keys of a host with many services
        sync = CatalogSync(catalog, store, dns.feed if dns is not None else None, kept, without=own)
        if problem:
            self._retry("registry", registry, problem)  # each request of it would wait for the store
            await sync.restore()
        await self._start_part("catalog", sync)
        announced = attachments.refresh_names()
        instances = catalog.node_instances(registry.node.name)
        if resumed and not all(one.owner in announced for one in instances if one.owner):
            resumed = False  # what an attachment that has ended meanwhile has published is removed first
            await self._start_part("registry", registry)
        if not resumed and not problem:
            await self._refresh(attachments, None)
        if dns is not None:
            await self._start_part("dns", dns)
            await dns.set_networks(dns.names.networks())
        new_server, new_front, new_checker, new_prober, page_routes = await asyncio.to_thread(later.http)
        serving = replace(settings.http, listen=(*settings.http.listen, os.path.join(self._folder, "api.sock")))

        async def leave() -> None:
            await registry.leave()
            asyncio.get_running_loop().call_later(_REPLY_SECONDS, self._ended.set)  # after the response has been sent

        new_overlays, new_host, new_names, new_peers, overlay_routes = await asyncio.to_thread(later.overlay)
        data = self._overlay_data
        node = registry.node.name
        host = new_host(node, settings.address, data)
        overlays = new_overlays(node, store, host, data, metrics, clustered=settings.store is not None)
        peers = new_peers(overlays, Echo(self._echo))
        more = (*page_routes(overview, Commands().run), *overlay_routes(overlays, store, peers))
        place = str(catalog_file.folder(settings))
        self._definitions = definitions = Definitions(settings.definitions, place, registry, scripts=settings.scripts)
        api = new_server(
            catalog,
            registry,
            store,
            serving,
            metrics,
            new_front=partial(new_front, self._spawner),
            reload=self._reload,
            leave=leave,
            extra_routes=more,
            tokens=tokens,
        )
        await self._start_part("http", api)
        # Names, services and the API are served from here on; what an earlier agent balances goes on meanwhile.
        if resumed:
            await self._start_part("registry", registry)
        if problem:
            self._retry("definitions", definitions, problem)
        else:
            await self._start_part("definitions", definitions)
        if clustering.node is not None and problem:
            self._retry("node", clustering.node, problem)
        elif clustering.node is not None:
            await self._start_part("node", clustering.node)
        await self._start_part("overlay networks", overlays)
        if settings.store is not None:
            attachments.shared = shared = new_names(node, store, overlays.view, overlays.view.networks)
            overlays.on_names = lambda: self._task(self._refresh(attachments, dns))
            await self._start_part("names of other hosts", shared)
        await self._start_part("probes of peers", peers)
        refreshing = self._refresh(attachments, dns)
        if problem:
            self._task(refreshing)
        else:
            await refreshing
        balancer = None
        if settings.balancing is not None:
            allocator = Allocator(catalog, store, settings.balancing, metrics)
            balancer = Balancer(catalog, settings.balancing, metrics)
            balancing = self._balance(sync, allocator, balancer)
            if sync.loaded.is_set():
                await balancing
            else:
                self._task(balancing)
        connection_metrics.export(metrics, self._folder, balancer.services if balancer is not None else tuple)
        following = await asyncio.to_thread(later.following)
        await self._start_part("follower", following(self._folder, metrics))
        prober = new_prober(self._spawner, metrics)
        await self._start_part("probes", prober)
        await self._start_part(
            "checks", new_checker(registry, catalog, metrics, scripts=settings.scripts, prober=prober)
        )
        gc.freeze()
        gc.enable()
        return Parts(registry, attachments, dns, api, overlays, clustering)

    async def _balance(self, sync: CatalogSync, allocator: Allocator, balancer: Balancer) -> None:
        """Start balancing once services are known: what an earlier agent balances goes on until then."""
        await sync.loaded.wait()
        await self._start_part("virtual addresses", allocator)
        await self._start_part("balancer", balancer)

    async def _reload(self) -> None:
        """Read the definition files again. Raises ConfigProblem, StoreError."""
        if self._definitions is not None:
            await self._definitions.load()
            self.problems.pop("definitions", None)

    async def _on_hangup(self) -> None:
        try:
            await self._reload()
        except WeftError as error:
            log.error("definitions are not reloaded: %s", error)
            self.problems["definitions"] = str(error)

    def _restart(self, why: str) -> None:
        """Start again in this process."""
        log.info("%s; starting again", why)
        self._is_recovering = True
        self._ended.set()

    async def _start_part(self, name: str, part: Part) -> None:
        """Start a part; on an error go on without it and retry later."""
        try:
            await part.start()
            self._started_parts.append(part)
            self.problems.pop(name, None)
        except (OSError, WeftError) as error:
            self._retry(name, part, str(error))

    def _retry(self, name: str, part: Part, why: str) -> None:
        if name not in self.problems:
            log.error("cannot start %s, retrying: %s", name, why)
        self.problems[name] = why
        self._task(self._retry_part(name, part))

    async def _retry_part(self, name: str, part: Part) -> None:
        await asyncio.sleep(_RETRY_SECONDS)
        await self._start_part(name, part)

    # Attachments

    def _serve_socket(self, parts: Parts, store: Store) -> None:
        """Refresh on request over the socket, and periodically."""
        listener = self._place.listener

        def asked() -> None:
            connection = self._place.accept()
            if connection is not None:
                self._task(self._answer(connection, parts))

        asyncio.get_running_loop().add_reader(listener.fileno(), asked)
        self._task(self._watch(parts, store))

    async def _answer(self, connection: socket.socket, parts: Parts) -> None:
        with connection:
            await self._refresh(parts.attachments, parts.dns)
            await parts.overlays.look_again()
            with contextlib.suppress(OSError):
                connection.send(REFRESHED, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    async def _refresh(self, attachments: Attachments, dns: DnsFront | None) -> None:
        """Read the attachments' files; then DNS serves their names."""
        try:
            await attachments.refresh()
            self.problems.pop("attachments", None)
        except WeftError as error:
            if self.problems.get("attachments") != str(error):
                log.error("attachments are not registered: %s", error)
            self.problems["attachments"] = str(error)
        if dns is not None:
            await dns.set_networks(dns.names.networks())

    async def _watch(self, parts: Parts, store: Store) -> None:
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            if not self._place.is_reachable:
                why = "the socket was unlinked or replaced by another agent"
                fields = {"what": "agent", "from": f"process {os.getpid()}", "why": why}
                log.info("%s, stopping", why, extra={"event": "takeover", "fields": fields})
                self._ended.set()
            if why := store.lost:
                log.error("%s; starting again", why)
                self.damage = store.damage if isinstance(store, EmbeddedStore) else ""
                self._is_recovering = True
                self._ended.set()
            with contextlib.suppress(WeftError):  # of the store, which logs it
                await own_node.follow(self._settings, parts.registry)
            await self._refresh(parts.attachments, parts.dns)
            await parts.overlays.look_again()
            self._report(parts)
            if parts.attachments.count or parts.registry.instances() or parts.overlays.count:
                self._busy = time.monotonic()
            elif self._idle and time.monotonic() - self._busy > self._idle and not self._is_kept_running:
                self._ended.set()

    @property
    def _is_kept_running(self) -> bool:
        """Whether ``weft up`` has disabled the idle timeout."""
        return os.path.exists(os.path.join(self._folder, reports.STAY))

    def _report(self, parts: Parts) -> None:
        """Write the status file, if it has changed."""
        node, dns = parts.registry.node, parts.dns
        problems = [f"{name}: {why}" for name, why in self.problems.items()]
        problems += [f"http: {why}" for why in parts.api.problems]
        problems += [f"network {name}: {why}" if name else why for name, why in parts.overlays.problems.items()]
        unread = parts.overlays.view.unread()
        problems += [f"network {name}: its record in the store is invalid: {why}" for name, why in unread.items()]
        problems += [f"cluster: {why}" for why in parts.clustering.problems]
        now = Report(
            process=os.getpid(),
            started=self._started,
            version=__version__,
            node=node.name,
            datacenter=node.datacenter,
            address=node.address,
            http=parts.api.addresses,
            dns=tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in dns.addresses)
            if dns is not None
            else (),
            problems=(*problems, *(f"dns: {why}" for why in dns.bind_errors.values())) if dns else tuple(problems),
            digests=self._settings.digests,
        )
        if now != self._reported:
            try:
                reports.write(self._folder, now)
                self._reported = now
            except StateDamaged as error:
                log.warning("%s", error.message)

    def _task(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the agent failed: %r", error, exc_info=error)


async def _resumed(registry: Registry) -> tuple[bool, str]:
    """Whether the registry's lease goes on, and why the store does not say, "" if it does."""
    try:
        return await registry.resume(), ""
    except StoreError as error:
        log.warning("the lease of this node cannot be renewed: %s", error)
        return False, str(error)


def _notify(state: str) -> None:
    """Tell systemd. Source: sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        with socket.socket(socket.AF_UNIX, kind) as connection, contextlib.suppress(OSError):
            connection.sendto(state.encode(), f"\0{path[1:]}" if path.startswith("@") else path)
