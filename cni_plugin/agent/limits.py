"""A metric of the packets that exceeded a container's limit, read from nftables when metrics are asked for."""

from __future__ import annotations

import asyncio
from contextlib import closing

from cni_plugin.dataplane import limits
from cni_plugin.dataplane.tables import TABLES
from discovery.metrics import Metrics
from weft.errors import KernelRefused
from weft.kernel.linux.kernel import LinuxKernel

Exceeded = dict[tuple[str, ...], float]
"""Packets by limit, link and address of the container."""


def exceeded() -> Exceeded:
    """The counters of all limits that have been exceeded; each set is listed once."""
    found: Exceeded = {}
    with closing(LinuxKernel(tables=TABLES)) as kernel:
        for name, keys in limits.KEYS.items():
            for collection in keys:
                try:
                    entries = kernel.rules.exceeded(collection)
                except KernelRefused:  # no table, or an earlier release's
                    continue
                for element, packets in entries:
                    if packets:
                        key = (name, *map(str, element.key))
                        found[key] = found.get(key, 0) + packets
    return found


def export(metrics: Metrics) -> None:
    """Have the metric read, in a thread, whenever metrics are asked for."""
    counter = metrics.counter(
        "weft_limit_exceeded_packets_total",
        "Packets dropped because a container exceeded a limit.",
        "limit",
        "link",
        "address",
    )

    async def read() -> None:
        counter.replace(await asyncio.to_thread(exceeded))

    metrics.read_before(read)
