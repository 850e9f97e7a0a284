"""Probes each peer of overlay networks with a packet of full size, through the network itself.

Where only smaller ones arrive, the largest that does becomes the ``mtu`` of the peer's routes.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.blocks import Blocks
from cluster.host_files import inner_mtu
from cluster.records import Network
from cni_plugin.agent.echo import Echo
from cni_plugin.agent.overlays import Overlays
from weft import overlay
from weft.types import Address

log = logging.getLogger(__name__)

PERIOD = 30.0
"""Seconds between two probes of all peers, a fifth more or less."""
_TIMEOUT = 1.0
_TRIES = 3
_AT_ONCE = 16
_LEAST = {4: 576, 6: 1280}
"""Bytes that every path carries."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found: ``mtu`` is the largest packet that arrived, ``full`` what the network has, both in
    bytes; ``round_trip`` in seconds; ``at`` in seconds since 1970.
    """

    node: str
    network: str
    address: Address
    reachable: bool
    mtu: int
    full: int
    round_trip: float
    at: float


@dataclass(frozen=True, slots=True)
class _Target:
    node: str
    network: str
    address: Address
    full: int


class Prober:
    """A part of the agent."""

    def __init__(self, overlays: Overlays, echo: Echo) -> None:
        self.found: dict[str, Probe] = {}
        """By the peer's node name."""
        self._overlays = overlays
        self._echo = echo
        self._task: asyncio.Task[None] | None = None
        self._probing = asyncio.Lock()

    async def start(self) -> None:
        self._echo.start()
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._echo.stop()

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(PERIOD * random.uniform(0.8, 1.2))
            await self.probe()

    async def probe(self) -> None:
        """Probe all peers now, after a probe that is under way: what was found last counts."""
        async with self._probing:
            await self._probe_all()

    async def _probe_all(self) -> None:
        targets = {one.node: one for one in self._targets()}
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(target: _Target) -> None:
            async with limit:
                await self._probe(target)

        await asyncio.gather(*map(one, targets.values()))
        for node in self.found.keys() - targets.keys():
            del self.found[node]
            self._overlays.probed(node, 0)

    def _targets(self) -> Iterator[_Target]:
        """The own address of each peer in a network that both have."""
        overlays = self._overlays
        for network in overlays.view.networks().values():
            if network.name not in overlays.look.joined or overlays.look.host is None:
                continue
            version = 4 if any(one.version == 4 for one in network.subnets) else 6
            if not self._echo.can(version):
                continue
            members, blocks = overlays.view.members(network.name), overlays.view.blocks(network)
            full = inner_mtu(network, overlays.look.host, overlays.view.sharing(network))
            for node, own in own_addresses(network, blocks, version).items():
                if node != overlays.node and node in members and not members[node].problem:
                    yield _Target(node, network.name, own, full)

    async def _probe(self, target: _Target) -> None:
        version = target.address.version
        small = await self._round_trip(target, 84)
        mtu, trip = 0, small or 0.0
        if small is not None:
            mtu = target.full if await self._round_trip(target, target.full) is not None else 0
            if not mtu:
                mtu = await self._largest(target, min(_LEAST[version], target.full), target.full)
        before = self.found.get(target.node)
        now = Probe(target.node, target.network, target.address, small is not None, mtu, target.full, trip, time.time())
        self.found[target.node] = now
        if before is None or (before.reachable, before.mtu) != (now.reachable, now.mtu):
            _report(now, before)
        if now.reachable:  # of a peer that is down nothing is known
            self._overlays.probed(target.node, mtu if mtu < target.full else 0)

    async def _largest(self, target: _Target, low: int, high: int) -> int:
        """The largest size from ``low`` on and below ``high`` that arrives."""
        while high - low > 1:
            middle = (low + high) // 2
            if await self._round_trip(target, middle) is not None:
                low = middle
            else:
                high = middle
        return low

    async def _round_trip(self, target: _Target, size: int) -> float | None:
        """The least of what is asked for until one reply comes."""
        for _ in range(_TRIES):
            found = await self._echo.ask(target.address, size, _TIMEOUT)
            if found is not None:
                return found
        return None


def _report(now: Probe, before: Probe | None) -> None:
    if not now.reachable:
        log.warning("host %s does not answer on network %s at %s", now.node, now.network, now.address)
    elif now.mtu < now.full:
        log.warning(
            "packets of %d bytes do not reach host %s on network %s, those of %d bytes do",
            now.full,
            now.node,
            now.network,
            now.mtu,
        )
    elif before is not None:
        log.info("host %s is reached by packets of full size again", now.node)


def own_addresses(network: Network, blocks: Blocks, version: int) -> dict[str, Address]:
    """Each host's own address of an IP version, as its own file says it (``overlay.OverlayNetwork.own``)."""
    four = next((one for one in network.subnets if one.version == 4), None)
    gateway = network.gateway or (four[1] if four is not None else None)
    own = ((node, overlay.first_addresses(parts, gateway).get(version)) for node, parts in blocks.owners().items())
    return {node: address for node, address in own if address is not None}
