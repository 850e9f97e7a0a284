"""The agent's part for overlay networks: follows the store, claims blocks, and makes this host as both say.

What should be and what is are compared as a whole on each pass: after changes of the store, when
containers come and go, and every few minutes. Without a store the last known state is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cluster import records, tunnels
from cluster.blocks import Blocks
from cluster.host_files import Host, inner_mtu, network_file, peers_file, vtep
from cluster.records import Member, Network
from cluster.view import View
from cni_plugin.agent.claim_hold import Hold
from cni_plugin.agent.overlay_blocks import OwnBlocks
from cni_plugin.agent.overlay_host import Look, OverlayHost, Stamp
from cni_plugin.agent.overlay_recovery import Recovery
from discovery.metrics import Metrics
from store import Batch, Compacted, Compare, Delete, Put, Store, StoreError
from weft import files
from weft.errors import WeftError
from weft.overlay_modes import L2, PORTS, encoded
from weft.types import Address, Subnet

log = logging.getLogger(__name__)

PERIOD = 300.0
"""Seconds between two passes without a cause, a fifth more or less."""
_SETTLE = 0.02
"""Seconds between two passes at least: the first of several changes is acted on at once, the others together."""
_FULL = 65535
_NAMES, _BLOCKS = f"{records.ROOT}name/", f"{records.ROOT}block/"
_RETRY = 1.0
Found = TypeVar("Found")


class Overlays:
    """A part of the agent. ``folder`` keeps what was last known of the store; ``clustered``: that is a cluster's, of
    which a host that is alone must not go on to know anything.
    """

    def __init__(
        self, node: str, store: Store, host: OverlayHost, folder: str, metrics: Metrics, *, clustered: bool = True
    ) -> None:
        self.node = node
        self.view = View()
        self.look = Look(None)
        self.problems: dict[str, str] = {}
        """Why this host does not take part in a network, or what is wrong with it, by its name."""
        self.left_out: dict[str, dict[str, str]] = {}
        """Hosts that are no peers, since their records do not fit; with the reason, by network."""
        self.mtus: dict[str, int] = {}
        """The largest inner packet that reached a peer, in bytes, by its node name; as probed."""
        self.store_problem = ""
        self._store = store
        self._host = host
        self._clustered = clustered
        self._path = os.path.join(folder, "networks.json")
        self.on_names: Callable[[], None] = lambda: None
        """Called when names of containers on other hosts have changed."""
        self._thread = ThreadPoolExecutor(1, "overlay")
        self._wake = asyncio.Event()
        self._passed = asyncio.Condition()
        self._passes = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._full = True
        self._stamp = Stamp()
        self._known = False  # whether the store or the file has been read
        self._saved = 0
        self._own = OwnBlocks(node, store, self.view, self._wake.set)
        self._hold = Hold(folder)
        self._recovery = Recovery(node, store, self.view, self._hold)
        metrics.counter("weft_overlay_passes_total", "Comparisons of overlay networks.", read=lambda: self._passes)

    @property
    def count(self) -> int:
        """How many networks the cluster has: the agent is needed as long as there are any."""
        return len(self.view.networks().keys() | self.view.unread().keys())

    async def start(self) -> None:
        """Apply what was last known, then follow the store."""
        await asyncio.to_thread(self._hold.read)
        self._known = self._clustered and await asyncio.to_thread(self.view.restore, self._path)
        self._wake.set()
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._work())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def probed(self, node: str, mtu: int) -> None:
        """What a probe of a peer found: the largest packet that reached it, in bytes; 0: those of full size."""
        if not mtu and node not in self.mtus:
            return
        # Linux keeps the metrics of a route with a nexthop where a replacement has none: full size is said, too.
        mtu = mtu or _FULL
        if self.mtus.get(node) != mtu:
            self.mtus[node] = mtu
            self._wake.set()

    def mtu_of(self, node: str) -> int:
        """The MTU of a peer's routes in bytes where it is smaller than the network's, else 0."""
        found = self.mtus.get(node, 0)
        return found if found != _FULL else 0

    async def look_again(self) -> None:
        """Make a pass if something has changed on this host."""
        if not self.view.networks() and not self.look.joined:
            return
        stamp = await self._run(self._host.stamp)
        if stamp != self._stamp:
            self._full = self._full or stamp.host != self._stamp.host
            self._stamp = stamp
            self._wake.set()

    async def passed(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait for what a pass brings about; whether it came in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._passed:
                await self._passed.wait_for(ready)
                return True
        return False

    async def validate(self, network: Network) -> None:
        """Raises ConfigProblem where containers could not be attached to such a network."""
        await self._run(self._host.validate, network)

    # The store

    async def _follow(self) -> None:
        while True:
            try:
                found = await self._store.range(records.ROOT)
                before = frozenset(self.view.networks())
                self.view.load(found, self.node)
                self._known, self.store_problem = True, ""
                self._recovery.note_read(before)
                await self._recovery.tell()
                self.on_names()
                if self.view.networks():  # what has changed since the last watch may be this host's blocks
                    await self._save_now()
                self._wake.set()
                async for batch in self._store.watch(records.ROOT, found.revision):
                    is_own = self._is_own(batch)
                    self.view.apply(batch)
                    if is_own:
                        await self._save_now()
                    if all(event.key.startswith(_NAMES) for event in batch.events):
                        self.on_names()
                    else:
                        self._wake.set()
            except Compacted:
                log.info("the list of networks is read again: its history is compacted")
            except StoreError as error:
                if not self.store_problem:
                    log.warning("the cluster's networks are not followed, retrying: %s", error)
                self.store_problem = error.message
            await asyncio.sleep(_RETRY)

    # Passes

    async def _work(self) -> None:
        passed = 0.0
        while True:
            try:
                async with asyncio.timeout(PERIOD * random.uniform(0.8, 1.2)):
                    await self._wake.wait()
            except TimeoutError:
                self._full = True
            await asyncio.sleep(passed + _SETTLE - time.monotonic())
            self._wake.clear()
            try:
                await self._pass()
                self.problems.pop("", None)
            except WeftError as error:
                if self.problems.get("") != str(error):
                    log.error("overlay networks are not compared: %s", error)
                self.problems[""] = str(error)
            except OSError as error:
                self.problems[""] = str(error)
            self._passes, passed = self._passes + 1, time.monotonic()
            async with self._passed:
                self._passed.notify_all()

    async def _pass(self) -> None:
        if not self._known:
            return
        networks = self.view.networks()
        if not networks and not self.look.joined and not await self._run(self._host.folders.joined):
            return  # nothing is loaded, and no kernel opened, on a host without overlay networks
        full, self._full = self._full, False
        self.look = look = await self._run(self._host.look, list(networks.values()), self._generations())
        for network in networks.values():
            await self._guarded(network.name, self._network(network, look, full))
        # An invalid record is no removal.
        for name in sorted(look.joined - networks.keys() - self.view.unread().keys()):
            await self._guarded(name, self._leave(name))
        for name in self.problems.keys() - networks.keys() - look.joined - {""}:
            del self.problems[name]
        for name in self.left_out.keys() - networks.keys():
            del self.left_out[name]
        with contextlib.suppress(StoreError):
            if await self._recovery.reassert():
                self._wake.set()
            await self._recovery.free_removed()
        await self._save()

    async def _save_now(self) -> None:
        """Save before the next pass: it may wait for the store, which may be restored from a snapshot meanwhile."""
        with contextlib.suppress(WeftError):  # the pass says so
            await self._save()

    async def _save(self) -> None:
        """Keep what is known of the store. Raises StateDamaged."""
        version = self.view.version
        if version != self._saved:
            await self._run(files.make_directory, os.path.dirname(self._path), "the files of overlay networks")
            await self._run(self.view.save, self._path)
            self._saved = version

    def _is_own(self, batch: Batch) -> bool:
        """Whether a block is changed that this host has of, or had."""
        name = json.dumps(self.node).encode()
        events = (one for one in batch.events if one.key.startswith(_BLOCKS))
        return any(name in one.value for each in events for one in (each.entry, self.view.entry(each.key)) if one)

    def _generations(self) -> dict[str, tuple[int, ...]]:
        """The generations of this host's keys of each encrypted network."""
        encrypted = (one for one in self.view.networks().values() if tunnels.wanted(one))
        return {one.name: tunnels.generations(one, self.node, self.view.sharing(one)).own for one in encrypted}

    def _keys(self, network: Network, look: Look) -> dict[str, object]:
        """What this host says of its keys; nothing of a network without encryption."""
        if not tunnels.wanted(network):
            return {}
        found = tunnels.generations(network, self.node, self.view.sharing(network))
        return tunnels.published(found, look.keys.get(network.name, {}))

    async def _guarded(self, name: str, work: Awaitable[str]) -> None:
        """Do one network's part; an error is its problem and no other's."""
        try:
            problem = await work
        except StoreError as error:
            self.store_problem = error.message
            return
        except WeftError as error:
            problem = str(error)
        if problem and self.problems.get(name) != problem:
            log.error("network %s: %s", name, problem)
        self.problems[name] = problem
        if not problem:
            del self.problems[name]

    async def _network(self, network: Network, look: Look, full: bool) -> str:
        """Make this host's part of one network as it should be; why it does not take part, "" if it does."""
        problem = look.conflicts.get(network.name, "")
        if look.host is None:
            problem = problem or "this host has no address for VXLAN packets: set [agent] address in weft.toml"
        blocks = self.view.blocks(network)
        if not problem:
            problem = await self._join(network, blocks, look, full or network.name in self.problems)
        member = self._member(network, look, problem)
        await self._publish(network, member)

        async def withhold(own: tuple[Subnet, ...]) -> frozenset[Address]:
            self._full = True  # the next pass finds the file as it should be, and the kernel not
            return await self._run(self._host.withhold, network.name, self._files(network, blocks, look, own)[0])

        for claim, refused in self._own.answers(network, blocks, look, problem or self.store_problem):
            await self._run(self._host.answer, claim, refused)
        start = random.randrange(1 << 24)
        may_claim = self._recovery.may_claim(network.name)
        await self._own.change(network, blocks, look, start, withhold, joined=not problem, may_claim=may_claim)
        return problem

    async def _join(self, network: Network, blocks: Blocks, look: Look, full: bool) -> str:
        own = self._own.of(network, blocks, look)
        missing = {one.version for one in network.subnets} - {one.version for one in own}
        if missing:
            return ""  # the claim is on its way
        files = self._files(network, blocks, look, own)
        try:
            for sentence in await self._run(self._host.join, network, *files, full):
                log.info("network %s: %s", network.name, sentence)
        except WeftError as error:
            return str(error)
        return ""

    def _files(
        self, network: Network, blocks: Blocks, look: Look, own: tuple[Subnet, ...]
    ) -> tuple[dict[str, object], dict[str, object]]:
        assert look.host is not None
        members = self.view.members(network.name)
        mtu = inner_mtu(network, look.host, self.view.sharing(network))
        kept = blocks.of(self.node)
        fenced = tuple(one for one in own if not any(one.version == k.version and one.overlaps(k) for k in kept))
        mtus = {node: min(found, mtu) for node, found in self.mtus.items()}
        keys = self._keys(network, look)
        peers, left_out = peers_file(network, look.host, blocks, members, mtus, keys)
        self._note_left_out(network.name, self.view.undecoded(network.name) | left_out)
        return network_file(network, look.host, own, fenced, mtu, keys), peers

    def _note_left_out(self, network: str, found: dict[str, str]) -> None:
        before, self.left_out[network] = self.left_out.get(network, {}), found
        for node, problem in found.items():
            if before.get(node) != problem:
                log.error("network %s: host %s is left out: its record %s", network, node, problem)

    def _member(self, network: Network, look: Look, problem: str) -> Member:
        host = look.host or Host(self.node, network.subnets[0][0], 0)
        attached = bool(look.attached.get(network.name))
        underlay = str(look.host.underlay) if look.host is not None else ""
        mac, keys = vtep(network, self.node), self._keys(network, look)
        if network.mode == L2:
            keys = {**keys, PORTS: encoded(look.ports.get(network.name, ()))}
        return Member(self.node, network.name, underlay, mac, host.mtu, attached, problem, keys)

    async def _publish(self, network: Network, member: Member) -> None:
        """Write how this host takes part, where that has changed."""
        key, there = (
            records.member_key(self.node, network.name),
            self.view.entry(records.member_key(self.node, network.name)),
        )
        value = records.encode(member)
        if there is not None and there.value == value:
            return
        await self._store.transact([Compare(network.key, "mod", network.revision)], [Put(key, value)])

    async def _leave(self, name: str) -> str:
        if self.view.doubted and name not in self.view.removed:
            return ""
        problem = await self._run(self._host.leave, name)
        if not problem:
            key = records.member_key(self.node, name)
            if self.view.entry(key) is not None:
                network = records.network_key(name)
                await self._store.transact([Compare(network, "create", 0)], [Delete(key)])
            log.info("network %s was removed", name)
        return problem

    async def _run(self, work: Callable[..., Found], *arguments: object) -> Found:
        """Call what blocks, one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
