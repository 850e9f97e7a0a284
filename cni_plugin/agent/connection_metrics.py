"""Metrics of tracked connections: those that each network's containers have opened, and those to virtual
addresses; and of the containers that are nearest to their limit of connections.

The kernel counts none of these, so its table is walked when metrics are asked for.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress

from cni_plugin.agent.recorded import Summaries
from cni_plugin.dataplane import limits
from cni_plugin.dataplane.tables import TABLES
from cni_plugin.plan import modules
from cni_plugin.service.records import Record
from discovery.balancer.desired import VirtualService
from discovery.metrics import Metrics
from weft.errors import KernelRefused, WeftError
from weft.kernel.linux.kernel import LinuxKernel
from weft.kernel.netlink.conntrack import Conntrack, Place
from weft.types import Address

SHARE = 0.05
"""The part of one CPU that walking the table may take, however often metrics are asked for."""
_MOST_SERVICES = 300
_MOST_CONTAINERS = 100

Gauges = dict[tuple[str, ...], float]


class Connections:
    """Reads the connections of a host whose folder below /run is ``run``, by one table walk.

    ``services`` are those balanced.
    """

    def __init__(self, run: str, services: Callable[[], Iterable[VirtualService]]) -> None:
        self._records = Summaries(run, _addresses)
        self._services = services
        self._conntrack = Conntrack()
        self._next = 0.0
        self.of_networks: Gauges = {}
        """By network."""
        self.of_services: Gauges = {}
        """By service and virtual address; beyond 300 services as "other"."""
        self.of_containers: Gauges = {}
        """By network and address, of the 100 that have the largest part of their limit."""
        self.limits: Gauges = {}
        """The limit of each of these."""

    def read(self) -> None:
        """Read everything, unless that would take too large a part of a CPU. Raises WeftError."""
        started = time.monotonic()
        if started < self._next:
            return
        used = time.thread_time()
        try:
            self._read()
        finally:
            self._next = started + (time.thread_time() - used) / SHARE

    def _read(self) -> None:
        networks = dict(one for each in self._records.read() for one in each)
        places = self._places()
        opened, there = self._conntrack.count_of(networks, places)
        self.of_networks = {(name,): 0.0 for name in networks.values()}
        for address, count in opened.items():
            self.of_networks[networks[address],] += count
        found: Counter[tuple[str, ...]] = Counter()
        for place, labels in places.items():
            found[labels] += there.get(place, 0)
        self.of_services = dict(found)
        bounds = _bounds()
        limited = [one for one in opened if bounds.get(one)]
        nearest = heapq.nlargest(_MOST_CONTAINERS, limited, key=lambda one: opened[one] / bounds[one])
        self.of_containers = {(networks[one], str(one)): opened[one] for one in nearest}
        self.limits = {(networks[one], str(one)): bounds[one] for one in nearest}

    def _places(self) -> dict[Place, tuple[str, str]]:
        """Where the balanced services answer, with their labels."""
        found: dict[Place, tuple[str, str]] = {}
        for number, service in enumerate(self._services()):
            for frontend in (one for group in service.groups for one in group.frontends):
                if frontend.address is not None:
                    labels = service.name, str(frontend.address)
                    place = frontend.address, frontend.protocol, frontend.port
                    found[place] = labels if number < _MOST_SERVICES else ("other", "other")
        return found


def _addresses(record: Record) -> tuple[tuple[Address, str], ...] | None:
    """The addresses of an attachment that has made the interface, with its network; None for what makes none: driver
    ``loopback``, and those on the host, whose addresses are this host's own.
    """
    if not record.driver or modules.declared(record.driver).link_kind is None:
        return None
    return tuple((one.address.ip, record.attachment.network) for one in record.result.ips)


def _bounds() -> dict[Address, int]:
    """How many connections each container may have, by its address: of a link with several addresses each
    has the limit. *Equivalent to:* ``nft list set inet weft connections4``.
    """
    found: dict[Address, int] = {}
    with closing(LinuxKernel(tables=TABLES)) as kernel:
        for name in limits.KEYS["connections"]:
            sample = limits.SAMPLED if name in (limits.CONNECTIONS_SAMPLED4, limits.CONNECTIONS_SAMPLED6) else 1
            with suppress(KernelRefused):  # no table, or an earlier release's
                for element, _ in kernel.rules.exceeded(name):
                    address = element.key[-1]
                    if element.limit and isinstance(address, Address):
                        found[address] = element.limit[0] * sample
    return found


def export(metrics: Metrics, run: str, services: Callable[[], Iterable[VirtualService]]) -> None:
    """Have the metrics read, in a thread, whenever metrics are asked for."""
    connections = Connections(run, services)
    of_networks = metrics.gauge("weft_network_connections", "Connections opened by containers.", "network")
    of_services = metrics.gauge("weft_service_connections", "Connections to virtual addresses.", "service", "address")
    nearest = "of the 100 containers nearest to their limit"
    of_containers = metrics.gauge("weft_container_connections", f"Connections opened, {nearest}.", "network", "address")
    bounds = metrics.gauge("weft_container_connection_limit", f"The limit {nearest}.", "network", "address")

    async def read() -> None:
        with suppress(WeftError):  # then as they were read last
            await asyncio.to_thread(connections.read)
        of_networks.replace(connections.of_networks)
        of_services.replace(connections.of_services)
        of_containers.replace(connections.of_containers)
        bounds.replace(connections.limits)

    metrics.read_before(read)
