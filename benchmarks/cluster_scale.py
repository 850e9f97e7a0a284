"""A cluster of many hosts, simulated: what one overlay network costs its store and each host, by their number.

What decides is the real code: records and their encoding, the view of the store, the claiming of blocks,
the files, and the rows of the kernel with their messages. Below it are fakes: the store is a dictionary
with revisions, and the kernel counts. Every host claims its block by that code at 1,000 hosts; beyond,
a sample of them does, and the others claim by the same rule (a random start, then the first free block).
Time is the processor time of this code on this machine, and two figures that are given: what one write and one
delivery to a watcher cost the store.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

from cluster import records
from cluster.blocks import Change, Usage, decide
from cluster.host_files import Host, network_file, own_blocks, peers_file, text, vtep
from cluster.records import Block, Member, Network
from cluster.view import View
from cni_plugin.ops.overlay_rows import changes, desired
from store import Batch, Entry, Range
from store.interface import Event
from weft import overlay
from weft.kernel.netlink import packed_rows
from weft.kernel.values import Row

Found = TypeVar("Found")
SAMPLE, BEHIND = 200, 4
"""Hosts that claim by all of the real code, and how many writes a host's view is behind when it claims."""
PER_RELAY = 500


@dataclass(slots=True)
class Messages:
    """Requests and bytes that the store took, and what it would send to watchers."""

    writes: int = 0
    refused: int = 0
    written: int = 0


class Fake:
    """The store: keys with revisions, and one history that all watchers get."""

    def __init__(self) -> None:
        self.revision = 1
        self.entries: dict[str, Entry] = {}
        self.history: list[Event] = []
        self.messages = Messages()

    def put(self, key: str, value: bytes, *, new: bool = False) -> bool:
        """Put a key; with ``new`` only where there is none. Whether it was put."""
        there = self.entries.get(key)
        self.messages.writes += 1
        self.messages.written += len(key) + len(value)
        if new and there is not None:
            self.messages.refused += 1
            return False
        self.revision += 1
        created = there.create_revision if there is not None else self.revision
        entry = Entry(key, value, created, self.revision, there.version + 1 if there is not None else 1)
        self.entries[key] = entry
        self.history.append(Event(key, entry, there, self.revision))
        return True

    def all(self) -> Range:
        return Range(tuple(self.entries[key] for key in sorted(self.entries)), self.revision)


class Cluster:
    """Hosts of one network, which has twice as many blocks as hosts."""

    def __init__(self, count: int) -> None:
        self.count = count
        length = 30 - max(count * 2 - 1, 1).bit_length()
        self.network = Network("blue", "0", 1 << 20, (ip_network(f"10.0.0.0/{length}"),), (30,), revision=2)
        self.store = Fake()
        self.random = random.Random(count)
        self.store.put(self.network.key, records.encode(self.network))
        self.store.put(records.vni_key(self.network.vni), b"blue")
        self.view = View()  # of the hosts that are sampled: each would have the same
        self.view.load(self.store.all())
        self._read = len(self.store.history)
        self.claims: list[float] = []

    def host(self, number: int) -> Host:
        return Host(f"host-{number:05}", ip_address((172 << 24 | 16 << 16) + number + 1), 1500)

    def join(self, number: int, *, sampled: bool) -> None:
        """A host's records: how it takes part, and its block."""
        host = self.host(number)
        member = Member(host.node, "blue", str(host.underlay), vtep(self.network, host.node), host.mtu)
        self.store.put(records.member_key(host.node, "blue"), records.encode(member))
        while not (self._claim_really(host) if sampled else self._claim(host)):
            pass

    def follow(self, behind: int = 0) -> float:
        """Apply the history to the view, but for its last events; seconds of processor time."""
        end = len(self.store.history) - behind
        started = time.process_time()
        for event in self.store.history[self._read : end]:
            self.view.apply(Batch(event.revision, (event,)))
        self._read = max(self._read, end)
        return time.process_time() - started

    def _claim_really(self, host: Host) -> bool:
        self.follow(BEHIND)
        started = time.process_time()
        start = self.random.randrange(1 << 24)
        [step] = decide(self.view.blocks(self.network), host.node, Usage(), {}, start)
        self.claims.append(time.process_time() - started)
        assert isinstance(step, Change) and step.new is not None
        key = records.block_key("blue", step.subnet)
        if self.store.put(key, records.encode(step.new), new=True):
            return True
        self.follow()
        return False

    def _claim(self, host: Host) -> bool:
        """The same rule, on the store's keys: the last writes are not seen yet."""
        subnet, length = self.network.subnets[0], self.network.length(4)
        count = 1 << (length - subnet.prefixlen)
        unseen = {event.key for event in self.store.history[-BEHIND:]}
        start = self.random.randrange(count)
        for step in range(count):
            block = ip_network((int(subnet.network_address) + (start + step) % count * 4, length))
            key = records.block_key("blue", block)
            if key not in self.store.entries or key in unseen:
                return self.store.put(key, records.encode(Block(block, host.node)), new=True)
        raise AssertionError("there are blocks for all")


def timed(work: Callable[[], Found]) -> tuple[Found, float]:
    gc.collect()
    started = time.process_time()
    found = work()
    return found, time.process_time() - started


def one_host(cluster: Cluster, folder: Path) -> dict[str, float]:
    """What one host does after its start, and after each change of the store."""
    listed = cluster.store.all()
    size = sum(len(one.key) + len(one.value) + 16 for one in listed.entries)
    view = View()
    _, load = timed(lambda: view.load(listed))
    host, network = cluster.host(0), cluster.network
    path = folder / "blue.json"

    def files() -> None:
        blocks = view.blocks(network)
        own = own_blocks(blocks, host.node, (), ())
        path.write_bytes(text(network_file(network, host, own, (), 1450, {})))
        peers, _ = peers_file(network, host, blocks, view.members("blue"), {}, {})
        (folder / "blue.peers.json").write_bytes(text(peers))

    _, write = timed(files)

    def rows() -> tuple[int, int]:
        found = overlay.read_network(str(path), "blue")
        peers = overlay.read_peers(found, str(path))
        added = changes(desired(found, peers, "br", "vx", ()), {}).added
        packed = [packed_rows.pack(row, 7) for row in added if isinstance(row, Row)]
        return len(added), sum(len(one[1]) + 16 for one in packed if one is not None)

    (count, messages), kernel = timed(rows)
    return {
        "list, bytes": size,
        "list, CPU s": load,
        "files, bytes": (folder / "blue.peers.json").stat().st_size,
        "files, CPU s": write,
        "kernel, messages": count,
        "kernel, bytes": messages,
        "rows without the kernel, CPU s": kernel,
        "a pass, CPU s": write + kernel,
    }


def simulate(count: int, write: float, delivery: float, churn: float) -> dict[str, Any]:
    cluster = Cluster(count)
    every = max(count // SAMPLE, 1) if count > 1000 else 1
    starts = []
    for number in range(count):
        starts.append(len(cluster.store.history))
        cluster.join(number, sampled=number % every == 0)
    deliveries = sum(len(cluster.store.history) - start for start in starts)
    messages = replace(cluster.store.messages)
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {"hosts": count, **one_host(cluster, Path(folder))}
    # One more host joins a cluster that is complete.
    cluster.follow()
    before = len(cluster.store.history)
    cluster.join(count, sampled=True)
    events = cluster.store.history[before:]
    per_event = statistics.mean(len(one.key) + len(one.entry.value) + 40 for one in events if one.entry is not None)
    applied = cluster.follow() / len(events)
    relays = -(-count // PER_RELAY)
    per_second = churn / 3600 * count * len(events) * 2  # a host that goes and one that comes
    found |= {
        "a claim, CPU s": statistics.mean(cluster.claims),
        "claims that others were first at": messages.refused,
        "writes to start all": messages.writes,
        "starting all: writes, s": messages.writes * write,
        "starting all: deliveries": deliveries,
        "starting all: deliveries, s": deliveries * delivery,
        "starting all, with relays: deliveries, s": deliveries / count * relays * delivery,
        "restarting all: lists, GB": found["list, bytes"] * count / 1e9,
        "restarting all, with relays: lists, GB": found["list, bytes"] * relays / 1e9,
        "a join: events": len(events),
        "a join: bytes to all": per_event * len(events) * count,
        "a join: store, s": len(events) * (write + count * delivery),
        "a join: store with relays, s": len(events) * (write + relays * delivery + PER_RELAY * delivery),
        "an event applied, CPU s": applied,
        "a join: seen by all, s": len(events) * (write + count * delivery) + found["a pass, CPU s"],
        "churn: deliveries per s": per_second * count,
        "churn: store, share of a processor": per_second * count * delivery,
        "churn: store with relays, share": per_second * relays * delivery,
        "churn: passes of a host, share of a processor": min(per_second / 2, 50) * found["a pass, CPU s"],
    }
    return found


def main() -> None:
    about = "an overlay network of many hosts, simulated"
    parser = argparse.ArgumentParser(prog="benchmarks/cluster", description=about)
    parser.add_argument("--hosts", default="1000,5000,20000,50000")
    parser.add_argument("--write", type=float, default=0.0016, help="seconds of the store for a write")
    parser.add_argument("--delivery", type=float, default=0.0001, help="seconds of the store for an event to a watcher")
    parser.add_argument("--churn", type=float, default=0.01, help="the share of hosts that is replaced in an hour")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    results = []
    for count in map(int, given.hosts.split(",")):
        results.append(simulate(count, given.write, given.delivery, given.churn))
        print(json.dumps(results[-1], indent=1), flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(results))
